"""Confidence intervals for scores of sampled tasks and training runs.

Held-out tasks are a sample, and so are the seeds of training. A mean over 40 tasks is uncertain even for one policy,
and a mean over three seeds is uncertain for any number of tasks. An interval must include both.
"""

import functools
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from metarl.errors import check_real

Array = npt.NDArray[np.float64]


def confidence_interval(scores: npt.ArrayLike, level: float = 0.95) -> tuple[float, float] | None:
    """An interval for the mean score over all possible runs and tasks.

    For one run it is Student's t interval over its tasks, and says nothing about other runs. For several runs on the
    same tasks, a score is `mean + run + task + rest`. The mean squares A (runs), B (tasks) and E (rest) of the
    two-way analysis of variance give the variance of the mean, `V = (A + B - E) / (n m)`. Few runs estimate A badly, so
    the normal interval is widened to the t interval's width in proportion to A's share of the variance (a first-order
    Welch correction; Welch, 1947), and likewise for B.

    Coverage by simulation: docs/results.md.

    Args:
        scores: `[tasks]` of one run, or `[runs, tasks]` of runs on the same tasks.
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
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"scores must be finite, [tasks] or [runs, tasks], got shape {np.shape(scores)}")
    if check_real("level", level, high=1.0) == 1:
        raise ValueError(f"level must be below 1, got {level!r}")
    if table.shape[1] == 1:
        return None
    mean = float(table.mean())
    half = math.sqrt(_squared_half_width(table, level) / table.size)
    return mean - half, mean + half


def _squared_half_width(table: Array, level: float) -> float:
    """The squared half-width of the interval for the mean of a table `[n, m]`, times n m."""
    (runs, tasks), mean = table.shape, table.mean()
    t_tasks = t_quantile((1 + level) / 2, tasks - 1)
    if runs == 1:
        return t_tasks**2 * float(table.var(ddof=1))
    by_run, by_task = table.mean(1, keepdims=True) - mean, table.mean(0, keepdims=True) - mean
    rest = float(((table - mean - by_run - by_task) ** 2).sum()) / ((runs - 1) * (tasks - 1))
    a = tasks * float((by_run**2).sum()) / (runs - 1)
    b = runs * float((by_task**2).sum()) / (tasks - 1)
    variance = max(a + b - rest, a, b)
    if variance == 0:
        return 0.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    t_runs = t_quantile((1 + level) / 2, runs - 1)
    # The runs' own part of A is A - E. With few runs A is often small by chance and then hides how uncertain it is:
    # counting the rest of the variance by half keeps the coverage (docs/results.md).
    of_runs = a * max(a - rest, 0.0) / ((a + variance) / 2)
    of_tasks = b * b / variance
    return float(z**2 * variance + (t_runs**2 - z**2) * of_runs + (t_tasks**2 - z**2) * of_tasks)


@functools.cache
def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution for a whole number of degrees of freedom, by bisection.

    Args:
        probability: in [0.5, 1).
        degrees: of freedom, at least 1.

    Example:
        >>> f"{t_quantile(0.975, 2):.4f}"
        '4.3027'
    """
    low, high = 0.0, math.pi / 2  # theta = atan(t / sqrt(degrees)), in which the distribution is a finite sum
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _t_within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _t_within(theta: float, degrees: int) -> float:
    """P(|t| < tan(theta) sqrt(degrees)) (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    first = 3 if degrees % 2 else 2  # the factors are 2/3, 4/5, ... for odd degrees and 1/2, 3/4, ... for even ones
    factors = [(k - 1) / k * cosine**2 for k in range(first, degrees, 2)]
    series = float(np.cumprod([1.0, *factors]).sum())
    if degrees % 2 == 0:
        return sine * series
    return 2 / math.pi * (theta + (sine * cosine * series if degrees > 1 else 0.0))
