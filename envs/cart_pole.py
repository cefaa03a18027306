"""Gymnasium's CartPole with varying poles and carts, and optionally a hidden goal position of the cart.

| parameter  | drawn from   | Gymnasium's |                                             |
|------------|--------------|-------------|---------------------------------------------|
| `length`   | [0.25, 1.5]  | 0.5         | half the pole's length, in metres           |
| `masspole` | [0.05, 0.5]  | 0.1         | kg                                          |
| `masscart` | [0.5, 2]     | 1           | kg                                          |
| `goal`     | [-1, 1]      | none        | metres from the centre; `CartPoleGoal` only |

In `CartPole` the dynamics vary and every step gives 1. One robust policy can be good at all tasks, so expect little
from adaptation. In `CartPoleGoal` a step gives

    reward = 1 - min(1, |x' - goal|)        x': the cart's position after the step

and the goal is not observed. Without knowing it, the best policy balances in the centre and earns 0.5 a step on
average; at the goal a step earns 1.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box

from metarl.envs.gym_distribution import GymDistribution
from metarl.envs.rendering import AGENT, DARK, GOAL, GREY, Canvas, Point
from metarl.errors import check_choice
from metarl.functional_env import Frame

DYNAMICS = {"length": (0.25, 1.5), "masspole": (0.05, 0.5), "masscart": (0.5, 2.0)}
TRACK = -1.5  # height in the picture


class PlainCartPoleEnv(CartPoleEnv):
    """Gymnasium's CartPole, rendered without pygame.

    Args:
        render_mode: None or "rgb_array".
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}  # type: ignore[misc]
    goal: float | None = None

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        super().__init__(render_mode=render_mode)

    def render(self) -> Frame | None:
        """The frame `[256, 256, 3]`, or None if `render_mode` is None; the goal is green."""
        if self.render_mode is None:
            return None
        if self.state is None:
            raise ResetNeeded("call reset() before render()")
        x, _, angle, _ = self.state
        tip = Point(x + 2.0 * self.length * math.sin(angle), TRACK + 2.0 * self.length * math.cos(angle))
        canvas = Canvas(-2.4, 2.4).line(Point(-2.4, TRACK), Point(2.4, TRACK), GREY)
        canvas.box(Point(x - 0.3, TRACK - 0.15), Point(x + 0.3, TRACK + 0.15), AGENT)
        canvas.line(Point(x, TRACK), tip, DARK, width=4)
        if self.goal is not None:
            canvas.disc(Point(self.goal, TRACK - 0.3), 0.08, GOAL)
        return canvas.frame()


class CartPoleGoalEnv(PlainCartPoleEnv):
    """CartPole with a reward for being near `goal`, in metres from the centre; the goal is not observed."""

    goal: float = 0.0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As Gymnasium's, with the reward `1 - min(1, |x - goal|)` of the new position."""
        observation, _, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        assert self.state is not None
        return observation, 1.0 - min(1.0, abs(float(self.state[0]) - self.goal)), terminated, truncated, info


def set_cart_pole(env: PlainCartPoleEnv, task: dict[str, float]) -> None:
    """Set the parameters in `task`, and the two values that CartPole derives from them."""
    for name, value in task.items():
        setattr(env, name, value)
    env.total_mass = env.masspole + env.masscart
    env.polemass_length = env.masspole * env.length


class CartPole(GymDistribution):
    """CartPole with uniformly drawn pole half-length, pole mass and cart mass.

    Args:
        horizon: steps per episode, at most.
        workers: processes that step the environments; 0 steps them in this process, which is faster here.

    >>> tasks = CartPole()
    >>> {name: value.round(2) for name, value in tasks.sample(2, np.random.default_rng(0)).items()}
    {'length': array([1.05, 0.59], dtype=float32), ...}
    """

    env_class: ClassVar[type[PlainCartPoleEnv]] = PlainCartPoleEnv
    ranges: ClassVar[dict[str, tuple[float, float]]] = DYNAMICS

    def __init__(self, horizon: int = 200, workers: int = 0) -> None:
        space = gymnasium.spaces.Dict({name: Box(*ends, (), np.float32) for name, ends in self.ranges.items()})
        super().__init__(self.env_class, space, horizon=horizon, set_task=set_cart_pole, workers=workers)


class CartPoleGoal(CartPole):
    """`CartPole` with a hidden, uniformly drawn goal position; the arguments are the same."""

    env_class = CartPoleGoalEnv
    ranges: ClassVar = {**DYNAMICS, "goal": (-1.0, 1.0)}
