"""Step sizes against published tables, numbers worked out by hand, and the curvature of the objective."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.theory import (
    TheoryWarning,
    alpha_range,
    fallah_rule,
    inner_lr_bound,
    ji_rule,
    recommended_inner_lr,
    warn_if_too_large,
)
from metarl.theory.logistic import (
    hessian_smoothness,
    logistic_loss,
    six_logistic_tasks,
    smoothness,
)
from metarl.types import Batch

# Inner step


@pytest.mark.parametrize(
    ("inner_steps", "bound"), [(1, 0.41421), (2, 0.18921), (3, 0.12246), (5, 0.07177), (10, 0.03526), (20, 0.01748)]
)
def test_inner_step_bounds(inner_steps: int, bound: float) -> None:
    """The published table; and what theory chooses is below it."""
    assert inner_lr_bound(inner_steps) == pytest.approx(bound, abs=5e-6)
    assert (1 + inner_lr_bound(inner_steps)) ** (2 * inner_steps) == pytest.approx(2)
    assert recommended_inner_lr(0.5, inner_steps) == pytest.approx(1 / (4 * inner_steps))
    assert 0.5 * recommended_inner_lr(0.5, inner_steps) < inner_lr_bound(inner_steps)


def test_the_warning_names_everything() -> None:
    with pytest.warns(TheoryWarning) as caught:
        assert warn_if_too_large(0.1, 2.0, 3)
    (warning,) = caught
    wanted = ["inner_lr = 0.1 ", "L = 2 ", "alpha L = 0.2,", "for 3 inner steps", "0.1225", "inner_lr = 0.02083"]
    assert [part for part in wanted if part not in str(warning.message)] == []
    assert warning.filename == __file__


@pytest.mark.parametrize("L", [0.0, 1.0, 4.14])
def test_no_warning_below_the_bound(L: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_if_too_large(0.1, L, 1)
    with pytest.warns(TheoryWarning):
        assert warn_if_too_large(0.1, 4.15, 1)


# Step sizes


@pytest.mark.filterwarnings("ignore::metarl.theory.TheoryWarning")  # the formula, beyond the theorem's range
@pytest.mark.parametrize(("method", "inverse"), [("maml", 12), ("fo_maml", 18), ("hf_maml", 25)])
def test_fallah_rule(method: str, inverse: int) -> None:
    rule = fallah_rule(method, L=2.0, rho=3.0, inner_lr=0.5)  # L~ = 8 + 3 |g|
    assert rule.smoothness(4.0) == pytest.approx(20.0)
    assert rule.step_size(4.0) == pytest.approx(1 / (20 * inverse))
    assert rule.step_size(0.0) == pytest.approx(1 / (8 * inverse))


@pytest.mark.filterwarnings("ignore::metarl.theory.TheoryWarning")  # the formula, beyond the theorem's range
def test_ji_rule() -> None:
    """L = 2, rho = 3, alpha = 1/4, N = 2: 1.5^4 2 = 10.125; (1.5 0.75 + 1.5 2.25 0.5) 2.25 = 6.328125."""
    rule = ji_rule(2.0, 3.0, 0.25, 2)
    assert rule.slope == pytest.approx(6.328125)
    assert rule.smoothness(2.0) == pytest.approx(10.125 + 2 * 6.328125)
    assert rule.step_size(2.0) == pytest.approx(1 / (80 * (10.125 + 2 * 6.328125)))
    assert ji_rule(2.0, 3.0, 0.25, 2, c_beta=40.0).step_size(2.0) == pytest.approx(2 * rule.step_size(2.0))


@pytest.mark.filterwarnings("ignore::metarl.theory.TheoryWarning")  # the formula, beyond the theorem's range
def test_ji_with_one_step_of_length_one_is_fallah() -> None:
    """At alpha = 1/L: `4 L + 2 rho alpha |g|` in both."""
    ji, fallah = ji_rule(2.0, 3.0, 0.5, 1), fallah_rule("maml", 2.0, 3.0, 0.5)
    for norm in (0.0, 1.0, 5.0):
        assert ji.smoothness(norm) == pytest.approx(fallah.smoothness(norm))


def test_the_rule_bounds_the_curvature_of_the_objective() -> None:
    """On P2, with alpha below 1/L, the Hessian of MAML's objective is nowhere above the smoothness of the rule."""
    problem, losses = six_logistic_tasks(), logistic_loss()
    L, alpha = smoothness(problem), 0.9 / smoothness(problem)
    rule = fallah_rule("maml", L, hessian_smoothness(problem), alpha)
    data = [{"X": x, "y": y} for x, y in zip(problem.x, problem.y, strict=True)]

    def gradient(w: Tensor, batch: Batch) -> Tensor:
        return torch.autograd.grad(losses({"w": w}, batch), w, create_graph=True)[0]

    def objective(w: Tensor) -> Tensor:
        return torch.stack([losses({"w": w - alpha * gradient(w, batch)}, batch) for batch in data]).mean()

    for scale in range(5):
        w = torch.as_tensor(scale * np.random.default_rng(scale).normal(size=5)).requires_grad_()
        norms = torch.stack([gradient(w, batch).norm() for batch in data])
        curvature = torch.linalg.eigvalsh(torch.autograd.functional.hessian(objective, w)).abs().max()
        assert 0 < curvature.item() < rule.smoothness(norms.mean().item())


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: inner_lr_bound(0), "inner_steps"),
        (lambda: recommended_inner_lr(0.0, 1), "L"),
        (lambda: warn_if_too_large(-0.1, 1.0, 1), "inner_lr"),
        (lambda: fallah_rule("fomaml", 1.0, 1.0, 0.1), "did you mean 'fo_maml'"),
        (lambda: fallah_rule("maml", 0.0, 1.0, 0.1), "L must"),
        (lambda: fallah_rule("maml", 1.0, -1.0, 0.1), "rho"),
        (lambda: fallah_rule("maml", 1.0, 1.0, math.nan), "inner_lr"),
        (lambda: ji_rule(1.0, 1.0, 0.1, 0), "inner_steps"),
        (lambda: ji_rule(1.0, 1.0, 0.1, 1, c_beta=0.0), "c_beta"),
        (lambda: ji_rule(1.0, 1.0, 0.1, 1, difference=-1.0), "difference"),
        (lambda: alpha_range("moreau", 0), "inner_steps"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize(("method", "largest"), [("maml", 1.0), ("fo_maml", 0.1), ("hf_maml", 1 / 6)])
def test_a_step_beyond_the_theorem_s_range_gives_a_warning(method: str, largest: float) -> None:
    L = 0.7
    fallah_rule(method, L, 1.0, largest / L)  # no warning: the range includes its end
    for factor in (1.01, 3.0):
        with pytest.warns(TheoryWarning, match=f"the theorem for {method} needs at most {largest:.4g}") as caught:
            fallah_rule(method, L, 1.0, factor * largest / L)
        assert caught[0].filename == __file__


def test_n_steps_beyond_the_theorem_s_range_give_a_warning() -> None:
    ji_rule(1.0, 1.0, 0.99 * (2 ** (1 / 4) - 1), 2)
    with pytest.warns(TheoryWarning, match="for 2 inner steps theory needs less than 0.1892") as caught:
        ji_rule(1.0, 1.0, 0.19, 2)
    assert caught[0].filename == __file__


# The range that belongs to a method


RANGES = [
    ("maml", 1, 1.0, True),
    ("fo_maml", 1, 0.1, True),
    ("hf_maml", 1, 1 / 6, True),
    ("multi_step_maml", 1, 0.41421, False),
    ("maml", 5, 0.07177, False),
    ("multi_step_maml", 5, 0.07177, False),
    ("fo_maml", 2, 0.1, True),  # below 0.18921
    ("fo_maml", 5, 0.07177, False),
    ("hf_maml", 3, 0.12246, False),
    ("moreau", 1, 1.0, False),
    ("moreau", 20, 1.0, False),
]


@pytest.mark.parametrize(("method", "steps", "largest", "closed"), RANGES)
def test_ranges(method: str, steps: int, largest: float, closed: bool) -> None:
    found = alpha_range(method, steps)
    assert found is not None
    assert found.largest == pytest.approx(largest, abs=5e-6)
    assert found.covers(found.largest) == closed
    assert found.covers(0.999 * found.largest)
    assert not found.covers(1.001 * found.largest)


@pytest.mark.parametrize("method", ["sign_maml", "imaml", "reptile", "e_maml", "my_method"])
def test_methods_without_a_range(method: str) -> None:
    assert alpha_range(method, 3) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_if_too_large(100.0, 1.0, 3, method)


def test_the_warning_is_about_the_method_in_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_if_too_large(0.45, 2.0, 1, "maml")
        assert not warn_if_too_large(0.45, 2.0, 5, "moreau")
    with pytest.warns(TheoryWarning, match="the theorem for hf_maml needs at most 0.1667: inner_lr = 0.08333"):
        assert warn_if_too_large(0.45, 2.0, 1, "hf_maml")
    with pytest.warns(TheoryWarning, match="for the steps of moreau to contract theory needs less than 1: inner_lr be"):
        assert warn_if_too_large(0.5, 2.0, 5, "moreau")
    with pytest.warns(TheoryWarning, match="for 3 inner steps theory needs less than 0.1225"):
        assert warn_if_too_large(0.45, 2.0, 3, "maml")


@pytest.mark.filterwarnings("ignore::metarl.theory.TheoryWarning")
def test_a_rule_knows_whether_its_theorem_covers_alpha() -> None:
    assert fallah_rule("hf_maml", 1.0, 1.0, 1 / 6).in_range
    assert not fallah_rule("hf_maml", 1.0, 1.0, 0.17).in_range
    assert ji_rule(1.0, 1.0, 0.18, 2).in_range
    assert not ji_rule(1.0, 1.0, 0.19, 2).in_range


# Several steps: the smoothness of the meta-objective, derived anew


@pytest.mark.parametrize("n", [1, 2, 5])
def test_ji_rule_is_the_sum_over_the_factors(n: int) -> None:
    """Replacing factor j costs (1 + aL)^{N-1} a rho (1 + aL)^j; the vector it acts on is at most |g(w_N)|."""
    L, rho, a = 2.0, 3.0, 0.02
    growth = 1 + a * L
    factors = sum(growth ** (n - 1) * a * rho * growth**j for j in range(n))
    rule = ji_rule(L, rho, a, n)
    assert rule.slope == pytest.approx(factors * growth**n)
    assert ji_rule(L, rho, a, n, difference=4.0).constant - rule.constant == pytest.approx(4.0 * factors)
    assert ji_rule(L, rho, a, n, difference=4.0).slope == rule.slope
