"""Tables in Markdown, which all scripts print."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, align: bool = False) -> str:
    """A Markdown table, without a newline at its end; cells may hold `|`. `align` pads the cells, for a terminal.

    Example:
        >>> print(markdown_table(["update", "|g|"], [["maml", "0.1"]]))
        | update | \\|g\\| |
        | --- | --- |
        | maml | 0.1 |
        >>> print(markdown_table(["steps", "return"], [["0", "-12.3"]], align=True))
        | steps | return |
        | ----- | ------ |
        |     0 |  -12.3 |
    """
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(3, *map(len, column)) if align else 0 for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width or 3) for width in widths])
    cells = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def with_interval(mean: float, interval: Sequence[float] | None, digits: int = 1, unit: float = 1) -> str:
    """A mean and its interval, if it is known, both in multiples of `unit`.

    Example:
        >>> with_interval(-12.42, (-14.31, -10.5))
        '-12.4 [-14.3, -10.5]'
        >>> with_interval(0.5, None, unit=0.01)
        '50.0'
    """
    text = f"{mean / unit:.{digits}f}"
    return text if interval is None else f"{text} [{', '.join(f'{end / unit:.{digits}f}' for end in interval)}]"
