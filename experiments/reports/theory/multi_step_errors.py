"""Several inner steps: the smoothness of the objective, what each kind of noise does, and l_S against l_T."""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import make_method
from metarl.experiments.reports.theory.common import Findings, Row, label, listing, panels
from metarl.experiments.reports.theory.multi_step import jacobians
from metarl.experiments.reports.theory.numerics import (
    ORIGIN,
    P2,
    POINT,
    L,
    Vector,
    difference_quotient,
    direction,
    find_zero,
    numeric_error,
    slope,
)
from metarl.supervised import FiniteSumTaskBatch
from metarl.supervised.oracle import ResamplingTaskBatch
from metarl.theory import inner_lr_bound, ji_rule, recommended_inner_lr
from metarl.theory.logistic import logistic_tasks, smoothness
from metarl.types import Batch, Params, Role, TaskBatch
from metarl.wrappers import TaskWrapper

SOURCE = "Ji, Yang, Liang 2022"
STEPS = (2, 3, 5)


def check(quick: bool = False) -> Findings:
    """Waves for the smoothness and the noise, P2 for the two losses."""
    figure, (left, right) = panels(2)
    replicas = 20_000 if quick else 200_000
    rows = [
        smooth(left, 40 if quick else 200),
        two_losses_smooth(),
        *noise(right, replicas),
        small_hessians(4 if quick else 9),
        *support_and_query(),
    ]
    return Findings(
        rows,
        figure,
        "On waves w + sin w both terms of the bound matter: far from a minimum the steps cross whole waves, and every "
        "factor changes by its largest amount. The paper bounds the error of the inner data by 1/sqrt(S); on smooth "
        "tasks its bias is of the second order, 1/S. Fresh data for the Hessians and the last gradient add no bias.",
    )


# The smoothness of the meta-objective.


def wave_loss(params: Params, batch: Batch) -> Tensor:
    """`(tilt + xi) w - sin(w + phase) + zeta w^2 / 2`: without the noise xi and zeta L = rho = 1."""
    w = params["w"]
    return (batch["tilt"] + batch["xi"]) * w - torch.sin(w + batch["phase"]) + batch["zeta"] * w.square() / 2


def waves(tilt: Tensor, phase: Tensor) -> FiniteSumTaskBatch:
    """A task for each pair of a tilt and a phase, without noise."""
    tilts, phases = (x.flatten() for x in torch.meshgrid(tilt, phase, indexing="ij"))
    zero = torch.zeros_like(tilts)
    return FiniteSumTaskBatch(wave_loss, {"tilt": tilts, "phase": phases, "xi": zero, "zeta": zero})


def gradients_at(w: Tensor, tasks: TaskBatch, alpha: float, steps: int) -> Tensor:
    """Every task's meta-gradient at the number `w`, `[T]`."""
    method = make_method("multi_step_maml", alpha, steps)
    return method.update({"w": w}, tasks, method.inner).grads["w"]


def smooth(ax: Axes, number: int) -> Row:
    """|G'| of single tasks at w = 0 over L^ there, on a grid of tilts and phases: the largest."""
    near, far = [], []
    for n in STEPS:
        alpha = recommended_inner_lr(1.0, n)
        wave = 2 * np.pi / alpha  # with this tilt a step crosses one wave
        tilt = wave * torch.linspace(0, 8, number, dtype=torch.float64)
        tasks = waves(tilt, torch.linspace(0, 2 * np.pi, 65, dtype=torch.float64))
        found = difference_quotient(partial(gradients_at, tasks=tasks, alpha=alpha, steps=n), ORIGIN[0]).abs()
        norms = (tasks.support["tilt"] - torch.cos(tasks.support["phase"])).abs()
        rule = ji_rule(1.0, 1.0, alpha, n)
        ratios = (found / (rule.constant + rule.slope * norms)).reshape(number, -1).amax(1)  # over phases
        near.append(float(ratios[tilt < wave].max()))
        far.append(float(ratios[tilt >= wave].max()))
        ax.plot(tilt / wave, ratios, label=f"N = {n}")
    label(ax, "|G'| over its bound L^, worst phase", "tilt, in waves per inner step", "ratio")
    good = all(0.5 < ratio < 1 + 1e-6 for ratio in near + far)
    claim = f"the meta-gradient is L^-Lipschitz, alpha = 1/(8 N L), N = {listing(STEPS)} (waves)"
    measured = f"{listing(near)} near minima, {listing(far)} far away"
    return Row(claim, SOURCE, "|G'| / L^ at most 1, at some points above 0.5", measured, good)


def two_losses_smooth() -> Row:
    """l_S = -L/2 w^2 + rho/6 w^3 and l_T = L/2 (w - c)^2 at w = 0, where grad l_S vanishes and every bound is met."""
    c, n, alpha = 3.0, 3, 0.1

    def loss(params: Params, batch: Batch) -> Tensor:
        w = params["w"]
        return batch["a"] * (w - batch["c"]).square() / 2 + batch["cubic"] * w**3 / 6

    support, query = (
        {key: torch.tensor([value], dtype=torch.float64) for key, value in zip(("a", "c", "cubic"), row, strict=True)}
        for row in ((-1.0, 0.0, 1.0), (1.0, c, 0.0))
    )
    tasks = FiniteSumTaskBatch(loss, support, query)
    found = float(difference_quotient(lambda w: gradients_at(w, tasks, alpha, n), ORIGIN[0], 1e-4))
    bound = ji_rule(1.0, 1.0, alpha, n, difference=c).smoothness(0.0)
    without = ji_rule(1.0, 1.0, alpha, n).smoothness(0.0)
    claim = "with l_S != l_T the Lipschitz constant needs the term of |grad l_S - grad l_T|, and reaches it"
    measured = f"{found / bound:.6f} of L^, {found / without:.2f} without the term"
    good = abs(found / bound - 1) < 1e-5 and found > 1.2 * without
    return Row(claim, f"{SOURCE}; derived here", "1; more than 1", measured, good)


# Noise in the data of one role at a time.

ROLES: tuple[Role, ...] = ("hessian", "outer", "inner")
ALPHA, N = 0.1, 3
TILT, PHASE = 0.3, 0.5


class Moments(NamedTuple):
    """The mean and variance of an estimator, with the standard errors of both."""

    mean: float
    mean_error: float
    variance: float
    variance_error: float


def sample(noisy: tuple[Role, ...], points: int, replicas: int, *, opposite: bool = False) -> Moments:
    """The meta-gradient with noise, of variance 1 for each point, in the data of some roles.

    The mean of `points` normal numbers is drawn as one. With `opposite` every second replica has the opposite noise, so
    what is odd in the noise cancels in the mean.
    """
    fixed = {"tilt": TILT, "phase": PHASE}

    def sampler(role: Role, generator: torch.Generator) -> Batch:
        first, second = torch.randn(2, replicas // 2, generator=generator, dtype=torch.float64) / points**0.5
        drawn = torch.cat([first, -first if opposite else second])
        if role not in noisy:
            drawn = torch.zeros_like(drawn)
        constants = {key: torch.full((replicas,), value, dtype=torch.float64) for key, value in fixed.items()}
        zero = torch.zeros_like(drawn)
        xi, zeta = (zero, drawn) if role == "hessian" else (drawn, zero)
        return {**constants, "xi": xi, "zeta": zeta}

    tasks = ResamplingTaskBatch(wave_loss, replicas, sampler, torch.Generator().manual_seed(1))
    found = gradients_at(ORIGIN[0], tasks, ALPHA, N)
    pairs = found.reshape(2, -1).mean(0)
    squares = (found - found.mean()).square()
    spread = squares.reshape(2, -1).mean(0).std() / (replicas / 2) ** 0.5
    mean_error = pairs.std() / (replicas / 2) ** 0.5
    return Moments(float(found.mean()), float(mean_error), float(squares.mean()), float(spread))


class Exact(NamedTuple):
    """The path without noise, computed here step by step."""

    factors: list[float]  # 1 - alpha H(w_j)
    end: float  # grad f(w_N)
    gradient: float  # of the meta-objective


def exact() -> Exact:
    """The N steps of one task from w = 0."""
    w, factors = 0.0, []
    for _ in range(N):
        factors.append(1 - ALPHA * np.sin(w + PHASE))
        w -= ALPHA * (TILT - np.cos(w + PHASE))
    end = TILT - np.cos(w + PHASE)
    return Exact(factors, end, float(np.prod(factors) * end))


def noise(ax: Axes, replicas: int) -> list[Row]:
    """Bias and variance with noise in the Hessians alone, in the last gradient alone, in the inner gradients alone."""
    path = exact()
    hessian, outer = (sample((role,), 1, replicas) for role in ("hessian", "outer"))
    jacobian = np.prod(path.factors) ** 2
    noisy_product = np.prod([f**2 + ALPHA**2 for f in path.factors]) - jacobian
    sizes = (1, 4, 16, 64)
    inner = {points: sample(("inner",), points, replicas, opposite=True) for points in sizes}
    rows = [
        unbiased("Hessians' data", hessian, path, float(path.end**2 * noisy_product), "prod((1 - aH)^2 + a^2 s_H^2)"),
        unbiased("last gradient's data", outer, path, float(jacobian), "|d w_N/d w|^2 s_g^2"),
        biased(ax, inner, path),
    ]
    every, points = sample(ROLES, 16, replicas), 16
    total = sum(sample((role,), points, replicas).variance for role in ROLES)
    claim = f"the variances of the three sources add up ({points} points each)"
    measured, good = f"{every.variance / total:.3f} times the sum", abs(every.variance / total - 1) < 0.03
    return [*rows, Row(claim, SOURCE, "1 to leading order", measured, good)]


def unbiased(data: str, found: Moments, path: Exact, variance: float, formula: str) -> Row:
    """No bias, and the variance of the closed form."""
    bias = found.mean - path.gradient
    off = abs(found.variance - variance)
    claim = f"noise in the {data} alone: no bias, variance from {formula}"
    measured = f"{found.variance:.5f}; {bias:.1e} (SE {found.mean_error:.1e})"
    good = abs(bias) < 4 * found.mean_error and off < 4 * found.variance_error
    return Row(claim, f"{SOURCE}; closed form", f"variance {variance:.5f}; bias 0 within 4 SE", measured, good)


def biased(ax: Axes, inner: dict[int, Moments], path: Exact) -> Row:
    """The bias of noisy inner steps against its two bounds: through the last gradient and through the Hessians."""
    sizes = list(inner)
    bias = [abs(found.mean - path.gradient) for found in inner.values()]
    last, factors = ([part(path) / s**0.5 for s in sizes] for part in (through_last_gradient, through_hessians))
    ax.errorbar(sizes, bias, [2 * found.mean_error for found in inner.values()], fmt="o-", label="bias, 2 SE")
    ax.loglog(sizes, [found.variance**0.5 for found in inner.values()], "s--", label="standard deviation")
    ax.loglog(sizes, last, ":", label="bound through the last gradient")
    ax.loglog(sizes, factors, "-.", label="bound through the Hessians")
    label(ax, "noise in the inner gradients alone", "points S of an inner draw", "error of the meta-gradient")
    seen = min(b / found.mean_error for b, found in zip(bias, inner.values(), strict=True))
    share = max(b / (x + y) for b, x, y in zip(bias, last, factors, strict=True))
    power = slope(sizes, bias)
    claim = f"noise in the inner gradients alone: a bias below its bound ~ 1/sqrt(S), S = {listing(sizes)}"
    measured = f"power {power:.2f}; at most {share:.1g} of it; seen at {seen:.0f} SE or more"
    good = abs(power + 1) < 0.1 and share <= 1 and seen > 4
    return Row(
        claim, f"{SOURCE}; bound derived here", "at most 1 of the bound; power -1 on smooth tasks", measured, good
    )


def path_errors() -> list[float]:
    """`E |w_j - w~_j|` for one point is at most `((1 + alpha L)^j - 1) s_g / L`, for j = 0 ... N."""
    return [(1 + ALPHA) ** j - 1 for j in range(N + 1)]


def through_last_gradient(path: Exact) -> float:
    """`(1 + alpha L)^N L E |w_N - w~_N|`."""
    return (1 + ALPHA) ** N * path_errors()[N]


def through_hessians(path: Exact) -> float:
    """`(1 + alpha L)^{N-1} alpha rho sum_j E |w_j - w~_j| |grad f(w~_N)|`."""
    return (1 + ALPHA) ** (N - 1) * ALPHA * sum(path_errors()[:N]) * abs(path.end)


# Small Hessians.


def small_hessians(bisections: int) -> Row:
    """The alpha where |d w_N / d w|^2 reaches 2, on non-convex logistic tasks with features of other lengths."""
    n, scales = 5, (1.0, 0.5, 0.25)
    smoothnesses, alphas = [], []
    for scale in scales:
        strength = 0.05 * scale**2
        problem = P2._replace(x=scale * P2.x, margin="sigmoid", regulariser="bounded", strength=strength)
        smoothnesses.append(smoothness(problem))
        point = POINT / scale  # the margins are the same for every scale
        alphas.append(largest_alpha(logistic_tasks(problem), point, smoothnesses[-1], n, bisections))
    power = slope(smoothnesses, alphas)
    found = [a * s for a, s in zip(alphas, smoothnesses, strict=True)]
    bound = inner_lr_bound(n)
    claim = f"small Hessians allow a larger alpha: where |d w_N/d w|^2 = 2, L = {listing(smoothnesses)}, N = {n}"
    measured = f"alpha {listing(alphas)}: power {power:.2f}, alpha L at least {min(found):.2f}"
    good = abs(power + 1) < 0.15 and min(found) >= bound
    return Row(claim, SOURCE, f"power -1 in L; alpha L at least {bound:.3f}", measured, good)


def largest_alpha(tasks: FiniteSumTaskBatch, w: Vector, smoothness: float, steps: int, bisections: int) -> float:
    """By bisection in log(alpha), between the theory's alpha and 100 times that."""
    low, high = (np.log(factor * inner_lr_bound(steps) / smoothness) for factor in (1, 100))
    for _ in range(bisections):
        middle = (low + high) / 2
        product = jacobians(make_method("maml", float(np.exp(middle)), steps).inner, tasks, w)
        bounded = float(torch.linalg.svdvals(product).max()) ** 2 <= 2
        low, high = (middle, high) if bounded else (low, middle)
    return float(np.exp(low))


# Support and query losses.


class QueryHessians(TaskWrapper):
    """The same tasks, with Hessians of the query set."""

    def draw(self, params: Params, role: Role) -> Batch:
        return super().draw(params, "outer" if role == "hessian" else role)


def support_and_query() -> list[Row]:
    """P2 with 20 points of each task for l_S and 20 for l_T, alpha L = 0.9, N = 3."""
    tasks = logistic_tasks(P2, support=20, rng=np.random.default_rng(4))
    method = make_method("multi_step_maml", 0.9 / L, 3)
    exchanged = FiniteSumTaskBatch(tasks.loss, tasks.query, tasks.support)
    only_support = FiniteSumTaskBatch(tasks.loss, tasks.support)
    right, *wrong = (
        numeric_error(direction(method, data)(POINT), tasks, method.inner)
        for data in (tasks, QueryHessians(tasks), exchanged, only_support)
    )
    stops = find_zero(direction(method, only_support), ORIGIN)
    far = direction(method, tasks)(stops).norm().item()
    claim = "prod(I - alpha H_S) grad l_T is the gradient of l_T after N steps on l_S (P2, alpha L = 0.9, N = 3)"
    others = "the gradient is another with Hessians of l_T, with l_S and l_T exchanged, and with l_S alone"
    trained = "training with l_S in place of l_T stops elsewhere"
    return [
        Row(claim, SOURCE, "relative error < 1e-9", f"{right:.1e}", right < 1e-9),
        Row(others, SOURCE, "relative error > 1e-2", listing(wrong), min(wrong) > 1e-2),
        Row(trained, SOURCE, "|grad F| > 1e-3 there", f"{far:.2g}", far > 1e-3),
    ]
