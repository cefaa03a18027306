"""Problems with exact answers: the targets of every estimator, and its expectation where it is known."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad

from metarl import tree
from metarl.engine import Engine
from metarl.envs.exact.enumeration import EnumeratedTaskBatch, sampled_objective, sampled_product
from metarl.envs.exact.expected_update import Estimate, expected_update, product_form
from metarl.envs.exact.gaussian_bandit import GaussianBandit
from metarl.envs.exact.pair_bandit import PairBandit
from metarl.envs.exact.policies import GaussianMean, Logits, TabularSoftmax
from metarl.envs.exact.tabular import two_state_problem
from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.experiments.reports.certify.estimators import (
    ENUMERATED,
    FIRST_ORDER,
    LINEARISED,
    PULLED,
    SAMPLED,
    Estimator,
)
from metarl.outer import Method
from metarl.rl import SURROGATES, ReinforcementLearning
from metarl.rl.surrogates import make_surrogate
from metarl.types import Params, TaskParams

CENTRE, MEAN, ALPHA, ACTIONS = 1.5, 0.3, 0.2, 4  # of the bandit
MDP_ALPHA, DISCOUNT = 0.5, 0.9
PAIRS_ALPHA, SWITCHES, NUMBERS = 1.5, (0.4, -0.3), (0.3, -0.2, 0.1, 0.5, -0.4)  # logits
LAMBDA = {"loaded_dice": 0.5}

PRODUCT, OBJECTIVE, PATH_PRODUCT = "product form", "sampled objective", "sampled product"


class Expectation(NamedTuple):
    """An expectation without sampling error, and the standard deviation over inner data where it is known."""

    mean: Tensor  # [P]
    std: float | None = None


@dataclass(frozen=True)
class ExactProblem:
    """A task with exact answers. Targets are in the papers' scale, the loss -J: ours, per step, times the horizon."""

    name: str
    tasks: FunctionalDistribution
    task: TaskParams
    policy: nn.Module
    params: Params
    alpha: float  # times the horizon
    episodes: int
    targets: dict[str, Tensor]  # [P]
    good_hessian: tuple[str, ...]  # surrogates whose expected Hessian is exact here
    product: str  # what independent factors with exact Hessians estimate
    expectation: Callable[[Estimator], Expectation | None]
    discount: float = 1.0
    discount_weights: bool = True  # without them no estimator is unbiased for a discounted target

    def source(self, surrogate: str) -> ReinforcementLearning:
        """The real oracle, with nothing that could bias it."""
        return ReinforcementLearning(
            self.tasks,
            self.policy,
            episodes=self.episodes,
            surrogate=surrogate,
            dice_lambda=LAMBDA.get(surrogate),
            discount=self.discount,
            discount_weights=self.discount_weights,
            baseline="none",
            normalize_advantages=False,
        )

    @functools.cached_property
    def engine(self) -> Engine:
        """The engine of all estimators, which share its records."""
        return Engine()

    def measure(self, source: ReinforcementLearning, method: Method, samples: int, chunk: int = 100_000) -> Estimate:
        """The expectation of a meta-gradient by Monte Carlo, in the papers' scale."""
        with self.engine.current():
            found = expected_update(source, self.task, self.params, method, samples, chunk=chunk)
        horizon = self.tasks.horizon
        return Estimate(horizon * found.mean, horizon * found.stderr, horizon * found.std, samples)

    def claim(self, estimator: Estimator) -> str | None:
        """The target the estimator is documented to be unbiased for."""
        if self.discount < 1 and not self.discount_weights:
            return None
        if estimator.update in SAMPLED:
            return OBJECTIVE
        pulled = estimator.update in PULLED and not estimator.is_truncated
        unbiased = pulled and estimator.hessian_data == "fresh"
        return self.product if unbiased and estimator.surrogate in self.good_hessian else None


def bandit(dimension: int = 1, actions: int = ACTIONS) -> ExactProblem:
    """Actions a ~ N(w, I), reward -|a - c|^2, `actions` in every batch; in each dimension c = 1.5, w = 0.3."""
    tasks, policy = GaussianBandit(dimension), GaussianMean(dimension).double()
    task = {"centre": np.full(dimension, CENTRE, np.float32)}
    params = {"mean": torch.full((dimension,), MEAN, dtype=torch.float64)}
    one = tensors(task)
    targets = {
        PRODUCT: product_form(lambda w: -tasks.expected_return(w, one), params, ALPHA)["mean"],
        OBJECTIVE: grad(lambda w: tasks.sampled_objective(w, one, ALPHA, actions))(params)["mean"],
    }
    good = tuple(name for name in SURROGATES if name != "reinforce")
    exact = functools.partial(bandit_expectation, objective=targets[OBJECTIVE], actions=actions)
    return ExactProblem("bandit", tasks, task, policy, params, ALPHA, actions, targets, good, PRODUCT, exact)


def bandit_expectation(estimator: Estimator, objective: Tensor, actions: int = ACTIONS) -> Expectation | None:
    """E[G] on the one-dimensional bandit, for estimators with a closed form.

    With e ~ N(0, 1) and d = c - w, one action has the gradient g = e (e - d)^2 and the second derivative
    h = (e^2 - 1) (e - d)^2 for likelihood ratios, h = -(e - d)^2 for log-probabilities. Then
    E[G] = (1 - alpha E[h]) 2 (E[w_1] - c) + 2 alpha^2 cov(h, g) / n, the covariance only if both use the same data.
    """
    d = CENTRE - MEAN
    if estimator.update in SAMPLED:
        return Expectation(objective)
    if estimator.update == "multitask":
        return Expectation(torch.tensor([-2.0 * d], dtype=torch.float64))
    if estimator.update == "reptile":
        return Expectation(torch.tensor([-2.0 * d * ALPHA], dtype=torch.float64))
    end = 2 * (MEAN + 2 * ALPHA * d - CENTRE)
    if estimator.update in (*FIRST_ORDER, "moreau"):  # one fixed-point step is FO-MAML
        return Expectation(torch.tensor([end], dtype=torch.float64))
    if estimator.update not in (*PULLED, *LINEARISED):
        return None
    # the score term of `lsf` completes the second derivative of log-probabilities to that of likelihood ratios
    wrong = estimator.surrogate == "reinforce" and estimator.update in PULLED
    mean, covariance = (-(1 + d**2), 10 * d + 2 * d**3) if wrong else (2.0, -44 * d - 8 * d**3)
    shared = 2 * ALPHA**2 * covariance / actions if estimator.hessian_data == "reuse" else 0.0
    return Expectation(torch.tensor([(1 - ALPHA * mean) * end + shared], dtype=torch.float64))


def mdp(discount: float = 1.0, discount_weights: bool = True, steps: int = 1) -> ExactProblem:
    """Two states, two actions, three steps (P3), one trajectory in every batch, tabular softmax, return to go.

    The targets are for `steps` inner steps, and of the discounted return even without `discount_weights`.
    """
    tasks, task, logits = two_state_problem()
    policy, params = TabularSoftmax(2, 2).double(), {"logits": torch.as_tensor(logits)}
    one, alpha = tensors(task), MDP_ALPHA * tasks.horizon

    def loss(w: Params) -> Tensor:
        return -tasks.expected_return(w, one, discount) / tasks.horizon

    def expectation(estimator: Estimator) -> Expectation | None:
        """E[G] through the update's own code: all inner trajectories, expected outer and Hessian data.

        For an update that is not linear in these data (conjugate gradients are not), or that has random directions,
        this is not the expectation.
        """
        if estimator.update not in ENUMERATED:
            return None
        surrogate = make_surrogate(estimator.surrogate, LAMBDA.get(estimator.surrogate))
        batch = EnumeratedTaskBatch(tasks, one, policy, surrogate, estimator.steps, discount, discount_weights)
        method = estimator.method(alpha)
        with Engine(record=False, chunk_size=4096).current():
            grads = method.update(params, batch, method.inner).grads
        mean = tasks.horizon * tree.flatten({k: v[None] for k, v in batch.expectation(grads).items()})[0]
        return Expectation(mean, tasks.horizon * float(batch.deviation(grads)))

    # The three targets, in the papers' scale.
    targets = {
        PRODUCT: product_form(loss, params, alpha, steps),
        OBJECTIVE: grad(lambda w: sampled_objective(tasks, one, w, alpha, steps, discount))(params),
        PATH_PRODUCT: sampled_product(tasks, one, params, alpha, steps, discount),
    }
    flat = {key: tasks.horizon * w["logits"].flatten() for key, w in targets.items()}
    name = "mdp" if discount == 1 else "discounted"
    known = flat, ("dice",), PATH_PRODUCT, expectation
    return ExactProblem(name, tasks, task, policy, params, alpha, 1, *known, discount, discount_weights)


def pairs(binary: bool) -> ExactProblem:
    """A pull of two switches, or of a number of two and one of three values; one in every batch."""
    tasks, logits = PairBandit(binary), torch.tensor(SWITCHES if binary else NUMBERS, dtype=torch.float64)
    policy, params, task = Logits(len(logits)).double(), {"logits": logits}, tasks.example()
    one, alpha = tensors(task), PAIRS_ALPHA
    targets = {
        PRODUCT: product_form(lambda w: -tasks.expected_return(w, one), params, alpha),
        OBJECTIVE: grad(lambda w: tasks.sampled_objective(w, one, alpha))(params),
        PATH_PRODUCT: tasks.mean_meta_gradient(params, one, alpha),
    }

    def expectation(estimator: Estimator) -> Expectation | None:
        if estimator.update in FIRST_ORDER:
            return Expectation(tasks.mean_meta_gradient(params, one, alpha, second_order=False)["logits"])
        return None

    flat = {key: w["logits"] for key, w in targets.items()}
    good = tuple(name for name in SURROGATES if name != "reinforce")
    return ExactProblem(
        str(tasks.action_space), tasks, task, policy, params, alpha, 1, flat, good, PATH_PRODUCT, expectation
    )


def tensors(task: TaskParams) -> dict[str, Tensor]:
    """ONE task's arrays as tensors."""
    return {key: torch.as_tensor(value) for key, value in task.items()}
