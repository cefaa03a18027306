"""iMAML's objective is neither convex nor smooth although the tasks are; its implicit gradient is exact."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports.theory.common import Findings, Row, is_near, label, listing, panels, scientific
from metarl.experiments.reports.theory.numerics import POINT, TASKS, difference_quotient, direction, numeric_error
from metarl.inner import adapt
from metarl.supervised import FiniteSumTaskBatch
from metarl.types import Batch, Params

SOURCE = "Mishchenko, Hanzely, Richtarik 2023"
WAVY = {10.0: 2.3, 100.0: 17.0, 1000.0: 175.0}


def check(quick: bool = False) -> Findings:
    """Two convex functions of one variable with lambda = 1, and the implicit gradient on P2."""
    figure, (left, middle, right) = panels(3)
    return Findings(
        [*not_convex(left), not_smooth(middle), *implicit_gradient(right)],
        figure,
        "The objective is f at the proximal point of x; its derivatives come from the library's own iMAML update, for "
        "all x at once: the proximal point shifts with the function, so f(. + x) at zero equals f at x.",
    )


def flat_spot(z: Tensor) -> Tensor:
    """Convex, twice differentiable, with f'' = 0 but f' > 0 at z = 1/3."""
    a = z.abs()
    return torch.where(a <= 1, a**4 / 4 - a**3 / 3 + a**2 / 6, 2 * a**2 / 3 - a + 5 / 12)


def wave(z: Tensor) -> Tensor:
    """Convex and 2-smooth with a 1-Lipschitz Hessian."""
    return z**2 / 2 + torch.cos(z)


def at(function: Callable[[Tensor], Tensor], x: Tensor) -> FiniteSumTaskBatch:
    """A task for every x: `function` shifted so that zero stands for x."""

    def loss(params: Params, batch: Batch) -> Tensor:
        return function(params["w"] + batch["x"]).sum()

    return FiniteSumTaskBatch(loss, {"x": x[:, None]})


IMPLICIT = make_method("imaml", 0.5, 60, lam=1.0, cg_steps=2)
"""iMAML with lambda = 1, solved to rounding: f'' <= 2, so a step of 0.5 halves the distance."""

ZERO: Params = {"w": torch.zeros(1, dtype=torch.float64)}
"""Where adaptation starts, relative to x."""


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """phi'(x) of iMAML's objective phi, from the library's update."""
    return IMPLICIT.update(ZERO, at(function, x), IMPLICIT.inner).grads["w"][:, 0]


def values(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """phi(x) and the Moreau envelope at x."""
    z = x + adapt(ZERO, at(function, x), IMPLICIT.inner)["w"][:, 0]
    return function(z), function(z) + (z - x).square() / 2


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
    lowest, lowest_limit, lowest_envelope = (float(curve.min()) for curve in (second, limit, envelope))
    claim = "iMAML's objective of a convex f has negative curvature (on [0.3, 0.6])"
    convex = "the Moreau envelope of f has positive curvature"
    expected, measured = "second differences down to -0.0036", f"{lowest:.4f}; second derivative {lowest_limit:.4f}"
    return [
        Row(claim, SOURCE, expected, measured, is_near(-lowest, 0.0036) and lowest_limit < -1e-3),
        Row(convex, SOURCE, "> 0", scientific(lowest_envelope), lowest_envelope > 0),
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
    claim = f"the second derivative of iMAML's objective is unbounded; near x = {listing(list(WAVY))} it reaches"
    expected, measured = listing(list(WAVY.values())), listing(list(found.values()))
    return Row(claim, SOURCE, expected, measured, all(is_near(found[x], WAVY[x], 0.15) for x in WAVY))


def implicit_gradient(ax: Axes) -> list[Row]:
    """On P2 with lambda = 1: against finite differences of theta -> L_out(phi(theta)), for k steps of CG."""
    methods = {k: make_method("imaml", 0.8, 60, lam=1.0, cg_steps=k) for k in range(1, 7)}
    errors = {k: numeric_error(direction(m, TASKS)(POINT), TASKS, m.inner) for k, m in methods.items()}
    ax.semilogy(list(errors), list(errors.values()), "o-")
    label(ax, "implicit gradient on P2, lambda = 1", "steps of conjugate gradients", "relative error", legend=False)
    ratio = max(errors[k + 1] / errors[k] for k in range(1, 5))
    exact = "solved exactly (5 steps of CG in 5 dimensions), the implicit gradient equals the finite difference (P2)"
    geometric, source = "CG converges geometrically: largest ratio of successive errors", "Rajeswaran et al. 2019"
    return [
        Row(exact, source, "relative error < 1e-8", f"{errors[5]:.1e}", errors[5] < 1e-8),
        Row(geometric, source, "< 0.5", f"{ratio:.2g}", ratio < 0.5),
    ]
