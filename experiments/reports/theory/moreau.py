"""The Moreau view: FO-MuML's error falls as (alpha L)^(S+1), and it descends on the tasks' Moreau envelopes."""

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import vmap

from metarl import make_method
from metarl.experiments.reports.theory.common import Findings, Row, is_near, label, listing, panels
from metarl.experiments.reports.theory.numerics import (
    ORIGIN,
    POINT,
    TASKS,
    L,
    Vector,
    central_differences,
    direction,
    find_zero,
    relative_error,
)
from metarl.inner import adapt
from metarl.theory.quadratics import fixed_point, moreau_matrix, quadratic_tasks, quadratics_1d

SOURCE = "Mishchenko, Hanzely, Richtarik 2023"
ALPHA_L, ALPHA = 0.5, 0.5 / L
EXACT = make_method("moreau", ALPHA, 50)  # 0.5^51 is below rounding
FLOORS = {1: 6.8e-3, 2: 2.3e-3, 3: 9.5e-4, 5: 1.4e-4, 10: 1.2e-6}


def check(quick: bool = False) -> Findings:
    """Everything on P2 with alpha L = 0.5; the fixed point also on quadratics."""
    figure, (left, right) = panels(2)
    rows = [envelope_gradient(), error_of_a_step(left, 2 if quick else 10), floors(right), on_quadratics()]
    return Findings(
        rows,
        figure,
        "With one step FO-MuML is FO-MAML. Its floor is smaller on the Moreau envelopes' objective than on MAML's "
        "(6.8e-3 against 1.4e-2).",
    )


def envelope(w: Vector) -> Tensor:
    """`mean_i min_z f_i(z) + |z - w|^2 / (2 alpha)`, with z from the library's own inner loop."""
    z = adapt({"w": w}, TASKS, EXACT.inner)
    losses = vmap(TASKS.loss)(z, TASKS.draw(z, "inner"))
    return (losses + (z["w"] - w).square().sum(1) / (2 * ALPHA)).mean()


def envelope_gradient() -> Row:
    """FO-MuML with many steps against finite differences of the envelope."""
    error = relative_error(direction(EXACT, TASKS)(POINT), central_differences(envelope, POINT))
    claim = "the gradient of the envelope is grad f at the proximal point"
    return Row(claim, SOURCE, "relative error < 1e-9", f"{error:.1e}", error < 1e-9)


def error_of_a_step(ax: Axes, points: int) -> Row:
    """delta, the relative error after S steps: the largest over tasks and random points."""
    rng = np.random.default_rng(6)
    worst = dict.fromkeys(FLOORS, 0.0)
    for _ in range(points):
        w = {"w": torch.as_tensor(rng.normal(size=5))}
        methods = [EXACT, *(make_method("moreau", ALPHA, s) for s in FLOORS)]
        limit, *approximations = (method.update(w, TASKS, method.inner).grads["w"] for method in methods)
        for s, grads in zip(FLOORS, approximations, strict=True):
            worst[s] = max(worst[s], float(((grads - limit).norm(dim=1) / limit.norm(dim=1)).max()))
    ax.semilogy(list(worst), list(worst.values()), "o-", label="measured, worst task and point")
    bounds = [ALPHA_L ** (s + 1) for s in FLOORS]
    ax.semilogy(list(worst), bounds, "k:", label="(alpha L)^(S+1)")
    label(ax, "relative error of FO-MuML's direction", "S", "delta")
    claim, source = f"delta <= (alpha L)^(S+1), S = {listing(list(FLOORS))}", "contraction with factor alpha L"
    good = all(d <= bound for d, bound in zip(worst.values(), bounds, strict=True))
    return Row(claim, source, "at most " + listing(bounds), listing(list(worst.values())), good)


def floors(ax: Axes) -> Row:
    """The gradient of the Moreau objective at FO-MuML's fixed point."""
    exact = direction(EXACT, TASKS)
    best = find_zero(exact, ORIGIN)
    stops = {s: find_zero(direction(make_method("moreau", ALPHA, s), TASKS), best) for s in FLOORS}
    found = {s: exact(w).norm().item() for s, w in stops.items()}
    ax.semilogy(list(found), list(found.values()), "o-")
    label(ax, "FO-MuML's fixed points (P2, alpha L = 0.5)", "S", "|gradient of the Moreau objective|", legend=False)
    good = all(is_near(found[s], FLOORS[s]) for s in FLOORS)
    claim = f"FO-MuML's floor falls geometrically, S = {listing(list(FLOORS))}"
    return Row(claim, SOURCE, listing(list(FLOORS.values())), listing(list(found.values())), good)


def on_quadratics() -> Row:
    """a = (1, 0.1), c = (1, -1), alpha = 0.5: sum a c / (1 + alpha a) over sum a / (1 + alpha a)."""
    problem = quadratics_1d([1.0, 0.1], [1.0, -1.0])
    step = direction(make_method("moreau", 0.5, 50), quadratic_tasks(problem))
    w = find_zero(step, ORIGIN[:1]).item()
    closed = fixed_point(problem, moreau_matrix(problem.curvatures, 0.5)).item()
    good = abs(w - 0.75) < 1e-9 and abs(closed - 0.75) < 1e-12
    claim = "FO-MuML's fixed point on two quadratics (MAML 0.4695, FO-MAML 0.6807)"
    return Row(claim, "closed form", "0.75", f"{w:.9f}", good)
