"""The result of a baseline: scores on held-out tasks, and the environment steps of adaptation that each one cost.

It is saved as `baseline.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from metarl.errors import check_choice
from metarl.experiments.common.tables import markdown_table, with_interval
from metarl.files import write_json
from metarl.statistics import confidence_interval

FILE = "baseline.json"

Axis = Literal["step", "episode", "budget"]
"""What a result's points are: gradient steps done, episodes of a trial, or multiples of the adaptation budget spent."""

AXES: Mapping[str, Axis] = {"rl2": "episode", "ppo": "budget"}
"""The axis of a baseline; of others, as of runs of `metarl train`, it is `step`."""


class BaselineResult(NamedTuple):
    """Scores of held-out tasks at a few points of their adaptation."""

    baseline: str
    axis: Axis
    points: tuple[float, ...]  # P: 0, 1, ... steps; episodes 1, 2, ...; 0, 1, 10, ... times the budget
    scores: npt.NDArray[np.float64]  # [tasks, P]
    env_steps: npt.NDArray[np.int64]  # [P], of adaptation before each score, all tasks together
    train_env_steps: int  # of training before the tasks were seen

    def summary(self) -> dict[str, Any]:
        """Everything as plain values, for JSON; `scores` are `[tasks][P]`."""
        return {
            "baseline": self.baseline,
            "axis": self.axis,
            "points": list(self.points),
            "mean": self.scores.mean(0).tolist(),
            "ci95": [confidence_interval(column) for column in self.scores.T],
            "num_tasks": len(self.scores),
            "scores": self.scores.tolist(),
            "env_steps": self.env_steps.tolist(),
            "train_env_steps": self.train_env_steps,
        }


def make_result(
    baseline: str,
    axis: Axis,
    points: Sequence[float],
    scores: npt.ArrayLike,
    env_steps: npt.ArrayLike,
    train_env_steps: int,
) -> BaselineResult:
    """A result from plain values; `scores` are `[tasks, P]`.

    Raises:
        ValueError: when the sizes do not fit each other.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.shape[1] != len(points) or np.shape(env_steps) != (len(points),):
        raise ValueError(f"scores must be [tasks, {len(points)}], one column for each point, got {table.shape}")
    steps = np.asarray(env_steps, np.int64)
    return BaselineResult(baseline, axis, tuple(points), table, steps, int(train_env_steps))


def write_result(folder: Path, result: BaselineResult, settings: Mapping[str, Any]) -> None:
    """Save the result in `folder`, with the settings that made it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {**result.summary(), "settings": _as_read(settings)})


def read_result(folder: Path, settings: Mapping[str, Any] | None = None) -> BaselineResult | None:
    """Read the result in `folder`; `None` if the folder has no result.

    Args:
        folder: where `write_result` saved it.
        settings: the settings that must have made it; default: any settings.

    Raises:
        ValueError: when the file is damaged, or other settings made it, naming the first one that differs.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        check_choice("axis", found["axis"], get_args(Axis))
        table = np.asarray(found["scores"], np.float64)
        result = make_result(
            found["baseline"], found["axis"], found["points"], table, found["env_steps"], found["train_env_steps"]
        )
        made_by = dict(found["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be the result of a baseline, but it is not: {error}") from None
    wanted = made_by if settings is None else _as_read(settings)
    for name in {**wanted, **made_by}:  # an option that only one of them has is a difference, too
        before, now = made_by.get(name), wanted.get(name)
        if before != now:
            raise ValueError(f"{path} was made with {name}={before!r}, not {now!r}; choose another folder")
    return result


def steps_to(result: BaselineResult, score: float) -> npt.NDArray[np.float64]:
    """The environment steps of adaptation of each task up to the first point with at least `score`; else infinity.

    >>> steps_to(make_result("ppo", "budget", [0, 1], [[-9, -3], [-9, -8], [-2, -4]], [0, 300], 0), -5)
    array([100.,  inf,   0.])
    """
    reached = result.scores >= score  # [tasks, P]
    each = result.env_steps / len(result.scores)
    return np.where(reached.any(1), each[reached.argmax(1)], np.inf)


def describe(result: BaselineResult) -> str:
    """The mean return at each point with its 95 % interval over tasks, and the environment steps of adaptation."""
    found = result.summary()
    cells = zip(result.points, found["mean"], found["ci95"], found["env_steps"], strict=True)
    rows = [[f"{point:g}", with_interval(mean, ends, 2), str(steps)] for point, mean, ends, steps in cells]
    title = (
        f"{result.baseline}: return on {found['num_tasks']} held-out tasks, mean and 95 % interval over tasks, after"
        f" {result.train_env_steps} environment steps of training"
    )
    return f"{title}\n{markdown_table([result.axis, 'return', 'env steps'], rows, align=True)}"


def _as_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they come back from JSON: lists instead of tuples, strings instead of paths."""
    found: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    return found
