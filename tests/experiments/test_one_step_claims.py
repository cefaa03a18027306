"""The claims on one-step MAML: exact expectations against plain loops, and wrong bounds that must fail."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports.theory import descent, estimator, smoothness
from metarl.experiments.reports.theory.common import Row, panels
from metarl.experiments.reports.theory.draws import (
    ALL,
    ResampledSource,
    Spreads,
    enumerate_draws,
    estimates,
    sample_gradients,
    sample_hessians,
    spreads,
)
from metarl.experiments.reports.theory.numerics import central_differences
from metarl.supervised import BatchSizes
from metarl.theory.logistic import logistic_loss, logistic_tasks, random_logistic

DOUBLE = torch.float64
PROBLEM = random_logistic(np.random.default_rng(1), 2, points=3, dimension=2)
TASKS = logistic_tasks(PROBLEM)
LOSS = logistic_loss(PROBLEM.strength)
W = torch.tensor([0.4, -0.7], dtype=DOUBLE)
ALPHA = 0.6


def gradient(task: int, points: Any, w: Tensor) -> Tensor:
    """By plain autograd, on some points of a task."""
    w = w.detach().requires_grad_()
    batch = {"X": PROBLEM.x[task, list(points)], "y": PROBLEM.y[task, list(points)]}
    return torch.autograd.grad(LOSS({"w": w}, batch), w)[0]


def hessian(task: int, points: Any, w: Tensor) -> Tensor:
    batch = {"X": PROBLEM.x[task, list(points)], "y": PROBLEM.y[task, list(points)]}
    found: Tensor = torch.autograd.functional.hessian(lambda v: LOSS({"w": v}, batch), w)
    return found


# Draws.


def test_enumerated_estimates_against_a_loop() -> None:
    method = make_method("maml", ALPHA)
    found = estimates(method, TASKS, BatchSizes(2, 1, 1), W)
    assert found.shape == (2, 9 * 3 * 3, 2)
    for task in range(2):
        loop = [
            (torch.eye(2, dtype=DOUBLE) - ALPHA * hessian(task, h, W))
            @ gradient(task, o, W - ALPHA * gradient(task, i, W))
            for i in itertools.product(range(3), repeat=2)
            for o in [[0], [1], [2]]
            for h in [[0], [1], [2]]
        ]
        torch.testing.assert_close(found[task], torch.stack(loop))


def test_all_data_is_one_draw() -> None:
    found = estimates(make_method("fo_maml", ALPHA), TASKS, ALL, W)
    assert enumerate_draws(TASKS, ALL).shape == (2, 1, 1, 1)
    every = range(3)
    exact = torch.stack([gradient(t, every, W - ALPHA * gradient(t, every, W)) for t in range(2)])
    torch.testing.assert_close(found[:, 0], exact)


def test_spreads_against_a_loop() -> None:
    other = torch.tensor([[[1.0, 2.0]], [[-3.0, 0.5]]], dtype=DOUBLE)
    samples, squares = [], []
    for task, w in itertools.product(range(2), (W, None)):
        at = other[task, 0] if w is None else w
        grads = torch.stack([gradient(task, [j], at) for j in range(3)])
        hessians = torch.stack([hessian(task, [j], at) for j in range(3)])
        samples.append((grads - grads.mean(0)).square().sum(1).mean())
        squares.append((hessians - hessians.mean(0)).square().sum((1, 2)).mean())
    own = torch.stack([gradient(t, range(3), W) for t in range(2)])
    sigma = (own - own.mean(0)).square().sum(1).mean().sqrt()
    found = spreads(TASKS, W, other)
    assert found == pytest.approx(Spreads(*(float(x) for x in (sigma, max(samples) ** 0.5, max(squares) ** 0.5))))
    at = torch.cat([W.expand(2, 1, 2), other], dim=1)
    assert sample_gradients(TASKS, at).shape == (2, 2, 3, 2)
    assert sample_hessians(TASKS, at).shape == (2, 2, 3, 2, 2)


def test_resampled_source_draws_tasks_and_samples_with_replacement() -> None:
    source = ResampledSource(TASKS, BatchSizes(4, 2, 1), W)
    tasks = source.sample(2000, np.random.default_rng(0))
    batch = tasks.draw({}, "inner")
    assert batch["X"].shape == (2000, 4, 2)
    assert tasks.draw({}, "outer")["y"].shape == (2000, 2)
    places = (batch["X"][:, :, None, None] == PROBLEM.x).all(-1).flatten(2)  # [2000, 4, all six points]
    assert bool((places.sum(-1) == 1).all())
    which = places.double().argmax(-1)
    assert bool((which // 3 == which[:, :1] // 3).all())  # one task for each row
    shares = torch.bincount(which[:, 0], minlength=6) / 2000
    assert float((shares - 1 / 6).abs().max()) < 4 * math.sqrt(1 / 6 * 5 / 6 / 2000)
    repeated = (which[:, :1] == which[:, 1:2]).double().mean()
    assert abs(float(repeated) - 1 / 3) < 4 * math.sqrt(2 / 9 / 2000)
    again = source.sample(2000, np.random.default_rng(0)).draw({}, "inner")
    assert torch.equal(again["X"], batch["X"])


def test_reused_data_give_the_gradient_of_the_objective_on_test_sets() -> None:
    """F^(w) = mean of f(w - alpha grad f~(w; D_test)) over all D_test."""

    def objective(w: Tensor) -> Tensor:
        values = [
            LOSS({"w": w - ALPHA * gradient(t, d, w)}, {"X": PROBLEM.x[t], "y": PROBLEM.y[t]})
            for t in range(2)
            for d in itertools.product(range(3), repeat=2)
        ]
        return torch.stack(values).mean().detach()

    reuse = make_method("maml", ALPHA, hessian_data="reuse")
    found = estimates(reuse, TASKS, BatchSizes(2), W).mean((0, 1))
    torch.testing.assert_close(found, central_differences(objective, W), rtol=1e-8, atol=1e-10)


# The extreme problems.


@pytest.mark.parametrize("alpha_l", [1 / 6, 0.5, 1.0])
def test_corners_are_at_the_adapted_points(alpha_l: float) -> None:
    case = estimator.corners(alpha_l)
    (w,) = case.points
    end = estimator.adapted_points(case, alpha_l, w, BatchSizes())
    corner = case.tasks.support["b"][:, 0]
    assert abs(float(end[0, 0, 0] - corner[0])) < 1e-5
    if alpha_l < 1:
        assert abs(float(end[1, 0, 0] - corner[1])) < 1e-5
    gradients = estimates(make_method("maml", alpha_l), case.tasks, ALL, w)
    assert float(gradients.mean().abs()) < 2e-3
    assert spreads(case.tasks, w).sample == pytest.approx(1)


def test_saddles() -> None:
    case = estimator.saddles(5.0)
    found = spreads(case.tasks, case.points[0])
    assert found == pytest.approx(Spreads(5.0, 1.0, 0.0))


def test_rare_task() -> None:
    problem = smoothness.rare_task()
    found = spreads(problem.tasks, torch.zeros(1, dtype=DOUBLE))
    assert found == pytest.approx(Spreads(20.0, 1.0, 0.0))
    assert smoothness.step_batches(1.0, 1.0, 1.0, found.sigma, found.sample) == (200, 4)


# The bounds, by hand.


def test_bounds_by_hand() -> None:
    assert estimator.bias_bound(0.5, 3.0, 4) == pytest.approx(0.75)
    second = estimator.second_moment_bound(2.0, torch.tensor([2.0]), 0.5, 3.0, 3, 9)
    assert second.item() == pytest.approx(1.5 * 4 + 9 * (3 * 0.25 / 3 + 1 / 9))
    assert estimator.mean_bound(2.0, 5.0, 4) == pytest.approx(8.5)
    assert estimator.square_bound(1.0, 2.0, 6.0, 2, 4) == pytest.approx(40 + 56 + 36 * (0.5 + 1 / 12))
    assert estimator.gap_bound(0.5, 2.0, 3.0, 4.0, 4) == pytest.approx(2 * 0.5 * 2 * 3 / 2 + 0.25 * 2 * 4 * 3 / 4)
    assert estimator.difference_bound(2.0, 0.1, 3.0) == pytest.approx(1.8)
    assert smoothness.smoothness_bound(1.0, 2.0, 0.5, 3.0) == pytest.approx(10)
    assert smoothness.step_batches(0.5, 2.0, 1.0, 1.0, 0.25) == (8, 4)
    assert smoothness.step_batches(1.0, 0.0, 1.0, 1.0, 1.0) == (1, 1)
    assert descent.decrease_bound(2.0, 1.0, 1.0, 0.5, 4.0) == pytest.approx(4 / 1600 / 4)


def test_printed_floors_by_hand() -> None:
    spread, sizes = Spreads(2.0, 4.0, 3.0), BatchSizes(8, 4)
    noise = 4 / 20 + 16 / 80 + 16 / 8
    for name, constant, extra in (("maml", 61, 0.0), ("hf_maml", 36, 0.0), ("fo_maml", 14, 20 * 0.25 * 4)):
        found = descent.printed_floor(name, 2.0, 0.1, 0.25, spread, sizes)
        assert found == pytest.approx(math.sqrt(constant * 1.025 * (noise + extra)))
    linear = descent.printed_floor("maml", 2.0, 100.0, 0.25, spread, sizes)  # the other term is larger
    assert linear == pytest.approx(61 * 12.5 * noise)
    assert descent.printed_floor("maml", 2.0, 1.0, 0.25, spread, None) == 0
    assert descent.hessian_batch("maml", 1.0, 1.0, spread) == 18
    assert descent.hessian_batch("hf_maml", 0.5, 0.5, spread) == math.ceil(36 * 0.75**2)
    assert descent.hessian_batch("fo_maml", 1.0, 1.0, spread) == 1


# Rows: they hold, and with a wrong bound they do not.


def axes() -> Axes:
    return panels(1)[1][0]


ROWS: dict[str, Callable[[], list[Row]]] = {
    "bias": lambda: estimator.bias(axes(), 1),
    "moments": lambda: estimator.moments(1),
    "gap": lambda: [estimator.gap(1)],
    "differences": lambda: [estimator.differences(axes())],
    "smooth": lambda: smoothness.smooth(axes(), 4),
    "step_moments": lambda: smoothness.step_moments(axes(), 100),
    "decreases": lambda: descent.decreases(axes(), 0.08, 10),
    "extreme_first_order": lambda: [descent.extreme_first_order()],
}


def scaled(module: Any, name: str, factor: float) -> Callable[..., Any]:
    """The bound times a factor."""
    right = getattr(module, name)
    return lambda *arguments: factor * right(*arguments)


MUTANTS: list[tuple[str, Any, str, Any, list[bool]]] = [
    ("bias", estimator, "bias_bound", lambda a, s, n: a * s / n, [False, True]),
    ("bias", estimator, "bias_bound", lambda a, s, n: a**2 * s / math.sqrt(n), [False, True]),
    ("bias", estimator, "second_moment_bound", scaled(estimator, "second_moment_bound", 0.8), [True, False]),
    (
        "bias",
        estimator,
        "second_moment_bound",
        lambda phi, e, a, s, n, o: e**2 + s**2 * (a**2 / n + 1 / o),
        [True, False],
    ),
    ("moments", estimator, "mean_bound", lambda g, s, n: 2 * g**2 + 0.02 * s**2 / n, [False, True]),
    ("moments", estimator, "mean_bound", lambda g, s, n: 0.5 * g**2 + 0.08 * s**2 / n, [False, True]),
    ("moments", estimator, "square_bound", scaled(estimator, "square_bound", 0.5), [True, False]),
    ("moments", estimator, "square_bound", lambda g, t, s, n, o: 40 * g**2 + s**2 * (2 / o + 1 / n), [True, False]),
    ("gap", estimator, "gap_bound", scaled(estimator, "gap_bound", 0.5), [False]),
    ("gap", estimator, "gap_bound", lambda a, L, s, h, n: 2 * L * a * s / n, [False]),
    ("differences", estimator, "difference_bound", scaled(estimator, "difference_bound", 1 / 3), [False]),
    ("differences", estimator, "difference_bound", lambda r, d, v: r * d**2 * v**2, [False]),
    ("smooth", smoothness, "smoothness_bound", lambda L, r, a, m: 3 * L + 2 * r * a * m, [False, True]),
    ("smooth", smoothness, "smoothness_bound", lambda L, r, a, m: 4 * L, [False, False]),
    ("step_moments", smoothness, "step_batches", lambda L, r, a, s, n: (1, 4 if n < 5 else 400), [True, False]),
    ("step_moments", smoothness, "step_batches", lambda L, r, a, s, n: (200 if s > 5 else 1, 1), [False, True]),
    ("decreases", descent, "decrease_bound", scaled(descent, "decrease_bound", 50), [False, False, False]),
    (
        "decreases",
        descent,
        "decrease_bound",
        lambda e, L, r, a, s: e / 32 / (L + r * a * (s + e)),
        [False, False, True],
    ),
    ("extreme_first_order", descent, "PRINTED", {"fo_maml": 14 / 500}, [False]),
]


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_hold(name: str) -> None:
    rows = ROWS[name]()
    assert all(row.holds == row.required for row in rows), rows
    assert sum(not row.required for row in rows) == (2 if name == "moments" else 0)


@pytest.mark.parametrize(("name", "module", "bound", "wrong", "holds"), MUTANTS)
def test_wrong_bounds_fail(
    monkeypatch: pytest.MonkeyPatch, name: str, module: Any, bound: str, wrong: Any, holds: list[bool]
) -> None:
    monkeypatch.setattr(module, bound, wrong)
    assert [row.holds for row in ROWS[name]()][: len(holds)] == holds


def test_floors_are_reached_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run from the printed floor; with a hundredth of it the row fails."""
    monkeypatch.setattr(descent, "RUNS", {"MAML, alpha L = 1/6": ("maml", 1 / 6, 2.5)})
    rows = descent.floors(axes(), 80)
    assert [row.holds for row in rows] == [True, True, True]
    monkeypatch.setattr(descent, "PRINTED", {"maml": 61 / 1e4, "fo_maml": 14.0})
    assert [row.holds for row in descent.floors(axes(), 80)] == [False, False, True]
