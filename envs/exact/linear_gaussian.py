"""Linear dynamics, quadratic costs, Gaussian noise (the scalar LQR): the return is a polynomial in two moments.

    x' = a x + b u + sigma xi        reward = -(q x^2 + r u^2)        u = k x + m + s eps

With m1 = E x, m2 = E x^2 and A = a + b k, from x_0 = `start`:

    E u^2 = k^2 m2 + 2 k m m1 + m^2 + s^2
    m1' = A m1 + b m        m2' = A^2 m2 + 2 A b m m1 + b^2 (m^2 + s^2) + sigma^2

so J = -sum_t (q m2 + r E u^2) is exact and differentiable in the parameters of `policies.LinearPolicy`.
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from metarl.envs.functional import normal
from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.envs.rendering import AGENT, GOAL, LIGHT, Canvas, Point
from metarl.errors import check_real
from metarl.functional_env import Frame, FunctionalEnv, TaskTensors
from metarl.types import Params, TaskParams


class LinearGaussianEnv(FunctionalEnv):
    """The functions; state and observation are x `[n, 1]`, `task["a"]` and `task["b"]` are `[n]`."""

    transition_noise = 1

    def __init__(self, state_cost: float, action_cost: float, noise: float, start: float) -> None:
        self.state_cost = check_real("state_cost", state_cost, open_low=False)
        self.action_cost = check_real("action_cost", action_cost, open_low=False)
        self.noise = check_real("noise", noise, open_low=False)
        self.start = check_real("start", start, -np.inf)
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = Box(-np.inf, np.inf, (1,), np.float32)

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """`start`."""
        return torch.full_like(task["a"], self.start)[:, None]

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """`a x + b u + sigma xi`."""
        return task["a"][:, None] * state + task["b"][:, None] * action + self.noise * normal(noise)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """`-(q x^2 + r u^2)`, of the state in which the action was taken."""
        return -(self.state_cost * state.square() + self.action_cost * action.square())[:, 0]

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """x."""
        return state

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        """The line, its origin in green, x in blue."""
        canvas = Canvas(-4.0, 4.0).line(Point(-4.0, 0.0), Point(4.0, 0.0), LIGHT)
        return canvas.disc(Point(0.0, 0.0), 0.2, GOAL).disc(Point(float(state), 0.0), 0.2, AGENT).frame()


class LinearGaussian(FunctionalDistribution):
    """Dynamics with `a` uniform in [0.5, 1.1] and `b` uniform in [0.5, 1.5]; numbers, so arrays `[T]`.

    Args:
        horizon: steps per episode.
        state_cost: q.
        action_cost: r.
        noise: sigma, the standard deviation of the disturbance.
        start: x_0.

    >>> sorted(LinearGaussian().sample(2, np.random.default_rng(0)))
    ['a', 'b']
    """

    def __init__(
        self,
        horizon: int = 20,
        state_cost: float = 1.0,
        action_cost: float = 0.1,
        noise: float = 0.1,
        start: float = 1.0,
    ) -> None:
        env = LinearGaussianEnv(state_cost, action_cost, noise, start)
        space: dict[str, gymnasium.Space[Any]] = {
            "a": Box(0.5, 1.1, (), np.float32),
            "b": Box(0.5, 1.5, (), np.float32),
        }
        super().__init__(env, gymnasium.spaces.Dict(space), horizon)
        self.state_cost, self.action_cost, self.noise, self.start = state_cost, action_cost, noise, start

    def example(self) -> TaskParams:
        """a = 0.9 and b = 1."""
        return {"a": np.array(0.9, np.float32), "b": np.array(1.0, np.float32)}

    def expected_return(self, params: Params, task: TaskTensors) -> Tensor:
        """J of ONE task, by the moments; `params` has the scalars `gain` k, `offset` m and `log_std` log s."""
        k, m, s2 = params["gain"], params["offset"], (2 * params["log_std"]).exp()
        closed, push = task["a"] + task["b"] * k, task["b"] * m
        noise = task["b"] ** 2 * s2 + self.noise**2
        first, second = torch.full_like(k, self.start), torch.full_like(k, self.start**2)
        total = torch.zeros_like(k)
        for _ in range(self.horizon):
            effort = k**2 * second + 2 * k * m * first + m**2 + s2
            total = total - self.state_cost * second - self.action_cost * effort
            second = closed**2 * second + 2 * closed * push * first + push**2 + noise
            first = closed * first + push
        return total
