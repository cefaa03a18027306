"""An adaptation curve: scores of seeds and tasks after 0, 1, 2, ... inner steps, in memory, as JSON and as CSV."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from metarl.errors import check_type
from metarl.files import write_atomically, write_json
from metarl.statistics import Estimate, Interval, confidence_interval, crossed_bootstrap
from metarl.task_params import join_columns, split_columns
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array: TypeAlias = npt.NDArray[np.float64]
INDICES = ["seed", "task", "step"]


@dataclass(frozen=True, eq=False)
class AdaptationCurve:
    """The scores of every seed and task after 0, 1, 2, ... inner steps.

    Args:
        scores: `[seeds, tasks, steps + 1]`; one evaluation has one seed.
        score_name: what a score is: `return`, `accuracy`, `minus_loss`.
        tasks: the parameters of the tasks, arrays `[tasks, ...]`; empty where they have none.
        success: the share of episodes that succeeded, shaped like `scores`, where the environment reports it: an
            episode succeeds if `info["success"]` is true after any of its steps. Else `None`.
        costs: of adaptation up to each step, all tasks together, `[seeds, steps + 1]` in each unit: `env_steps`,
            `samples` (trajectories or data points), `gradients`. The episodes that measure the scores do not count.
        step_sizes: the inner step size of each step; `None` for a step whose size was learned or is not known.

    Raises:
        ValueError: when the shapes do not fit each other.

    Example:
        >>> curve = AdaptationCurve(np.array([[[-3.0, -1.0], [-5.0, -2.0]]]), "return")
        >>> curve.mean
        [-4.0, -1.5]
    """

    scores: Array
    score_name: str = "score"
    tasks: TaskParams = field(default_factory=dict)
    success: Array | None = None
    costs: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    step_sizes: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        shape = np.shape(self.scores)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"scores must be [seeds, tasks, steps + 1], got shape {shape}")
        seeds, tasks, points = shape
        if self.success is not None and np.shape(self.success) != shape:
            raise ValueError(f"success must have the shape of scores, {shape}, got {np.shape(self.success)}")
        for name, values in self.tasks.items():
            if len(values) != tasks:
                raise ValueError(f"tasks[{name!r}] must have {tasks} rows, one for each task, got {len(values)}")
        for unit, spent in self.costs.items():
            if np.shape(spent) != (seeds, points):
                raise ValueError(f"costs[{unit!r}] must have shape {(seeds, points)}, got {np.shape(spent)}")
        if len(self.step_sizes) not in (0, points - 1):
            raise ValueError(f"step_sizes must be {points - 1}, one for each step, got {len(self.step_sizes)}")

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return int(self.scores.shape[1])

    @property
    def steps(self) -> int:
        """The number of inner steps."""
        return int(self.scores.shape[2]) - 1

    @property
    def env_steps(self) -> npt.NDArray[np.int64] | None:
        """Environment steps of adaptation, `[seeds, steps + 1]`, all tasks together; `None` without environments."""
        return self.costs.get("env_steps")

    @property
    def mean(self) -> list[float]:
        """The mean over seeds and tasks after each step."""
        return [float(mean) for mean in self.scores.mean((0, 1))]

    @property
    def ci95(self) -> list[Interval | None]:
        """A 95 % interval of each mean over tasks, and over seeds if there are several; `None` for a single task."""
        return [confidence_interval(table) for table in np.moveaxis(self.scores, 2, 0)]

    @property
    def iqm(self) -> list[Estimate]:
        """The interquartile mean after each step with its 95 % interval (`metarl.statistics.crossed_bootstrap`)."""
        return [crossed_bootstrap(table) for table in np.moveaxis(self.scores, 2, 0)]

    @classmethod
    def join(cls, curves: Sequence["AdaptationCurve"]) -> "AdaptationCurve":
        """The curve of all seeds of `curves`, which must have the same tasks, steps, score and units of cost.

        Tasks are compared by their parameters. Where they have none, you must know that the tasks are the same.

        Raises:
            ValueError: otherwise.
        """
        if not curves:
            raise ValueError("curves must be at least one curve, got none")
        first = curves[0]
        for other in curves[1:]:
            for name in ("score_name", "num_tasks", "steps", "step_sizes"):
                if getattr(other, name) != getattr(first, name):
                    found = f"{getattr(first, name)} and {getattr(other, name)}"
                    raise ValueError(f"curves must have the same {name}, got {found}")
            same = first.tasks.keys() == other.tasks.keys()
            if not same or any(not np.array_equal(first.tasks[name], other.tasks[name]) for name in first.tasks):
                raise ValueError("curves must have the same tasks, got tasks with other parameters")
            if first.costs.keys() != other.costs.keys():
                raise ValueError(
                    f"curves must have the same costs, got {sorted(first.costs)} and {sorted(other.costs)}"
                )
        successes = [curve.success for curve in curves if curve.success is not None]
        return cls(
            np.concatenate([curve.scores for curve in curves]),
            first.score_name,
            first.tasks,
            np.concatenate(successes) if len(successes) == len(curves) else None,
            {unit: np.concatenate([curve.costs[unit] for curve in curves]) for unit in first.costs},
            first.step_sizes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON, with the means and their intervals."""
        return {
            "score": self.score_name,
            "steps": list(range(self.steps + 1)),
            "mean": self.mean,
            "ci95": [None if interval is None else list(interval) for interval in self.ci95],
            "num_seeds": self.scores.shape[0],
            "num_tasks": self.num_tasks,
            "scores": self.scores.tolist(),
            **({} if self.success is None else {"success": self.success.tolist()}),
            "tasks": {name: np.asarray(values).tolist() for name, values in self.tasks.items()},
            "costs": {unit: spent.tolist() for unit, spent in self.costs.items()},
            "step_sizes": list(self.step_sizes),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The curve of `to_dict()`; other keys are not read.

        Raises:
            ValueError: when a key is missing or has another kind of value.
        """
        try:
            success = found.get("success")
            return cls(
                np.asarray(found["scores"], np.float64),
                str(found["score"]),
                {name: np.asarray(values) for name, values in found["tasks"].items()},
                None if success is None else np.asarray(success, np.float64),
                {unit: np.asarray(spent, np.int64) for unit, spent in found["costs"].items()},
                tuple(None if size is None else float(size) for size in found["step_sizes"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an adaptation curve: {type(error).__name__}: {error}") from None

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict()` to a file."""
        check_type("path", path, (str, Path), "a path")
        write_json(Path(path), self.to_dict())

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """The curve in a file of `to_json`, or in the `evaluation.json` of a run.

        Raises:
            ValueError: when the file is not one.
            OSError: when it cannot be read.
        """
        check_type("path", path, (str, Path), "a path")
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} must be an adaptation curve as JSON: {error}") from None

    def to_csv(self, path: str | Path) -> None:
        """Write a table with a row for each seed, task and step, for pandas or a spreadsheet.

        The columns are `seed`, `task` and `step`, numbers from 0; the score, under its name; `success` if it is known;
        and the parameters of the task, such as `goal[0]`, `goal[1]`. It leaves out costs and step sizes.

        Raises:
            ValueError: when a parameter has the name of another column.
        """
        check_type("path", path, (str, Path), "a path")
        columns = split_columns(self.tasks)
        own = [*INDICES, self.score_name, "success"]
        if clash := [name for name in columns if name in own]:
            raise ValueError(f"tasks must have other names than {own} for a table, got {clash[0]!r}")
        values = [self.scores] if self.success is None else [self.scores, self.success]

        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*own[: 3 + len(values)], *columns])
        for place in np.ndindex(*self.scores.shape):
            parameters = [column[place[1]].item() for column in columns.values()]
            table.writerow([*place, *(float(x[place]) for x in values), *parameters])
        write_atomically(Path(path), lambda file: file.write(text.getvalue().encode()))

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """The curve in a table of `to_csv`, without costs and step sizes; rows may be in any order.

        Raises:
            ValueError: naming the file, and the line and the column that is wrong.
            OSError: when the file cannot be read.
        """
        check_type("path", path, (str, Path), "a path")
        return cls(**_read_table(Path(path)))

    def plot(self, to: "str | Path | Axes", label: str | None = None) -> None:
        """Draw the mean and its 95 % interval after each step: into axes, or as a picture at a path."""
        from metarl.curve_plots import draw_curve, save_curve

        if isinstance(to, str | Path):
            save_curve(Path(to), self, label)
        else:
            draw_curve(to, self.mean, self.ci95, label)


def _read_table(path: Path) -> dict[str, Any]:
    """The arguments of the curve in a table of `to_csv`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    head = rows[0] if rows else []
    if head[:3] != INDICES or len(head) < 4 or len(set(head)) < len(head):
        raise ValueError(f"{path}, line 1: the columns must be seed, task, step, the score, ..., got {head}")
    numbers = np.array([_read_row(path, line, head, row) for line, row in enumerate(rows[1:], start=2)])
    if not len(numbers):
        raise ValueError(f"{path} must have a row for each seed, task and step, got none")
    places = numbers[:, :3].astype(np.int64)
    shape = tuple(int(size) for size in places.max(0) + 1)
    if (places < 0).any() or len(numbers) != math.prod(shape):
        raise ValueError(f"{path} must have one row for each of {shape} seeds, tasks and steps, got {len(numbers)}")
    order = np.full(shape, -1)
    order[tuple(places.T)] = np.arange(len(numbers))
    if (order < 0).any():
        missing = dict(zip(INDICES, np.argwhere(order < 0)[0].tolist(), strict=True))
        raise ValueError(f"{path} must have one row for each seed, task and step, but has none for {missing}")
    sorted_rows = numbers[order.ravel()]
    has_success = head[4:5] == ["success"]
    by_task = {}
    for i, name in list(enumerate(head))[4 + has_success :]:
        found = sorted_rows[:, i].reshape(shape)
        by_task[name] = found[0, :, 0]
        if (found != by_task[name][:, None]).any():
            raise ValueError(f"{path}, column {name!r}: a task must have the same value for all seeds and steps")
    return {
        "scores": sorted_rows[:, 3].reshape(shape),
        "score_name": head[3],
        "tasks": join_columns(by_task),
        "success": sorted_rows[:, 4].reshape(shape) if has_success else None,
    }


def _read_row(path: Path, line: int, head: Sequence[str], row: Sequence[str]) -> list[float]:
    if len(row) != len(head):
        raise ValueError(f"{path}, line {line}: there must be {len(head)} values, got {len(row)}")
    numbers = []
    for name, text in zip(head, row, strict=True):
        try:
            numbers.append(float(text))
        except ValueError:
            raise ValueError(f"{path}, line {line}, column {name!r}: must be a number, got {text!r}") from None
        if name in INDICES and not numbers[-1].is_integer():
            raise ValueError(f"{path}, line {line}, column {name!r}: must be a whole number, got {text!r}")
    return numbers
