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
