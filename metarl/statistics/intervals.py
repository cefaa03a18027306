"""The interval of a mean over seeds and tasks, from the two-way analysis of variance."""

import math
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from metarl.errors import check_real
from metarl.statistics.student import t_quantile

Array: TypeAlias = npt.NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]


class Estimate(NamedTuple):
    """A statistic of the scores and its interval; `None` for a single task, which does not tell how tasks differ."""

    value: float
    interval: Interval | None

    def clip(self, low: float, high: float = math.inf) -> "Estimate":
        """The same with an interval inside `[low, high]`, where the statistic must lie."""
        ends = None if self.interval is None else tuple(min(max(end, low), high) for end in self.interval)
        return Estimate(self.value, ends)  # type: ignore[arg-type]


class Spread(NamedTuple):
    """How uncertain a statistic of scores `[seeds, tasks]` is: the mean squares divided by the number of scores."""

    seeds: float  # A / (n m); 0 for one seed
    tasks: float  # B / (n m)
    rest: float  # E / (n m): what seed and task do together; 0 for one seed


def confidence_interval(scores: npt.ArrayLike, level: float = 0.95) -> Interval | None:
    """An interval for the mean score over all possible seeds and tasks.

    For one seed it is Student's t interval over its tasks, and says nothing about other seeds. For several seeds on the
    same tasks, a score is `mean + seed + task + rest`. The mean squares A (seeds), B (tasks) and E (rest) of the
    two-way analysis of variance give the variance of the mean, `V = (A + B - E) / (n m)`. Few seeds estimate A badly,
    so the normal interval is widened to the t interval's width in proportion to A's share of the variance (a
    first-order Welch correction; Welch, 1947), and likewise for B.

    It is what `crossed_bootstrap` gives for the mean after infinitely many resamples.
    Coverage by simulation: docs/results.md.

    Args:
        scores: `[tasks]` of one seed, or `[seeds, tasks]` of seeds on the same tasks.
        level: the interval's coverage, in (0, 1).

    Returns:
        The lower and the upper end; `None` for a single task, which does not tell how much tasks differ.

    Raises:
        ValueError: for scores that are not finite or have the wrong shape, and for a level outside (0, 1).

    Example:
        >>> interval = confidence_interval([-9.0, -11.0, -10.0, -12.0, -8.0])
        >>> [round(end, 2) for end in interval]
        [-11.96, -8.04]
    """
    table = check_scores("scores", scores)
    return interval_around(float(table.mean()), _analyse(table), table.shape, check_level(level))


def mean_estimate(table: Array, level: float) -> Estimate:
    """The mean of a table `[seeds, tasks]` and its interval."""
    return Estimate(float(table.mean()), confidence_interval(table, level))


def check_scores(name: str, scores: npt.ArrayLike) -> Array:
    """The scores as a finite table `[seeds, tasks]`.

    Raises:
        ValueError: otherwise, naming the argument.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"{name} must be finite, [tasks] or [seeds, tasks], got shape {np.shape(scores)}")
    return table


def check_level(level: float) -> float:
    """`level` if it is in (0, 1).

    Raises:
        ValueError: otherwise.
    """
    if check_real("level", level, high=1.0) == 1:
        raise ValueError(f"level must be below 1, got {level!r}")
    return level


def _analyse(table: Array) -> Spread:
    """The mean squares of the two-way analysis of variance of `[n, m]`, divided by n m."""
    (seeds, tasks), mean = table.shape, table.mean()
    by_seed, by_task = table.mean(1, keepdims=True) - mean, table.mean(0, keepdims=True) - mean
    b = float((by_task**2).sum()) / max(tasks - 1, 1) / tasks
    if seeds == 1:
        return Spread(0.0, b, 0.0)
    a = float((by_seed**2).sum()) / (seeds - 1) / seeds
    squares = float(((table - mean - by_seed - by_task) ** 2).sum())
    return Spread(a, b, squares / ((seeds - 1) * max(tasks - 1, 1)) / table.size)


def interval_around(value: float, spread: Spread, shape: tuple[int, ...], level: float) -> Interval | None:
    """The interval of a statistic of scores with this shape; `None` for a single task."""
    (seeds, tasks), (a, b, rest) = shape, spread
    if tasks == 1:
        return None
    variance = max(a + b - rest, a, b)
    if variance == 0:
        return value, value
    # The seeds' own part of A is A - E. With few seeds A is often small by chance and then hides how uncertain it is:
    # counting the rest of the variance by half keeps the coverage (docs/results.md).
    of_seeds = a * max(a - rest, 0.0) / ((a + variance) / 2)
    of_tasks = b * b / variance
    z = NormalDist().inv_cdf((1 + level) / 2)
    squared = z**2 * variance
    for part, count in ((of_seeds, seeds), (of_tasks, tasks)):
        if count > 1:
            squared += (t_quantile((1 + level) / 2, count - 1) ** 2 - z**2) * part
    half = math.sqrt(squared)
    return value - half, value + half
