"""Bootstrap intervals cover what they should."""

from typing import Any

import numpy as np
import pytest

from metarl.statistics import bootstrap_ci


def coverage(simulate: Any, level: float, times: int = 400) -> float:
    """How often the interval contains the true mean, zero."""
    rng = np.random.default_rng(0)
    intervals = [bootstrap_ci(simulate(rng), level, resamples=300, seed=i) for i in range(times)]
    return float(np.mean([low <= 0 <= high for low, high in intervals]))


def runs_by_tasks(rng: np.random.Generator) -> np.ndarray:
    """Effects of the run, of the task, and noise."""
    return rng.normal(size=(12, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(12, 40))


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage_over_tasks(level: float) -> None:
    got = coverage(lambda rng: rng.exponential(size=40) - 1, level)
    # four standard errors, and the percentile bootstrap's known shortfall of a few points on 40 skewed scores
    stderr = (level * (1 - level) / 400) ** 0.5
    assert level - 0.03 - 4 * stderr < got < level + 4 * stderr


def test_coverage_over_runs_and_tasks() -> None:
    stderr = (0.9 * 0.1 / 400) ** 0.5
    assert 0.9 - 0.04 - 4 * stderr < coverage(runs_by_tasks, 0.9) < 0.9 + 0.04 + 4 * stderr
    # resampling the tasks alone, as if the runs' differences were none, covers far less
    assert coverage(lambda rng: runs_by_tasks(rng).mean(0), 0.9) < 0.7


def test_runs_widen_the_interval() -> None:
    table = runs_by_tasks(np.random.default_rng(1))
    (low, high), (low_tasks, high_tasks) = bootstrap_ci(table), bootstrap_ci(table.mean(0))
    assert low < low_tasks < table.mean() < high_tasks < high


def test_width_is_that_of_the_normal_interval() -> None:
    scores = np.random.default_rng(2).normal(3, 2, 1000)
    low, high = bootstrap_ci(scores)
    half = 1.96 * scores.std() / 1000**0.5
    assert low == pytest.approx(scores.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.05 * half)


def test_seeds_levels_and_shapes() -> None:
    scores = [1.0, 5.0, 2.0, 8.0]
    assert bootstrap_ci(scores) == bootstrap_ci(np.array(scores)) == bootstrap_ci([scores])
    assert bootstrap_ci(scores, seed=1) == bootstrap_ci(scores, seed=1)
    narrow, wide = bootstrap_ci(scores, 0.5), bootstrap_ci(scores, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_ci([4.0]) == bootstrap_ci([[4.0, 4.0], [4.0, 4.0]]) == (4.0, 4.0)


@pytest.mark.parametrize("scores", [[], [[]], [1.0, float("nan")], [float("inf")], np.zeros((2, 2, 2))])
def test_bad_scores(scores: Any) -> None:
    with pytest.raises(ValueError, match=r"scores must be finite, \[tasks\] or \[runs, tasks\], got shape"):
        bootstrap_ci(scores)


@pytest.mark.parametrize(
    "bad", [{"level": 0.0}, {"level": 95}, {"level": True}, {"resamples": 0}, {"resamples": 10.0}], ids=str
)
def test_bad_arguments(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        bootstrap_ci([1.0, 2.0], **bad)
