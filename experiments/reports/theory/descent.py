"""The decrease of F in one iteration of one-step MAML, the number of iterations, and the printed floors."""

import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes

from metarl import make_method
from metarl.experiments.reports.theory.common import Findings, Row, bounded, label, panels
from metarl.experiments.reports.theory.draws import ResampledSource, Spreads, spreads
from metarl.experiments.reports.theory.numerics import (
    ORIGIN,
    P2,
    Vector,
    descend,
    direction,
    find_zero,
    grad_norm,
    objective,
)
from metarl.experiments.reports.theory.smoothness import (
    ERRORS,
    LOGISTIC,
    RIPPLES,
    SOURCE,
    WAVES,
    Problem,
    sigma_of,
    step_batches,
)
from metarl.inner import adapt
from metarl.step import average
from metarl.supervised import BatchSizes, FiniteSumSource
from metarl.theory import AdaptiveStep, fallah_rule
from metarl.theory.logistic import hessian_smoothness, logistic_tasks, smoothness
from metarl.theory.quadratics import quadratic_tasks, quadratics_1d

B = 20  # tasks, the least that the theorems allow

PRINTED = {"maml": 61.0, "fo_maml": 14.0, "hf_maml": 36.0}
"""The constants of the floors."""


def decrease_bound(epsilon: float, L: float, rho: float, alpha: float, sigma: float) -> float:
    """By which F falls in one iteration, in expectation, where `|grad F| >= epsilon`."""
    return epsilon**2 / (1600 * (L + rho * alpha * (sigma + epsilon)))


def printed_floor(name: str, L: float, rho: float, alpha: float, spread: Spreads, sizes: BatchSizes | None) -> float:
    """Of E |grad F|, for `B` tasks and batches of these sizes, or without noise, `None`."""
    noise = 0.0
    if sizes is not None:
        assert sizes.inner is not None
        assert sizes.outer is not None
        noise = spread.sigma**2 / B + spread.sample**2 * (1 / (B * sizes.outer) + 1 / sizes.inner)
    if name == "fo_maml":
        noise += 20 * (alpha * L * spread.sigma) ** 2
    noise *= PRINTED[name]
    return max(math.sqrt((1 + rho * alpha * spread.sigma / L) * noise), rho * alpha / L * noise)


def hessian_batch(name: str, rho: float, alpha: float, spread: Spreads) -> int:
    """The size of D_h that the theorems need."""
    needed = {"maml": 2 * (alpha * spread.hessian) ** 2, "hf_maml": 36 * (alpha * rho * spread.hessian) ** 2}
    return max(1, math.ceil(needed.get(name, 0.0)))


def check(quick: bool = False) -> Findings:
    """Whole runs with full batches, and stochastic ones."""
    figure, (left, right) = panels(2)
    return Findings(
        [*decreases(left, *((0.2, 40) if quick else (1.0, 400))), *floors(right, 200 if quick else 1500)],
        figure,
        "Delta is F(w_0) minus the least F of the run, which makes the bounds smaller. *Ripples* is the problem of "
        "claim 8 from w = 40, *waves* has tasks 1 - cos(w - c). Stochastic runs draw tasks and samples with "
        "replacement and have the batches that the theorems need; sigma and sigma~ are those at the origin. E |grad F| "
        "is the mean over the last fifth of a run; a quick run is still falling then. The floors are loose: with 61, "
        "14 and 36 they are far above what runs reach. Without noise FO-MAML's gradient is near alpha L sigma on the "
        "two quadratics, where sqrt(280) alpha L sigma is printed. HF-MAML has the published probe.",
    )


def strong_ridge() -> Problem:
    """P2 with a ridge of 0.3, on which runs are short."""
    problem = P2._replace(strength=0.3)
    return Problem(logistic_tasks(problem), smoothness(problem), hessian_smoothness(problem))


# The decrease of F.


def decreases(ax: Axes, share: float, draws: int) -> list[Row]:
    """The decrease in each iteration and the number of iterations, MAML at alpha L = 1/6.

    `share` shortens the runs with full batches; `draws` is the number of stochastic iterations.
    """
    starts = {
        "P2": (LOGISTIC, ORIGIN, 100),
        "ripples": (RIPPLES, torch.full((1,), 40.0).double(), 1500),
        "waves": (WAVES, torch.full((1,), 2.0).double(), 400),
    }
    decrease, iterations = {}, {}
    for name, (problem, start, total) in starts.items():
        path = follow(problem, start, int(share * total))
        decrease[name] = max(path.decreases())
        epsilons, reached, bounds = path.first_below()
        iterations[name] = max(k / bound for k, bound in zip(reached, bounds, strict=True))
        (line,) = ax.loglog(epsilons, reached, label=name)
        ax.loglog(epsilons, bounds, ":", color=line.get_color())
    label(ax, "full batches (dotted: the bound)", "eps", "iterations to |grad F| <= eps")
    claim = "F falls by at least eps^2 / (1600 (L + rho alpha (sigma + eps))) in an iteration where |grad F| >= eps"
    number = "so |grad F| <= eps after at most 1600 Delta (L + rho alpha (sigma + eps)) / eps^2 iterations"
    return [
        bounded(f"{claim} (full batches)", SOURCE, decrease, of="bound / measured"),
        bounded(f"{number} (full batches)", SOURCE, iterations),
        expected_decrease(draws),
    ]


class Path(NamedTuple):
    """A run of MAML with its adaptive step and full batches."""

    problem: Problem
    alpha: float
    F: list[float]
    norms: list[float]  # |grad F|
    sigmas: list[float]

    def bound(self, epsilon: float, sigma: float) -> float:
        """The claimed decrease."""
        return decrease_bound(epsilon, self.problem.L, self.problem.rho, self.alpha, sigma)

    def decreases(self) -> list[float]:
        """The claimed decrease over the measured one in each iteration, for eps = |grad F|; infinite if F rises."""
        ratios = []
        for k, (norm, sigma) in enumerate(zip(self.norms[:-1], self.sigmas, strict=False)):
            if norm > 1e-5:  # below it F does not change in float64
                fallen = self.F[k] - self.F[k + 1]
                ratios.append(self.bound(norm, sigma) / fallen if fallen > 0 else math.inf)
        return ratios

    def first_below(self) -> tuple[list[float], list[int], list[float]]:
        """Accuracies eps, the first iterations with |grad F| < eps, and their bounds; Delta is the fall of F."""
        epsilons, reached, bounds, least = [], [], [], self.norms[0]
        for k, norm in enumerate(self.norms):
            if norm < least:
                epsilons.append(least)
                reached.append(k)
                bounds.append((self.F[0] - min(self.F)) / self.bound(least, max(self.sigmas[:k])))
                least = norm
        return epsilons, reached, bounds


def follow(problem: Problem, start: Vector, iterations: int) -> Path:
    """MAML from `start` with full batches."""
    alpha = 1 / (6 * problem.L)
    method, number = make_method("maml", alpha), problem.tasks.num_tasks
    source = FiniteSumSource(problem.tasks, {"w": start})
    step = AdaptiveStep(fallah_rule("maml", problem.L, problem.rho, alpha), source, number)
    points: list[Vector] = []

    def measure(w: Vector) -> float:
        points.append(w)
        return exact(w)

    exact, F = grad_norm(problem.tasks, alpha), objective(problem.tasks, method.inner)
    norms = descend(source, method, iterations, step, number, measure).seen
    return Path(problem, alpha, [float(F(w)) for w in points], norms, [sigma_of(problem.tasks, w) for w in points])


def expected_decrease(draws: int) -> Row:
    """The mean fall of F in an iteration, far from the solution of P2 with a strong ridge."""
    problem, size = strong_ridge(), 40
    alpha, w = 1 / (6 * problem.L), torch.full((5,), 6.0).double()
    method, norm = make_method("maml", alpha), grad_norm(problem.tasks, alpha)(w)
    spread = spreads_around(problem, w, alpha)
    sizes = BatchSizes(size, size, hessian_batch("maml", problem.rho, alpha, spread))
    step, source = stochastic("maml", problem, alpha, spread, w, sizes)

    # independent iterations from the same point
    F, rng, falls = objective(problem.tasks, method.inner), np.random.default_rng(7), []
    for _ in range(draws):
        stepped = step({"w": w}, source.sample(B, rng), lambda p, tasks: average(method.update(p, tasks, method.inner)))
        falls.append(float(F(w) - F(stepped.params["w"])))
    mean, error = float(np.mean(falls)), float(np.std(falls)) / math.sqrt(draws)
    bound = decrease_bound(norm, problem.L, problem.rho, alpha, spread.sigma)
    floor = printed_floor("maml", problem.L, problem.rho, alpha, spread, sizes)
    claim = (
        f"the same in expectation, B = {B}, D_in = D_o = {size}, at |grad F| = {norm:.2g}, above the floor {floor:.2g}"
    )
    good = norm >= floor and mean - ERRORS * error >= bound
    return Row(claim, SOURCE, f"at least {bound:.2g}", f"{mean:.3g} +- {error:.1g}", good)


def spreads_around(problem: Problem, w: Vector, alpha: float) -> Spreads:
    """sigma at `w`; sigma~ and sigma_H at `w` and at the tasks' adapted points."""
    end = adapt({"w": w}, problem.tasks, make_method("maml", alpha).inner)["w"]
    return spreads(problem.tasks, w, end[:, None])


def stochastic(
    name: str, problem: Problem, alpha: float, spread: Spreads, start: Vector, sizes: BatchSizes
) -> tuple[AdaptiveStep, ResampledSource]:
    """The adaptive step with the stated batches, and a source of independent tasks and samples."""
    tasks, points = step_batches(problem.L, problem.rho, alpha, spread.sigma, spread.sample)
    source = ResampledSource(problem.tasks, BatchSizes(points, 1, 1), start)
    step = AdaptiveStep(fallah_rule(name, problem.L, problem.rho, alpha), source, tasks)
    return step, ResampledSource(problem.tasks, sizes, start)


# The floors.

RUNS = {
    "MAML, alpha L = 1/6": ("maml", 1 / 6, 5.0),
    "MAML, alpha L = 1": ("maml", 1.0, 8.2),
    "FO-MAML, alpha L = 1/10": ("fo_maml", 0.1, 2.0),
    "HF-MAML, alpha L = 1/6": ("hf_maml", 1 / 6, 2.5),
}
"""A method, its alpha L, and where its run starts, in each coordinate: above the printed floor."""


class Stationary(NamedTuple):
    """A stochastic run and its bounds."""

    floor: float  # the printed one
    at: list[int]
    norms: list[float]  # |grad F|
    iterations: float  # 1600 Delta (L + rho alpha (sigma + eps)) / eps^2, eps the floor
    other: float  # Delta (L B / sigma^2 + L (B D_o + D_in) / sigma~^2)

    def tail(self) -> tuple[float, float]:
        """The mean of |grad F| in the last fifth, and its standard error from four parts of it."""
        last = np.array(self.norms[-(len(self.norms) // 5) :])
        means = [part.mean() for part in np.array_split(last, 4)]
        return float(last.mean()), float(np.std(means, ddof=1)) / 2


def run_to_floor(name: str, alpha_l: float, start: float, iterations: int) -> Stationary:
    """The method with its adaptive step on P2 with a strong ridge, B = 20, D_in = D_o = 40."""
    problem, size = strong_ridge(), 40
    alpha, w = alpha_l / problem.L, torch.full((5,), start).double()
    spread = spreads_around(problem, ORIGIN, alpha)
    sizes = BatchSizes(size, size, hessian_batch(name, problem.rho, alpha, spread))
    published = name == "hf_maml"
    method = make_method(name, alpha, delta="published", rho=problem.rho) if published else make_method(name, alpha)
    step, source = stochastic(name, problem, alpha, spread, w, sizes)
    run = descend(source, method, iterations, step, B, grad_norm(problem.tasks, alpha), 4)

    floor = printed_floor(name, problem.L, problem.rho, alpha, spread, sizes)
    F = objective(problem.tasks, method.inner)
    delta = float(F(w) - F(run.end))
    allowed = delta / decrease_bound(floor, problem.L, problem.rho, alpha, spread.sigma)
    other = delta * problem.L * (B / spread.sigma**2 + (B * size + size) / spread.sample**2)
    return Stationary(floor, run.at, run.seen, allowed, other)


def floors(ax: Axes, iterations: int) -> list[Row]:
    """Where stochastic runs end, how fast they get there, and an extreme problem for FO-MAML."""
    rows, runs = [], {}
    for title, setting in RUNS.items():
        run = runs[title] = run_to_floor(*setting, iterations)
        (line,) = ax.semilogy(run.at, run.norms, linewidth=0.8, label=title)
        ax.axhline(run.floor, color=line.get_color(), linestyle=":")
        mean, error = run.tail()
        claim = f"{title}: E |grad F| falls to the printed floor, constant {PRINTED[setting[0]]:g}"
        measured = f"from {run.norms[0]:.2g} to {mean:.3g} +- {error:.1g}, {mean / run.floor:.2g} of the floor"
        good = mean + ERRORS * error <= run.floor < run.norms[0]
        rows.append(Row(claim, SOURCE, f"at most {run.floor:.3g}", measured, good))
    label(ax, f"P2, ridge 0.3, B = {B} (dotted: printed floors)", "iteration", "|grad F|")
    return [*rows, reaching(runs["MAML, alpha L = 1/6"]), extreme_first_order()]


def reaching(run: Stationary) -> Row:
    """How many iterations MAML needs to reach its floor."""
    at = next((k for k, norm in zip(run.at, run.norms, strict=True) if norm <= run.floor), math.inf)
    claim = f"MAML reaches its floor eps within the iterations above, B = {B}, alpha L = 1/6"
    measured = f"{at}; {at / run.other:.1g} of Delta (L B / sigma^2 + L (B D_o + D_in) / sigma~^2), the other bound"
    return Row(claim, SOURCE, f"at most {run.iterations:.3g}", measured, at <= run.iterations)


def extreme_first_order() -> Row:
    """FO-MAML's fixed point on two quadratics with curvatures of both signs: |grad F| is near alpha L sigma."""
    alpha, problem = 0.1, quadratics_1d([1.0, -0.7], [1.0, -1.0])
    tasks = quadratic_tasks(problem)
    w = find_zero(direction(make_method("fo_maml", alpha), tasks), torch.zeros(1).double())
    floor = printed_floor("fo_maml", 1.0, 0.0, alpha, spreads(tasks, w), None)
    norm, sigma = grad_norm(tasks, alpha)(w), sigma_of(tasks, w)
    claim = "FO-MAML's floor without noise, sqrt(280) alpha L sigma, on quadratics with curvatures 1, -0.7, alpha = 0.1"
    measured = f"{norm:.3g} = {norm / (alpha * sigma):.2g} alpha L sigma, {norm / floor:.2g} of it"
    return Row(claim, SOURCE, f"at most {floor:.3g}", measured, norm <= floor)
