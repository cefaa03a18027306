"""Intervals hold the true mean as often as they say."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metarl.statistics import confidence_interval, t_quantile

Simulate = Callable[[np.random.Generator], np.ndarray]


def coverage(simulate: Simulate, level: float = 0.95, times: int = 1000, interval: Any = confidence_interval) -> float:
    """How often the interval contains the true mean, zero."""
    rng = np.random.default_rng(0)
    intervals = [interval(simulate(rng), level) for _ in range(times)]
    return float(np.mean([low <= 0 <= high for low, high in intervals]))


def crossed(runs: int, tasks: int, of_run: float, of_task: float, rest: float) -> Simulate:
    """Scores with normal effects of the run, of the task, and of both together; standard deviations."""

    def simulate(rng: np.random.Generator) -> np.ndarray:
        effects = of_run * rng.normal(size=(runs, 1)) + of_task * rng.normal(size=(1, tasks))
        return effects + rest * rng.normal(size=(runs, tasks))

    return simulate


def percentile_bootstrap(table: np.ndarray, level: float) -> tuple[float, float]:
    """The interval that runs and tasks, resampled independently, give: too narrow for few of either."""
    (runs, tasks), rng = table.shape, np.random.default_rng(0)
    of_run, of_task = (rng.multinomial(n, np.full(n, 1 / n), size=400) / n for n in (runs, tasks))
    low, high = np.quantile(((of_run @ table) * of_task).sum(1), [(1 - level) / 2, (1 + level) / 2])
    return low, high


def outside(low: float, coverages: Iterable[float], high: float, times: int) -> list[float]:
    """The coverages that miss a range by more than four standard errors."""
    stderr = (0.05 * 0.95 / times) ** 0.5
    return [x for x in coverages if not low - 4 * stderr < x < high + 4 * stderr]


DESIGNS = [(runs, tasks, of_run) for runs in (3, 10) for tasks in (5, 40) for of_run in (0.0, 0.2, 1.0)]


def test_coverage_over_runs_and_tasks() -> None:
    found = [coverage(crossed(runs, tasks, of_run, 1, 0.3), times=600) for runs, tasks, of_run in DESIGNS]
    assert not outside(0.93, found, 0.97, 600)
    assert np.mean(found) == pytest.approx(0.954, abs=0.01)  # 7200 intervals


@pytest.mark.parametrize("of_run", [0.0, 0.2, 1.0])
def test_coverage_of_two_runs(of_run: float) -> None:
    assert not outside(0.93, [coverage(crossed(2, 40, of_run, 1, 0.3))], 0.97, 1000)


def test_resampling_covers_too_little() -> None:
    """The measure of coverage can fail: what was wrong with resampling two or three runs."""
    for runs, most in ((2, 0.75), (3, 0.89)):
        assert coverage(crossed(runs, 40, 1, 1, 0.3), times=200, interval=percentile_bootstrap) < most


def test_tasks_alone_cover_too_little() -> None:
    def over_tasks(table: np.ndarray, level: float) -> Any:
        return confidence_interval(table.mean(0), level)

    assert coverage(crossed(5, 40, 1, 1, 0.3), times=200, interval=over_tasks) < 0.6


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_one_run_has_the_t_interval(level: float) -> None:
    scores = np.random.default_rng(2).exponential(size=11)
    wanted = stats.ttest_1samp(scores, 0).confidence_interval(level)
    assert confidence_interval(scores, level) == pytest.approx((wanted.low, wanted.high), rel=1e-12)


def test_runs_that_differ_in_their_level_alone_have_the_t_interval_over_runs() -> None:
    levels = np.array([1.0, 4.0, 2.0])
    wanted = stats.ttest_1samp(levels, 0).confidence_interval(0.95)
    assert confidence_interval(np.tile(levels[:, None], 9)) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_many_runs_and_tasks_have_the_normal_interval() -> None:
    """Against the variance of the mean computed from the effects' true variances."""
    runs, tasks = 400, 300
    low, high = confidence_interval(crossed(runs, tasks, 0.5, 1, 2)(np.random.default_rng(1))) or (0.0, 0.0)
    half = 1.96 * (0.5**2 / runs + 1 / tasks + 4 / (runs * tasks)) ** 0.5
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
    with pytest.raises(ValueError, match=r"scores must be finite, \[tasks\] or \[runs, tasks\], got shape"):
        confidence_interval(scores)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, True], ids=str)
def test_bad_levels(level: Any) -> None:
    with pytest.raises(ValueError, match="level must be"):
        confidence_interval([1.0, 2.0], level)


@pytest.mark.slow
def test_coverage_table() -> None:
    """Every design of docs/results.md; prints the table there."""
    print("\n| runs | tasks | rest | seed spread 0 | 0.1 | 0.2 | 0.3 | 0.5 | 0.7 | 1 |")
    times, found = 4000, {}
    for runs, tasks, rest in itertools.product((2, 3, 5, 10), (5, 20, 40, 100), (0.3, 1.0)):
        designs = [crossed(runs, tasks, of_run, 1, rest) for of_run in (0, 0.1, 0.2, 0.3, 0.5, 0.7, 1)]
        row = found[runs, rest] = [coverage(design, times=times) for design in designs]
        print(f"| {runs} | {tasks} | {rest} | " + " | ".join(f"{100 * x:.1f}" for x in row) + " |")
    for (runs, rest), row in found.items():
        low, high = (0.93, 0.98) if runs == 2 else (0.93, 0.975)
        assert not outside(low if (runs, rest) != (2, 1.0) else 0.90, row, high, times), (runs, rest)


@pytest.mark.slow
def test_coverage_of_skewed_scores() -> None:
    """One run over tasks whose scores are exponential: the t interval misses more often the fewer tasks there are."""
    for tasks, wanted in ((5, 0.88), (10, 0.90), (40, 0.935), (400, 0.95)):
        found = coverage(lambda rng, n=tasks: rng.exponential(size=n) - 1, times=4000)  # type: ignore[misc]
        print(f"{tasks} tasks: {100 * found:.1f} %")
        assert found == pytest.approx(wanted, abs=0.02)
