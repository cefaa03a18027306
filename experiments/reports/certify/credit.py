"""The mean policy gradient for every way to give credit: discounting, baselines, normalisation.

On the tabular problem with the discount 0.9, through the real oracle. The targets are known by dynamic programming: the
gradient of the discounted return where the weights gamma^t are used, and what common practice estimates without them.
"""

import dataclasses
from typing import NamedTuple

from torch import Tensor

from metarl import tree
from metarl.derivatives import gradients, scores
from metarl.envs.exact.expected_update import Estimate
from metarl.envs.exact.tabular import TabularMDP
from metarl.experiments.reports.certify.certificates import LIMIT, SEEN, Certificate, relative_error
from metarl.experiments.reports.certify.problems import DISCOUNT, ExactProblem, mdp, tensors
from metarl.inner import sgd
from metarl.outer import Method
from metarl.rl.oracle import BaselineName
from metarl.types import Inner, MetaGrad, Params, TaskBatch

EPISODES = (2, 5, 20)
RETURN, PRACTICE = "gradient of the discounted return", "common practice"


class Credit(NamedTuple):
    """The baseline, normalisation and weights that give actions their credit."""

    episodes: int
    baseline: BaselineName = "none"
    cross_fit: bool = False
    normalize_advantages: bool = False
    discount_weights: bool = False

    @property
    def label(self) -> str:
        """In words."""
        fitted = "" if self.baseline == "none" else ", cross-fitted" if self.cross_fit else ", on its own episodes"
        return f"baseline {self.baseline}{fitted}{', normalised' if self.normalize_advantages else ''}"

    @property
    def is_unbiased(self) -> bool:
        """Whether it is documented as unbiased, in length and direction."""
        return not self.normalize_advantages and (self.baseline == "none" or self.cross_fit)


def enumerate_credits() -> list[Credit]:
    """All rows: the discount weights without a baseline, then the baselines."""
    rows = [Credit(5, discount_weights=weights) for weights in (True, False)]
    for normalize in (False, True):
        for cross_fit in (False, True):
            rows += [Credit(episodes, "linear", cross_fit, normalize) for episodes in EPISODES]
    return rows


def policy_gradient(params: Params, tasks: TaskBatch, inner: Inner) -> MetaGrad:
    """The gradient of every task's loss at the same parameters, without adaptation."""
    stacked = tree.broadcast(params, tasks.num_tasks)
    batch = tasks.draw(stacked, "outer")
    return MetaGrad(gradients(tasks, stacked, batch), scores(tasks, stacked, batch))


def certify_credit(samples: int) -> list[Certificate]:
    """Every row; `samples` are episodes."""
    problem = mdp(DISCOUNT)
    targets = credit_targets(problem)
    return [row(problem, credit, targets, samples // credit.episodes) for credit in enumerate_credits()]


def credit_targets(problem: ExactProblem) -> dict[str, Tensor]:
    """The targets of the gradient, `[P]`, of the loss -J."""
    assert isinstance(problem.tasks, TabularMDP)
    found = {
        name: problem.tasks.policy_gradient(problem.params, tensors(problem.task), DISCOUNT, weights)
        for name, weights in ((RETURN, True), (PRACTICE, False))
    }
    return {name: -gradient["logits"].flatten() for name, gradient in found.items()}


def row(problem: ExactProblem, credit: Credit, targets: dict[str, Tensor], samples: int) -> Certificate:
    """Measure and judge one way to give credit."""
    source = dataclasses.replace(problem.source("ratio"), **credit._asdict())
    found = problem.measure(source, Method(policy_gradient, Inner(sgd(0.1), 0)), samples, chunk=20_000)
    name = RETURN if credit.discount_weights else PRACTICE
    target = targets[name]
    along = float(found.mean @ target / target.square().sum())
    verdict, failed = judge(credit, found, target)
    return {
        "what": credit.label,
        "episodes": credit.episodes,
        "discount_weights": credit.discount_weights,
        "normalized": credit.normalize_advantages,
        "target": name,
        "expectation": found.mean.tolist(),
        "stderr": found.stderr.tolist(),
        "relative_std": found.std / abs(along) / float(target.norm()),
        "relative_error": {key: relative_error(found.mean, value) for key, value in targets.items()},
        "direction_error": float((found.mean / along - target).norm() / target.norm()),
        "direction_stderr": float((found.stderr / along).norm() / target.norm()),
        "projection": along,
        "bias_in_se": found.z_score(target),
        "verdict": verdict,
        "failed": failed,
    }


def judge(credit: Credit, found: Estimate, target: Tensor) -> tuple[str, bool]:
    """The verdict, and whether the row fails: an unbiased one is seen to be biased, or a known bias is not seen."""
    off = found.z_score(target)
    if credit.is_unbiased:
        failed = abs(off) > LIMIT
        return (f"**FAILS**: {off:+.1f} SE" if failed else "unbiased"), failed
    if credit.normalize_advantages:
        return "in other units", False
    failed = credit.episodes == min(EPISODES) and abs(off) < SEEN
    return (f"**FAILS**: its bias is not seen, {off:+.1f} SE" if failed else "biased"), failed
