"""What the runs of a comparison left behind, row by row, and its summary over seeds and tasks."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metarl.experiments.baselines import make_result, read_result
from metarl.experiments.baselines.policy_gradient import result_of_run
from metarl.experiments.common.config import read_if_whole, read_object
from metarl.experiments.compare.plan import Row
from metarl.experiments.compare.runs import DIVERGED
from metarl.experiments.train import TrainConfig
from metarl.logging import Line, read_metrics
from metarl.outer import inner_defaults
from metarl.statistics import Interval, confidence_interval

Array = npt.NDArray[np.float64]
Summary = Mapping[str, Any]
"""A row as plain values."""

AXES = {
    "iteration": "iterations",
    "oracle/env_steps": "environment steps",
    "oracle/gradients": "gradient evaluations",
    "time/cpu_seconds": "CPU seconds",
    "time/seconds": "seconds",
}
"""What curves are drawn against."""


@dataclass(frozen=True)
class RowResult:
    """The results of a row."""

    label: str
    group: str  # the update or the label, without the settings of the sweep
    cell: Mapping[str, str]  # the settings of the sweep
    seeds: tuple[int, ...]
    scores: Array | None  # [seeds, tasks, points] on held-out tasks; `None`: a run diverged
    trained: int  # the point that the row was trained for; a baseline's last one, if it takes no gradient steps
    axis: str  # what points are: step, episode or budget
    points: tuple[float, ...]
    spent: Array  # [seeds, points]: environment steps of one task's adaptation up to each point, the mean over tasks
    lines: tuple[tuple[Line, ...], ...]  # of each seed: the metrics of every iteration, with `AXES`
    diverged: Mapping[int, str]  # by seed
    config: TrainConfig  # of the first seed
    configs: tuple[Mapping[str, Any], ...]  # of each seed: `config.json`, empty for a baseline without a run
    folders: tuple[Path, ...]

    @property
    def means(self) -> list[float]:
        """The mean score at each point."""
        return [] if self.scores is None else [float(mean) for mean in self.scores.mean((0, 1))]

    @property
    def intervals(self) -> list[Interval | None]:
        """The 95 % interval of each mean, over seeds and tasks."""
        return (
            [] if self.scores is None else [confidence_interval(self.scores[:, :, k]) for k in range(len(self.points))]
        )

    @property
    def env_steps(self) -> list[float]:
        """The environment steps of one task's adaptation up to each point, the mean over tasks and seeds."""
        return [float(mean) for mean in self.spent.mean(0)]

    @property
    def final(self) -> Array:
        """The scores after the steps that it was trained for, `[seeds, tasks]`."""
        assert self.scores is not None
        return self.scores[:, :, self.trained]

    @property
    def tasks(self) -> tuple[object, ...]:
        """What the held-out tasks depend on: rows in which it is equal have the same tasks."""
        return self.config.env, self.config.env_options, self.config.horizon

    @property
    def iterations(self) -> int:
        """The iterations of each of its runs; 0 for a baseline without training."""
        return max(int(lines[-1]["iteration"] or 0) if lines else 0 for lines in self.lines)

    def last(self, metric: str) -> float:
        """A metric at the end of training, the mean over seeds."""
        return statistics.mean(lines[-1].get(metric) or 0.0 if lines else 0.0 for lines in self.lines)

    @property
    def cpu_seconds_per_iteration(self) -> float | None:
        """The mean over the iterations of all seeds, of which one may have stopped early; `None` without training."""
        ends = [lines[-1] for lines in self.lines if lines]
        iterations = sum(end["iteration"] or 0 for end in ends)
        return sum(end.get("time/cpu_seconds") or 0.0 for end in ends) / iterations if iterations else None

    def curve(self, seed: int, x: str, y: str) -> dict[int, tuple[float, float]]:
        """A curve of training by iteration, at the iterations that have both metrics."""
        found = {int(line["iteration"] or 0): (line.get(x), line.get(y)) for line in self.lines[seed]}
        return {k: (a, b) for k, (a, b) in found.items() if a is not None and b is not None}


def read_row(row: Row) -> RowResult:
    """The results of a row whose runs are done."""
    folders = [run.folder for run in row.runs]
    lines = tuple(tuple(with_totals(read_metrics(folder, untrained=True))) for folder in folders)
    diverged = {run.config.seed: read_object(run.folder / DIVERGED) for run in row.runs if is_diverged(run.folder)}
    whole = [
        read_result(folder) if row.baseline else result_of_run("", folder)
        for folder in folders
        if not is_diverged(folder)
    ]
    found = [result for result in whole if result is not None]
    first = found[0] if found else make_result("", "step", [0], [[0.0]], [0], 0)
    return RowResult(
        label=row.label,
        group=row.group,
        cell=row.cell,
        seeds=tuple(run.config.seed for run in row.runs),
        scores=None if diverged else np.asarray([result.scores for result in found]),
        trained=trained_point(first.axis, len(first.points), row.config.outer, row.config.inner_steps),
        axis=first.axis,
        points=first.points,
        spent=np.asarray([result.env_steps / len(result.scores) for result in found or [first]]),
        lines=lines,
        diverged={seed: str(entry["error"]) for seed, entry in diverged.items()},
        config=row.config,
        configs=tuple(read_if_whole(folder / "config.json") or {} for folder in folders),
        folders=tuple(folders),
    )


def trained_point(axis: str, points: int, outer: str, inner_steps: int | None) -> int:
    """The index of the point that a run is trained for: after its inner steps, or the last one on another axis.

    Example:
        >>> trained_point("step", 4, "maml", None), trained_point("step", 4, "maml", 3)
        (1, 3)
        >>> trained_point("budget", 3, "maml", None)
        2
    """
    steps = inner_defaults(outer)[1] if inner_steps is None else inner_steps
    return min(steps, points - 1) if axis == "step" else points - 1


def is_diverged(folder: Path) -> bool:
    """Whether the run in the folder ended in a NaN or an infinity."""
    return read_if_whole(folder / DIVERGED) is not None


def with_totals(lines: Sequence[Line]) -> list[Line]:
    """The metrics of each iteration, with the seconds of training so far."""
    wall = cpu = 0.0
    found = []
    for line in lines:
        wall += line.get("time/iteration_seconds") or 0.0
        cpu += line.get("time/iteration_cpu_seconds") or 0.0
        spent = {"oracle/env_steps": 0.0, "oracle/gradients": 0.0} if line["iteration"] == 0 else {}
        found.append({**spent, **line, "time/seconds": wall, "time/cpu_seconds": cpu})
    return found


def summarize(row: RowResult) -> Summary:
    """The row as plain values: its means over seeds and tasks, with 95 % intervals over both, and what it spent."""
    scores = {} if row.scores is None else {"mean": row.means, "ci95": row.intervals}
    return {
        **scores,
        "trained_point": row.trained,
        "axis": row.axis,
        "points": list(row.points),
        "adaptation_env_steps": row.env_steps,
        "seeds": list(row.seeds),
        "diverged": {str(seed): text for seed, text in row.diverged.items()},
        "iterations": row.iterations,
        "env_steps": row.last("oracle/env_steps"),
        "gradients": row.last("oracle/gradients"),
        "seconds": row.last("time/seconds"),
        "cpu_seconds": row.last("time/cpu_seconds"),
        "cpu_seconds_per_iteration": row.cpu_seconds_per_iteration,
        "sweep": dict(row.cell),
    }
