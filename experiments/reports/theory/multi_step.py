"""Several inner steps: the order of the factors, what a step costs, and why alpha must shrink as 1/(N L)."""

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from metarl import Inner, make_method, tree
from metarl.derivatives import hessian_vector_products
from metarl.experiments.reports.theory.common import Findings, Row, label, listing, panels
from metarl.experiments.reports.theory.numerics import ORIGIN, POINT, TASKS, L, Vector, direction, numeric_error
from metarl.inner import AdaptationPath, adaptation_path
from metarl.outer import outer_gradient, pull_back
from metarl.step import average
from metarl.theory import inner_lr_bound, recommended_inner_lr
from metarl.theory.quadratics import Quadratics, random_quadratics, resampled_quadratics
from metarl.types import TaskBatch
from metarl.wrappers import CountCost

SOURCE = "Ji, Yang, Liang 2022"
STEPS = (1, 2, 4, 8, 16, 32)
FIXED = 0.5  # alpha L


def check(quick: bool = False) -> Findings:
    """Exact statements on P2; variances on resampled quadratics with curvatures of both signs."""
    figure, (left, right) = panels(2)
    return Findings(
        [*order_matters(), products_stay_bounded(), *variances(left, 500 if quick else 5000), cost_is_linear(right)],
        figure,
        "The geometric growth is the worst case and needs directions of negative curvature, which a policy's "
        "objective has; on convex quadratics the factors I - alpha H contract and a fixed alpha does no harm (dashed). "
        f"(1 + alpha L)^(2N) < 2 allows alpha L < {inner_lr_bound(1):.3f} for N = 1, {inner_lr_bound(10):.4f} for 10.",
    )


def reverse_product(inner: Inner) -> Vector:
    """The meta-gradient with the factors in the wrong order: the factor of the first step is applied first."""
    path = adaptation_path({"w": POINT}, TASKS, inner)
    end = outer_gradient(TASKS, path.params[-1])
    reverse = AdaptationPath([*path.params[-2::-1], path.params[-1]], path.batches[::-1], path.grads[::-1])
    return tree.mean(pull_back(TASKS, reverse, inner, end.grads, hessian_vector_products, "reuse"))["w"]


def order_matters() -> list[Row]:
    """The product in both orders against finite differences of F_N."""
    right, wrong = {}, {}
    for n in (1, 3, 5):
        method = make_method("multi_step_maml", 0.9 / L, n)
        right[n] = numeric_error(direction(method, TASKS)(POINT), TASKS, method.inner)
        wrong[n] = numeric_error(reverse_product(method.inner), TASKS, method.inner)
    errors, several = list(right.values()), [wrong[3], wrong[5]]
    claim = "the product is the gradient of the N-step objective, N = 1, 3, 5 (P2, alpha L = 0.9)"
    reverse, good = "the product in reverse order is not, N = 3, 5", min(several) > 1e-3 and wrong[1] == right[1]
    return [
        Row(claim, SOURCE, "relative error < 1e-9", listing(errors), max(errors) < 1e-9),
        Row(reverse, SOURCE, "relative error > 1e-3", listing(several), good),
    ]


def products_stay_bounded() -> Row:
    """The singular values of d w_N / d w with alpha = 1/(8 N L), for all tasks."""
    good, extremes = True, [1.0, 1.0]
    for n in STEPS:
        values = torch.linalg.svdvals(jacobians(make_method("maml", recommended_inner_lr(L, n), n).inner))
        low, high = float(values.min()), float(values.max())
        good &= (1 - 1 / (8 * n)) ** n <= low and high <= (1 + 1 / (8 * n)) ** n
        extremes = [min(extremes[0], low), max(extremes[1], high)]
    claim = f"with alpha = 1/(8 N L) the product of the factors stays bounded, N = {listing(STEPS)} (P2)"
    measured = f"[{extremes[0]:.3f}, {extremes[1]:.3f}]"
    return Row(claim, SOURCE, "singular values in [0.875, 1.134]", measured, good)


def jacobians(inner: Inner, tasks: TaskBatch = TASKS, w: Vector = ORIGIN) -> Tensor:
    """d w_N / d w of every task `[T, d, d]`, row by row with the library's pull-back."""
    path = adaptation_path({"w": w}, tasks, inner)
    rows = [
        pull_back(tasks, path, inner, {"w": e.expand(tasks.num_tasks, len(w))}, hessian_vector_products, "reuse")["w"]
        for e in torch.eye(len(w), dtype=torch.float64)
    ]
    return torch.stack(rows, dim=1)


def variances(ax: Axes, replicas: int) -> list[Row]:
    """The variance of one task's meta-gradient over independent draws, measured on copies of the task."""
    rng = np.random.default_rng(3)
    saddle, bowl = (random_quadratics(rng, 1, 5, eigenvalues) for eigenvalues in ((-1.0, 1.0), (0.1, 1.0)))
    fixed, convex = ({n: variance(problem, FIXED, n, replicas) for n in STEPS} for problem in (saddle, bowl))
    scaled = {n: variance(saddle, recommended_inner_lr(1.0, n), n, replicas) for n in STEPS}
    for name, style, found in [
        ("alpha = 0.5/L", "o-", fixed),
        ("alpha = 1/(8NL)", "s-", scaled),
        ("alpha = 0.5/L, convex", "^--", convex),
    ]:
        ax.semilogy(STEPS, list(found.values()), style, label=name)
    title = "quadratics, eigenvalues in [-L, L], one sample per draw"
    label(ax, title, "inner steps N", "variance of the meta-gradient")

    # each step multiplies the gradient by (1 + alpha |lambda_min|)^2: on the way to w_N and on the way back
    steepest = float(-torch.linalg.eigvalsh(saddle.curvatures).min())
    rate, predicted = np.log(fixed[32] / fixed[16]) / 16, 4 * np.log1p(FIXED * steepest)
    growth, ratio = fixed[32] / fixed[1], scaled[32] / scaled[1]
    expected = f"by {np.exp(predicted):.2f} a step, (1 + alpha |lambda_min|)^4"
    measured = f"by {np.exp(rate):.2f} a step; {growth:.1e} times as much at N = 32"
    geometric = "with a fixed alpha the variance grows geometrically in N"
    bounded, limit = "with alpha = 1/(8 N L) the variance does not grow", "N = 32 within a factor 1.5 of N = 1"
    return [
        Row(geometric, SOURCE, expected, measured, bool(abs(rate - predicted) < 0.1 * predicted)),
        Row(bounded, SOURCE, limit, f"{ratio:.2f} times", 1 / 1.5 < ratio < 1.5),
    ]


def variance(problem: Quadratics, alpha: float, steps: int, replicas: int) -> float:
    """The variance of the meta-gradient at w = 0 with one sample for each draw."""
    copies = Quadratics(*(leaf.expand(replicas, *leaf.shape[1:]) for leaf in problem))
    tasks = resampled_quadratics(copies, torch.Generator().manual_seed(0))
    method = make_method("multi_step_maml", alpha, steps)
    return average(method.update({"w": ORIGIN}, tasks, method.inner)).spread ** 2


def cost_is_linear(ax: Axes) -> Row:
    """Gradients and Hessian-vector products of an iteration, counted by the oracle."""
    counts = {n: count(n) for n in STEPS}
    for kind in ("gradients", "hessian_vector_products"):
        ax.plot(STEPS, [counts[n][kind] for n in STEPS], "o-", label=kind.replace("_", " "))
    label(ax, "counted per task and iteration", "inner steps N", "derivatives")
    good = all(c == {"gradients": n + 1, "hessian_vector_products": n} for n, c in counts.items())
    last = counts[32]
    measured = f"{last['gradients']} and {last['hessian_vector_products']} at N = 32"
    return Row("derivatives per iteration are linear in N", SOURCE, "N + 1 gradients, N products", measured, good)


def count(steps: int) -> dict[str, int]:
    """Derivatives per task in one meta-gradient."""
    counting = CountCost(TASKS)
    direction(make_method("multi_step_maml", 0.01, steps), counting)(ORIGIN)
    kinds = ("gradients", "hessian_vector_products")
    return {kind: counting.counts[kind] // TASKS.num_tasks for kind in kinds}
