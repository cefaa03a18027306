"""2-D navigation (Finn, Abbeel, Levine 2017, "Model-Agnostic Meta-Learning", section 5.3): walk to an unknown goal.

    position' = position + 0.1 clip(action, -1, 1)        reward = -||position' - goal||

The paper's text and its published code differ; the code is the default here:

- reward: minus the *squared* distance in the text (`squared_distance=True`), minus the distance in the code;
- end: within 0.01 of the goal in the text, within 0.01 in each axis in the code;
- actions: both limit a step to 0.1 in each axis; in the code actions are in [-1, 1] and scaled by 0.1.
"""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from metarl.envs.base import check_rng
from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.envs.plots import PlanePlots
from metarl.envs.rendering import AGENT, GOAL, LIGHT, Canvas, Point
from metarl.errors import check_bool, check_int, check_real
from metarl.functional_env import Frame, FunctionalEnv, TaskTensors
from metarl.types import TaskParams

STEP_SIZE = 0.1
TOLERANCE = 0.01


class NavigationEnv(FunctionalEnv):
    """The functions of 2-D navigation; state and observation are the position `[n, 2]`, `task["goal"]` is `[n, 2]`."""

    def __init__(self, squared_distance: bool = False) -> None:
        check_bool("squared_distance", squared_distance)
        self.squared_distance = squared_distance
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """The origin."""
        return torch.zeros_like(task["goal"])

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """`state + 0.1 clip(action, -1, 1)`."""
        return state.add(action.clamp(-1.0, 1.0), alpha=STEP_SIZE)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """Minus the distance from the *new* position to the goal, or minus its square."""
        offset = next_state - task["goal"]
        squared = offset.square().sum(-1)
        return -squared if self.squared_distance else -squared.sqrt()

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """The position."""
        return state

    def terminal(self, state: Tensor, task: TaskTensors) -> Tensor:
        """Within 0.01 of the goal in both axes."""
        return (state - task["goal"]).abs().amax(-1) < TOLERANCE

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        """The goal in green, the agent in blue, the axes through the start."""
        canvas = Canvas(-1.2, 1.2)
        canvas.line(Point(-1.2, 0.0), Point(1.2, 0.0), LIGHT).line(Point(0.0, -1.2), Point(0.0, 1.2), LIGHT)
        return canvas.disc(Point(*task["goal"].tolist()), 0.07, GOAL).disc(Point(*state.tolist()), 0.05, AGENT).frame()


class _NavigationDistribution(PlanePlots, FunctionalDistribution):
    """What the square and the ring share: the environment and the plots."""

    def __init__(self, low: float, high: float, horizon: int, squared_distance: bool) -> None:
        space = gymnasium.spaces.Dict({"goal": Box(low, high, (2,), np.float32)})
        super().__init__(NavigationEnv(squared_distance), space, horizon)
        self.squared_distance = squared_distance

    def example(self) -> TaskParams:
        """A goal in the upper right of the paper's square."""
        return {"goal": np.array([0.25, 0.25], np.float32)}


class Navigation(_NavigationDistribution):
    """Goals uniform in the square [`goal_low`, `goal_high`]^2 (in the paper: half a unit around the start).

    Args:
        horizon: steps per episode, at most.
        squared_distance: reward minus the squared distance (as in the paper's text) instead of the distance (its code).
        goal_low: lower edge of the square, in both coordinates.
        goal_high: upper edge.

    >>> Navigation().sample(2, np.random.default_rng(0))["goal"].round(3)
    array([[ 0.137, -0.23 ],
           [-0.459, -0.483]], dtype=float32)
    """

    def __init__(
        self, horizon: int = 100, squared_distance: bool = False, goal_low: float = -0.5, goal_high: float = 0.5
    ) -> None:
        self.goal_low = check_real("goal_low", goal_low, -math.inf)
        self.goal_high = check_real("goal_high", goal_high, self.goal_low)
        super().__init__(self.goal_low, self.goal_high, horizon, squared_distance)

    def out_of_distribution(self) -> NavigationRing:
        """Goals on a ring outside the square, from 1.5 to 2 times its reach: 0.75 to 1 for the paper's square."""
        # The corners are at sqrt(2) times the reach, so the ring begins outside them.
        reach = max(abs(self.goal_low), abs(self.goal_high))
        return NavigationRing(1.5 * reach, 2.0 * reach, self.horizon, self.squared_distance)


class NavigationRing(_NavigationDistribution):
    """Goals uniform by *area* on the ring `radius_low <= ||goal|| <= radius_high`, outside the paper's square.

    Args:
        radius_low: inner radius.
        radius_high: outer radius.
        horizon: steps per episode, at most.
        squared_distance: as for `Navigation`.
    """

    def __init__(
        self, radius_low: float = 0.75, radius_high: float = 1.0, horizon: int = 100, squared_distance: bool = False
    ) -> None:
        self.radius_low = check_real("radius_low", radius_low, open_low=False)
        self.radius_high = check_real("radius_high", radius_high, self.radius_low)
        super().__init__(-self.radius_high, self.radius_high, horizon, squared_distance)

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """`num_tasks` goals, float32 `[T, 2]`."""
        check_int("num_tasks", num_tasks)
        check_rng(rng)
        angle = rng.uniform(0.0, 2.0 * math.pi, num_tasks)
        # The square root makes the goals uniform by area.
        radius = np.sqrt(rng.uniform(self.radius_low**2, self.radius_high**2, num_tasks))
        goal = radius * np.stack([np.cos(angle), np.sin(angle)])  # [2, T]
        return {"goal": goal.T.astype(np.float32)}
