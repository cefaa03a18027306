"""A bandit whose action is two numbers: sums over its few pairs give every expectation of a meta-gradient.

    reward = R[a_0, a_1],    p(a) = p_0(a_0) p_1(a_1),    J(w) = sum_a p(a) R[a]

The reward depends on the pair, so neither number alone tells it. With one pull in every batch, an inner step and

    w_1(a) = w + alpha R[a] grad log p(a)

the sampled objective is sum_a p(a) f(w_1(a)) with f = -J, and the other two answers are

    sum_a p(a) (I - alpha H(w)) grad f(w_1(a))    the sampled product
    sum_a p(a) grad f(w_1(a))                     without second derivatives
"""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete
from torch import Tensor
from torch.func import grad, jacrev

from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.functional_env import FunctionalEnv, TaskTensors
from metarl.types import Params, TaskParams

EXAMPLE = np.array([1.0, -0.5, 0.3, 2.0, -1.0, 0.7])


class PairBanditEnv(FunctionalEnv):
    """The functions; state and observation are a constant 1, `task["rewards"]` is `[n, pairs]`, row by row."""

    def __init__(self, action_space: MultiDiscrete | MultiBinary, second: int) -> None:
        self.observation_space, self.action_space, self.second = Box(0.0, 1.0, (1,), np.float32), action_space, second

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(task["rewards"][:, :1])

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """The same state."""
        return state

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """The entry of the pair."""
        pair = self.second * action[:, 0].long() + action[:, 1].long()
        return task["rewards"].gather(1, pair[:, None])[:, 0].float()

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """1."""
        return state


class PairBandit(FunctionalDistribution):
    """Rewards uniform in [-3, 3]. The exact answers hold for `policies.Logits`, whose only parameter is `logits`.

    Args:
        binary: two switches (`MultiBinary(2)`) instead of a number of two and one of three values
            (`MultiDiscrete([2, 3])`).

    >>> tasks = PairBandit(binary=True)
    >>> tasks.probabilities(torch.tensor([0.0, 0.0]))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def __init__(self, binary: bool = False) -> None:
        self.binary, second = binary, 2 if binary else 3
        self.num_pairs = 2 * second
        env = PairBanditEnv(MultiBinary(2) if binary else MultiDiscrete([2, 3]), second)
        space = gymnasium.spaces.Dict({"rewards": Box(-3.0, 3.0, (self.num_pairs,), np.float64)})
        super().__init__(env, space, horizon=1)

    def example(self) -> TaskParams:
        """Rewards that prefer no value of either number by itself."""
        return {"rewards": EXAMPLE[: self.num_pairs].copy()}

    def probabilities(self, logits: Tensor) -> Tensor:
        """p(a) of all pairs `[pairs]`, of the logits `[2]` of the switches or `[2 + 3]` of the numbers."""
        if self.binary:
            first, second = (torch.stack([1 - x.sigmoid(), x.sigmoid()]) for x in logits)
        else:
            first, second = logits[:2].softmax(0), logits[2:].softmax(0)
        return torch.outer(first, second).flatten()

    def expected_return(self, params: Params, task: TaskTensors) -> Tensor:
        """J of ONE task."""
        return self.probabilities(params["logits"]) @ task["rewards"]

    def sampled_objective(self, params: Params, task: TaskTensors, alpha: float) -> Tensor:
        """`E_a[f(w_1(a))]` of ONE task, a function of `params`."""
        w = params["logits"]
        chances = self.probabilities(w)
        ends = [self._adapted(w, pair, task, alpha) for pair in range(self.num_pairs)]
        return chances @ torch.stack([-self.expected_return({"logits": end}, task) for end in ends])

    def mean_meta_gradient(self, params: Params, task: TaskTensors, alpha: float, second_order: bool = True) -> Params:
        """The sampled product of ONE task, or the same without second derivatives."""
        w = params["logits"].detach()

        def loss(logits: Tensor) -> Tensor:
            return -self.expected_return({"logits": logits}, task)

        product = torch.eye(len(w), dtype=w.dtype)
        if second_order:
            product = product - alpha * jacrev(grad(loss))(w)
        ends = [grad(loss)(self._adapted(w, pair, task, alpha)) for pair in range(self.num_pairs)]
        return {"logits": product @ (self.probabilities(w) @ torch.stack(ends))}

    def _adapted(self, logits: Tensor, pair: int, task: TaskTensors, alpha: float) -> Tensor:
        score = grad(lambda w: self.probabilities(w)[pair].log())(logits)
        end: Tensor = logits + alpha * task["rewards"][pair] * score
        return end
