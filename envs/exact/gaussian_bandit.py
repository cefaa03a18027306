"""A Gaussian bandit: the expectations of meta-gradient estimators are polynomials in the moments of a normal variable.

    reward = -||a - c||^2,    a ~ N(w, I) in k dimensions,    d = c - w,    J(w) = -(||d||^2 + k) for one pull

With e = a - w the policy gradient of one pull's loss is g = e ||e - d||^2 with E g = -2 d. So a step on n pulls gives

    E w_1 = w + 2 alpha d
    tr Var w_1 = alpha^2 / n [k (k + 2) (k + 4) + (2 k^2 + 8 k + 4) |d|^2 + k |d|^4]

In one dimension the bracket is 15 + 14 d^2 + d^4. The gradient, the Hessian and the meta-gradients follow by autograd.
"""

import math

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.envs.rendering import AGENT, GOAL, LIGHT, Canvas, Point
from metarl.errors import check_int, check_real
from metarl.functional_env import Frame, FunctionalEnv, TaskTensors
from metarl.types import Params, TaskParams


class GaussianBanditEnv(FunctionalEnv):
    """The functions; the state is the last action `[n, k]`, the observation a constant 1, `task["centre"]` `[n, k]`."""

    def __init__(self, dimension: int = 1) -> None:
        self.dimension = check_int("dimension", dimension)
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Box(-np.inf, np.inf, (dimension,), np.float32)

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """Zeros: no action was taken yet."""
        return torch.zeros_like(task["centre"])

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """The action, for pictures; nothing depends on it."""
        return action

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """`-||a - c||^2`."""
        return -(action - task["centre"]).square().sum(-1)

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """1."""
        return torch.ones_like(state[:, :1])

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        """The first two dimensions: the centre in green, the last action in blue."""
        canvas = Canvas(-4.0, 4.0).line(Point(-4.0, 0.0), Point(4.0, 0.0), LIGHT)
        return canvas.disc(_point(task["centre"]), 0.25, GOAL).disc(_point(state), 0.2, AGENT).frame()


def _point(x: Tensor) -> Point:
    first, second, *_ = [*x.tolist(), 0.0]
    return Point(first, second)


class GaussianBandit(FunctionalDistribution):
    """Centres uniform in a cube. The exact answers hold for `policies.GaussianMean`, whose only parameter is `mean`.

    Args:
        dimension: k.
        horizon: pulls per episode; they do not influence each other.
        centre_low: lower edge of the cube.
        centre_high: upper edge.

    >>> tasks = GaussianBandit()
    >>> tasks.expected_return({"mean": torch.tensor([0.3])}, {"centre": torch.tensor([1.5])}).round(decimals=2)
    tensor(-2.4400)
    """

    def __init__(
        self, dimension: int = 1, horizon: int = 1, centre_low: float = -2.0, centre_high: float = 2.0
    ) -> None:
        low = check_real("centre_low", centre_low, -math.inf)
        high = check_real("centre_high", centre_high, low)
        env = GaussianBanditEnv(dimension)
        space = gymnasium.spaces.Dict({"centre": Box(low, high, (dimension,), np.float32)})
        super().__init__(env, space, horizon)
        self.dimension = dimension

    def example(self) -> TaskParams:
        """The centre is 1 in each dimension."""
        return {"centre": np.ones(self.dimension, np.float32)}

    def expected_return(self, params: Params, task: TaskTensors) -> Tensor:
        """J of ONE task: `-H (||w - c||^2 + k)`."""
        return -self.horizon * ((params["mean"] - task["centre"]).square().sum() + self.dimension)

    def sampled_objective(self, params: Params, task: TaskTensors, alpha: float, pulls: int) -> Tensor:
        """`E_D[-J(w - alpha g(D; w))]` of ONE task: the mean loss after one inner step on `pulls` sampled pulls.

        Raises:
            ValueError: the horizon is not 1, for which this form holds, or `pulls` is below 1.
        """
        if self.horizon != 1:
            raise ValueError(f"horizon must be 1 for the closed form of the sampled objective, got {self.horizon}")
        k, d = self.dimension, task["centre"] - params["mean"]
        size = d.square().sum()
        spread = k * (k + 2) * (k + 4) + (2 * k**2 + 8 * k + 4) * size + k * size**2
        variance = alpha**2 / check_int("pulls", pulls) * spread
        return ((1 - 2 * alpha) * d).square().sum() + variance + k
