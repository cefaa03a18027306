"""Comparisons of scores on the same tasks: with another method, with an oracle, and with thresholds."""

import numpy as np
import numpy.typing as npt

from metarl.statistics.bootstrap import RESAMPLES, bootstrap_tables
from metarl.statistics.intervals import Array, Estimate, check_scores, mean_estimate


def paired_difference(scores: npt.ArrayLike, reference: npt.ArrayLike, *, level: float = 0.95) -> Estimate:
    """The mean difference `scores - reference` on the same tasks, with an interval over seeds and tasks.

    What makes a task hard for both cancels, so the interval is narrower than the intervals of the two means. For the
    interquartile mean of the differences, call `crossed_bootstrap(scores - reference)`.

    Args:
        scores: `[tasks]`, or `[seeds, tasks]`.
        reference: of the same shape; the entries with the same indices have the same seed and task.
        level: the interval's coverage, in (0, 1).

    Raises:
        ValueError: for arguments that cannot work, naming them.

    Example:
        >>> estimate = paired_difference([[-9.0, -29.0], [-8.0, -30.0]], [[-10.0, -30.0], [-9.0, -31.0]])
        >>> estimate.value, estimate.interval
        (1.0, (1.0, 1.0))
    """
    table, other = _check_pair(scores, reference)
    return mean_estimate(table - other, level)


def probability_of_improvement(
    scores: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    rng: np.random.Generator | None = None,
) -> Estimate:
    """The probability that a seed of one method scores higher than a seed of the other on a random task.

        P = mean over tasks t and pairs of seeds (i, j) of  1[x_it > y_jt] + 1[x_it = y_jt] / 2

    (Agarwal et al., 2021.) The interval is a crossed bootstrap in which both methods get the same seeds and tasks. If
    one method wins every time, the interval has no width: so few seeds and tasks did not show a loss.

    Args:
        scores: x, `[tasks]` or `[seeds, tasks]`.
        reference: y, of the same shape, on the same tasks.
        level: the interval's coverage, in (0, 1).
        resamples: as for `crossed_bootstrap`.
        rng: as for `crossed_bootstrap`.

    Raises:
        ValueError: for arguments that cannot work, naming them.

    Example:
        >>> probability_of_improvement([[1.0, 2.0, 3.0, 4.0]], [[0.0, 2.0, 2.0, 5.0]]).value
        0.625
    """
    tables = np.stack(_check_pair(scores, reference))
    return bootstrap_tables(tables, _wins, level, resamples, rng).clip(0.0, 1.0)


def optimality_gap(scores: npt.ArrayLike, oracle: npt.ArrayLike, *, level: float = 0.95) -> Estimate:
    """How far the scores stay below the oracle's: the mean of `max(oracle - score, 0)` over seeds and tasks.

    Scores above the oracle's do not count (Agarwal et al., 2021). Noise of single scores therefore makes the gap
    larger; `paired_difference(scores, oracle)` has no such bias.

    Args:
        scores: `[tasks]` or `[seeds, tasks]`.
        oracle: its score: a number, `[tasks]`, or `[seeds, tasks]`.
        level: the interval's coverage, in (0, 1).

    Raises:
        ValueError: for arguments that cannot work, naming them.

    Example:
        >>> optimality_gap([[-3.0, -5.0], [-4.0, -1.0]], oracle=[-2.0, -2.0]).value
        1.5
    """
    table, best = check_scores("scores", scores), check_scores("oracle", oracle)
    if best.shape[0] not in (1, table.shape[0]) or best.shape[1] not in (1, table.shape[1]):
        raise ValueError(f"oracle must be a number, or have the tasks of scores {table.shape}, got {np.shape(oracle)}")
    return mean_estimate(np.maximum(best - table, 0.0), level).clip(0.0)


def performance_profile(scores: npt.ArrayLike, thresholds: npt.ArrayLike, *, level: float = 0.95) -> list[Estimate]:
    """The share of all seeds and tasks with a score above each threshold, with an interval for each.

    The intervals hold for one threshold at a time, not for the whole profile. A share of 0 or 1 has an interval
    without width: so few seeds and tasks did not show the other case.

    Args:
        scores: `[tasks]` or `[seeds, tasks]`.
        thresholds: numbers, `[n]`.
        level: the intervals' coverage, in (0, 1).

    Raises:
        ValueError: for arguments that cannot work, naming them.

    Example:
        >>> [share.value for share in performance_profile([[1.0, 2.0], [3.0, 4.0]], [0.0, 2.0, 4.0])]
        [1.0, 0.5, 0.0]
    """
    table, levels = check_scores("scores", scores), np.asarray(thresholds, dtype=np.float64)
    if levels.ndim != 1 or not np.isfinite(levels).all():
        raise ValueError(f"thresholds must be finite numbers [n], got shape {levels.shape}")
    return [mean_estimate((table > x).astype(np.float64), level).clip(0.0, 1.0) for x in levels]


def _check_pair(scores: npt.ArrayLike, reference: npt.ArrayLike) -> tuple[Array, Array]:
    table, other = check_scores("scores", scores), check_scores("reference", reference)
    if table.shape != other.shape:
        raise ValueError(f"reference must have the shape of scores, {table.shape}, got {other.shape}")
    return table, other


def _wins(tables: Array) -> Array:
    """P for tables `[2, ..., n, m]`."""
    ours, theirs = tables[0][..., :, None, :], tables[1][..., None, :, :]
    wins: Array = ((ours > theirs) + 0.5 * (ours == theirs)).mean((-3, -2, -1))
    return wins
