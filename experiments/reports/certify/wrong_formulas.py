"""Wrong formulas that published code has, each beside the right one. Both are measured by the same code."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.func import grad, vmap

from metarl import tree
from metarl.derivatives import gradients, hessian_vector_products
from metarl.experiments.reports.certify.judging import LIMIT, SEEN, measured
from metarl.experiments.reports.certify.problems import ALPHA, OBJECTIVE, PRODUCT, ExactProblem, bandit
from metarl.inner import adaptation_path, sgd
from metarl.outer import Method, make_method
from metarl.outer.e_maml import sampled
from metarl.rl import ReinforcementLearning
from metarl.rl.advantages import normalized
from metarl.rl.distributions import DiagonalGaussian, DistParams
from metarl.types import Batch, Inner, MetaGrad, OuterUpdate, Params, TaskBatch


def with_score_term(weight: Callable[[TaskBatch, Batch], Tensor] | None) -> OuterUpdate:
    """One inner step pulled back with H on D_in, plus the score of D_in times a weight `[T]` from the outer batch."""

    def update(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
        source, path = sampled(tasks), adaptation_path(params, tasks, inner)
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


def mean_loss(tasks: TaskBatch, batch: Batch) -> Tensor:
    """Minus the mean return after adaptation."""
    return vmap(sampled(tasks).objective)(batch).mean(1)


def mean_normalized_advantage(tasks: TaskBatch, batch: Batch) -> Tensor:
    """Minus the mean of advantages that were made to have the mean zero."""
    return -normalized(batch["advantages"], batch["mask"])[0].mean((1, 2))


class MeanOverDimensions(DiagonalGaussian):
    """Log-probabilities averaged over action dimensions instead of summed: no log-probabilities any more."""

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """Too small by the number of dimensions."""
        return super().log_prob(params, actions) / self.action_shape[0]


class Pair(NamedTuple):
    """A formula and a wrong version of it."""

    what: str
    problem: ExactProblem
    target: str
    right: tuple[str, ReinforcementLearning, Method]
    wrong: tuple[str, ReinforcementLearning, Method]


def pairs() -> list[Pair]:
    """The wrong formulas that published code has."""
    one, two = bandit(), bandit(dimension=2)
    logs, summed, averaged = one.source("reinforce"), two.source("ratio"), two.source("ratio")
    averaged.actor.distribution = MeanOverDimensions(2)
    full, none, zero = (
        Method(with_score_term(weight), Inner(sgd(ALPHA))) for weight in (mean_loss, None, mean_normalized_advantage)
    )
    maml = make_method("maml", ALPHA, 1)
    right = "score term weighted with the mean loss", logs, full
    return [
        Pair("log-probability loss, inner batch reused", one, OBJECTIVE, right, ("no score term", logs, none)),
        Pair("log-probabilities in two dimensions", two, PRODUCT, ("sum", summed, maml), ("mean", averaged, maml)),
        Pair("weight of the score term", one, OBJECTIVE, right, ("mean of normalised advantages", logs, zero)),
    ]


def wrong_formulas(samples: int) -> list[dict[str, Any]]:
    """Each pair measured: the right formula must pass, the wrong one must be seen to fail."""
    rows = []
    for pair in pairs():
        for right, (formula, source, method) in ((True, pair.right), (False, pair.wrong)):
            sample = measured(pair.problem, source, method, samples)
            off = sample.off(pair.problem.targets[pair.target])
            failed = abs(off) > LIMIT if right else abs(off) < SEEN
            rows.append(
                {
                    "what": pair.what,
                    "formula": formula,
                    "right": right,
                    "target": pair.target,
                    "target_value": pair.problem.targets[pair.target].tolist(),
                    "expectation": sample.mean.tolist(),
                    "stderr": sample.stderr.tolist(),
                    "std": sample.std,
                    "samples": samples,
                    "bias_in_se": off,
                    "failed": failed,
                }
            )
    return rows
