"""iMAML's objective is neither convex nor smooth although the tasks are; its implicit gradient is exact."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import Method, make_method
from metarl.engine import Execution
from metarl.experiments.reports.claims.common import (
    Findings,
    Row,
    central_differences,
    difference_quotient,
    direction,
    label,
    listing,
    near,
    objective,
    panels,
    random_point,
    relative_error,
    scientific,
)
from metarl.inner import adapt
from metarl.supervised import FiniteSumTaskBatch
from metarl.theory.logistic import logistic_source, six_logistic_tasks
from metarl.types import Batch, Params

SOURCE = "Mishchenko, Hanzely, Richtarik 2023"
WAVY = {10.0: 2.3, 100.0: 17.0, 1000.0: 175.0}


def check(quick: bool = False) -> Findings:
    """Two convex functions of one variable with lambda = 1, and the implicit gradient on P2."""
    figure, (left, middle, right) = panels(3)
    rows = [*not_convex(left), not_smooth(middle), *implicit_gradient(right)]
    return Findings(
        rows,
        figure,
        "The objective is f at the proximal point of x; its derivatives come from the library's own iMAML update, for "
        "all x at once: the proximal point moves with the function, so f(. + x) at zero is f at x.",
    )


def flat_spot(z: Tensor) -> Tensor:
    """Convex, twice differentiable, with f'' = 0 but f' > 0 at z = 1/3."""
    a = z.abs()
    return torch.where(a <= 1, a**4 / 4 - a**3 / 3 + a**2 / 6, 2 * a**2 / 3 - a + 5 / 12)


def wave(z: Tensor) -> Tensor:
    """Convex and 2-smooth with a 1-Lipschitz Hessian."""
    return z**2 / 2 + torch.cos(z)


def at(function: Callable[[Tensor], Tensor], x: Tensor) -> FiniteSumTaskBatch:
    """A task for every x: `function` moved so that zero stands for x."""

    def loss(params: Params, batch: Batch) -> Tensor:
        return function(params["w"] + batch["x"]).sum()

    return FiniteSumTaskBatch(loss, {"x": x[:, None]}, execution=Execution(trace=True))


def implicit() -> Method:
    """iMAML with lambda = 1, solved to rounding: f'' <= 2, so a step of 0.5 halves the distance."""
    return make_method("imaml", 0.5, 60, lam=1.0, cg_steps=2)


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """phi'(x) of iMAML's objective phi, from the library's update."""
    method = implicit()
    return method.update(zero(), at(function, x), method.inner).grads["w"][:, 0]


def values(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """phi(x) and the Moreau envelope at x."""
    z = x + adapt(zero(), at(function, x), implicit().inner)["w"][:, 0]
    return function(z), function(z) + (z - x).square() / 2


def zero() -> Params:
    """Where adaptation begins, relative to x."""
    return {"w": torch.zeros(1, dtype=torch.float64)}


def not_convex(ax: Axes) -> list[Row]:
    """Second differences on [0.3, 0.6]."""
    h = 0.03
    x = torch.linspace(0.3, 0.6, 301, dtype=torch.float64)
    second, envelope = (
        (up - 2 * middle + down) / h**2
        for up, middle, down in zip(*(values(flat_spot, x + s * h) for s in (1, 0, -1)), strict=True)
    )
    limit = difference_quotient(partial(derivatives, flat_spot), x)
    ax.plot(x, limit, label="iMAML's objective, second derivative")
    ax.plot(x, second, "--", label=f"second differences, h = {h}")
    ax.plot(x, envelope, ":", label="Moreau envelope, second differences")
    ax.axhline(0, color="black", linewidth=0.8)
    label(ax, "a convex f: not convex after adaptation", "x", "")
    return [
        Row(
            "iMAML's objective of a convex f has negative curvature (on [0.3, 0.6])",
            SOURCE,
            "second differences down to -0.0036",
            f"{float(second.min()):.4f}; second derivative {float(limit.min()):.4f}",
            near(float(-second.min()), 0.0036) and bool(limit.min() < -1e-3),
        ),
        Row("the Moreau envelope has not", SOURCE, "> 0", scientific(float(envelope.min())), bool(envelope.min() > 0)),
    ]


def not_smooth(ax: Axes) -> Row:
    """The largest second derivative in a period around growing x."""
    found = {}
    for centre in WAVY:
        x = centre + torch.linspace(-2 * np.pi, 2 * np.pi, 801, dtype=torch.float64)  # x = 2 z - sin z
        second = difference_quotient(partial(derivatives, wave), x)
        found[centre] = float(second.abs().max())
    ax.loglog(list(found), list(found.values()), "o-", label="z^2 / 2 + cos z")
    label(ax, "a 2-smooth f: not smooth after adaptation", "x", "largest |second derivative| near x")
    return Row(
        f"its second derivative is unbounded; near x = {listing(list(WAVY))} it reaches",
        SOURCE,
        listing(list(WAVY.values())),
        listing(list(found.values())),
        all(abs(found[x] - WAVY[x]) <= 0.15 * WAVY[x] for x in WAVY),
    )


def implicit_gradient(ax: Axes) -> list[Row]:
    """On P2 with lambda = 1: against finite differences of theta -> L_out(phi(theta)), for k steps of CG."""
    tasks = logistic_source(six_logistic_tasks()).tasks
    w = random_point()
    methods = {k: make_method("imaml", 0.8, 60, lam=1.0, cg_steps=k) for k in range(1, 7)}
    numeric = central_differences(objective(tasks, methods[1].inner), w)
    errors = {k: relative_error(direction(m, tasks)(w), numeric) for k, m in methods.items()}
    ax.semilogy(list(errors), list(errors.values()), "o-")
    label(ax, "implicit gradient on P2, lambda = 1", "steps of conjugate gradients", "relative error", legend=False)
    least = max(errors[k + 1] / errors[k] for k in range(1, 5))
    return [
        Row(
            "solved exactly (5 steps of CG in 5 dimensions), the implicit gradient is the finite difference (P2)",
            "Rajeswaran et al. 2019",
            "relative error < 1e-8",
            f"{errors[5]:.1e}",
            errors[5] < 1e-8,
        ),
        Row(
            "CG converges geometrically: each step's error over the last one's, at most",
            "Rajeswaran et al. 2019",
            "< 0.5",
            f"{least:.2g}",
            least < 0.5,
        ),
    ]
