"""Tables of results given by their columns: each has a head and makes the text of a row's cell."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from metarl.experiments.common.tables import markdown_table

Columns: TypeAlias = Mapping[str, Callable[[dict[str, Any]], str]]


def table(columns: Columns, rows: Iterable[dict[str, Any]]) -> str:
    """A line for each row.

    Example:
        >>> print(table({"update": text("name"), "bias": number("bias", ".2f")}, [{"name": "maml", "bias": 0.1}]))
        | update | bias |
        | --- | --- |
        | maml | 0.10 |
    """
    return markdown_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def text(key: str) -> Callable[[dict[str, Any]], str]:
    """The row's entry as it is, empty if it is missing."""
    return lambda row: str(row.get(key, ""))


def number(key: str, spec: str, unit: float = 1) -> Callable[[dict[str, Any]], str]:
    """The row's entry in multiples of `unit`, empty if it is missing or `None`."""
    return lambda row: "" if row.get(key) is None else format(row[key] / unit, spec)
