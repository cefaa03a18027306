"""One-step MAML's objective is smooth with a constant that depends on w, and the random step size estimates it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import make_method, tree
from metarl.derivatives import gradients
from metarl.experiments.reports.theory import step_size
from metarl.experiments.reports.theory.common import Findings, Row, bounded, label, panels
from metarl.experiments.reports.theory.draws import ResampledSource, spreads
from metarl.experiments.reports.theory.numerics import ORIGIN, P2, TASKS, Vector, direction, objective
from metarl.step import average
from metarl.supervised import BatchSizes, FiniteSumTaskBatch
from metarl.theory import AdaptiveStep, fallah_rule
from metarl.theory.logistic import hessian_smoothness, smoothness
from metarl.theory.quadratics import quadratic_loss
from metarl.types import Batch, Params

SOURCE = "Fallah et al. 2020"
ERRORS = 3  # standard errors by which a random mean must keep its bound


def smoothness_bound(L: float, rho: float, alpha: float, mean_norm: float) -> float:
    """L(w), with `mean_norm` the mean of the tasks' `|grad f_i(w)|`."""
    return 4 * L + 2 * rho * alpha * mean_norm


def step_batches(L: float, rho: float, alpha: float, sigma: float, sample: float) -> tuple[int, int]:
    """The sizes B' and D_beta of the batches for the step size."""
    tasks, points = 0.5 * (rho * alpha * sigma / L) ** 2, (2 * rho * alpha * sample / L) ** 2
    return max(1, math.ceil(tasks - 1e-9)), max(1, math.ceil(points - 1e-9))


class Problem(NamedTuple):
    """Tasks with full batches, and their constants."""

    tasks: FiniteSumTaskBatch
    L: float
    rho: float


def check(quick: bool = False) -> Findings:
    """Pairs of random points, and many step sizes at one point."""
    figure, (left, right) = panels(2)
    return Findings(
        [*smooth(left, 20 if quick else 200), *step_moments(right, 100 if quick else 1000)],
        figure,
        "L(w) = 4 L + 2 rho alpha mean |grad f_i(w)|. We read the lemma in its min form: the inequality holds with the "
        "smaller of L(w) and L(u). *Ripples* is the problem of claim 8, where 4 L alone is not enough; *waves* has "
        "tasks 1 - cos(w - c), whose curvature -L at w = pi comes close to the bound at alpha = 1/L. The step size is "
        "the library's `AdaptiveStep`, with tasks and samples drawn with replacement. *A rare task*: one quadratic of "
        "50 has a large gradient, sigma = 20; *noise*: one task, sigma~ = 10; both with L = rho = 1. Random means keep "
        "their bounds by three standard errors.",
    )


# Problems.

LOGISTIC = Problem(TASKS, smoothness(P2), hessian_smoothness(P2))
RIPPLES = Problem(step_size.source(0.0).tasks, step_size.L, step_size.RHO)


def wave_loss(params: Params, batch: Batch) -> Tensor:
    """`1 - cos(w - c)`: L = rho = 1, curvatures of both signs."""
    return (1 - torch.cos(params["w"] - batch["c"])).sum()


WAVES = Problem(
    FiniteSumTaskBatch(wave_loss, {"c": torch.tensor([[-0.05], [0.05]], dtype=torch.float64)}), L=1.0, rho=1.0
)


def task_gradients(tasks: FiniteSumTaskBatch, w: Vector) -> Tensor:
    """The gradients of all tasks at `w`, `[tasks, d]`."""
    return gradients(tasks, tree.broadcast({"w": w}, tasks.num_tasks), tasks.support)["w"]


def mean_norm(tasks: FiniteSumTaskBatch, w: Vector) -> float:
    """The mean of the tasks' `|grad f_i(w)|`."""
    return float(task_gradients(tasks, w).norm(dim=1).mean())


def sigma_of(tasks: FiniteSumTaskBatch, w: Vector) -> float:
    """sigma at `w`."""
    own = task_gradients(tasks, w)
    return float((own - own.mean(0)).square().sum(1).mean().sqrt())


# Smoothness.


def random_pairs(dimension: int, count: int) -> list[tuple[Vector, Vector]]:
    """Pairs of points, near the origin and far away, near each other and far apart."""
    rng, pairs = np.random.default_rng(6), []
    for _ in range(count):
        w = torch.as_tensor(10 ** rng.uniform(-1, 2) * rng.normal(size=dimension))
        pairs.append((w, w + torch.as_tensor(10 ** rng.uniform(-3, 2) * rng.normal(size=dimension))))
    return pairs


def near_pairs(centre: float) -> list[tuple[Vector, Vector]]:
    """Pairs of near points in a period around a point on the line."""
    points = centre + torch.linspace(-np.pi, np.pi, 13, dtype=torch.float64)[:, None]
    return [(w, w + 0.01) for w in points]


def smoothness_ratios(problem: Problem, alpha_l: float, pairs: Sequence[tuple[Vector, Vector]]) -> Tensor:
    """For each pair: |grad F(w) - grad F(u)| / |w - u|, min(L(w), L(u)), the second-order part of F(u), L(w): `[n, 4]`.

    The second-order part is `(F(u) - F(w) - grad F(w) (u - w)) / (|u - w|^2 / 2)`.
    """
    alpha = alpha_l / problem.L
    method, found = make_method("maml", alpha), []
    exact, F = direction(method, problem.tasks), objective(problem.tasks, method.inner)
    for w, u in pairs:
        L_w, L_u = (smoothness_bound(problem.L, problem.rho, alpha, mean_norm(problem.tasks, x)) for x in (w, u))
        g_w, g_u, step = exact(w), exact(u), u - w
        size = float(step.norm())
        second = float(F(u) - F(w) - g_w @ step) / (size**2 / 2)
        found.append([float((g_u - g_w).norm()) / size, min(L_w, L_u), second, L_w])
    return torch.tensor(found)


def smooth(ax: Axes, count: int) -> list[Row]:
    """The smoothness lemma in its min form, and the descent lemma."""
    slopes, seconds = {}, {}
    for name, problem, pairs in (
        ("P2", LOGISTIC, random_pairs(5, count)),
        ("ripples", RIPPLES, random_pairs(1, count) + near_pairs(1000.0)),
        ("waves", WAVES, random_pairs(1, count) + near_pairs(0.0)),
    ):
        found = torch.cat([smoothness_ratios(problem, alpha_l, pairs) for alpha_l in (1 / 6, 1.0)])
        slopes[name] = float((found[:, 0] / found[:, 1]).max())
        seconds[name] = float((found[:, 2] / found[:, 3]).max())
        ax.loglog(found[:, 1], found[:, 0], ".", label=name)
    ax.loglog([2, 600], [2, 600], "k:", label="the bound")
    label(ax, "alpha L = 1/6 and 1", "min(L(w), L(u))", "|grad F(w) - grad F(u)| / |w - u|")
    claim = "|grad F(w) - grad F(u)| <= min(L(w), L(u)) |w - u|, alpha L = 1/6, 1"
    descent = "F(u) <= F(w) + grad F(w) (u - w) + L(w) / 2 |u - w|^2, alpha L = 1/6, 1"
    return [bounded(claim, SOURCE, slopes), bounded(descent, SOURCE, seconds)]


# The random step size.


class Inverse(NamedTuple):
    """Means of `L(w) / L~(w)` and of its square, and their standard errors."""

    mean: float
    mean_error: float
    square: float
    square_error: float


def inverse_smoothness(problem: Problem, w: Vector, batches: tuple[int, int], draws: int) -> Inverse:
    """From independent step sizes of the library's `AdaptiveStep` at `w`, alpha = 1/L."""
    alpha = 1 / problem.L
    source = ResampledSource(problem.tasks, BatchSizes(batches[1], 1, 1), w)
    step = AdaptiveStep(fallah_rule("maml", problem.L, problem.rho, alpha), source, batches[0])
    method = make_method("maml", alpha)
    meta_grad = average(method.update({"w": w}, problem.tasks, method.inner))  # of no interest here
    found = [step({"w": w}, problem.tasks, lambda params, tasks: meta_grad).info["smoothness"] for _ in range(draws)]
    L_w = smoothness_bound(problem.L, problem.rho, alpha, mean_norm(problem.tasks, w))
    inverse = L_w / np.array(found)
    errors = [float(x.std() / math.sqrt(draws)) for x in (inverse, inverse**2)]
    return Inverse(float(inverse.mean()), errors[0], float((inverse**2).mean()), errors[1])


def rare_task() -> Problem:
    """Of 50 quadratics one has a large gradient at zero: sigma = 20, sigma~ = 1, with L = rho = 1."""
    far = 20 / math.sqrt(0.02 * 0.98)
    return noisy_quadratics([0.0] * 49 + [far], 1.0)


def noisy_quadratics(centres: list[float], noise: float) -> Problem:
    """Tasks `(w - c)^2 / 2` with two samples, `c +- noise`; rho = 1 is larger than necessary."""
    c = torch.tensor(centres, dtype=torch.float64)[:, None] + noise * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    data = {"A": torch.ones(*c.shape, 1, 1, dtype=torch.float64), "c": c[..., None]}
    return Problem(FiniteSumTaskBatch(quadratic_loss, data), 1.0, 1.0)


def step_moments(ax: Axes, draws: int) -> list[Row]:
    """E[1/L~] and E[1/L~^2] at the stated batch sizes, and at smaller ones."""
    zero = torch.zeros(1, dtype=torch.float64)
    cases = {
        "P2": (LOGISTIC, ORIGIN),
        "a rare task": (rare_task(), zero),
        "noise": (noisy_quadratics([0.0], 10.0), zero),
    }
    stated = {}
    for name, (problem, w) in cases.items():
        spread = spreads(problem.tasks, w)
        batches = step_batches(problem.L, problem.rho, 1 / problem.L, spread.sigma, spread.sample)
        stated[name] = batches, inverse_smoothness(problem, w, batches, draws)
    (rare, at_rare), (noise, at_noise) = (cases[name] for name in ("a rare task", "noise"))
    (many, points), (_, many_points) = stated["a rare task"][0], stated["noise"][0]
    fewer = {n: inverse_smoothness(rare, at_rare, (n, points), draws) for n in (1, 5, 20)}
    fewer[many] = stated["a rare task"][1]
    one = inverse_smoothness(noise, at_noise, (1, 1), draws)

    ax.semilogx(list(fewer), [found.square for found in fewer.values()], "o-", label="E[(L(w) / L~)^2]")
    ax.semilogx(list(fewer), [found.mean for found in fewer.values()], "s-", label="E[L(w) / L~]")
    ax.axhline(3.125, color="C0", linestyle=":")
    ax.axhline(0.8, color="C1", linestyle=":")
    label(ax, f"a rare task; {many} tasks are stated (dotted: bounds)", "B'", "")
    sizes = "; ".join(f"{name} {b[0]} and {b[1]}" for name, (b, _) in stated.items())
    return [
        *stated_rows({name: found for name, (_, found) in stated.items()}, sizes),
        Row(
            "with one task instead, E[1/L~^2] may exceed 3.125 / L(w)^2 (a rare task)",
            SOURCE,
            "> 3.125 / L(w)^2",
            f"{fewer[1].square:.2f} +- {fewer[1].square_error:.2f}; {fewer[5].square:.2f} with five",
            fewer[1].square - ERRORS * fewer[1].square_error > 3.125,
        ),
        Row(
            f"with one sample instead of {many_points}, E[1/L~] may fall below 0.8 / L(w) (noise)",
            SOURCE,
            "< 0.8 / L(w)",
            f"{one.mean:.2f} +- {one.mean_error:.2g}",
            one.mean + ERRORS * one.mean_error < 0.8,
        ),
    ]


def stated_rows(found: dict[str, Inverse], sizes: str) -> list[Row]:
    """Both bounds at the stated sizes, by three standard errors."""
    least = "; ".join(f"{name} {x.mean:.3f} +- {x.mean_error:.1g}" for name, x in found.items())
    largest = "; ".join(f"{name} {x.square:.2f} +- {x.square_error:.1g}" for name, x in found.items())
    low = all(x.mean - ERRORS * x.mean_error >= 0.8 for x in found.values())
    high = all(x.square + ERRORS * x.square_error <= 3.125 for x in found.values())
    stated = "B' = (rho alpha sigma / L)^2 / 2, D_beta = (2 rho alpha sigma~ / L)^2, alpha = 1/L"
    return [
        Row(f"E[1/L~] >= 0.8 / L(w) for {stated}", SOURCE, f"at least 0.8; sizes: {sizes}", least, low),
        Row("E[1/L~^2] <= 3.125 / L(w)^2 at these sizes", SOURCE, "at most 3.125", largest, high),
    ]
