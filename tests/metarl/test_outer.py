"""All outer updates through shared properties; a new method is a new row in `tests/reference/rows.py`."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl import OUTER, Inner, Method, make_method
from metarl.inner import prox_sgd, restart_sgd, sgd, sign_sgd
from metarl.outer import options
from metarl.outer.imaml import conjugate_gradients
from metarl.supervised import FiniteSumTaskBatch
from tests.reference import checks, problems, updates
from tests.reference.checks import finite_sum_data, mean_gradient, ravel
from tests.reference.problems import DOUBLE, PROBLEMS, ReferenceProblem, with_particles
from tests.reference.rows import AT_THE_PATH, ONE_NETWORK, ROWS, Row
from tests.reference.updates import Data

FINITE_SUMS = ("quadratics", "logistic", "regression")
RL = ("navigation", "discrete")

rows = pytest.mark.parametrize("row", ROWS, ids=str)
rows_of_one_network = pytest.mark.parametrize("row", ONE_NETWORK, ids=str)


@pytest.mark.parametrize("name", sorted(OUTER))
def test_every_method_has_a_row(name: str) -> None:
    assert name in {row.name for row in ROWS}, f"add a row for {name!r} to tests/reference/rows.py, with a reference"


@rows
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("problem", FINITE_SUMS)
def test_equals_the_reference(row: Row, steps: int, problem: str) -> None:
    # 1e-9 also for HF-MAML, whose reference takes the same probe: rounding over the probe length is 1e-16 / 1e-4
    checks.equals_reference(row.method(steps), row.answer, with_particles(PROBLEMS[problem], row.particles))


@pytest.mark.parametrize("row", AT_THE_PATH, ids=str)
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("problem", RL)
def test_equals_the_reference_on_recorded_draws(row: Row, steps: int, problem: str) -> None:
    method, new = row.method(steps), PROBLEMS[problem]
    checks.equals_reference_on_its_draws(method, row.answer, new, inner_draws=row.inner_draws)


@rows_of_one_network
@pytest.mark.parametrize("problem", RL)
def test_every_draw_is_fresh(row: Row, problem: str) -> None:
    checks.draws_are_independent(row.method(3), PROBLEMS[problem])


@pytest.mark.parametrize(
    ("row", "problem"), [(row, "regression") for row in ROWS] + [(row, "discrete") for row in ONE_NETWORK], ids=str
)
def test_shared_properties(row: Row, problem: str) -> None:
    method, new = row.method(2), with_particles(PROBLEMS[problem], row.particles)
    checks.replays_bit_for_bit(method, new)
    checks.is_deterministic(method, new)
    if row.separable:
        checks.stacked_equals_loop(method, new)
    checks.leaves_parameters_alone(method, new)


@pytest.mark.parametrize(
    ("row", "problem"), [(row, "regression") for row in ROWS] + [(row, "navigation") for row in ONE_NETWORK], ids=str
)
def test_float32(row: Row, problem: str) -> None:
    # the relative probes of HF-MAML and GGS-MAML are 100 times longer in float32: their own error, not rounding
    new = with_particles(PROBLEMS[problem], row.particles)
    checks.close_in_float32(row.method(3), new, {"hf_maml": 1e-2, "ggs_maml": 3e-2}.get(row.name, 1e-5))


@pytest.mark.parametrize("row", [row for row in ROWS if not row.own_draws], ids=str)
def test_score_is_that_of_the_adapted_parameters(row: Row) -> None:
    problem = with_particles(problems.regression, row.particles)()
    score = checks.run(row.method(2), problem).score
    for i in range(problem.tasks.num_tasks):
        data = finite_sum_data(problem, 2, i)
        end = row.answer(ravel(problem.params), data).points[-1]
        torch.testing.assert_close(score[i], -data.outer(end) / max(row.particles, 1))


# What must differ, and what must coincide.

CHANGES = {  # (method, option): the settings to compare
    ("maml", "hessian_data"): ({"hessian_data": "fresh"}, {"hessian_data": "reuse"}),
    ("hf_maml", "hessian_data"): ({"hessian_data": "fresh"}, {"hessian_data": "reuse"}),
    ("hf_maml", "delta"): ({"delta": "relative"}, {"delta": "published", "rho": 1.0}),
    ("hf_maml", "rho"): ({"delta": "published", "rho": 1.0}, {"delta": "published", "rho": 0.3}),
    ("maml_plus_plus", "hessian_data"): ({"hessian_data": "fresh"}, {"hessian_data": "reuse"}),
    ("e_maml", "baseline"): ({"baseline": "tasks"}, {"baseline": "trajectories"}),
    ("binom_maml", "order"): ({"order": 1}, {"order": 2}),
    ("binom_maml", "hessian_data"): ({"hessian_data": "fresh"}, {"hessian_data": "reuse"}),
    ("es_maml", "adaptation"): ({"adaptation": "es"}, {"adaptation": "hill_climbing"}),
    ("es_maml", "directions"): ({"directions": 1}, {"directions": 2}),
    ("es_maml", "queries"): ({"queries": 1}, {"queries": 2}),
    ("es_maml", "smoothing"): ({"smoothing": 0.1}, {"smoothing": 0.2}),
    ("ggs_maml", "hessian_data"): ({"hessian_data": "fresh"}, {"hessian_data": "reuse"}),
    ("ggs_maml", "directions"): ({"directions": 1}, {"directions": 2}),
    ("ggs_maml", "smoothing"): ({"smoothing": None}, {"smoothing": 0.3}),
    ("imaml", "lam"): ({"lam": 2.0}, {"lam": 1.0}),
    ("imaml", "cg_steps"): ({"cg_steps": 1}, {"cg_steps": 3}),
    ("bmaml", "temperature"): ({"temperature": 0.0}, {"temperature": 0.1}),
    ("bmaml", "prior_precision"): ({"prior_precision": 0.0}, {"prior_precision": 1.0}),
    ("bmaml", "leader_steps"): ({"leader_steps": 1}, {"leader_steps": 2}),
    ("bmaml", "objective"): ({"objective": "chaser"}, {"objective": "loss"}),
}


LEARNED = {(name, "learn_inner_lr") for name in ("maml", "fo_maml", "hf_maml", "multi_step_maml", "maml_plus_plus")}
ANNEALED = {("maml_plus_plus", name) for name in ("multi_step_iterations", "second_order_from", "per_step_norm")}


def test_every_option_is_in_the_table() -> None:
    """Learned step sizes and annealing are tested in `test_learned_rules.py` and `test_maml_plus_plus.py`."""
    assert {(name, option) for name in OUTER for option in options(name)} - LEARNED - ANNEALED == set(CHANGES)


@pytest.mark.parametrize(("name", "option"), CHANGES)
def test_every_option_does_something(name: str, option: str) -> None:
    a, b = (make_method(name, 0.2, 2, **chosen) for chosen in CHANGES[name, option])
    checks.differ(a, b, with_particles(PROBLEMS["regression"], 3) if a.needs_particles else PROBLEMS["discrete"])


@pytest.mark.parametrize("name", sorted(set(OUTER) - {"multitask"}))  # in training it takes no inner step
def test_step_size_and_number_of_steps_do_something(name: str) -> None:
    new = with_particles(problems.regression, 3 * make_method(name).needs_particles)
    checks.differ(make_method(name, 0.1, 2), make_method(name, 0.2, 2), new)
    checks.differ(make_method(name, 0.1, 2), make_method(name, 0.1, 3), new)


ONE_ON_FINITE_SUMS = {"maml", "multi_step_maml", "maml_plus_plus", "e_maml", "lsf"}  # with equal step sizes
PAIRS = [p for p in itertools.combinations(sorted(OUTER), 2) if not ONE_ON_FINITE_SUMS.issuperset(p)]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_methods_differ(a: str, b: str) -> None:
    by = 1e-11 if {a, b} <= ONE_ON_FINITE_SUMS | {"hf_maml"} else 1e-4  # HF-MAML's error is that of its probe
    new = with_particles(problems.regression, 3 * ("bmaml" in (a, b)))
    checks.differ(make_method(a, 0.1, 3), make_method(b, 0.1, 3), new, by)


def with_rule(method: Method, inner: Inner) -> Method:
    return Method(method.update, inner)


COINCIDE: dict[str, tuple[Method, Method, tuple[str, ...], float]] = {
    "moreau_S1_is_fo": (make_method("moreau", 0.2, 1), make_method("fo_maml", 0.2, 1), tuple(PROBLEMS), 0),
    "multi_step_is_maml": (make_method("multi_step_maml", 0.2, 1), make_method("maml", 0.2, 1), tuple(PROBLEMS), 0),
    "multi_step_is_maml_N3": (make_method("multi_step_maml", 0.2, 3), make_method("maml", 0.2, 3), tuple(PROBLEMS), 0),
    "fresh_is_inner_on_finite_sums": (
        make_method("maml", 0.2, 3),
        make_method("maml", 0.2, 3, hessian_data="reuse"),
        FINITE_SUMS,
        0,
    ),
    "e_maml_is_maml_on_finite_sums": (make_method("maml", 0.2, 3), make_method("e_maml", 0.2, 3), FINITE_SUMS, 0),
    "lsf_is_maml_on_finite_sums": (make_method("maml", 0.2, 3), make_method("lsf", 0.2, 3), FINITE_SUMS, 0),
    "binomial_of_order_0_is_fo": (
        make_method("binom_maml", 0.2, 3, order=0),
        make_method("fo_maml", 0.2, 3),
        tuple(PROBLEMS),
        0,
    ),
    "binomial_of_all_orders_is_maml": (
        make_method("binom_maml", 0.2, 3, order=3),
        make_method("maml", 0.2, 3),
        tuple(PROBLEMS),
        1e-11,
    ),
    "hf_is_maml_on_quadratics": (make_method("hf_maml", 0.2, 3), make_method("maml", 0.2, 3), ("quadratics",), 1e-11),
    "hf_published_is_maml_on_quadratics": (
        make_method("hf_maml", 0.2, 3, delta="published", rho=0.0),  # an infinite probe, clamped
        make_method("maml", 0.2, 3),
        ("quadratics",),
        1e-13,
    ),
    "maml_by_signs_is_sign_maml": (  # C3.1: through a sign there is no curvature
        with_rule(make_method("maml", 1), Inner(sign_sgd(0.02), 3)),
        make_method("sign_maml", 0.02, 3),
        tuple(PROBLEMS),
        0,
    ),
    "imaml_of_infinite_lam_is_the_gradient_at_its_end": (
        with_rule(make_method("imaml", 1, lam=1e12), Inner(sgd(0.1), 3)),
        make_method("fo_maml", 0.1, 3),
        tuple(PROBLEMS),
        1e-10,
    ),
    "reptile_of_one_step_is_the_joint_gradient": (
        make_method("reptile", 0.1, 1),
        with_rule(make_method("reptile", 1), Inner(restart_sgd(0.1), 1)),
        tuple(PROBLEMS),
        0,
    ),
}


@pytest.mark.parametrize(("a", "b", "on", "rtol"), COINCIDE.values(), ids=COINCIDE)
def test_coincide(a: Method, b: Method, on: tuple[str, ...], rtol: float) -> None:
    for problem in on:
        checks.coincide(a, b, PROBLEMS[problem], rtol)


RULES = {
    "sgd": (sgd(0.2), updates.sgd_step(0.2)),
    "sign": (sign_sgd(0.02), updates.sign_step(0.02)),
    "prox": (prox_sgd(0.2, 0.7), updates.prox_step(0.2, 0.7)),
    "restart": (restart_sgd(0.2), updates.restart_step(0.2)),
    "users_own": (  # depends on all three arguments, and not linearly
        lambda w, g, anchor: {k: w[k] - 0.2 * torch.tanh(g[k]) * anchor[k].square() for k in w},
        lambda w, g, anchor: w - 0.2 * torch.tanh(g) * anchor**2,
    ),
}


@pytest.mark.parametrize(("rule", "step"), RULES.values(), ids=RULES)
@pytest.mark.parametrize("problem", ["regression", "navigation"])
def test_pull_back_through_any_rule_is_autograd(rule: Any, step: Any, problem: str) -> None:
    method = with_rule(make_method("maml", 1, hessian_data="reuse"), Inner(rule, 3))
    checks.equals_reference_on_its_draws(method, functools.partial(updates.unrolled, step), PROBLEMS[problem])


# Exact gradients of stated objectives, by finite differences.


def after(step: Callable[[float], Any], alpha: float) -> Callable[[Tensor, Data], Tensor]:
    return lambda w, data: data.outer(updates.path(step(alpha), w, data)[-1])


def envelope(alpha: float) -> Callable[[Tensor, Data], Tensor]:
    def objective(w: Tensor, data: Data) -> Tensor:
        z = updates.path(updates.restart_step(alpha), w, data._replace(inner=data.inner[:1] * 40))[-1]
        return data.outer(z) + (z - w).square().sum() / (2 * alpha)

    return objective


def at_the_prox_point(alpha: float, lam: float) -> Callable[[Tensor, Data], Tensor]:
    return lambda w, data: data.outer(updates.path(updates.prox_step(alpha, lam), w, data)[-1])


GRADIENTS = {
    **{f"maml_N{n}": (make_method("maml", 0.2, n), after(updates.sgd_step, 0.2), "regression") for n in (1, 3, 5)},
    **{
        f"multi_step_P2_N{n}": (make_method("multi_step_maml", 0.9, n), after(updates.sgd_step, 0.9), "logistic")
        for n in (1, 3, 5)
    },
    **{
        f"sign_N{n}": (make_method("sign_maml", 0.02, n), after(updates.sign_step, 0.02), "regression")
        for n in (1, 3, 5)
    },
    "moreau": (make_method("moreau", 0.9, 30), envelope(0.9), "logistic"),
    "imaml": (make_method("imaml", 0.5, 25, lam=1.5, cg_steps=30), at_the_prox_point(0.5, 1.5), "quadratics"),
    "imaml_P2": (make_method("imaml", 0.5, 25, lam=1.5, cg_steps=30), at_the_prox_point(0.5, 1.5), "logistic"),
}


@pytest.mark.parametrize(("method", "objective", "problem"), GRADIENTS.values(), ids=GRADIENTS)
def test_is_the_gradient_of(method: Method, objective: Any, problem: str) -> None:
    checks.is_gradient_of(method, objective, PROBLEMS[problem], 1e-7)


# HF-MAML's probe.


@pytest.mark.parametrize("problem", ["logistic", "regression", "navigation"])
def test_hf_error_falls_with_the_square_of_the_probe(problem: str) -> None:
    new = PROBLEMS[problem]
    exact = ravel(checks.run(make_method("maml", 0.2, 2), new()).grads)
    hf = [make_method("hf_maml", 0.2, 2, delta="published", rho=rho) for rho in (30.0, 300.0)]  # probes 0.028, 0.0028
    coarse, fine = ((ravel(checks.run(method, new()).grads) - exact).norm() for method in hf)
    assert 90 < coarse / fine < 110
    assert fine < 1e-4 * exact.norm()


@pytest.mark.parametrize("problem", ["logistic", "regression", "navigation"])
def test_hf_default_probe_is_maml_to_seven_digits(problem: str) -> None:
    checks.coincide(make_method("hf_maml", 0.2, 3), make_method("maml", 0.2, 3), PROBLEMS[problem], 1e-6)


@pytest.mark.parametrize(("rho", "reach"), [(0.0, 10.0), (1e-9, 10.0), (1e12, 1e-7)])
def test_hf_published_probe_is_clamped(rho: float, reach: float) -> None:
    method = make_method("hf_maml", 0.2, delta="published", rho=rho)
    reference = functools.partial(updates.hessian_free, alpha=0.2, delta="published", rho=1 / (6 * 0.2 * reach))
    checks.equals_reference(method, reference, problems.regression, 1e-5 if reach < 1 else 1e-9)  # 1e-16 / 1e-7


@pytest.mark.parametrize("probe", [{"delta": "relative"}, {"delta": "published", "rho": 1.0}])
def test_hf_at_a_zero_gradient(probe: dict[str, Any]) -> None:
    tasks = problems.quadratics_1d([1.0, 2.0], [0.5, 0.5])
    at_rest = ReferenceProblem(tasks, {"w": torch.tensor([0.5], dtype=DOUBLE)})
    result = checks.run(make_method("hf_maml", 0.2, 2, **probe), at_rest)
    assert torch.equal(result.grads["w"], torch.zeros(2, 1, dtype=DOUBLE))


# iMAML's conjugate gradients.


def systems(eigenvalues: list[float]) -> tuple[Tensor, Tensor]:
    """Three symmetric matrices with these eigenvalues, and right-hand sides."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(3, len(eigenvalues), len(eigenvalues))))[0]
    matrices = (basis * np.asarray(eigenvalues)) @ basis.swapaxes(1, 2)
    return torch.as_tensor(matrices), torch.as_tensor(rng.normal(size=(3, len(eigenvalues))))


def cg(a: Tensor, b: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    return conjugate_gradients(lambda rows: torch.einsum("tij,tj->ti", a, rows), b, steps)


@pytest.mark.parametrize("steps", [1, 2, 4, 50])
def test_cg_residual_is_the_true_one(steps: int) -> None:
    a, b = systems([1.0, 2.0, 3.0, 5.0])
    x, residual = cg(a, b, steps)
    true = (b - torch.einsum("tij,tj->ti", a, x)).norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(residual, true, rtol=1e-9, atol=1e-14)
    assert (residual.max() < 1e-13) == (steps >= 4)  # as many as there are eigenvalues


def textbook_cg(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """One system; stops for good at negative curvature."""
    x, r, p = torch.zeros_like(b), b, b
    for _ in range(steps):
        if p @ a @ p <= 0 or r.norm() < 1e-14:
            break
        alpha = (r @ r) / (p @ a @ p)
        x, r_new = x + alpha * p, r - alpha * (a @ p)
        p, r = r_new + (r_new @ r_new) / (r @ r) * p, r_new
    return x


def test_cg_keeps_its_iterate_at_negative_curvature() -> None:
    a, b = systems([1.0, 2.0, -0.5, 3.0])
    for steps in (1, 2, 3, 4, 20, 200):
        x, residual = cg(a, b, steps)
        for i in range(3):
            torch.testing.assert_close(x[i], textbook_cg(a[i], b[i], steps), rtol=1e-9, atol=0)
        true = (b - torch.einsum("tij,tj->ti", a, x)).norm(dim=1) / b.norm(dim=1)
        torch.testing.assert_close(residual, true, rtol=1e-9, atol=1e-14)
    x, residual = cg(-torch.eye(2, dtype=DOUBLE)[None], torch.ones(1, 2, dtype=DOUBLE), 5)
    assert torch.equal(x, torch.zeros_like(x))  # it never moved
    assert residual.tolist() == [1.0]


def test_cg_of_zero_is_zero_and_rows_are_independent() -> None:
    a, b = systems([1.0, 2.0, 3.0, 5.0])
    b[1] = 0
    x, residual = cg(a, b, 3)
    assert torch.equal(x[1], torch.zeros(4, dtype=DOUBLE))
    assert residual[1] == 0
    for i in (0, 2):
        torch.testing.assert_close(x[i], cg(a[i : i + 1], b[i : i + 1], 3)[0][0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("problem", FINITE_SUMS)
def test_imaml_reports_its_true_residual(problem: str) -> None:
    p = PROBLEMS[problem]()
    method = make_method("imaml", 0.1, 3, cg_steps=2)
    result = checks.run(method, p)
    for i in range(p.tasks.num_tasks):
        data = finite_sum_data(p, 3, i)
        phi = updates.path(updates.prox_step(0.1, 2.0), ravel(p.params), data)[-1]
        d, g = ravel(checks.one(result.grads, i)), updates.gradient(data.outer, phi)
        true = (d + updates.hessian(data.hessian[0], phi) @ d / 2.0 - g).norm() / g.norm()
        torch.testing.assert_close(result.info["cg_residual"][i], true, rtol=1e-9, atol=0)


# Known answers.


def fixed_point(direction: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """Where the mean meta-gradient vanishes: Newton with a Jacobian by central differences."""
    while direction(w).norm() > 1e-13:
        jacobian = torch.stack(
            [(direction(w + e) - direction(w - e)) / 2e-4 for e in 1e-4 * torch.eye(len(w), dtype=w.dtype)], dim=1
        )
        w = w - torch.linalg.solve(jacobian, direction(w))
    return w


def direction(
    name: str, tasks: FiniteSumTaskBatch, alpha: float, steps: int = 1, **chosen: Any
) -> Callable[[Tensor], Tensor]:
    like = {"w": torch.zeros(5 if "X" in tasks.support else 1, dtype=DOUBLE)}
    return functools.partial(mean_gradient, make_method(name, alpha, steps, **chosen), tasks, like)


@pytest.mark.parametrize(
    ("a", "c", "alpha", "w_maml", "w_fo", "gap"),
    [  # two 1-D quadratics, worked out by hand: FO-MAML stops where grad F is `gap`
        ([1, 2], [1, -1], 0.25, 1 / 17, -1 / 7, -3 / 28),
        ([1, 0.1], [1, -1], 0.5, 0.469508, 0.680672, 0.035924),
        ([1, 0.5], [1, -1], 0.5, -1 / 17, 1 / 7, 3 / 56),
        ([1, 0.2], [1, -1], 0.9, -0.861573, -0.242424, 0.044727),
        ([1, 0.1], [1, -1], 0.1, 0.784121, 0.801802, 0.008027),
    ],
)
def test_fixed_points_on_two_quadratics(
    a: list[float], c: list[float], alpha: float, w_maml: float, w_fo: float, gap: float
) -> None:
    tasks = problems.quadratics_1d(a, c)
    for name, target in [("maml", w_maml), ("multi_step_maml", w_maml), ("hf_maml", w_maml), ("fo_maml", w_fo)]:
        step = direction(name, tasks, alpha)
        w = torch.zeros(1, dtype=DOUBLE)
        slope = step(w + 1) - step(w)
        for _ in range(30):  # gradient descent, at a step size that halves the distance
            w = w - 0.5 / slope * step(w)
        assert w.item() == pytest.approx(target, abs=1e-6)
        assert direction("maml", tasks, alpha)(w).item() == pytest.approx(gap if name == "fo_maml" else 0, abs=1e-6)


def test_fixed_points_agree_when_the_curvature_is_shared() -> None:
    tasks = problems.quadratics_1d([0.7, 0.7, 0.7], [1.0, -1.0, 0.3])
    a, b = (fixed_point(direction(name, tasks, 0.5), torch.zeros(1, dtype=DOUBLE)) for name in ("maml", "fo_maml"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_fixed_point_of_moreau_on_two_quadratics() -> None:
    tasks = problems.quadratics_1d([1, 0.1], [1, -1])
    w = fixed_point(direction("moreau", tasks, 0.5, 40), torch.zeros(1, dtype=DOUBLE))
    assert w.item() == pytest.approx(0.75, abs=1e-9)  # sum a c / (1 + alpha a) over sum a / (1 + alpha a)


@functools.cache
def maml_fixed_point(alpha: float) -> Tensor:
    return fixed_point(direction("maml", problems.logistic().tasks, alpha), torch.zeros(5, dtype=DOUBLE))


def floor(name: str, alpha_l: float, exact: tuple[str, int] = ("maml", 1), steps: int = 1, **chosen: Any) -> float:
    """The norm of the exact gradient where the method comes to rest on P2."""
    tasks, alpha = problems.logistic().tasks, alpha_l / problems.logistic_smoothness()
    w = fixed_point(direction(name, tasks, alpha, steps, **chosen), maml_fixed_point(alpha))
    return direction(exact[0], tasks, alpha, exact[1])(w).norm().item()


def test_smoothness_of_the_logistic_tasks() -> None:
    assert problems.logistic_smoothness() == pytest.approx(0.52758, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "alpha_l", "chosen", "stops_at"),
    [
        ("fo_maml", 0.05, {}, 1.8e-3),
        ("fo_maml", 0.1, {}, 3.5e-3),
        ("fo_maml", 1 / 6, {}, 5.6e-3),
        ("fo_maml", 0.5, {}, 1.4e-2),
        ("fo_maml", 0.9, {}, 1.9e-2),
        # the published probe has a constant length: it stalls as well
        ("hf_maml", 0.05, {"delta": "published", "rho": 0.384}, 1.2e-3),
        ("hf_maml", 0.1, {"delta": "published", "rho": 0.384}, 1.7e-3),
        ("hf_maml", 0.1, {"delta": "published", "rho": 1.43}, 3.6e-4),
        ("hf_maml", 0.5, {"delta": "published", "rho": 0.384}, 9.9e-4),
        ("hf_maml", 0.5, {"delta": "published", "rho": 1.43}, 8.0e-5),
    ],
)
def test_where_methods_stall_on_logistic_tasks(name: str, alpha_l: float, chosen: Any, stops_at: float) -> None:
    assert floor(name, alpha_l, **chosen) == pytest.approx(stops_at, rel=0.05)


def test_hf_floor_falls_with_the_square_of_the_probe() -> None:
    coarse, fine = (floor("hf_maml", 0.5, delta="published", rho=rho) for rho in (10.0, 100.0))
    assert 90 < coarse / fine < 110
    assert floor("hf_maml", 0.5) < 1e-9


@pytest.mark.parametrize(("steps", "stops_at"), [(1, 6.8e-3), (2, 2.3e-3), (3, 9.5e-4), (5, 1.4e-4), (10, 1.2e-6)])
def test_where_moreau_stalls_on_logistic_tasks(steps: int, stops_at: float) -> None:
    assert floor("moreau", 0.5, ("moreau", 40), steps) == pytest.approx(stops_at, rel=0.05)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_error_of_moreau_is_a_power_of_alpha_l(steps: int) -> None:
    alpha_l = 0.5
    near, limit = (
        checks.run(make_method("moreau", alpha_l / problems.logistic_smoothness(), s), problems.logistic()).grads["w"]
        for s in (steps, 60)
    )
    assert ((near - limit).norm(dim=1) / limit.norm(dim=1)).max() <= alpha_l ** (steps + 1)


@pytest.mark.parametrize("scale", [1e-3, 3.7, 1e4])
def test_sign_maml_ignores_the_scale_of_the_inner_loss(scale: float) -> None:
    def scaled(name: str, factor: float) -> Any:
        tasks, params = problems.regression()
        support, query = (
            data | {"scale": torch.full((3,), s, dtype=DOUBLE)}
            for data, s in [(tasks.support, factor), (tasks.query, 1.0)]
        )
        tasks = FiniteSumTaskBatch(lambda w, data: data["scale"] * problems.network_loss(w, data), support, query)
        return checks.run(make_method(name, 0.02, 3), ReferenceProblem(tasks, params))

    checks.assert_same(scaled("sign_maml", scale), scaled("sign_maml", 1.0))
    assert not torch.equal(scaled("fo_maml", scale).grads["bias_1"], scaled("fo_maml", 1.0).grads["bias_1"])
