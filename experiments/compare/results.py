"""What the runs of a comparison left behind, row by row, and its summary over seeds and tasks."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metarl.experiments.common.config import read_if_whole, read_object
from metarl.experiments.common.evaluation import summarize_seeds
from metarl.experiments.compare.plan import Row
from metarl.experiments.compare.runs import DIVERGED
from metarl.logging import Line, read_metrics

Array = npt.NDArray[np.float64]

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
    trained: int  # the point that the row was trained for
    env_steps: tuple[float, ...]  # [points]: of one task's adaptation up to each point
    lines: tuple[tuple[Line, ...], ...]  # of each seed: the metrics of every iteration, with `AXES`
    diverged: Mapping[int, str]  # by seed
    configs: tuple[Mapping[str, Any], ...]  # of each seed: `config.json`
    folders: tuple[Path, ...]

    @property
    def final(self) -> Array:
        """The scores after the steps that it was trained for, `[seeds, tasks]`."""
        assert self.scores is not None
        return self.scores[:, :, self.trained]

    @property
    def iterations(self) -> int:
        """The iterations of each of its runs."""
        return int(self.configs[0]["iterations"])

    def last(self, metric: str) -> float:
        """A metric at the end of training, the mean over seeds."""
        return statistics.mean(lines[-1].get(metric) or 0.0 if lines else 0.0 for lines in self.lines)

    def curve(self, seed: int, x: str, y: str) -> list[tuple[float, float]]:
        """A curve of training, the iterations that have both metrics."""
        pairs = [(line.get(x), line.get(y)) for line in self.lines[seed]]
        return [(a, b) for a, b in pairs if a is not None and b is not None]


def read_row(row: Row) -> RowResult:
    """The results of a row whose runs are done."""
    diverged = {run.config.seed: read_object(run.folder / DIVERGED) for run in row.runs if is_diverged(run.folder)}
    found = [read_object(run.folder / "evaluation.json") for run in row.runs if run.config.seed not in diverged]
    points = len(found[0]["scores"]) if found else 1
    costs = found[0].get("env_steps", [0] * points) if found else [0]
    tasks = len(found[0]["scores"][0]) if found else 1
    return RowResult(
        label=row.label,
        group=row.group,
        cell=row.cell,
        seeds=tuple(run.config.seed for run in row.runs),
        scores=None if diverged else np.asarray([entry["scores"] for entry in found]).swapaxes(1, 2),
        trained=min(row.trained_steps, points - 1),
        env_steps=tuple(cost / tasks for cost in costs),
        lines=tuple(tuple(with_totals(read_metrics(run.folder))) for run in row.runs),
        diverged={seed: str(entry["error"]) for seed, entry in diverged.items()},
        configs=tuple(read_object(run.folder / "config.json") for run in row.runs),
        folders=tuple(run.folder for run in row.runs),
    )


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
        found.append({**line, "time/seconds": wall, "time/cpu_seconds": cpu})
    return found


def summarize(row: RowResult) -> dict[str, Any]:
    """The row as plain values: its means over seeds and tasks, with 95 % intervals over both, and what it spent."""
    scores = {} if row.scores is None else summarize_seeds(row.scores.swapaxes(1, 2))
    return {
        **scores,
        "trained_steps": row.trained,
        "adaptation_env_steps": list(row.env_steps),
        "seeds": list(row.seeds),
        "diverged": {str(seed): text for seed, text in row.diverged.items()},
        "iterations": row.iterations,
        "env_steps": row.last("oracle/env_steps"),
        "gradients": row.last("oracle/gradients"),
        "seconds": row.last("time/seconds"),
        "cpu_seconds": row.last("time/cpu_seconds"),
        "sweep": dict(row.cell),
    }
