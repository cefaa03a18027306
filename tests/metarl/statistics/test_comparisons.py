"""Comparisons against numbers worked out by hand and against SciPy."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from metarl.statistics import (
    comparisons,
    confidence_interval,
    optimality_gap,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from tests.reference.designs import coverage, crossed, outside

RNG = np.random.default_rng(7)
SCORES, REFERENCE = RNG.integers(8, size=(2, 4, 9)).astype(np.float64)  # with ties


def test_paired_difference() -> None:
    estimate = paired_difference(SCORES, REFERENCE)
    assert estimate.value == pytest.approx(SCORES.mean() - REFERENCE.mean())
    assert estimate.interval == confidence_interval(SCORES - REFERENCE)
    hard = 100 * RNG.normal(size=9)  # the same for both
    assert paired_difference(SCORES + hard, REFERENCE + hard).interval == pytest.approx(estimate.interval)


def improvement_is_mann_whitneys() -> None:
    """U counts the pairs of seeds in which the first is larger, ties by half."""
    wanted = [stats.mannwhitneyu(x, y).statistic / 16 for x, y in zip(SCORES.T, REFERENCE.T, strict=True)]
    found = probability_of_improvement(SCORES, REFERENCE)
    assert found.value == pytest.approx(np.mean(wanted))
    assert found.interval is not None
    assert 0 <= found.interval[0] < found.value < found.interval[1] <= 1
    back = probability_of_improvement(REFERENCE, SCORES)
    assert back.value == pytest.approx(1 - found.value)
    assert back.interval == pytest.approx((1 - found.interval[1], 1 - found.interval[0]))


def test_probability_of_improvement() -> None:
    improvement_is_mann_whitneys()
    assert probability_of_improvement(REFERENCE + 10, REFERENCE) == (1.0, (1.0, 1.0))


def same_seed_only(tables: np.ndarray) -> Any:
    return ((tables[0] > tables[1]) + 0.5 * (tables[0] == tables[1])).mean((-2, -1))


def other_task(tables: np.ndarray) -> Any:
    return (tables[0][..., :, None] > tables[1][..., None, :]).mean((-3, -2, -1))


def ties_lost(tables: np.ndarray) -> Any:
    return (tables[0][..., :, None, :] > tables[1][..., None, :, :]).mean((-3, -2, -1))


@pytest.mark.parametrize("mutant", [same_seed_only, other_task, ties_lost])
def test_wrong_improvements_are_seen(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "_wins", mutant)
    with pytest.raises(AssertionError):
        improvement_is_mann_whitneys()


def coverage_of_the_improvement(seeds: int, of_seed: float, times: int = 400) -> float:
    """Both methods alike, on 40 tasks: the truth is a half. Each has its own effects of seed and task."""

    def interval(tables: np.ndarray) -> Any:
        x, y = tables[:, :40], tables[:, 40:]
        return probability_of_improvement(x, y, resamples=200, rng=np.random.default_rng(1)).interval

    def simulate(rng: np.random.Generator) -> np.ndarray:
        one, other = (crossed(seeds, 40, of_seed, 1, 0.3)(rng) for _ in range(2))
        return np.concatenate([one, other], axis=1)

    return coverage(simulate, interval, times, truth=0.5)


def test_coverage_of_the_improvement() -> None:
    assert not outside(0.92, [coverage_of_the_improvement(5, 0.3)], 0.97, 400)


@pytest.mark.slow
def test_coverage_of_the_improvement_table() -> None:
    """Prints the figures of docs/results.md; few seeds that differ much are the hard case."""
    found = {(n, of_seed): coverage_of_the_improvement(n, of_seed) for n in (3, 5, 10) for of_seed in (0.0, 0.2, 1.0)}
    print("\n", {design: f"{100 * share:.1f} %" for design, share in found.items()})
    assert not outside(0.88, found.values(), 0.97, 400)


def test_optimality_gap() -> None:
    scores = [[-3.0, -5.0, -1.0], [-4.0, -1.0, -3.0]]
    assert optimality_gap(scores, [-2.0, -2.0, -3.0]).value == pytest.approx((1 + 3 + 0 + 2 + 0 + 0) / 6)
    assert optimality_gap(scores, 0.0).value == pytest.approx(17 / 6)
    assert optimality_gap(scores, scores) == (0.0, (0.0, 0.0))
    gaps = [[1.0, 3.0, 0.0], [2.0, 0.0, 0.0]]
    low, high = confidence_interval(gaps) or (0.0, 0.0)
    assert optimality_gap(scores, [-2.0, -2.0, -3.0]).interval == pytest.approx((max(low, 0.0), high))
    # clipped before the mean, not after it
    assert optimality_gap([[0.0, 4.0]], [2.0, 2.0]).value == 1.0


def test_performance_profile() -> None:
    thresholds = [-1.0, 2.0, 3.5, 7.0]
    profile = performance_profile(SCORES, thresholds)
    assert [share.value for share in profile] == [np.mean(x < SCORES) for x in thresholds]
    assert profile[0].interval == (1.0, 1.0)
    assert profile[2].interval == pytest.approx(confidence_interval(SCORES > 3.5))
    for share in profile:
        assert share.interval is not None
        assert 0 <= share.interval[0] <= share.value <= share.interval[1] <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference(SCORES, REFERENCE[:3]), r"reference must have the shape of scores, \(4, 9\), got"),
        (lambda: probability_of_improvement(SCORES, REFERENCE[:, 1:]), "reference must have the shape of scores"),
        (lambda: paired_difference(SCORES, np.nan), "reference must be finite"),
        (lambda: optimality_gap(SCORES, REFERENCE[:, :2]), "oracle must be a number, or have the tasks of scores"),
        (lambda: optimality_gap(SCORES, REFERENCE[:2]), "oracle must be a number, or have the tasks of scores"),
        (lambda: performance_profile(SCORES, 1.0), r"thresholds must be finite numbers \[n\], got shape \(\)"),
        (lambda: performance_profile(SCORES, [np.inf]), "thresholds must be finite"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
