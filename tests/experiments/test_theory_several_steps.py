"""The claims on several inner steps and on envelopes: they hold, and their verdicts turn with a wrong formula."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports.theory import alpha_ranges, envelopes, multi_step_errors, multi_step_rates
from metarl.experiments.reports.theory.common import Row, panels
from metarl.experiments.reports.theory.numerics import Descent
from metarl.theory import ji_rule
from metarl.types import Role

CENTRE = torch.zeros(3, dtype=torch.float64)


def rows_of(found: Row | list[Row]) -> list[Row]:
    return found if isinstance(found, list) else [found]


def axes() -> Any:
    return panels(1)[1][0]


CHEAP: dict[str, Callable[[], Row | list[Row]]] = {
    "smooth": lambda: multi_step_errors.smooth(axes(), 33),
    "two_losses": multi_step_errors.two_losses_smooth,
    "noise": lambda: multi_step_errors.noise(axes(), 20_000),
    "support_and_query": multi_step_errors.support_and_query,
    "decrease": lambda: multi_step_rates.decrease(3),
    "kink": envelopes.no_smooth_hessian,
    "convex": lambda: envelopes.convex_and_smooth(2),
    "vicinity": lambda: envelopes.vicinity(axes()),
}


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_rows_hold(name: str) -> None:
    assert [row.claim for row in rows_of(CHEAP[name]()) if not row.holds] == []


def other_rule(constant: float = 1.0, slope: float = 1.0, difference: float = 1.0) -> Callable[..., Any]:
    def rule(L: float, rho: float, alpha: float, steps: int, c_beta: float = 80.0, **given: float) -> Any:
        given = {"difference": difference * given.get("difference", 0.0)}
        right = ji_rule(L, rho, alpha, steps, c_beta, **given)
        return right._replace(constant=constant * right.constant, slope=slope * right.slope)

    return rule


def other_method(name: str, **options: Any) -> Callable[..., Any]:
    return lambda _, alpha, steps=1: make_method(name, alpha, steps, **options)


def always_three_steps(outer: str, alpha: float, steps: int = 1) -> Any:
    return make_method(outer, alpha, 3)


def half_the_step(outer: str, alpha: float, steps: int = 1) -> Any:
    return make_method(outer, alpha / 2, steps)


MUTANTS = [
    ("smooth", multi_step_errors, "ji_rule", other_rule(slope=0.5)),
    ("smooth", multi_step_errors, "ji_rule", other_rule(constant=0.8)),
    ("smooth", multi_step_errors, "ji_rule", other_rule(slope=2.0)),
    ("two_losses", multi_step_errors, "ji_rule", other_rule(difference=0.0)),
    ("two_losses", multi_step_errors, "ji_rule", other_rule(difference=1.1)),
    ("two_losses", multi_step_errors, "make_method", other_method("fo_maml")),
    ("noise", multi_step_errors, "make_method", other_method("fo_maml")),
    ("noise", multi_step_errors, "make_method", other_method("maml", hessian_data="reuse")),
    ("noise", multi_step_errors, "make_method", half_the_step),
    ("support_and_query", multi_step_errors, "make_method", other_method("fo_maml")),
    ("decrease", multi_step_rates, "ji_rule", other_rule(constant=0.02, slope=0.02)),
    ("kink", envelopes, "make_method", other_method("maml")),
    ("convex", envelopes, "make_method", other_method("fo_maml")),  # steps that do not restart
    ("convex", envelopes, "of_envelope", lambda curvature, alpha: curvature),
    ("vicinity", envelopes, "make_method", other_method("fo_maml")),
    (
        "vicinity",
        envelopes,
        "make_method",
        lambda outer, alpha, steps: make_method(outer, alpha, steps + 2 * (steps == 1)),
    ),
]


@pytest.mark.parametrize(("name", "module", "function", "wrong"), MUTANTS)
def test_a_wrong_formula_turns_a_verdict(
    name: str, module: ModuleType, function: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, function, wrong)
    assert not all(row.holds for row in rows_of(CHEAP[name]()))


# The rates.


def a_run(gradient: Callable[[int], float], height: float = 1.0, beta: float = 1.0) -> multi_step_rates.TailRun:
    descent = Descent(lambda w: 0.0, 1)
    descent.at = list(range(601))
    descent.seen = [gradient(k) for k in descent.at]
    descent.outer_lr = [beta] * 600
    return multi_step_rates.TailRun(descent, height)


def test_the_power_of_a_known_curve() -> None:
    row = multi_step_rates.rate(axes(), {2: a_run(lambda k: (k + 1) ** (-1 / 1.8) / 10)}, "a curve")
    assert row.holds
    assert "powers 1.8;" in row.measured


@pytest.mark.parametrize(
    "run",
    [
        a_run(lambda k: (k + 1) ** (-1 / 2.5) / 10),  # slower than 1/eps^2
        a_run(lambda k: math.exp(-k / 50)),  # much faster: not this problem
        a_run(lambda k: max(0.005, (k + 1) ** (-1 / 1.8) / 10)),  # stalls
        a_run(lambda k: (k + 1) ** (-1 / 1.8) / 10, height=1e-3),  # above the bound
    ],
)
def test_other_curves_are_not_accepted(run: multi_step_rates.TailRun) -> None:
    assert not multi_step_rates.rate(axes(), {2: run}, "a curve").holds


def costs_of(iterations: Callable[[int, float], float]) -> Callable[[int, float], dict[str, int]]:
    def cost(n: int, alpha_l: float) -> dict[str, int]:
        k = round(iterations(n, alpha_l))
        return {"iterations": k, "gradients": (n + 1) * k, "hessian_vector_products": n * k}

    return cost


def scaled_as_theory(n: int, alpha_l: float) -> float:
    return 800 * (1 + alpha_l) ** (2 * n)


@pytest.mark.parametrize(
    ("iterations", "good"),
    [
        (scaled_as_theory, [True, True]),
        (lambda n, a: scaled_as_theory(n, a) * n**0.5, [False, True]),  # more than linear
        (lambda n, a: 800.0, [True, False]),  # no price for a fixed alpha
    ],
)
def test_verdicts_on_costs(
    iterations: Callable[[int, float], float], good: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi_step_rates, "cost", costs_of(iterations))
    assert [row.holds for row in multi_step_rates.costs(axes(), (1, 2, 4, 6))] == good


def test_resampled_tasks_have_the_population_s_mean() -> None:
    sizes: dict[Role, int] = {"inner": 20_000, "outer": 1, "hessian": 1}
    tasks = multi_step_rates.Fresh(sizes).sample(3, np.random.default_rng(0))
    w = {"w": torch.full((3, 1), 0.7, dtype=torch.float64)}
    drawn = tasks.draw(w, "inner")["c"]
    values = torch.tensor([[c - 0.8, c + 0.8] for c in (-0.5, 0.0, 0.5)], dtype=torch.float64)
    torch.testing.assert_close(multi_step_rates.population()["c"], values)
    assert {round(x, 6) for x in drawn.unique().tolist()} <= {round(x, 6) for x in values.flatten().tolist()}
    assert tasks.draw(w, "outer")["c"].shape == (3, 1)


# The exact answers that the claims on noise and on envelopes compare with.


def test_the_path_without_noise() -> None:
    """The meta-gradient of one wave by autograd through three unrolled steps."""

    def f(w: Tensor) -> Tensor:
        return 0.3 * w - torch.sin(w + 0.5)

    w = start = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(3):
        w = w - 0.1 * torch.autograd.grad(f(w), w, create_graph=True)[0]
    expected = torch.autograd.grad(f(w), start)[0]
    assert multi_step_errors.exact().gradient == pytest.approx(expected.item(), rel=1e-12)


def test_proximal_points_are_minima() -> None:
    problem = envelopes.kinked(4.0)
    w = torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)
    z = w - 0.7 * envelopes.envelope_gradients(problem, w, 0.7)
    for task in range(envelopes.T):
        data = {"Q": problem.rotations[task], "c": problem.centres[task], "mu": torch.tensor(problem.mu).double()}
        at = torch.func.grad(lambda v, data=data: envelopes.loss({"w": v}, data))(z[task])
        torch.testing.assert_close(at + (z[task] - w) / 0.7, CENTRE, rtol=0, atol=1e-12)


def test_every_range_has_one_warning() -> None:
    for outer, steps, largest in (("hf_maml", 1, 1 / 6), ("multi_step_maml", 3, 2 ** (1 / 6) - 1), ("moreau", 2, 1.0)):
        assert alpha_ranges.one_warning(outer, steps, "", largest).holds
    for factor in (0.9, 1.1):  # another range
        assert not alpha_ranges.one_warning("fo_maml", 1, "", factor / 10).holds
