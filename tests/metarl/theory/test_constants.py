"""Constants against closed forms and dense Hessians."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.engine import Engine
from metarl.supervised import BatchSizes, FiniteSumSource, FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.theory import (
    Estimation,
    estimate,
    estimate_smoothness,
    estimate_source,
)
from metarl.theory.constants import per_sample
from metarl.theory.logistic import (
    hessian_smoothness,
    logistic_tasks,
    six_logistic_tasks,
    smoothness,
)
from metarl.theory.quadratics import quadratic_tasks, random_quadratics, resampled_quadratics
from metarl.types import Batch, Params, Role, TaskBatch
from metarl.wrappers import CountCost
from tests.reference import problems
from tests.reference.checks import ravel, unravel

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_hessians(tasks: TaskBatch, params: Params) -> Tensor:
    """`[T, P, P]` by plain autograd, of tasks whose draws are always the same."""
    batch = tasks.draw({k: v.expand(tasks.num_tasks, *v.shape) for k, v in params.items()}, "hessian")

    def of(task: int) -> Tensor:
        data = {key: leaf[task] for key, leaf in batch.items()}
        return torch.autograd.functional.hessian(lambda w: tasks.loss(unravel(w, params), data), ravel(params))

    return torch.stack([of(task) for task in range(tasks.num_tasks)])


# L and rho


@pytest.mark.parametrize("name", ["quadratics", "logistic", "regression"])
def test_smoothness_is_the_greatest_absolute_eigenvalue(name: str) -> None:
    tasks, params = problems.PROBLEMS[name]()
    exact = torch.linalg.eigvalsh(dense_hessians(tasks, params)).abs().amax(1)
    found = estimate_smoothness(params, tasks, generator(), iterations=150)
    torch.testing.assert_close(found, exact, rtol=2e-3, atol=0)
    assert (found <= exact * (1 + 1e-12)).all()


def test_smoothness_of_an_indefinite_hessian() -> None:
    tasks = FiniteSumTaskBatch(lambda p, b: (b["a"] * p["w"] ** 2).sum() / 2, {"a": torch.tensor([[1.0, -3.0]])})
    assert estimate_smoothness({"w": torch.zeros(2)}, tasks, generator()).item() == pytest.approx(3.0)


def test_smoothness_approaches_from_below() -> None:
    tasks, params = problems.logistic()
    looks = torch.stack([estimate_smoothness(params, tasks, generator(), k) for k in (1, 2, 4, 8, 200)])
    assert (looks.diff(dim=0) > 0).all()


def test_the_published_constant_of_p2() -> None:
    """At w = 0 a logistic loss is as curved as it gets: L = 0.52758."""
    tasks, params = problems.logistic()
    found = estimate_smoothness({"w": torch.zeros_like(params["w"])}, tasks, generator(), 300).max()
    assert found.item() == pytest.approx(smoothness(six_logistic_tasks()), rel=1e-9)
    assert found.item() == pytest.approx(0.52758, abs=5e-6)


def test_rho_of_quadratics_is_zero() -> None:
    tasks, params = problems.quadratics()
    assert estimate(params, tasks, generator()).rho < 1e-12


def test_rho_in_one_dimension_is_exact() -> None:
    """Of `a w^3 / 6` the second derivative is `a w`, so rho = |a| whatever the pair."""
    tasks = FiniteSumTaskBatch(
        lambda p, b: b["a"] * p["w"] ** 3 / 6, {"a": torch.tensor([2.0, -5.0, 1.0], dtype=DOUBLE)}
    )
    found = estimate({"w": torch.tensor(0.7, dtype=DOUBLE)}, tasks, generator(), Estimation(pairs=1, iterations=1))
    assert found.rho == pytest.approx(5.0)


def test_rho_is_a_lower_bound_that_more_pairs_raise() -> None:
    """Of `(a . w)^3 / 6` the Hessian is `(a . w) a a^T`: a pair gives `|a|^3 |cos|`, at most `|a|^3`."""
    a = torch.tensor([[1.0, 2.0, 2.0]], dtype=DOUBLE)  # of norm 3
    tasks = FiniteSumTaskBatch(lambda p, b: (b["a"] @ p["w"]) ** 3 / 6, {"a": a})
    params = {"w": torch.ones(3, dtype=DOUBLE)}
    found = [estimate(params, tasks, generator(), Estimation(pairs=pairs, iterations=3)).rho for pairs in (1, 8, 64)]
    assert found[0] < found[1] < found[2]
    assert 0.97 * 27 < found[2] <= 27 + 1e-9


@pytest.mark.parametrize("radius", [1e-3, 0.5])
def test_pairs_stay_within_the_radius(radius: float) -> None:
    """Of a loss that is cubic beyond the radius only, nothing is seen."""

    def loss(params: Params, batch: Batch) -> Tensor:
        beyond = torch.relu((params["w"] - batch["c"]).norm() - radius)
        return params["w"].square().sum() + 100 * beyond**4

    tasks = FiniteSumTaskBatch(loss, {"c": torch.full((1, 3), 1.0, dtype=DOUBLE)})
    params = {"w": torch.full((3,), 1.001, dtype=DOUBLE)}  # the centre itself has no derivative
    params["w"] = params["w"] - 0.001 + 1e-9
    inside = Estimation(radius=0.999 * radius, pairs=16, iterations=4)
    assert estimate(params, tasks, generator(), inside).rho < 1e-6
    assert estimate(params, tasks, generator(), inside._replace(radius=2 * radius)).rho > 1e-2


def test_rho_of_p2_is_below_the_bound() -> None:
    """The bound holds everywhere and for all data; pairs of points in a large ball come within a factor of ten."""
    problem = six_logistic_tasks()
    tasks, params = logistic_tasks(problem), {"w": torch.zeros(5, dtype=DOUBLE)}
    found = estimate(params, tasks, generator(), Estimation(radius=3.0, pairs=30, iterations=5)).rho
    assert 0.1 * hessian_smoothness(problem) < found < hessian_smoothness(problem)


# sigma, sigma~, sigma_H


def test_sigma_of_quadratics() -> None:
    """Without noise it is exact, and there is no other deviation."""
    problem = random_quadratics(np.random.default_rng(1), 3, 4)
    w = torch.arange(4, dtype=DOUBLE)
    grads = torch.einsum("tij,tj->ti", problem.curvatures, w - problem.centres)
    found = estimate({"w": w}, quadratic_tasks(problem), generator())
    assert found.sigma == pytest.approx((grads - grads.mean(0)).norm(dim=1).square().mean().sqrt().item(), rel=1e-12)
    assert (found.sample_sigma, found.hessian_sigma) == (0.0, 0.0)


def test_sample_sigma_of_resampled_quadratics() -> None:
    """The gradient of one point is `A (w - c - 0.7 xi)`: its variance is `0.49 |A|_F^2`, the Hessian's is zero."""
    problem, params = random_quadratics(np.random.default_rng(1), 30, 4), {"w": torch.zeros(4, dtype=DOUBLE)}
    tasks = resampled_quadratics(problem, generator(), BatchSizes(9, 9, 9), noise=0.7)
    found = estimate(params, tasks, generator(1), Estimation(iterations=1, pairs=1, draws=80))
    exact = 0.7 * problem.curvatures.square().sum((1, 2)).mean().sqrt().item()
    assert found.sample_sigma == pytest.approx(exact, rel=0.03)  # 2400 draws of four dimensions: 0.8 % or so
    assert found.hessian_sigma == 0.0


TASKS, POINTS = 3, 12


def point_loss(params: Params, batch: Batch) -> Tensor:
    """`mean_n w^T A_n w / 2 + b_n . w`: noisy gradients and noisy Hessians."""
    w = params["w"]
    return (0.5 * torch.einsum("i,nij,j->n", w, batch["A"], w) + batch["b"] @ w).mean()


def points() -> Batch:
    rng = np.random.default_rng(4)
    a = rng.normal(size=(TASKS, POINTS, 2, 2))
    b = rng.normal(size=(TASKS, POINTS, 2)) + 2 * rng.normal(size=(TASKS, 1, 2))
    return {"A": torch.as_tensor(a + a.swapaxes(2, 3)), "b": torch.as_tensor(b)}


def with_replacement(seed: int) -> TaskBatch:
    data = points()

    def sampler(role: Role, generator: torch.Generator) -> Batch:
        rows = torch.randint(POINTS, (TASKS, 5), generator=generator)
        return {key: leaf[torch.arange(TASKS)[:, None], rows] for key, leaf in data.items()}

    return ResamplingTaskBatch(point_loss, TASKS, sampler, generator(seed))


def without_replacement(seed: int) -> FiniteSumTaskBatch:
    sizes = BatchSizes(inner=5, hessian=5)
    return FiniteSumTaskBatch(point_loss, points(), batch_sizes=sizes, generator=generator(seed))


@pytest.mark.parametrize(("make", "population"), [(with_replacement, None), (without_replacement, POINTS)])
def test_deviations_are_unbiased(make: Callable[[int], TaskBatch], population: int | None) -> None:
    """Of squares: the mean of 120 estimates is within 4 standard errors of the population's value."""
    w, data = torch.tensor([1.0, -0.5], dtype=DOUBLE), points()
    grads = torch.einsum("tnij,j->tni", data["A"], w) + data["b"]
    means = grads.mean(1)
    exact = {
        "sigma": (means - means.mean(0)).square().sum(1).mean(),
        "sample_sigma": (grads - means[:, None]).square().sum(2).mean(),
        "hessian_sigma": (data["A"] - data["A"].mean(1, keepdim=True)).square().sum((2, 3)).mean(),
    }
    settings = Estimation(iterations=1, pairs=1, draws=3, population=population)
    with Engine().current():
        found = [estimate({"w": w}, make(seed), generator(1000 + seed), settings) for seed in range(120)]
    for name, value in exact.items():
        squares = np.asarray([getattr(constants, name) ** 2 for constants in found])
        stderr = squares.std(ddof=1) / math.sqrt(len(squares))
        assert abs(squares.mean() - value.item()) < 4 * stderr, name
        assert stderr < 0.1 * value.item(), f"{name}: too noisy to show anything"


def test_deviations_by_hand() -> None:
    """Two draws of one point each give two tasks the gradients 0, 2 and 10, 12: every draw has variance 2.

    The means, 1 and 11, are 5 from theirs; the noise of two draws is `2 / 2`, of which the tasks' mean keeps half.
    """
    draws = iter(([0.0, 10.0], [2.0, 12.0]))
    tasks = ResamplingTaskBatch(
        lambda p, b: (p["w"] * b["g"]).sum(), 2, lambda role, _: {"g": torch.tensor(next(draws))[:, None]}, generator()
    )
    found = estimate({"w": torch.zeros(1)}, tasks, generator(), Estimation(draws=2))
    assert found.sample_sigma**2 == pytest.approx(2.0)
    assert found.sigma**2 == pytest.approx(25.0 - 0.5)
    assert (found.L, found.rho, found.hessian_sigma) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_draws_without_replacement_by_enumeration(n: int) -> None:
    """Of all subsets of n of five points, the variance of the mean times the factor is the variance of the points."""
    values = np.asarray([1.0, 2.0, 4.0, 8.0, 16.0])
    means = [values[list(rows)].mean() for rows in itertools.combinations(range(5), n)]
    tasks = FiniteSumTaskBatch(point_loss, {"x": torch.zeros(3, n)})
    factor = per_sample(tasks, tasks.support, population=5)
    assert np.var(means) * factor == pytest.approx(values.var())


def test_draws_of_everything_say_nothing_of_their_variance() -> None:
    tasks = FiniteSumTaskBatch(point_loss, points())
    with pytest.raises(ValueError, match=r"population must be more than the 12 samples of a draw, got 12"):
        estimate({"w": torch.zeros(2, dtype=DOUBLE)}, tasks, generator(), Estimation(population=POINTS))


# Whole estimates


def test_derivatives_and_samples_are_counted() -> None:
    tasks, params = problems.regression()
    counting = CountCost(tasks)
    estimate(params, counting, generator(), Estimation(iterations=6, pairs=2, draws=3))
    products = 6 + 2 * 2 * 6 + 2 * 2  # L, two Hessians for each pair of rho, both of two pairs of draws
    assert counting.counts == {
        "samples": 3 * 3 * 5,
        "gradients": 3 * 3,
        "hessian_vector_products": 3 * products,
    }


def test_estimates_follow_from_the_seed_alone() -> None:
    source = FiniteSumSource(without_replacement(0), {"w": torch.tensor([1.0, -0.5], dtype=DOUBLE)})
    settings = Estimation(iterations=2)
    found = [estimate_source(source, 2, np.random.default_rng(seed), None, settings) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]
    elsewhere = estimate_source(source, 2, np.random.default_rng(3), {"w": torch.zeros(2, dtype=DOUBLE)}, settings)
    assert elsewhere.L == found[0].L  # quadratics are as curved everywhere
    assert elsewhere.sample_sigma != found[0].sample_sigma


def test_reinforcement_learning() -> None:
    tasks, params = problems.reinforcement_learning("navigation")
    found = estimate(params, tasks, generator(), Estimation(iterations=3, pairs=1, draws=2))
    assert all(math.isfinite(value) and value > 0 for value in (found.L, found.rho, found.sample_sigma))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"draws": 1}, "draws"),
        ({"pairs": 0}, "pairs"),
        ({"iterations": 0}, "iterations"),
        ({"radius": 0.0}, "radius"),
        ({"population": 0}, "population"),
    ],
)
def test_bad_settings(settings: dict[str, Any], named: str) -> None:
    tasks, params = problems.quadratics()
    with pytest.raises(ValueError, match=named):
        estimate(params, tasks, generator(), Estimation(**settings))
