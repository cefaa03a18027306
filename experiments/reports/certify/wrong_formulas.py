"""Wrong formulas from published code, each next to the right one. Both are measured by the same code."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from metarl import tree
from metarl.derivatives import as_sampled, gradients, hessian_vector_products
from metarl.experiments.reports.certify.certificates import LIMIT, SEEN, Certificate
from metarl.experiments.reports.certify.problems import ALPHA, OBJECTIVE, PRODUCT, ExactProblem, bandit
from metarl.inner import adaptation_path, sgd
from metarl.outer import Method, make_method
from metarl.rl import ReinforcementLearning
from metarl.rl.advantages import normalize
from metarl.rl.distributions import DiagonalGaussian, DistParams
from metarl.types import Batch, Inner, MetaGrad, OuterUpdate, Params, TaskBatch


def with_score_term(weight: Callable[[TaskBatch, Batch], Tensor] | None) -> OuterUpdate:
    """One inner step pulled back with H on D_in, plus the score of D_in times a weight `[T]` from the outer batch."""

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        source, path = as_sampled(tasks), adaptation_path(params, tasks, inner)
        (w, end), (data,) = path.params, path.batches
        batch = tasks.draw(end, "outer")
        v = gradients(tasks, end, batch)
        through_step = hessian_vector_products(tasks, w, data, v, source.frozen_loss)
        total = {key: v[key] - ALPHA * through_step[key] for key in v}
        if weight is not None:
            scores = vmap(grad(lambda u, d: source.log_likelihood(u, d).sum()))(w, data)
            total = tree.add(total, vmap(lambda a, s: tree.tree_map(lambda x: a * x, s))(weight(tasks, batch), scores))
        return MetaGrad(total, vmap(tasks.score)(end, batch))

    return update


def with_difference(above: float, below: float, along_ones: bool = False) -> OuterUpdate:
    """One inner step pulled back with `[grad f(w + above p) - grad f(w + below p)] / 2e-4` on a fresh D_h as H v.

    The perturbation p is 1e-4 v, or 1e-4 in every component.
    """

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        w, end = adaptation_path(params, tasks, inner).params
        batch, data = tasks.draw(end, "outer"), tasks.draw(w, "hessian")
        v, delta = gradients(tasks, end, batch), 1e-4
        along = tree.tree_map(torch.ones_like, v) if along_ones else v
        points = [tree.add_scaled(w, shift * delta, along) for shift in (above, below)]
        first, second = (gradients(tasks, point, data) for point in points)
        product = tree.tree_map(lambda x, y: (x - y) / (2 * delta), first, second)
        return MetaGrad(tree.add_scaled(v, -ALPHA, product), vmap(tasks.score)(end, batch))

    return update


def mean_loss(tasks: TaskBatch, batch: Batch) -> Tensor:
    """Minus the mean return after adaptation."""
    return vmap(as_sampled(tasks).objective)(batch).mean(1)


def mean_normalized_advantage(tasks: TaskBatch, batch: Batch) -> Tensor:
    """Minus the mean of advantages that were normalised to mean zero."""
    return -normalize(batch["advantages"], batch["mask"])[0].mean((1, 2))


class MeanOverDimensions(DiagonalGaussian):
    """Log-probabilities averaged over action dimensions instead of summed, so not those of any policy."""

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """Too small by the number of dimensions."""
        return super().log_prob(params, actions) / self.action_shape[0]


class Formula(NamedTuple):
    """A right or a wrong formula for a target."""

    what: str
    formula: str
    right: bool
    problem: ExactProblem
    target: str
    source: ReinforcementLearning
    method: Method


def enumerate_formulas() -> list[Formula]:
    """The wrong formulas, each after the right one."""
    one, two = bandit(), bandit(dimension=2)
    logs, summed, averaged = one.source("reinforce"), two.source("ratio"), two.source("ratio")
    averaged.actor.distribution = MeanOverDimensions(2)
    full, none, zero = (
        Method(with_score_term(weight), Inner(sgd(ALPHA))) for weight in (mean_loss, None, mean_normalized_advantage)
    )
    central, shifted, ones, same = (
        Method(with_difference(above, below, along_ones), Inner(sgd(ALPHA)))
        for above, below, along_ones in ((1.0, -1.0, False), (1.0, 0.0, False), (1.0, -1.0, True), (1.0, 1.0, True))
    )
    maml, right = make_method("maml", ALPHA, 1), "score term weighted with the mean loss"
    reuse, dimensions = "log-probability loss, inner batch reused", "log-probabilities in two dimensions"
    weight, free = "weight of the score term", "Hessian-free product, by a central difference"
    difference, ratios = "points w + delta v and w - delta v", one.source("ratio")
    return [
        Formula(reuse, right, True, one, OBJECTIVE, logs, full),
        Formula(reuse, "no score term", False, one, OBJECTIVE, logs, none),
        Formula(dimensions, "sum", True, two, PRODUCT, summed, maml),
        Formula(dimensions, "mean", False, two, PRODUCT, averaged, maml),
        Formula(weight, right, True, one, OBJECTIVE, logs, full),
        Formula(weight, "mean of normalised advantages", False, one, OBJECTIVE, logs, zero),
        Formula(free, difference, True, one, PRODUCT, ratios, central),
        Formula(free, "the second point from the shifted first one", False, one, PRODUCT, ratios, shifted),
        Formula(free, difference, True, one, PRODUCT, ratios, central),
        Formula(free, "perturbed along ones", False, one, PRODUCT, ratios, ones),
        Formula(free, difference, True, one, PRODUCT, ratios, central),
        Formula(free, "along ones, and the first point taken twice", False, one, PRODUCT, ratios, same),
    ]


def certify_formulas(samples: int) -> list[Certificate]:
    """Each formula measured: a right one must pass, a wrong one must fail."""
    return [row(formula, samples) for formula in enumerate_formulas()]


def row(formula: Formula, samples: int) -> Certificate:
    """Measure and judge one formula."""
    sample = formula.problem.measure(formula.source, formula.method, samples)
    target = formula.problem.targets[formula.target]
    off = sample.z_score(target)
    return {
        "what": formula.what,
        "formula": formula.formula,
        "right": formula.right,
        "target": formula.target,
        "target_value": target.tolist(),
        "expectation": sample.mean.tolist(),
        "stderr": sample.stderr.tolist(),
        "std": sample.std,
        "samples": samples,
        "bias_in_se": off,
        "failed": abs(off) > LIMIT if formula.right else abs(off) < SEEN,
    }
