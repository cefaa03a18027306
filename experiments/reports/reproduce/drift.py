"""Whether new results agree with the committed ones, on the same tasks.

A run agrees if its mean score at the trained step lies in the 95 % interval of the committed run over its tasks, or,
where several seeds of the row are committed, in the row's interval over seeds and tasks. Both are intervals of
`metarl.statistics.confidence_interval`. They are wide where tasks differ much. So with several committed seeds it must
also lie where another seed would lie on the same tasks, in 99 % of the cases (`interval_of_another_seed`). The same
scores always agree.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metarl.experiments.common.tables import with_interval
from metarl.experiments.reports.reproduce.result import Array, Evaluation, Result
from metarl.statistics import Estimate, Interval, confidence_interval, paired_difference, t_quantile

ROUNDING = 1e-6
"""Of a mean whose scores are rounded in the file, relative to its size."""

OF_SEEDS = 0.995
"""The quantile of `interval_of_another_seed`, which holds 99 % of other seeds."""


class Verdict(NamedTuple):
    """A new result beside the committed one."""

    drifted: bool
    text: str


def compare(new: Result, committed: Result, row: Sequence[Result]) -> Verdict:
    """The new result of a run beside the committed one; `row` has the committed results of all seeds."""
    if new.diverged is not None or committed.diverged is not None:
        both = new.diverged is not None and committed.diverged is not None
        return Verdict(not both, f"diverged: new {new.diverged or 'no'}, committed {committed.diverged or 'no'}")
    if not is_comparable(new, committed):
        return Verdict(True, f"other held-out tasks or points: new {means(new)}, committed {means(committed)}")
    at = committed.trained
    found, before = float(new.scores[:, at].mean()), float(committed.scores[:, at].mean())
    seeds = scores_of_seeds(committed, row)
    own, crossed = confidence_interval(committed.scores[:, at]), confidence_interval(np.stack(seeds))
    another = interval_of_another_seed([float(scores.mean()) for scores in seeds])
    over_tasks = is_inside(found, before, own) or (len(seeds) > 1 and is_inside(found, before, crossed))
    over_seeds = another is None or is_inside(found, before, another)
    difference = paired_difference(new.scores[:, at], committed.scores[:, at])
    where = f"at {committed.axis} {committed.points[at]:g}"
    lines = (
        f"{where}: new {found:.2f}, committed {with_interval(before, own, 2)}{describe_seeds(another, crossed)}",
        f"at every {committed.axis}: new {means(new)}, committed {means(committed)}",
        f"difference on the same tasks {where}: {with_interval(*difference, 2)}",
    )
    return Verdict(not (over_tasks and over_seeds), "\n    ".join(lines))


def compare_beginning(new: Evaluation, committed: Evaluation, result: Result, row: Sequence[Result]) -> Verdict:
    """An evaluation early in training beside the committed one; `row` has the committed results of all seeds."""
    at = result.trained
    others = [entry for other in row for entry in other.evaluations if entry.iteration == committed.iteration]
    another = interval_of_another_seed([entry.mean[at] for entry in others if len(entry.mean) == len(new.mean)])
    over_tasks = is_inside(new.mean[at], committed.mean[at], committed.ci95[at])
    over_seeds = another is None or is_inside(new.mean[at], committed.mean[at], another)
    where = f"iteration {committed.iteration}, at {result.axis} {result.points[at]:g}"
    before = with_interval(committed.mean[at], committed.ci95[at], 2)
    lines = (
        f"{where}: new {new.mean[at]:.2f}, committed {before}{describe_seeds(another)}",
        f"at every {result.axis}: new {in_words(new.mean)}, committed {in_words(committed.mean)}",
    )
    return Verdict(not (over_tasks and over_seeds), "\n    ".join(lines))


def is_inside(found: float, before: float, interval: Interval | None) -> bool:
    """Whether the new mean is inside the interval, or equal to the mean before."""
    low, high = (before, before) if interval is None else interval
    space = ROUNDING * max(abs(before), abs(low), abs(high))
    return low - space <= found <= high + space or abs(found - before) <= space


def interval_of_another_seed(means_of_seeds: Sequence[float]) -> Interval | None:
    """Student's t prediction interval of the mean over these tasks with another seed; `None` with a single seed.

    mean -+ t s sqrt(1 + 1 / n), with the standard deviation s of the means of n seeds and n - 1 degrees of freedom. Two
    runs that are equal but for rounding errors do not differ more than two seeds.

    Example:
        >>> [round(end, 1) for end in interval_of_another_seed([-10.0, -11.0, -9.0])]
        [-21.5, 1.5]
    """
    n = len(means_of_seeds)
    if n < 2:
        return None
    middle = float(np.mean(means_of_seeds))
    half = t_quantile(OF_SEEDS, n - 1) * float(np.std(means_of_seeds, ddof=1)) * (1 + 1 / n) ** 0.5
    return middle - half, middle + half


def describe_seeds(another: Interval | None, crossed: Interval | None = None) -> str:
    """The intervals of several seeds."""
    if another is None:
        return ""
    row = "" if crossed is None else f"over seeds and tasks [{crossed[0]:.2f}, {crossed[1]:.2f}], "
    return f", {row}99 % of other seeds on these tasks [{another[0]:.2f}, {another[1]:.2f}]"


def scores_of_seeds(committed: Result, row: Sequence[Result]) -> list[Array]:
    """The scores at the trained step of every seed with the same tasks, `[tasks]` each."""
    same = [result for result in row if result.diverged is None and is_comparable(result, committed)]
    return [result.scores[:, committed.trained] for result in same]


def is_comparable(one: Result, other: Result) -> bool:
    """Whether both have scores of the same tasks at the same points."""
    assert one.final is not None
    assert other.final is not None
    return (one.axis, one.points, one.trained) == (other.axis, other.points, other.trained) and same_tasks(one, other)


def same_tasks(one: Result, other: Result) -> bool:
    """Whether both were scored on the same tasks, up to the rounding of the files."""
    assert one.final is not None
    assert other.final is not None
    mine, theirs = one.final.tasks, other.final.tasks
    return mine.keys() == theirs.keys() and all(
        np.shape(mine[name]) == np.shape(theirs[name]) and np.allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6)
        for name in mine
    )


def check_row(committed: Result, row: Mapping[str, object], settings: Mapping[str, object], path: object) -> None:
    """Raise a `ValueError` that names what differs between the committed run and what would be run now."""
    before = {**committed.about["settings"], **committed.row}
    for name, value in {**settings, **row}.items():
        if name in before and before[name] != value:  # settings that are newer than the result have no value there
            raise ValueError(
                f"{path} was made with {name}={before[name]!r}, and now it is {value!r}; --update replaces the result"
            )


def points(result: Result) -> str:
    """The points of a result."""
    return " ".join(f"{point:g}" for point in result.points)


def means(result: Result) -> str:
    """The mean score at every point."""
    return in_words([float(mean) for mean in result.scores.mean(0)])


def in_words(values: Sequence[float]) -> str:
    """Numbers in a row."""
    return " ".join(f"{value:.2f}" for value in values)


def difference_at(one: Sequence[Result], other: Sequence[Result], point: int) -> Estimate:
    """The mean difference of two rows at a point, on the same seeds and tasks."""
    ours, theirs = (np.stack([result.scores[:, point] for result in row]) for row in (one, other))
    return paired_difference(ours, theirs)
