"""Whether new results agree with the committed ones.

A run agrees if its mean score at the trained step lies in the 95 % interval of the committed run over its tasks, or,
where several seeds of the row are committed, in the row's interval over seeds and tasks. Both are intervals of
`metarl.statistics.confidence_interval`. The tasks are the same.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metarl.experiments.common.tables import with_interval
from metarl.experiments.reports.reproduce.result import Array, Evaluation, Result
from metarl.statistics import Estimate, Interval, confidence_interval, paired_difference, t_quantile

ROUNDING = 1e-6
"""Of a mean whose scores are rounded in the file, relative to its size."""


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
    own, crossed = confidence_interval(committed.scores[:, at]), interval_of_row(committed, row)
    drifted = not (is_inside(found, before, own) or (crossed is not None and is_inside(found, before, crossed)))
    difference = paired_difference(new.scores[:, at], committed.scores[:, at])
    where = f"at {committed.axis} {committed.points[at]:g}"
    of_row = "" if crossed is None else f" (all seeds: [{crossed[0]:.2f}, {crossed[1]:.2f}])"
    lines = [
        f"{where}: new {found:.2f}, committed {with_interval(before, own, 2)}{of_row}",
        f"at every {committed.axis}: new {means(new)}, committed {means(committed)}",
        f"difference on the same tasks {where}: {with_interval(*difference, 2)}",
    ]
    if (another := interval_of_another_seed(committed, row)) is not None:
        lines.append(f"95 % of other seeds on the same tasks {where}: [{another[0]:.2f}, {another[1]:.2f}]")
    return Verdict(drifted, "\n    ".join(lines))


def compare_beginning(new: Evaluation, committed: Evaluation, result: Result) -> Verdict:
    """An evaluation early in training beside the committed one, whose interval is over its tasks."""
    at = result.trained
    drifted = not is_inside(new.mean[at], committed.mean[at], committed.ci95[at])
    where = f"iteration {committed.iteration}, at {result.axis} {result.points[at]:g}"
    lines = (
        f"{where}: new {new.mean[at]:.2f}, committed {with_interval(committed.mean[at], committed.ci95[at], 2)}",
        f"at every {result.axis}: new {in_words(new.mean)}, committed {in_words(committed.mean)}",
    )
    return Verdict(drifted, "\n    ".join(lines))


def is_inside(found: float, before: float, interval: Interval | None) -> bool:
    """Whether the new mean is inside the interval; without one, whether it equals the mean before."""
    low, high = (before, before) if interval is None else interval
    space = ROUNDING * max(abs(before), abs(low), abs(high))
    return low - space <= found <= high + space


def interval_of_row(committed: Result, row: Sequence[Result]) -> Interval | None:
    """The interval over seeds and tasks at the trained step; `None` with a single seed."""
    scores = scores_of_seeds(committed, row)
    return None if len(scores) < 2 else confidence_interval(np.stack(scores))


def interval_of_another_seed(committed: Result, row: Sequence[Result]) -> Interval | None:
    """Student's t prediction interval of the mean over these tasks with another seed; `None` with a single seed.

    mean -+ t s sqrt(1 + 1 / n), with the standard deviation s of the means of n seeds and n - 1 degrees of freedom.
    """
    means_of_seeds = [float(scores.mean()) for scores in scores_of_seeds(committed, row)]
    n = len(means_of_seeds)
    if n < 2:
        return None
    middle = float(np.mean(means_of_seeds))
    half = t_quantile(0.975, n - 1) * float(np.std(means_of_seeds, ddof=1)) * (1 + 1 / n) ** 0.5
    return middle - half, middle + half


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
