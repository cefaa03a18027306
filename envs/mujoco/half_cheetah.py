"""Half-cheetah: goal velocity and direction (Finn, Abbeel, Levine 2017, section 5.3).

The body, its 17 observations (positions without x, velocities) and its time step of 0.05 s (5 physics steps) are those
of Gymnasium's `HalfCheetah-v5`. The original code used another simulator with a control step of 0.01 s: its 200 steps
are 2 s, ours 10 s, so returns must not be compared. No state is terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

from metarl.envs.mujoco.distribution import Body, Direction, GoalVelocity, MujocoDistribution
from metarl.envs.mujoco.physics import Array
from metarl.envs.mujoco.vector import MujocoVectorEnv


class HalfCheetahVectorEnv(MujocoVectorEnv):
    """Many half-cheetahs."""

    normal_velocities = True
    reset_noise = 0.1

    def observe(self) -> Array:
        """Positions except x, velocities: `[N, 17]`."""
        return np.concatenate((self.physics.qpos[:, 1:], self.physics.qvel), axis=1)


@dataclass(eq=False)
class HalfCheetah(MujocoDistribution):
    """Tasks for a half-cheetah.

    Args:
        horizon: control steps per episode, 0.05 s each.
        ctrl_cost_weight: of |a|^2.
        threads: number of threads that step the physics; by default one for each CPU. Results do not depend on it.
    """

    body = Body(HalfCheetahEnv, HalfCheetahVectorEnv, hidden=1)
    ctrl_cost_weight: float = 0.05
    threads: int | None = None


@dataclass(eq=False)
class HalfCheetahVelocity(HalfCheetah, GoalVelocity):
    """Run at an unknown speed: reward `-|v - goal| - 0.05 |a|^2`; `task["goal"]` is a number, m/s.

    This is the reward of the paper's code; the paper's text has no control cost (`ctrl_cost_weight=0`). Goals are
    uniform in [0, 2] m/s as in the paper and in CAVIA; ProMP, PEARL and VariBAD have [0, 3] (`goal_high=3`).

    Args:
        horizon: this argument and those not listed here are as for `HalfCheetah`.
        goal_low: slowest goal, m/s.
        goal_high: fastest goal, m/s.

    >>> HalfCheetahVelocity().sample(2, np.random.default_rng(0))["goal"].round(3)
    array([1.274, 0.54 ], dtype=float32)
    """

    def out_of_distribution(self) -> HalfCheetahVelocity:
        """Faster goals, in a range half as wide: U(2, 3) for the default U(0, 2)."""
        return replace(self, goal_low=self.goal_high, goal_high=self.goal_high + (self.goal_high - self.goal_low) / 2.0)


@dataclass(eq=False)
class HalfCheetahDirection(HalfCheetah, Direction):
    """Run forward (1) or backward (-1): reward `direction v - 0.05 |a|^2`; `task["direction"]` is a number.

    This is the reward of the paper's code; the paper's text has no control cost (`ctrl_cost_weight=0`). The arguments
    are those of `HalfCheetah`.
    """
