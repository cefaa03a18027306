"""Multi-step MAML with the theorem's step sizes: O(1/eps^2) iterations in both settings, at a cost linear in N."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import grad, vmap

from metarl import MetaLearner, make_method, tree
from metarl.callbacks import Callback, Metrics
from metarl.derivatives import gradients
from metarl.experiments.reports.theory.common import Findings, Row, label, listing, panels
from metarl.experiments.reports.theory.numerics import (
    ORIGIN,
    P2,
    Descent,
    Vector,
    descend,
    direction,
    grad_norm,
    objective,
    slope,
)
from metarl.random import torch_generator
from metarl.supervised import FiniteSumSource, FiniteSumTaskBatch
from metarl.supervised.oracle import ResamplingTaskBatch
from metarl.theory import AdaptiveStep, StepSizeRule, TheoryWarning, ji_rule, recommended_inner_lr
from metarl.theory.logistic import hessian_smoothness, logistic_source, logistic_tasks, smoothness
from metarl.types import Batch, Params, Role, TaskSource

SOURCE = "Ji, Yang, Liang 2022"
STEPS = (2, 3, 5)
C_BETA = 2.0  # the recalled 80 makes every count 40 times as large

TAIL = 0.25  # f falls as w^-TAIL
FLOW = (2 + TAIL) / (1 + TAIL)  # the power of the gradient flow
CENTRES = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)  # of the tasks
SPREAD = 0.8  # a data point is its task's centre plus or minus SPREAD
QUERY = torch.tensor([-0.8, 0.4, 0.8], dtype=torch.float64)  # the finite sum's query points, from the task's centre


def check(quick: bool = False) -> Findings:
    """The rates on tasks with a slow tail, the costs on non-convex logistic tasks."""
    figure, (left, middle, right) = panels(3)
    numbers, total = ((3,), 120) if quick else (STEPS, 600)
    rows = [
        rate(left, {n: on_finite_sum(n, total) for n in numbers}, "finite sum, l_S != l_T"),
        rate(middle, {n: on_fresh_data(n, total) for n in numbers}, "resampling"),
        decrease(5 if quick else 41),
        *costs(right, (1, 2, 3) if quick else (1, 2, 4, 6)),
    ]
    return Findings(
        rows,
        figure,
        f"The tasks fall as w^-{TAIL} and have L = {TAIL}; the gradient flow's power is {FLOW}. The bound of K is that "
        "of the descent lemma, (F(w_0) - min F) / (beta (1 - 1/(2 C_beta))); E |grad F| is the mean over the "
        f"iterations so far, because the theorem returns one of them at random. C_beta = {C_BETA:g} here and in the "
        "costs; the theorem's 80 is recalled, not read again, and multiplies all counts by 40. The costs are those of "
        "the theorem's steps, which shrink as (1 + alpha L)^(-2N) with a fixed alpha.",
    )


# Tasks with a slow tail: smooth, bounded below, not convex, their minimum at infinity.


def tail(u: Tensor) -> Tensor:
    """`(1 + u^2)^(-p/2)`, with p = TAIL: its largest second derivative is p, at zero."""
    return (1 + u.square()) ** (-TAIL / 2)


def tail_loss(params: Params, batch: Batch) -> Tensor:
    """The mean over the points c of `tail(w - c)`."""
    return tail(params["w"] - batch["c"]).mean()


def largest(function: Callable[[Tensor], Tensor]) -> float:
    """The largest absolute value of a function of one number, on a fine grid."""
    return float(vmap(function)(torch.linspace(-20, 20, 40001, dtype=torch.float64)).abs().max())


L, RHO = TAIL, largest(grad(grad(grad(tail))))


def population() -> Batch:
    """Both points of each task `[3, 2]`: the mean over them is the expectation over the draws."""
    return {"c": CENTRES[:, None] + SPREAD * torch.tensor([-1.0, 1.0], dtype=torch.float64)}


def difference(support: Batch, query: Batch) -> float:
    """b, the largest `|grad l_S - grad l_T|`; the tasks differ by a shift, so it is the same for all."""
    s, t = (lambda w, c=data["c"][0]: tail(w - c).mean() for data in (support, query))
    return largest(lambda w: grad(s)(w) - grad(t)(w))


START = {"w": torch.tensor([1.5], dtype=torch.float64)}


class TailRun(NamedTuple):
    """A run and the height F(w_0) - min F of its start; min F is zero, at infinity."""

    descent: Descent
    height: float


def on_finite_sum(steps: int, iterations: int) -> TailRun:
    """All tasks and data in every iteration; the query points differ from the support points."""
    support, query = population(), {"c": CENTRES[:, None] + QUERY}
    tasks, alpha = FiniteSumTaskBatch(tail_loss, support, query), recommended_inner_lr(L, steps)
    source = FiniteSumSource(tasks, START)
    rule = ji_rule(L, RHO, alpha, steps, C_BETA, difference=difference(support, query))
    return run(source, AdaptiveStep(rule, source, 3), 3, tasks, steps, iterations)


def run(
    source: TaskSource, step: AdaptiveStep, num_tasks: int, exact: FiniteSumTaskBatch, steps: int, iterations: int
) -> TailRun:
    """A run with alpha = 1/(8 N L), watched on the `exact` tasks."""
    alpha = recommended_inner_lr(L, steps)
    method = make_method("multi_step_maml", alpha, steps)
    descent = descend(source, method, iterations, step, num_tasks, grad_norm(exact, alpha, steps))
    return TailRun(descent, float(objective(exact, method.inner)(START["w"])))


@dataclass(eq=False)
class Fresh:
    """The same tasks, drawn with replacement; every draw has fresh points."""

    sizes: dict[Role, int]
    score_name: ClassVar[str] = "minus_loss"

    def initial_params(self) -> Params:
        return {"w": START["w"].clone()}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> ResamplingTaskBatch:
        centres = CENTRES[torch.from_numpy(rng.integers(len(CENTRES), size=num_tasks))]

        def sampler(role: Role, generator: torch.Generator) -> Batch:
            signs = torch.randint(2, (num_tasks, self.sizes[role]), generator=generator).double() * 2 - 1
            return {"c": centres[:, None] + SPREAD * signs}

        return ResamplingTaskBatch(tail_loss, num_tasks, sampler, torch_generator(rng))


def on_fresh_data(steps: int, iterations: int) -> TailRun:
    """Sampled tasks, and as many of them as points of an inner draw; one point for T and one for D."""
    source = Fresh({"inner": 25, "outer": 1, "hessian": 1})
    step = AdaptiveStep(ji_rule(L, RHO, recommended_inner_lr(L, steps), steps, C_BETA), source, 8)
    return run(source, step, 25, FiniteSumTaskBatch(tail_loss, population()), steps, iterations)


def rate(ax: Axes, runs: dict[int, TailRun], setting: str) -> Row:
    """Iterations to |grad F| <= eps as a power of 1/eps; and E |grad F| against the constant of the descent lemma."""
    powers, shares, falls = [], [], True
    for n, run in runs.items():
        least = np.minimum.accumulate(run.descent.seen)
        targets = np.geomspace(least[len(least) // 10], least[-1], 12)
        reached = [int(np.argmax(least <= eps)) for eps in targets]
        powers.append(slope(1 / targets, reached))
        shares.append(share_of_bound(run))
        falls &= reached[-1] > 0.8 * run.descent.at[-1]  # to the end
        ax.loglog(1 / targets, reached, "o-", label=f"N = {n}: power {powers[-1]:.2f}")
    ax.loglog(1 / targets, reached[-1] * (targets[-1] / targets) ** 2, "k:", label="power 2")
    label(ax, setting, "1 / eps", "iterations to |grad F| <= eps")
    claim = f"iterations K to eps are O(1/eps^2), N = {listing(list(runs))} ({setting})"
    expected = f"power at most 2, here {FLOW:.1f}; K (E |grad F|)^2 below its bound"
    measured = f"powers {listing(powers)}; at most {max(shares):.2f} of it"
    good = falls and all(FLOW - 0.2 < power <= 2 for power in powers) and max(shares) <= 1
    return Row(claim, SOURCE, expected, measured, good)


def share_of_bound(run: TailRun) -> float:
    """`K (mean_k |grad F(w_k)|)^2` over `F(w_0) / (beta (1 - 1/(2 C)))`: the largest in the run, at most 1."""
    mean = np.cumsum(run.descent.seen[:-1]) / run.descent.at[1:]  # E |grad F| of a random one of the iterates
    bound = run.height / (min(run.descent.outer_lr) * (1 - 1 / (2 * C_BETA)))
    return float((np.array(run.descent.at[1:]) * mean**2 / bound).max())


def decrease(points: int) -> Row:
    """`F(w) - F(w - beta grad F)` over `beta (1 - 1/(2 C)) |grad F|^2`: the smallest over a range of w."""
    support, query = population(), {"c": CENTRES[:, None] + QUERY}
    tasks, b = FiniteSumTaskBatch(tail_loss, support, query), difference(support, query)
    least = dict.fromkeys((1.0, C_BETA, 80.0), np.inf)
    for n in STEPS:
        alpha = recommended_inner_lr(L, n)
        method = make_method("maml", alpha, n)
        g, value = direction(method, tasks), objective(tasks, method.inner)
        for w in torch.linspace(-4, 6, points, dtype=torch.float64)[:, None]:
            gradient, before = g(w), value(w)
            for c in least:
                beta = ji_rule(L, RHO, alpha, n, c, difference=b).step_size(mean_norm(tasks, w))
                bound = beta * (1 - 1 / (2 * c)) * gradient.square().sum()
                least[c] = min(least[c], float((before - value(w - beta * gradient)) / bound))
    good = min(least.values()) >= 1
    claim = f"a step lowers F by beta (1 - 1/(2 C)) |grad F|^2 or more, C_beta = {listing(list(least))} (finite sum)"
    measured = f"at least {', '.join(f'{ratio:.3f}' for ratio in least.values())} times"
    return Row(claim, f"{SOURCE}; descent lemma", "at least 1 times", measured, good)


def mean_norm(tasks: FiniteSumTaskBatch, w: Vector) -> float:
    """The mean over tasks of `|grad l_S|`."""
    stacked = tree.broadcast({"w": w}, tasks.num_tasks)
    grads = gradients(tasks, stacked, tasks.draw(stacked, "inner"))
    return float(grads["w"].norm(dim=1).mean())


# Costs: P2's data with the sigmoid loss and a bounded regulariser.


LOGISTIC = P2._replace(margin="sigmoid", regulariser="bounded", strength=0.05)
EPS = 1e-2
FIXED = 0.125  # alpha L


def costs(ax: Axes, steps: tuple[int, ...]) -> list[Row]:
    """Derivatives of all tasks until |grad F| <= EPS, as a function of N."""
    scaled = {n: cost(n, recommended_inner_lr(1.0, n)) for n in steps}
    fixed = {n: cost(n, FIXED) for n in steps}
    for name, style, found in (("alpha = 1/(8NL)", "o-", scaled), (f"alpha = {FIXED}/L", "s--", fixed)):
        for kind, marker in (("gradients", "k"), ("hessian_vector_products", "C0")):
            text = f"{kind.replace('_', ' ')}, {name}"
            ax.loglog(steps, [counts[kind] for counts in found.values()], style, color=marker, label=text)
    label(ax, f"non-convex logistic tasks, |grad F| <= {EPS}", "inner steps N", "derivatives to eps")

    products = [counts["hessian_vector_products"] for counts in scaled.values()]
    grads = [counts["gradients"] for counts in scaled.values()]
    power = slope(steps, products)
    line = np.polyfit(steps, grads, 1)
    off = float(np.abs(np.polyval(line, steps) / grads - 1).max())
    numbers = listing(steps)
    claim = f"derivatives to |grad F| <= {EPS} are linear in N with alpha = 1/(8 N L), N = {numbers}"
    measured = f"products N^{power:.2f}; gradients {off:.1%} off a line"
    linear = Row(claim, SOURCE, "power 1; a line", measured, abs(power - 1) < 0.1 and off < 0.05)

    growth = [fixed[n]["iterations"] / scaled[n]["iterations"] for n in steps]
    low, high = ([ratio(n, norm) for n in steps] for norm in (0.0, mean_norm(logistic_tasks(LOGISTIC), ORIGIN)))
    claim = f"with alpha L = {FIXED} iterations grow as L^, geometrically in N, N = {numbers}"
    expected = f"between {listing(low)} and {listing(high)} times as many"
    good = all(0.95 * a <= g <= 1.05 * b for a, g, b in zip(low, growth, high, strict=True))
    return [linear, Row(claim, SOURCE, expected, listing(growth), good)]


def ratio(steps: int, norm: float) -> float:
    """L^ with the fixed alpha over L^ with alpha = 1/(8 N L), where the mean of |g| is `norm`."""
    fixed, scaled = (logistic_rule(steps, alpha_l) for alpha_l in (FIXED, recommended_inner_lr(1.0, steps)))
    return fixed.smoothness(norm) / scaled.smoothness(norm)


def logistic_rule(steps: int, alpha_l: float) -> StepSizeRule:
    """The theorem's step sizes; beyond its range, too, where they are only a formula."""
    L, rho = smoothness(LOGISTIC), hessian_smoothness(LOGISTIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TheoryWarning)
        return ji_rule(L, rho, alpha_l / L, steps, C_BETA)


class Reach(Callback):
    """Ends a run where |grad F| is at most EPS, and keeps what it took."""

    def __init__(self, measure: Callable[[Vector], float]) -> None:
        self.measure = measure
        self.counts: dict[str, int] = {}

    def on_iteration(self, learner: MetaLearner, metrics: Metrics) -> None:
        if self.measure(learner.params["w"]) <= EPS:
            self.counts = {**learner.counts, "iterations": learner.iterations}
            learner.stop()


def cost(steps: int, alpha_l: float) -> dict[str, int]:
    """Iterations, gradients and Hessian-vector products of the learner until |grad F| <= EPS.

    Raises:
        ArithmeticError: when it does not get there.
    """
    alpha = alpha_l / smoothness(LOGISTIC)
    source = logistic_source(LOGISTIC)
    step = AdaptiveStep(logistic_rule(steps, alpha_l), source, 6)
    learner = MetaLearner.from_parts(source, make_method("multi_step_maml", alpha, steps), step, meta_batch_size=6)
    reach = Reach(grad_norm(source.tasks, alpha, steps))
    learner.learn(5000, [reach])
    if not reach.counts:
        raise ArithmeticError(f"|grad F| must reach {EPS}, but did not in {learner.iterations} iterations")
    return reach.counts
