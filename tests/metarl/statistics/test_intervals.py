"""Intervals hold the true mean as often as they say."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metarl.statistics import confidence_interval, t_quantile
from tests.reference.designs import coverage, crossed, outside

DESIGNS = [(seeds, tasks, of_seed) for seeds in (3, 10) for tasks in (5, 40) for of_seed in (0.0, 0.2, 1.0)]


def test_coverage_over_seeds_and_tasks() -> None:
    found = [
        coverage(crossed(seeds, tasks, of_seed, 1, 0.3), confidence_interval, 600) for seeds, tasks, of_seed in DESIGNS
    ]
    assert not outside(0.93, found, 0.97, 600)
    assert np.mean(found) == pytest.approx(0.954, abs=0.01)  # 7200 intervals


@pytest.mark.parametrize("of_seed", [0.0, 0.2, 1.0])
def test_coverage_of_two_seeds(of_seed: float) -> None:
    assert not outside(0.93, [coverage(crossed(2, 40, of_seed, 1, 0.3), confidence_interval)], 0.97, 1000)


def test_tasks_alone_cover_too_little() -> None:
    assert coverage(crossed(5, 40, 1, 1, 0.3), lambda table: confidence_interval(table.mean(0)), 200) < 0.6


def test_seeds_alone_cover_too_little() -> None:
    assert coverage(crossed(10, 40, 0.2, 1, 0.3), lambda table: confidence_interval(table.mean(1)), 200) < 0.7


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_one_seed_has_the_t_interval(level: float) -> None:
    scores = np.random.default_rng(2).exponential(size=11)
    wanted = stats.ttest_1samp(scores, 0).confidence_interval(level)
    assert confidence_interval(scores, level) == pytest.approx((wanted.low, wanted.high), rel=1e-12)


def test_seeds_that_differ_in_their_level_alone_have_the_t_interval_over_seeds() -> None:
    levels = np.array([1.0, 4.0, 2.0])
    wanted = stats.ttest_1samp(levels, 0).confidence_interval(0.95)
    assert confidence_interval(np.tile(levels[:, None], 9)) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_many_seeds_and_tasks_have_the_normal_interval() -> None:
    """Against the variance of the mean computed from the effects' true variances."""
    seeds, tasks = 400, 300
    low, high = confidence_interval(crossed(seeds, tasks, 0.5, 1, 2)(np.random.default_rng(1))) or (0.0, 0.0)
    half = 1.96 * (0.5**2 / seeds + 1 / tasks + 4 / (seeds * tasks)) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 39, 400])
def test_t_quantiles(degrees: int) -> None:
    for probability in (0.5, 0.6, 0.975, 0.9995):
        wanted = stats.t.ppf(probability, degrees)
        assert t_quantile(probability, degrees) == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_levels_and_shapes() -> None:
    scores = [1.0, 5.0, 2.0, 8.0]
    assert confidence_interval(scores) == confidence_interval(np.array(scores)) == confidence_interval([scores])
    narrow, wide = (confidence_interval(scores, level) or (0, 0) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert confidence_interval([[4.0, 4.0], [4.0, 4.0]]) == (4.0, 4.0)
    assert confidence_interval([4.0]) is confidence_interval([[4.0], [5.0]]) is None  # one task


@pytest.mark.parametrize("scores", [[], [[]], [1.0, float("nan")], [float("inf")], np.zeros((2, 2, 2))])
def test_bad_scores(scores: Any) -> None:
    with pytest.raises(ValueError, match=r"scores must be finite, \[tasks\] or \[seeds, tasks\], got shape"):
        confidence_interval(scores)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, True], ids=str)
def test_bad_levels(level: Any) -> None:
    with pytest.raises(ValueError, match="level must be"):
        confidence_interval([1.0, 2.0], level)


@pytest.mark.slow
def test_coverage_table() -> None:
    """Every design of docs/results.md; prints the table there."""
    print("\n| seeds | tasks | rest | seed spread 0 | 0.1 | 0.2 | 0.3 | 0.5 | 0.7 | 1 |")
    times, found = 4000, {}
    for seeds, tasks, rest in itertools.product((2, 3, 5, 10), (5, 20, 40, 100), (0.3, 1.0)):
        designs = [crossed(seeds, tasks, of_seed, 1, rest) for of_seed in (0, 0.1, 0.2, 0.3, 0.5, 0.7, 1)]
        row = found[seeds, rest] = [coverage(design, confidence_interval, times) for design in designs]
        print(f"| {seeds} | {tasks} | {rest} | " + " | ".join(f"{100 * x:.1f}" for x in row) + " |")
    for (seeds, rest), row in found.items():
        low, high = (0.93, 0.98) if seeds == 2 else (0.93, 0.975)
        assert not outside(low if (seeds, rest) != (2, 1.0) else 0.90, row, high, times), (seeds, rest)


@pytest.mark.slow
def test_coverage_of_skewed_scores() -> None:
    """One seed over tasks whose scores are exponential: the t interval misses more often the fewer tasks there are."""
    for tasks, wanted in ((5, 0.88), (10, 0.90), (40, 0.935), (400, 0.95)):
        found = coverage(lambda rng, n=tasks: rng.exponential(size=n) - 1, confidence_interval, 4000)  # type: ignore[misc]
        print(f"{tasks} tasks: {100 * found:.1f} %")
        assert found == pytest.approx(wanted, abs=0.02)
