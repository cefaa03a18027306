"""The committed results, row by row, and their statistics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from metarl.experiments.compare.plan import read_options
from metarl.experiments.compare.results import trained_point
from metarl.experiments.reports.reproduce import table
from metarl.experiments.reports.reproduce.drift import difference_at, same_tasks
from metarl.experiments.reports.reproduce.plan import ReferenceRun
from metarl.experiments.reports.reproduce.result import Result, describe_row, read_result
from metarl.experiments.train import TrainConfig
from metarl.statistics import Estimate, Interval, confidence_interval

Array = npt.NDArray[np.float64]
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class CommittedRow:
    """The results of a row: one for each seed, in the order of the seeds."""

    label: str
    baseline: str | None
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The first seed's result; all have the same points."""
        return self.results[0]

    @property
    def finite(self) -> bool:
        """Whether no seed diverged."""
        return all(result.final is not None for result in self.results)

    @property
    def scores(self) -> Array:
        """`[seeds, tasks, points]`."""
        return np.stack([result.scores for result in self.results])

    @property
    def means(self) -> list[float]:
        """The mean at each point."""
        return [float(mean) for mean in self.scores.mean((0, 1))]

    @property
    def intervals(self) -> list[Interval | None]:
        """The 95 % interval of each mean: over seeds and tasks, or over the tasks of a single seed."""
        return [confidence_interval(self.scores[:, :, k]) for k in range(len(self.first.points))]

    @property
    def kinds(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which tasks, `[tasks]`, have which value of a parameter that has two values; `{}` without one."""
        tasks = self.first.final.tasks if self.first.final is not None else {}
        found = {}
        for name, values in tasks.items():
            known = np.unique(values)
            if np.ndim(values) == 1 and len(known) == 2:
                found.update({f"{name} {value:g}": np.asarray(values) == value for value in known})
        return found

    def mean_of(self, name: str) -> float:
        """The mean over seeds of a number of the results."""
        return float(np.mean([getattr(result, name) for result in self.results]))

    def curve(self, seed: int) -> dict[int, tuple[float, float]]:
        """By iteration: environment steps of training, and the held-out score at the trained point."""
        at = self.results[seed].trained
        found = self.results[seed].evaluations
        return {entry.iteration: (float(entry.env_steps), entry.mean[at]) for entry in found}

    def mean_curve(self) -> Curve:
        """The mean over seeds, at the evaluations that all of them have."""
        curves = [self.curve(seed) for seed in range(len(self.results))]
        common = [k for k in curves[0] if all(k in curve for curve in curves)]
        ends = [np.mean([curve[k] for curve in curves], 0) for k in common]
        return [(float(x), float(y)) for x, y in ends]


def read_rows(results: Path, name: str) -> list[CommittedRow]:
    """The rows of a name that have results, in the order of the table.

    Raises:
        ValueError: when a file is damaged, has another name than its run, or its row is not in the table any more.
    """
    files = {path: read_result(path) for path in sorted((results / name).glob("*.json"))}
    rows = {row.label: row for row in table.REFERENCES[name].rows}
    for path, result in files.items():
        row = rows.get(result.label)
        if row is None:
            raise ValueError(f"{path} has the label {result.label!r}, which the table of {name} lacks; remove the file")
        run = ReferenceRun(name, row, result.seed, results, results)
        if (result.name, path) != (name, run.result):
            raise ValueError(f"{path} must be the result of {run.title}, got that of {result.title}")
        if dict(result.row) != describe_row(run):
            raise ValueError(f"{path} was made with {dict(result.row)}, and the table has {describe_row(run)}")
        if result.env_steps > row.env_steps:
            raise ValueError(f"{path} used {result.env_steps} environment steps, and its budget is {row.env_steps}")
        given = read_options("options", row.options, TrainConfig())
        trained = trained_point(result.axis, len(result.points), given.outer, given.inner_steps)
        if result.trained != trained:  # the file's own settings may have been changed with it
            raise ValueError(f"{path} has the trained point {result.trained}, and with its row it is {trained}")
    found = []
    for label, row in rows.items():
        own = sorted((result for result in files.values() if result.label == label), key=lambda result: result.seed)
        if own:
            found.append(CommittedRow(label, row.baseline, tuple(own)))
            check_seeds(found[-1], name)
    return found


def check_seeds(row: CommittedRow, name: str) -> None:
    """Raise a `ValueError` unless all seeds that did not diverge have the same points and tasks."""
    finite = [result for result in row.results if result.final is not None]
    for result in finite[1:]:
        one, other = ((each.axis, each.points, each.scores.shape) for each in (result, finite[0]))
        if one != other or not same_tasks(result, finite[0]):
            raise ValueError(f"{name}: the seeds of {row.label} must have the same points and tasks")


def untrained(rows: Sequence[CommittedRow]) -> CommittedRow | None:
    """The random initialisation of the first row of gradient steps, as a row."""
    for row in rows:
        curves = [result.random_init for result in row.results]
        if row.baseline is None and row.finite and all(curve is not None for curve in curves):
            results = tuple(
                replace(result, final=result.random_init, evaluations=(), iterations=0, env_steps=0, seconds=0.0)
                for result in row.results
            )
            return CommittedRow("random initialisation", None, results)
    return None


def compare_with_multitask(rows: Sequence[CommittedRow]) -> str | None:
    """A sentence on `multitask` and the rows of the same budget, the best of each after the first and the last step.

    `None` if there is nothing to compare.
    """
    multitask = [row for row in rows if row.baseline == "multitask" and row.finite]
    if not multitask:
        return None
    budget = multitask[0].first.row["env_steps"]
    rivals = [row for row in multitask if row.first.row["env_steps"] == budget]
    trained = [row for row in rows if row.baseline is None and row.finite and row.first.row["env_steps"] == budget]
    if not trained:
        return None
    parts = []
    for k in dict.fromkeys((1, len(rivals[0].first.points) - 1)):
        best, other = (max(those, key=lambda row: row.means[k]) for those in (trained, rivals))
        pairs = pair_seeds(best, other)
        if not pairs or not same_tasks(best.first, other.first):
            return None
        ours, theirs = zip(*pairs, strict=True)
        difference = describe_difference(difference_at(ours, theirs, k))
        seeds = f"{len(pairs)} seeds" if len(pairs) > 1 else f"seed {pairs[0][0].seed} alone"
        against = f" against `{other.label}`" if len(rivals) > 1 else ""
        parts.append(
            f"after step {best.first.points[k]:g} `{best.label}`{against}, {difference} ({steps(best)}, {seeds})"
        )
    which = "the best row of fine-tuning" if len(rivals) > 1 else "`multitask`"
    return (
        f"The best row against {which} ({steps(rivals[0])} environment steps), difference on the same tasks:"
        f" {'; '.join(parts)}."
    )


def pair_seeds(one: CommittedRow, other: CommittedRow) -> list[tuple[Result, Result]]:
    """The results of both rows for each seed that both have."""
    theirs = {result.seed: result for result in other.results}
    return [(result, theirs[result.seed]) for result in one.results if result.seed in theirs]


def describe_difference(difference: Estimate) -> str:
    """A difference with its interval, and whether it is clear."""
    value, interval = difference
    if interval is None:
        return f"{value:+.1f}"
    verdict = "clearly better" if interval[0] > 0 else "clearly worse" if interval[1] < 0 else "not clearly different"
    return f"{value:+.1f} [{interval[0]:+.1f}, {interval[1]:+.1f}], {verdict}"


def steps(row: CommittedRow) -> str:
    """Environment steps of training, in millions."""
    return f"{row.mean_of('env_steps') / 1e6:.3g} M"
