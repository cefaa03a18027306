"""Statistics of scores `[seeds, tasks]`: point estimates and intervals over all possible seeds and tasks.

Held-out tasks are a sample, and so are the seeds of training. A mean over 40 tasks is uncertain even for one policy,
and a mean over three seeds is uncertain for any number of tasks. The intervals here include both.

The functions work on arrays from anywhere:

    from metarl.statistics import crossed_bootstrap, interquartile_mean, paired_difference
"""

from metarl.statistics.bootstrap import crossed_bootstrap, interquartile_mean
from metarl.statistics.comparisons import (
    optimality_gap,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from metarl.statistics.intervals import Estimate, Interval, confidence_interval
from metarl.statistics.student import t_quantile

__all__ = [
    "Estimate",
    "Interval",
    "confidence_interval",
    "crossed_bootstrap",
    "interquartile_mean",
    "optimality_gap",
    "paired_difference",
    "performance_profile",
    "probability_of_improvement",
    "t_quantile",
]
