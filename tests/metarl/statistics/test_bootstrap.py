"""The crossed bootstrap agrees with SciPy's, with the closed form of the mean, and holds the truth often enough."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metarl.statistics import bootstrap, confidence_interval, crossed_bootstrap, interquartile_mean
from metarl.statistics.bootstrap import Resampled, resample
from metarl.statistics.intervals import Spread, interval_around
from tests.reference.designs import coverage, crossed, outside

TABLE = crossed(4, 12, 0.7, 1, 0.8)(np.random.default_rng(5))
STATISTICS = {
    "mean": lambda tables: tables.mean((-2, -1)),
    "interquartile mean": interquartile_mean,
    "median": lambda tables: np.median(tables, (-2, -1)),
}


def of_iqm(scores: np.ndarray) -> Any:
    return crossed_bootstrap(scores, resamples=200, rng=np.random.default_rng(1)).interval


def percentiles(which: str) -> Callable[[np.ndarray], Any]:
    """The plain percentile bootstrap, with `seeds`, `tasks` or `both` resampled."""

    def interval(scores: np.ndarray) -> Any:
        found = getattr(resample(scores, interquartile_mean, 200, np.random.default_rng(1)), which)
        return np.quantile(found, [0.025, 0.975])

    return interval


@pytest.mark.parametrize("shape", [(1, 4), (1, 7), (3, 9), (5, 40), (1, 1), (2, 1)])
def test_interquartile_mean(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).normal(size=(6, *shape))
    wanted = [stats.trim_mean(table.ravel(), 0.25) for table in scores]
    np.testing.assert_allclose(interquartile_mean(scores), wanted, rtol=1e-12)
    assert float(interquartile_mean([5.0, 1.0, 2.0, 90.0])) == 3.5
    for wrong in ([], [1.0, 2.0, 3.0, np.nan], [[1.0, np.inf, 2.0, 3.0]]):  # sorted, NaN would be the best score
        with pytest.raises(ValueError, match="scores must be finite"):
            interquartile_mean(wrong)


@pytest.mark.parametrize("name", STATISTICS)
def test_both_resampled_is_scipys_bootstrap_of_two_samples(name: str) -> None:
    """SciPy resamples the numbers of the seeds and of the tasks independently: the same bootstrap."""
    statistic = STATISTICS[name]
    ours = resample(TABLE, statistic, 8000, np.random.default_rng(0)).both
    theirs = stats.bootstrap(
        tuple(map(np.arange, TABLE.shape)),
        lambda i, j: float(statistic(TABLE[np.ix_(i, j)])),
        vectorized=False,
        n_resamples=8000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert ours.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.05)  # each has 0.8 %
    ends = np.quantile(ours, [0.025, 0.975])
    assert ends == pytest.approx(list(theirs.confidence_interval), abs=0.12 * theirs.standard_error)


@pytest.mark.parametrize("name", STATISTICS)
def test_one_seed_is_scipys_bootstrap_over_tasks(name: str) -> None:
    scores, statistic = TABLE.mean(0), STATISTICS[name]
    theirs = stats.bootstrap((scores,), lambda x: statistic(x[None]), vectorized=False, rng=np.random.default_rng(1))
    low, high = crossed_bootstrap(scores, statistic, resamples=9999).interval
    wanted = stats.t.ppf(0.975, 11) * theirs.standard_error * (12 / 11) ** 0.5
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.04)


def mean_has_the_closed_form(shape: tuple[int, int], rest: float) -> None:
    table = crossed(*shape, 0.7, 1, rest)(np.random.default_rng(3))
    estimate = crossed_bootstrap(table, STATISTICS["mean"], resamples=20_000)
    assert estimate.value == pytest.approx(table.mean(), abs=1e-12)
    assert estimate.interval == pytest.approx(confidence_interval(table), abs=0.02 * np.ptp(confidence_interval(table)))


SHAPES = [((3, 10), 0.5), ((2, 5), 2.0), ((10, 40), 1.0), ((1, 6), 1.0)]


@pytest.mark.parametrize(("shape", "rest"), SHAPES)
def test_the_mean_has_the_closed_form(shape: tuple[int, int], rest: float) -> None:
    mean_has_the_closed_form(shape, rest)


def every_mean_has_the_closed_form() -> None:
    for shape, rest in SHAPES:
        mean_has_the_closed_form(shape, rest)


def plain(value: float, found: Resampled, shape: Any) -> Spread:
    return Spread(found.seeds.var(), found.tasks.var(), (found.both - found.seeds - found.tasks + value).var())


def rest_added(value: float, found: Resampled, shape: Any) -> Spread:
    a, b, rest = bootstrap_spread(value, found, shape)
    return Spread(a, b, -rest)


def seeds_only(value: float, found: Resampled, shape: Any) -> Spread:
    return bootstrap_spread(value, found, shape)._replace(tasks=0.0)


def both_as_rest(value: float, found: Resampled, shape: Any) -> Spread:
    return bootstrap_spread(value, found, shape)._replace(rest=found.both.var())


bootstrap_spread = bootstrap._spread


@pytest.mark.parametrize("mutant", [plain, rest_added, seeds_only, both_as_rest])
def test_wrong_spreads_are_seen(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_spread", mutant)
    with pytest.raises(AssertionError):
        every_mean_has_the_closed_form()


def test_joint_resampling_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single scores resampled, as if they were independent."""

    def scores(tables: np.ndarray, statistic: Any, resamples: int, rng: np.random.Generator) -> Resampled:
        drawn = rng.choice(tables.ravel(), size=(3, resamples, *tables.shape))
        return Resampled(*map(statistic, drawn))

    monkeypatch.setattr(bootstrap, "resample", scores)
    with pytest.raises(AssertionError):
        mean_has_the_closed_form((3, 10), 0.5)


DESIGNS = [(3, 5, 0.0), (3, 40, 0.2), (5, 40, 1.0), (10, 5, 0.2)]


def test_coverage_of_the_interquartile_mean() -> None:
    found = [coverage(crossed(seeds, tasks, of_seed, 1, 0.3), of_iqm, 400) for seeds, tasks, of_seed in DESIGNS]
    assert not outside(0.93, found, 0.97, 400)


def test_plain_resampling_covers_too_little() -> None:
    """The measure of coverage can fail: seeds only, and the percentiles of three seeds and of all."""
    assert coverage(crossed(10, 40, 0.2, 1, 0.3), percentiles("seeds"), 200) < 0.6
    assert coverage(crossed(3, 40, 1, 1, 0.3), percentiles("tasks"), 200) < 0.6
    assert coverage(crossed(3, 40, 1, 1, 0.3), percentiles("both"), 200) < 0.89


def test_generators_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    first = crossed_bootstrap(TABLE)
    assert first == crossed_bootstrap(TABLE) == crossed_bootstrap(TABLE, rng=np.random.default_rng(0))
    assert first != crossed_bootstrap(TABLE, rng=np.random.default_rng(1))
    monkeypatch.setattr(bootstrap, "CHUNK", 100)
    assert crossed_bootstrap(TABLE) == first
    assert crossed_bootstrap([[1.0], [2.0]]).interval is None
    assert crossed_bootstrap(np.full((3, 4), 2.0)) == (2.0, (2.0, 2.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"statistic": np.mean}, r"statistic must give finite numbers of shape \(1,\)"),
        ({"statistic": lambda tables: tables.mean(-1)}, "statistic must give finite numbers"),
        ({"statistic": lambda tables: np.full(len(tables), np.nan)}, "statistic must give finite numbers"),
        ({"statistic": 3}, "statistic must be a function"),
        ({"resamples": 1}, "resamples must be an integer of at least 2"),
        ({"level": 1.0}, "level must be below 1"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossed_bootstrap(TABLE, **arguments)


def coverages(seeds: int, tasks: int, rest: float, of_seed: float, times: int = 2000) -> list[float]:
    """In percent: of our interval, and of the percentiles with both, seeds only, and tasks only resampled."""
    simulate, rng, held = crossed(seeds, tasks, of_seed, 1, rest), np.random.default_rng(0), np.zeros(4)
    for _ in range(times):
        scores = simulate(rng)
        value = float(interquartile_mean(scores))
        found = resample(scores, interquartile_mean, 200, np.random.default_rng(1))
        ours = interval_around(value, bootstrap._spread(value, found, scores.shape), scores.shape, 0.95)
        plain = [np.quantile(x, [0.025, 0.975]) for x in (found.both, found.seeds, found.tasks)]
        held += [low <= 0 <= high for low, high in [ours or (np.nan, np.nan), *plain]]
    return [100 * float(x) / times for x in held]


@pytest.mark.slow
def test_coverage_table() -> None:
    """Coverage of intervals for the interquartile mean; prints the table of docs/results.md."""
    print("\n| seeds | tasks | rest | seed spread | `crossed_bootstrap` | both | seeds only | tasks only |")
    for seeds, tasks, rest, of_seed in itertools.product((2, 3, 5, 10), (5, 40), (0.3, 1.0), (0.0, 0.2, 1.0)):
        found = coverages(seeds, tasks, rest, of_seed)
        cells = " | ".join(f"{x:.1f}" for x in found)
        print(f"| {seeds} | {tasks} | {rest} | {of_seed} | {cells} |", flush=True)
        low = 0.93 if seeds > 2 or (rest, of_seed) != (1.0, 1.0) else 0.90
        assert not outside(low, [found[0] / 100], 0.975, 2000), (seeds, tasks, rest, of_seed)
