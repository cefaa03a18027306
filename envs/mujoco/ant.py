"""Ant: goal velocity, direction and goal position (Finn, Abbeel, Levine 2017, and its code).

The body, its time step of 0.05 s and its termination (unless 0.2 m <= z <= 1 m) are those of Gymnasium's `Ant-v5`. The
original code used another simulator with a control step of 0.02 s, so returns differ.

The observation has 27 numbers: positions without x and y, and velocities. `contact_forces=True` adds the 78 contact
forces of `Ant-v5`. The codes of ProMP, PEARL and VariBAD reserve entries for them, but their simulator left them zero.

Actions are in [-1, 1]. The original code also computes the control cost of actions before it scales them to its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from mujoco import MjData, MjModel

from metarl.envs.mujoco.distribution import Angle, Body, Direction, GoalPlace, GoalVelocity, MujocoDistribution
from metarl.envs.mujoco.physics import Array
from metarl.envs.mujoco.vector import Flags, MujocoVectorEnv

CONTACTS, HIDE_PLACE = "include_cfrc_ext_in_observation", "exclude_current_positions_from_observation"


class AntVectorEnv(MujocoVectorEnv):
    """Many ants."""

    normal_velocities = True
    reset_noise = 0.1

    def allocate(self, model: MjModel) -> None:
        """The torsos' places, and the forces on all bodies."""
        self._torso = np.empty((self.num_envs, 2))
        self._forces = np.zeros((self.num_envs, model.nbody, 6))
        self.contact_forces = self.rewards.contact_cost_weight > 0 or self.observation[CONTACTS]

    def read(self, model: MjModel, data: MjData, i: int) -> None:
        """The torso's place as MuJoCo leaves it after a step: from the integrator's last stage, a little late."""
        self._torso[i] = data.xpos[1, :2]
        if self.contact_forces:
            self._forces[i] = data.cfrc_ext

    def observe(self) -> Array:
        """Positions, velocities and, if `contact_forces`, these forces clipped to [-1, 1]: `[N, obs]`."""
        hidden = 2 if self.observation[HIDE_PLACE] else 0
        parts = [self.physics.qpos[:, hidden:], self.physics.qvel]
        if self.observation[CONTACTS]:
            parts.append(np.clip(self._forces[:, 1:], -1.0, 1.0).reshape(self.num_envs, -1))
        return np.concatenate(parts, axis=1)

    def place(self) -> Array:
        """x and y of the torso, m."""
        return self._torso.copy()

    def healthy(self) -> Flags:
        """Neither fallen nor on its back: 0.2 m <= z <= 1 m, and a finite state."""
        z = self.physics.qpos[:, 2]
        finite = np.isfinite(self.physics.qpos).all(1) & np.isfinite(self.physics.qvel).all(1)
        fine: Flags = finite & (z >= 0.2) & (z <= 1.0)
        return fine

    def contact_cost(self, weight: float) -> Array | float:
        """`weight` times the sum of the squared forces, each force clipped to [-1, 1]."""
        if weight == 0:
            return 0.0
        forces = np.clip(self._forces, -1.0, 1.0).reshape(self.num_envs, -1)
        cost: Array = weight * np.sum(np.square(forces), axis=1)
        return cost


@dataclass(eq=False)
class Ant(MujocoDistribution):
    """Tasks for an ant; the weights are those of the paper's code, but for `healthy_reward`.

    Args:
        horizon: control steps per episode, at most, 0.05 s each.
        healthy_reward: for each step that does not end the episode by a fall.
        ctrl_cost_weight: of |a|^2.
        contact_cost_weight: of the squared contact forces, each force clipped to [-1, 1].
        terminate_when_unhealthy: end the episode when the ant falls or turns over.
        contact_forces: whether they are observed.
        threads: number of threads that step the physics; by default one for each CPU. Results do not depend on it.
    """

    body = Body(AntEnv, AntVectorEnv, hidden=2)
    place_is_observed: ClassVar[bool] = False
    healthy_reward: float = 0.05
    ctrl_cost_weight: float = 0.005
    contact_cost_weight: float = 5e-4
    terminate_when_unhealthy: bool = True
    contact_forces: bool = False
    threads: int | None = None

    def choose_observation(self) -> dict[str, bool]:
        """Whether contact forces and the place are observed."""
        return {CONTACTS: bool(self.contact_forces), HIDE_PLACE: not self.place_is_observed}


@dataclass(eq=False)
class AntDirection(Ant, Direction):
    """Run forward (1) or backward (-1): reward `direction v + 0.05 - 0.005 |a|^2 - 0.0005 |contact forces|^2`.

    This is the reward of the paper's code. ProMP, PEARL and VariBAD have `healthy_reward=1` and
    `ctrl_cost_weight=0.5`. `task["direction"]` is a number. The arguments are those of `Ant`.
    """


@dataclass(eq=False)
class AntVelocity(Ant, GoalVelocity):
    """Run at an unknown speed: reward `-|v - goal| + 1.05 - 0.005 |a|^2 - 0.0005 |contact forces|^2`.

    This is the reward of the paper's code: its offset of 1 and its 0.05 for being alive are one `healthy_reward` here.
    Goals are uniform in [0, 3] m/s in the paper and its code. `task["goal"]` is a number, m/s.

    Args:
        horizon: this argument and those not listed here are as for `Ant`.
        goal_low: slowest goal, m/s.
        goal_high: fastest goal, m/s.
    """

    goal_high: float = 3.0
    healthy_reward: float = 1.05


@dataclass(eq=False)
class AntDirection2D(Ant, Angle):
    """Run in a direction of the plane: reward `v . (cos, sin)(angle) + 1 - 0.5 |a|^2`, as in ProMP.

    `task["angle"]` is a number, rad, uniform in [0, 2 pi]. The arguments are those of `Ant`.
    """

    healthy_reward: float = 1.0
    ctrl_cost_weight: float = 0.5
    contact_cost_weight: float = 0.0


@dataclass(eq=False)
class AntGoal(Ant, GoalPlace):
    """Reach an unknown place: reward `-|x - goal|_1 + 4.05 - 0.005 |a|^2 - 0.0005 |contact forces|^2`.

    This is the reward of the paper's code: its offset of 4 and its 0.05 for being alive are one `healthy_reward` here;
    ProMP pays nothing for being alive. Goals, `task["goal"]` in m, are uniform in the square [-3, 3]^2, or in the
    `disc` of radius 3 as in VariBAD. The place is observed: x and y come first.

    Args:
        horizon: this argument and those not listed here are as for `Ant`.
        radius: of the disc, or half the side of the square, m.
        region: `square` or `disc`.
    """

    place_is_observed = True
    healthy_reward: float = 4.05
