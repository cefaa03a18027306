"""1-D goal velocity: a point mass with drag must hold an unknown speed.

The reward has the form of half-cheetah goal velocity (Finn, Abbeel, Levine 2017): minus the distance to the goal
velocity, minus 0.05 ||a||^2. It is a small substitute, with exact dynamics and goals in the same range.

    m dv/dt = F a - c v        m = 1 kg, c = 1 kg/s, F = 4 N: top speed 4 m/s, time constant 1 s

From rest at full force it reaches 2 m/s after 0.69 s and 3 m/s after 1.39 s. One step is 0.05 s at constant force,
integrated exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box
from torch import Tensor

from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.envs.plots import plot_goal_speed
from metarl.envs.rendering import AGENT, DARK, GOAL, GREY, LIGHT, Canvas, Point
from metarl.errors import check_real
from metarl.functional_env import Frame, FunctionalEnv, TaskTensors
from metarl.task_params import check_task
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MASS = 1.0  # kg
DRAG = 1.0  # kg/s
MAX_FORCE = 4.0  # N
TIME_STEP = 0.05  # s
ACTION_COST = 0.05

TOP_SPEED = MAX_FORCE / DRAG  # m/s
TIME_CONSTANT = MASS / DRAG  # s
DECAY = math.exp(-TIME_STEP / TIME_CONSTANT)  # of v - a TOP_SPEED, in one step


class PointVelocityEnv(FunctionalEnv):
    """The functions; state: position (m, for pictures) and velocity (m/s) `[n, 2]`; observation: velocity `[n, 1]`.

    `task["goal"]` is the goal velocity in m/s, `[n]`. No state is terminal.
    """

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """At rest at the origin."""
        return task["goal"].new_zeros(*task["goal"].shape, 2)

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """The equation of motion, integrated exactly over one time step."""
        position, velocity = state.unbind(-1)
        push = action[:, 0].clamp(-1.0, 1.0)  # [n]
        faster = (DECAY * velocity).add(push, alpha=(1.0 - DECAY) * TOP_SPEED)
        # The displacement follows from the change of velocity: m dv = F a dt - c dx over the step.
        moved = position.add(push, alpha=TIME_STEP * TOP_SPEED).sub(faster - velocity, alpha=TIME_CONSTANT)
        return torch.stack([moved, faster], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """`-|v' - goal| - 0.05 a^2` with the clipped action."""
        miss = (next_state[:, 1] - task["goal"]).abs()
        return -miss.add(action[:, 0].clamp(-1.0, 1.0).square(), alpha=ACTION_COST)

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """The velocity, m/s."""
        return state[:, 1:]

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        """A road that moves past the mass; above it the velocity as a bar and the goal as a line."""
        position, velocity = state.tolist()
        canvas = Canvas(-TOP_SPEED, TOP_SPEED)
        _draw_road(canvas, position)
        return _draw_speed(canvas, velocity, float(task["goal"])).frame()


def _draw_road(canvas: Canvas, position: float) -> Canvas:
    """The mass in the middle, on a road with a mark every metre that moves past it."""
    canvas.line(Point(-TOP_SPEED, -2.0), Point(TOP_SPEED, -2.0), DARK, width=2)
    for metre in range(math.floor(position - TOP_SPEED), math.ceil(position + TOP_SPEED) + 1):
        canvas.line(Point(metre - position, -2.0), Point(metre - position, -2.4), GREY, width=2)
    return canvas.disc(Point(0.0, -1.5), 0.5, AGENT)


def _draw_speed(canvas: Canvas, velocity: float, goal: float) -> Canvas:
    """A bar from zero to the velocity, and the goal as a line; the width is the top speed in both directions."""
    canvas.box(Point(-TOP_SPEED, 1.0), Point(TOP_SPEED, 2.0), LIGHT)
    canvas.box(Point(min(velocity, 0.0), 1.0), Point(max(velocity, 0.0), 2.0), AGENT)
    canvas.line(Point(0.0, 0.8), Point(0.0, 2.2), DARK)
    return canvas.line(Point(goal, 0.6), Point(goal, 2.4), GOAL, width=3)


class PointVelocity(FunctionalDistribution):
    """Goal velocities uniform in [`goal_low`, `goal_high`] m/s; `task["goal"]` is a number (arrays `[T]`).

    Args:
        horizon: steps per episode, 0.05 s each; no episode ends earlier.
        goal_low: slowest goal, m/s.
        goal_high: fastest goal, m/s. Above 4 the goal cannot be reached.

    >>> PointVelocity().sample(2, np.random.default_rng(0))["goal"].round(3)
    array([1.274, 0.54 ], dtype=float32)
    """

    def __init__(self, horizon: int = 100, goal_low: float = 0.0, goal_high: float = 2.0) -> None:
        self.goal_low = check_real("goal_low", goal_low, -math.inf)
        self.goal_high = check_real("goal_high", goal_high, self.goal_low)
        space = gymnasium.spaces.Dict({"goal": Box(self.goal_low, self.goal_high, (), np.float32)})
        super().__init__(PointVelocityEnv(), space, horizon)

    def out_of_distribution(self) -> PointVelocity:
        """Faster goals, in a range half as wide: U(2, 3) for the default U(0, 2)."""
        return PointVelocity(self.horizon, self.goal_high, self.goal_high + (self.goal_high - self.goal_low) / 2.0)

    def example(self) -> TaskParams:
        """1 m/s."""
        return {"goal": np.array(1.0, np.float32)}

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The goal velocity as a dashed line."""
        plot_goal_speed(ax, float(check_task(self.space, task)["goal"]))

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """Velocity (m/s) over time (s)."""
        ax.plot(TIME_STEP * np.arange(len(observations)), observations[:, 0], **line_kwargs)
