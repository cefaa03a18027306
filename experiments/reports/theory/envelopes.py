"""FO-MuML without smooth Hessians: the envelopes of a loss whose second derivative jumps, and where FO-MuML stops.

    f_i(w) = sum_k mu/2 u_k^2 + (L - mu)/2 max(0, u_k - 1)^2,    u = Q_i w - c_i

has curvatures between mu and L, a second derivative that jumps at u_k = 1, and proximal points in closed form.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import Inner, Method, make_method
from metarl.experiments.reports.theory.common import Findings, Row, label, listing, panels
from metarl.experiments.reports.theory.numerics import (
    Vector,
    descend,
    direction,
    find_zero,
    relative_error,
    slope,
)
from metarl.inner import prox_sgd
from metarl.outer.fo_maml import gradient_at_the_end
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.types import Batch, Params

SOURCE = "Mishchenko, Hanzely, Richtarik 2023"
RECALLED = f"{SOURCE}, constants recalled"
D, T, L = 3, 6, 1.0
ALPHA = 0.25  # alpha L = 0.25


class Kinked(NamedTuple):
    """T tasks."""

    mu: float
    rotations: Tensor  # Q [T, d, d]
    centres: Tensor  # c [T, d]


def kinked(kappa: float, *, rotate: bool = True, spread: float = 3.0) -> Kinked:
    """Random tasks of condition number `kappa`; with `spread` zero they share their minimiser, zero."""
    rng = np.random.default_rng(8)
    rotations = np.linalg.qr(rng.normal(size=(T, D, D)))[0] if rotate else np.tile(np.eye(D), (T, 1, 1))
    return Kinked(L / kappa, torch.as_tensor(rotations), torch.as_tensor(spread * rng.normal(size=(T, D))))


def loss(params: Params, batch: Batch) -> Tensor:
    """The loss of one task."""
    u = batch["Q"] @ params["w"] - batch["c"]
    return (batch["mu"] * u.square() + (L - batch["mu"]) * (u - 1).clamp(min=0).square()).sum() / 2


def tasks_of(problem: Kinked) -> FiniteSumTaskBatch:
    """The tasks, without data points."""
    mu = torch.full((T,), problem.mu, dtype=torch.float64)
    return FiniteSumTaskBatch(loss, {"Q": problem.rotations, "c": problem.centres, "mu": mu})


def envelope_gradients(problem: Kinked, w: Vector, alpha: float) -> Tensor:
    """(w - z_i) / alpha for every task `[T, d]`, with the proximal points z_i in closed form."""
    u = torch.einsum("tij,j->ti", problem.rotations, w) - problem.centres
    below = u / (1 + alpha * problem.mu)
    above = (u + alpha * (L - problem.mu)) / (1 + alpha * L)
    z = torch.where(below <= 1, below, above)
    return torch.einsum("tij,ti->tj", problem.rotations, u - z) / alpha


def minimiser(problem: Kinked, alpha: float) -> Vector:
    """The minimiser of the mean of the envelopes."""
    return find_zero(lambda w: envelope_gradients(problem, w, alpha).mean(0), torch.zeros(D, dtype=torch.float64))


def of_envelope(curvature: float, alpha: float) -> float:
    """The curvature of the envelope of a task with this curvature: L_F from L, mu_F from mu."""
    return curvature / (1 + alpha * curvature)


def square_distance(best: Vector) -> Callable[[Vector], float]:
    """`|w - best|^2` as a function of w."""
    return lambda w: float((w - best).square().sum())


def check(quick: bool = False) -> Findings:
    """Everything in three dimensions, six tasks, L = 1."""
    figure, (left, middle, right) = panels(3)
    rows = [
        no_smooth_hessian(),
        *convex_and_smooth(10 if quick else 100),
        conditioning(left, (4.0, 16.0) if quick else (4.0, 16.0, 64.0)),
        *vicinity(middle),
        shared_minimiser(60 if quick else 300),
        *inexact_sgd(right, 100 if quick else 1000),
    ]
    return Findings(
        rows,
        figure,
        "L_F = L/(1 + alpha L) and mu_F = mu/(1 + alpha mu). The constants 1/(20 L), 1/12 and 16 of the theorems are "
        "recalled, not read again: what these rows check is the structure, a linear rate to a vicinity that vanishes "
        "with delta = (alpha L)^(S+1) and beta. MAML's gradient is not even continuous on this loss.",
    )


def no_smooth_hessian() -> Row:
    """The change of both meta-gradients across a kink, over the length of the step across it."""
    problem, alpha, h = kinked(4.0, rotate=False), ALPHA, 1e-6
    problem = problem._replace(centres=torch.zeros_like(problem.centres))
    tasks, w = tasks_of(problem), torch.tensor([1.0, 0.3, -0.4], dtype=torch.float64)
    e = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    maml, moreau = (
        float((g(w + h * e) - g(w - h * e)).norm()) / (2 * h)
        for g in (direction(make_method("maml", alpha), tasks), direction(make_method("moreau", alpha, 40), tasks))
    )
    jump = alpha * (L - problem.mu) * problem.mu * (1 - alpha * problem.mu)  # of (1 - alpha f'') f'(w - alpha f')
    claim = "where f'' jumps, FO-MuML's direction stays Lipschitz and MAML's gradient jumps (quotients over 2e-6)"
    expected = f"at most L_F = {of_envelope(L, alpha):.2f}; a jump of {jump:.3f}"
    good = moreau <= of_envelope(L, alpha) + 1e-6 and abs(2 * h * maml / jump - 1) < 1e-4
    return Row(claim, SOURCE, expected, f"{moreau:.2f}; {2 * h * maml:.3f}", good)


def convex_and_smooth(pairs: int) -> list[Row]:
    """The mean of the envelopes' gradients: exact, and between mu_F and L_F on random pairs of points."""
    problem = kinked(4.0)
    tasks, rng = tasks_of(problem), np.random.default_rng(9)
    rows = []
    for alpha, name in ((0.5, "FO-MuML, S = 50"), (9.0, "proximal steps, alpha L = 9")):
        g = direction(envelope_method(alpha), tasks)
        errors, low, high = [0.0], [], []
        for scale in np.geomspace(0.1, 30, pairs):
            x, step = torch.as_tensor(scale * rng.normal(size=(2, D)))
            step = 0.1 * step
            difference = g(x + step) - g(x)
            low.append(float(difference @ step / step.square().sum()))
            high.append(float(difference.norm() / step.norm()))
            errors.append(relative_error(g(x), envelope_gradients(problem, x, alpha).mean(0)))
        mu_f, l_f = of_envelope(problem.mu, alpha), of_envelope(L, alpha)
        claim = f"the mean of the envelopes is mu_F-convex, L_F- and 1/alpha-smooth without a smooth Hessian ({name})"
        expected = f"within [{mu_f:.4f}, {l_f:.4f}], below {1 / alpha:.4f}; error < 1e-9"
        measured = f"within [{min(low):.4f}, {max(high):.4f}]; error {max(errors):.0e}"
        good = mu_f - 1e-9 <= min(low) and max(high) <= l_f + 1e-9 < 1 / alpha and max(errors) < 1e-9
        rows.append(Row(claim, SOURCE, expected, measured, good))
    return rows


def envelope_method(alpha: float) -> Method:
    """The gradient at the proximal point: by FO-MuML's steps if they contract, else by gradient steps towards it."""
    if alpha * L < 1:
        return make_method("moreau", alpha, 50)
    return Method(gradient_at_the_end, Inner(prox_sgd(1 / (L + 1 / alpha), 1 / alpha), 120))


def conditioning(ax: Axes, kappas: tuple[float, ...]) -> Row:
    """Iterations with beta = 1/L_F until the distance to the minimiser is a hundredth, from the flat side."""
    found, ratios = [], []
    for kappa in kappas:
        problem, beta = kinked(kappa, rotate=False), 1 / of_envelope(L, ALPHA)
        best, mu_f = minimiser(problem, ALPHA), of_envelope(problem.mu, ALPHA)
        start = best - 1000
        source = FiniteSumSource(tasks_of(problem), {"w": start})
        limit = int(np.log(100) * 1.5 / (beta * mu_f)) + 1
        run = descend(source, make_method("moreau", ALPHA, 14), limit, beta, T, square_distance(best))
        found.append(int(np.argmax(np.array(run.seen) <= run.seen[0] / 1e4)))
        ratios.append(max(b / a for a, b in itertools.pairwise(run.seen)) ** 0.5 / (1 - beta * mu_f))
        ax.semilogy(np.array(run.at) / kappa, np.sqrt(run.seen), label=f"L / mu = {kappa:g}")
    label(ax, "f'' jumps; beta = 1/L_F", "iterations / (L / mu)", "distance to the minimiser")
    power = slope(kappas, found)
    claim = f"without a smooth Hessian the rate is linear, with iterations linear in L/mu = {listing(kappas)}"
    measured = f"power {power:.2f}; at most {max(ratios):.6f} of it"
    good = abs(power - 1) < 0.15 and max(ratios) <= 1 + 1e-6
    return Row(claim, SOURCE, "power 1; a step contracts by 1 - beta mu_F or more", measured, good)


def vicinity(ax: Axes) -> list[Row]:
    """The distance between FO-MuML's fixed point and the minimiser, against delta and the bounds."""
    problem, steps = kinked(4.0), (1, 2, 3, 4, 6)
    tasks, best = tasks_of(problem), minimiser(problem, ALPHA)
    mu_f, l_f = of_envelope(problem.mu, ALPHA), of_envelope(L, ALPHA)
    norms = envelope_gradients(problem, best, ALPHA).norm(dim=1)
    mean, square = float(norms.mean()), float(norms.square().mean())
    deltas = [(ALPHA * L) ** (s + 1) for s in steps]
    stops = [find_zero(direction(make_method("moreau", ALPHA, s), tasks), best, 1e-12) for s in steps]
    found = [float((w - best).norm()) for w in stops]
    derived = [delta * mean / (mu_f - delta * l_f) for delta in deltas]
    recalled = [(32 * square) ** 0.5 * delta / problem.mu for delta in deltas]
    for name, values in (("measured", found), ("bound derived here", derived), ("recalled bound", recalled)):
        ax.semilogy(steps, values, "o-" if values is found else ":", label=name)
    label(ax, "FO-MuML stops at a distance", "inner steps S", "distance to the minimiser")
    power = slope(deltas, found)
    shares = [max(f / b for f, b in zip(found, bounds, strict=True)) for bounds in (derived, recalled)]
    numbers = listing(steps)
    claim = f"FO-MuML's vicinity is proportional to delta = (alpha L)^(S+1), S = {numbers}"
    below = f"FO-MuML's vicinity is below delta sigma_* / (mu_F - delta L_F), S = {numbers}"
    structure = "FO-MuML's vicinity is below sqrt(16/mu 2 delta^2/mu) sigma_*, the term of inexact gradients"
    return [
        Row(claim, SOURCE, "power 1 in delta", f"power {power:.2f}; {listing(found)}", abs(power - 1) < 0.1),
        Row(below, f"{SOURCE}; derived here", "at most 1", f"{shares[0]:.2f} of it", 0.05 < shares[0] <= 1),
        Row(structure, RECALLED, "at most 1", f"{shares[1]:.2f} of it", shares[1] <= 1, required=False),
    ]


def shared_minimiser(iterations: int) -> Row:
    """With sigma_* = 0 one inner step is enough: FO-MAML converges to the minimiser itself."""
    problem, beta = kinked(4.0, spread=0.0), 1 / (20 * L)
    source = FiniteSumSource(tasks_of(problem), {"w": torch.full((D,), 5.0, dtype=torch.float64)})
    run = descend(source, make_method("fo_maml", ALPHA), iterations, beta, 1, square_distance(torch.zeros(D)))
    bound = 1 - beta * problem.mu / 12
    worst = max(b / a for a, b in itertools.pairwise(run.seen))
    claim = "if all tasks share the minimiser (sigma_* = 0), FO-MAML with one task a step has no vicinity"
    measured = f"{worst:.5f}; |x - x*|^2 from {run.seen[0]:.0f} to {run.seen[-1]:.0e}"
    expected = f"|x - x*|^2 times at most 1 - beta mu/12 = {bound:.5f} a step"
    return Row(claim, RECALLED, expected, measured, worst <= bound)


def inexact_sgd(ax: Axes, iterations: int) -> list[Row]:
    """E |x - x*|^2 with one task a step, for two step sizes and two numbers of inner steps."""
    problem = kinked(4.0)
    tasks, best = tasks_of(problem), minimiser(problem, ALPHA)
    square = float(envelope_gradients(problem, best, ALPHA).square().sum(1).mean())
    source, found, shares = FiniteSumSource(tasks, {"w": best}), {}, []
    for s, part in itertools.product((1, 4), (5, 20)):
        beta, delta = 1 / (part * L), (ALPHA * L) ** (s + 1)
        run = descend(
            source, make_method("moreau", ALPHA, s), iterations, beta, 1, lambda w: float((w - best).square().sum())
        )
        tail = np.array(run.seen[len(run.seen) // 4 :])
        found[s, part] = float(tail.mean())
        bound = 16 / problem.mu * (2 * delta**2 / problem.mu + beta + beta * delta**2) * square
        shares.append(found[s, part] / bound)
        ax.semilogy(run.at, run.seen, lw=0.6, label=f"S = {s}, beta = 1/({part} L)")
    label(ax, "one task a step, from the minimiser", "iteration", "|x - x*|^2")
    few, many = (found[s, 5] / found[s, 20] for s in (1, 4))
    claim = "with one task a step E |x - x*|^2 falls with beta, S = 4 and 1"
    bounded = "E |x - x*|^2 is below (16/mu) (2 delta^2/mu + beta + beta delta^2) sigma_*^2, with inexact gradients"
    measured = f"{many:.1f} and {few:.1f} times as much"
    return [
        Row(
            claim,
            SOURCE,
            "beta = 1/(5 L) against 1/(20 L): about 4, at least 2.5 times",
            measured,
            min(many, few) > 2.5,
        ),
        Row(bounded, RECALLED, "at most 1", f"{min(shares):.3f} to {max(shares):.3f} of it", max(shares) <= 1),
    ]
