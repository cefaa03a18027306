"""Tasks from a file: a CSV table with a row for each task, whose columns are the parameters."""

import csv
import math
from pathlib import Path

import gymnasium
import numpy as np

from metarl.task_params import check_tasks, column_names, join_columns
from metarl.types import TaskParams


def read_task_file(path: Path, space: gymnasium.spaces.Dict) -> TaskParams:
    """The tasks in a file, arrays `[T, ...]` of the space's types.

    Args:
        path: a CSV table whose columns are the numbers of the parameters, such as `goal[0],goal[1]`, in any order.
        space: the space of one task's parameters; values may be outside it.

    Raises:
        ValueError: naming the line and the column that is wrong.
        OSError: when the file cannot be read.
    """
    types = {column: entry.dtype for name, entry in space.items() for column in column_names(name, entry.shape or ())}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    head = [name.strip() for name in rows[0]] if rows else []
    if sorted(head) != sorted(types):
        raise ValueError(f"{path}, line 1: the columns must be {','.join(types)}, got {','.join(head)}")
    numbers = [_read_row(path, line, head, row, types) for line, row in enumerate(rows[1:], start=2) if row]
    if not numbers:
        raise ValueError(f"{path} must have a line for each task after the names of the columns, got none")
    columns = dict(zip(head, zip(*numbers, strict=True), strict=True))
    wholes = {name: kind for name, kind in types.items() if np.dtype(kind).kind in "iu"}
    tasks = join_columns({name: np.array(columns[name], wholes.get(name, np.float64)) for name in types})
    return check_tasks(space, tasks)


def _read_row(
    path: Path, line: int, head: list[str], row: list[str], types: dict[str, np.dtype[np.generic] | None]
) -> list[float]:
    if len(row) != len(head):
        raise ValueError(f"{path}, line {line}: there must be {len(head)} values, got {len(row)}")
    numbers = []
    for name, text in zip(head, row, strict=True):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        whole = np.dtype(types[name]).kind in "iu"
        if not math.isfinite(number) or (whole and not number.is_integer()):
            wanted = "a whole number" if whole else "a finite number"
            raise ValueError(f"{path}, line {line}, column {name!r}: must be {wanted}, got {text!r}")
        numbers.append(number)
    return numbers
