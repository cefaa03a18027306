"""The crossed bootstrap: seeds and tasks are resampled independently (Owen, 2007), for any statistic of the scores.

theta is the statistic of the scores of n seeds and m tasks. theta_s, theta_t and theta_st are the statistics of tables
in which the seeds, the tasks, or both are resampled:

    A = n / (n - 1) Var[theta_s]       B = m / (m - 1) Var[theta_t]
    E = n m / ((n - 1)(m - 1)) Var[theta_st - theta_s - theta_t + theta]
    V = A + B - E

For the mean these are the mean squares of the two-way analysis of variance, and V is the unbiased variance. The plain
bootstrap takes Var[theta_st] and the quantiles of theta_st instead. It loses the factors n / (n - 1), counts E three
times, and its quantiles know nothing of how badly few seeds estimate A. Here the interval is the symmetric one of
`confidence_interval`, from V and the t quantiles.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from metarl.errors import check_callable, check_int
from metarl.statistics.intervals import Array, Estimate, Spread, check_level, check_scores, interval_around

Statistic: TypeAlias = Callable[[Array], npt.NDArray[Any]]
"""From tables `[..., seeds, tasks]` to a number for each, `[...]`."""

CHUNK = 1_000_000  # scores that are resampled at once
RESAMPLES = 2000


def interquartile_mean(scores: npt.ArrayLike) -> npt.NDArray[Any]:
    """The mean of the middle half of the scores: the lowest and the highest quarter are left out.

    One failed seed or task does not move it much (Agarwal et al., 2021). A quarter is rounded down.

    Args:
        scores: `[..., seeds, tasks]`, or `[tasks]`; the quarters are of the scores of all seeds and tasks together.

    Returns:
        One number for each table, `[...]`.

    Raises:
        ValueError: for scores that are not finite (NaN would count as a high score), and for none.

    Example:
        >>> float(interquartile_mean([[1.0, 2.0, 3.0, 100.0]]))
        2.5
    """
    tables = np.asarray(scores, dtype=np.float64)
    if not tables.size or not np.isfinite(tables).all():
        raise ValueError(f"scores must be finite, [tasks] or [..., seeds, tasks], got shape {tables.shape}")
    flat = tables.reshape(*tables.shape[:-2], -1)
    count = flat.shape[-1]
    cut = count // 4
    if cut:
        flat = np.partition(flat, (cut, count - cut - 1), axis=-1)
    return np.asarray(flat[..., cut : count - cut].mean(-1))


def crossed_bootstrap(
    scores: npt.ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    rng: np.random.Generator | None = None,
) -> Estimate:
    """A statistic of the scores with an interval over all possible seeds and tasks.

    For the mean use `confidence_interval`, which has no noise of resampling. For one seed the interval holds over
    tasks. Coverage by simulation: docs/results.md.

    Args:
        scores: `[tasks]` of one seed, or `[seeds, tasks]` of seeds on the same tasks.
        statistic: a smooth function from tables `[..., seeds, tasks]` to numbers `[...]`, such as `interquartile_mean`
            or `lambda tables: np.median(tables, (-2, -1))`.
        level: the interval's coverage, in (0, 1).
        resamples: the number of resampled tables; 2000 give the width within about 2 %.
        rng: default: a new generator of seed 0, so equal scores have equal intervals.

    Raises:
        ValueError: for arguments that cannot work, naming them.

    Example:
        >>> scores = [[-9.0, -11.0, -10.0, -12.0], [-8.0, -10.0, -10.0, -11.0], [-9.0, -12.0, -11.0, -30.0]]
        >>> estimate = crossed_bootstrap(scores)
        >>> round(estimate.value, 2), [round(end) for end in estimate.interval]
        (-10.5, [-13, -8])
    """
    return bootstrap_tables(check_scores("scores", scores), statistic, level, resamples, rng)


class Resampled(NamedTuple):
    """The statistic of tables that are resampled with the same numbers, `[resamples]` each."""

    seeds: Array
    tasks: Array
    both: Array


def bootstrap_tables(
    tables: Array, statistic: Statistic, level: float, resamples: int, rng: np.random.Generator | None
) -> Estimate:
    """`crossed_bootstrap` for one table `[seeds, tasks]`, or for several `[k, seeds, tasks]` resampled alike."""
    check_level(level)
    check_callable("statistic", statistic, "a function from tables [..., seeds, tasks] to numbers [...]")
    check_int("resamples", resamples, minimum=2)
    value = float(_apply(statistic, tables[..., None, :, :])[0])
    resampled = resample(tables, statistic, resamples, np.random.default_rng(0) if rng is None else rng)
    shape = tables.shape[-2:]
    return Estimate(value, interval_around(value, _spread(value, resampled, shape), shape, level))


def resample(tables: Array, statistic: Statistic, resamples: int, rng: np.random.Generator) -> Resampled:
    """The statistic of resampled tables; `tables` are `[..., seeds, tasks]`."""
    seeds, tasks = tables.shape[-2:]
    rows, columns = rng.integers(seeds, size=(resamples, seeds)), rng.integers(tasks, size=(resamples, tasks))
    same_rows, same_columns = np.arange(seeds)[None], np.arange(tasks)[None]
    found = np.empty((3, resamples))
    size = max(1, CHUNK // tables.size)
    for first in range(0, resamples, size):
        chunk = slice(first, first + size)
        draws = ((rows[chunk], same_columns), (same_rows, columns[chunk]), (rows[chunk], columns[chunk]))
        for into, (i, j) in zip(found, draws, strict=True):
            into[chunk] = _apply(statistic, tables[..., i[:, :, None], j[:, None, :]])
    return Resampled(*found)


def _apply(statistic: Statistic, tables: Array) -> Array:
    numbers = np.asarray(statistic(tables), dtype=np.float64)
    if numbers.shape != (wanted := tables.shape[-3:-2]) or not np.isfinite(numbers).all():
        raise ValueError(
            f"statistic must give finite numbers of shape {wanted} for tables of shape {tables.shape}, "
            f"got shape {numbers.shape}: reduce the last two axes, as lambda tables: tables.mean((-2, -1)) does"
        )
    return numbers


def _spread(value: float, resampled: Resampled, shape: tuple[int, ...]) -> Spread:
    """A, B and E of the module's formula."""
    seeds, tasks = (count / max(count - 1, 1) for count in shape)
    together = resampled.both - resampled.seeds - resampled.tasks + value
    return Spread(
        seeds * float(resampled.seeds.var()),
        tasks * float(resampled.tasks.var()),
        seeds * tasks * float(together.var()) if shape[0] > 1 else 0.0,
    )
