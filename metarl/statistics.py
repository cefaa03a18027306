"""Confidence intervals for sampled tasks and seeds.

Tasks are a sample, so a mean over 40 of them is uncertain even for one fixed policy: resample the tasks, and with
several training runs resample the runs as well.
"""

import numpy as np
import numpy.typing as npt

from metarl.errors import check_int, check_real

Array = npt.NDArray[np.floating]


def bootstrap_ci(
    scores: npt.ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """A percentile bootstrap interval for the mean score.

    Args:
        scores: `[tasks]`, or `[runs, tasks]`: then runs and tasks are resampled, independently of each other.
        level: the interval's coverage.
        resamples: how often to resample.
        seed: of the resampling.

    Example:
        >>> low, high = bootstrap_ci([-9.0, -11.0, -10.0, -12.0, -8.0])
        >>> -11.5 < low < -10 < high < -8.5
        True
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"scores must be finite, [tasks] or [runs, tasks], got shape {np.shape(scores)}")
    check_real("level", level, high=1.0)
    check_int("resamples", resamples)
    rng = np.random.default_rng(seed)
    runs, tasks = table.shape
    run_weights = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
    task_weights = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=resamples) / tasks
    means = ((run_weights @ table) * task_weights).sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
