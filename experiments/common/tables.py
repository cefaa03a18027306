"""Tables in Markdown: what most scripts print."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a newline at its end; cells may hold `|`.

    >>> print(markdown_table(["update", "|g|"], [["maml", "0.1"]]))
    | update | \\|g\\| |
    | --- | --- |
    | maml | 0.1 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def with_interval(
    mean: float, interval: Sequence[float] | None, spec: str = ".1f", ends: str = ".1f", unit: float = 1
) -> str:
    """A mean and its interval, where it is known; `unit` is what both are counted in.

    >>> with_interval(-12.42, (-14.31, -10.5))
    '-12.4 [-14.3, -10.5]'
    >>> with_interval(0.5, None, unit=0.01)
    '50.0'
    """
    text = format(mean / unit, spec)
    return text if interval is None else f"{text} [{', '.join(format(end / unit, ends) for end in interval)}]"
