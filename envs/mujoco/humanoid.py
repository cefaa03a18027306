"""Humanoid: direction in the plane.

The body, its 348 observations, its costs and its termination (unless 1 m < z < 2 m) are those of Gymnasium's
`Humanoid-v5`; a control step is 0.015 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv, mass_center
from mujoco import MjData, MjModel

from metarl.envs.mujoco.distribution import Angle, Body
from metarl.envs.mujoco.objectives import angle
from metarl.envs.mujoco.physics import Array
from metarl.envs.mujoco.vector import Flags, MujocoVectorEnv
from metarl.errors import check_real

ROOT = 6  # degrees of freedom that no actuator moves
LARGEST_CONTACT_COST = 10.0


class HumanoidVectorEnv(MujocoVectorEnv):
    """Many humanoids."""

    reset_noise = 0.01
    contact_forces = True

    def allocate(self, model: MjModel) -> None:
        """Centres of mass, inertias, velocities, actuator and contact forces."""
        n, bodies = self.num_envs, model.nbody
        self._centre = np.empty((n, 2))
        self._inertias, self._velocities = np.empty((n, bodies, 10)), np.empty((n, bodies, 6))
        self._actuators, self._forces = np.empty((n, model.nv)), np.zeros((n, bodies, 6))

    def read(self, model: MjModel, data: MjData, i: int) -> None:
        """What Gymnasium's environment observes in addition to the state."""
        self._centre[i] = mass_center(model, data)  # type: ignore[no-untyped-call]
        self._inertias[i], self._velocities[i] = data.cinert, data.cvel
        self._actuators[i], self._forces[i] = data.qfrc_actuator, data.cfrc_ext

    def observe(self) -> Array:
        """Positions except x and y, velocities, inertias, body velocities, actuator and contact forces: `[N, 348]`."""
        n, physics = self.num_envs, self.physics
        bodies = [part[:, 1:].reshape(n, -1) for part in (self._inertias, self._velocities, self._forces)]
        parts = (physics.qpos[:, 2:], physics.qvel, *bodies[:2], self._actuators[:, ROOT:], bodies[2])
        return np.concatenate(parts, axis=1)

    def place(self) -> Array:
        """x and y of the centre of mass, m."""
        return self._centre.copy()

    def healthy(self) -> Flags:
        """Upright: 1 m < z < 2 m."""
        z = self.physics.qpos[:, 2]
        upright: Flags = (z > 1.0) & (z < 2.0)
        return upright

    def control_cost(self, actions: npt.NDArray[Any]) -> Array:
        """The cost of the controls, which are the actions in double precision."""
        return super().control_cost(self.physics.ctrl)

    def contact_cost(self, weight: float) -> Array | float:
        """`weight` times the sum of the squared contact forces, at most 10."""
        cost: Array = weight * np.sum(np.square(self._forces.reshape(self.num_envs, -1)), axis=1)
        return np.minimum(cost, LARGEST_CONTACT_COST)


@dataclass(eq=False)
class HumanoidDirection(Angle):
    """Run in a direction of the plane: `1.25 v . (cos, sin)(angle) + 5 - 0.1 |a|^2 - 5e-7 |contact forces|^2`.

    These are the weights of `Humanoid-v5` and of PEARL's code. `task["angle"]` is a number, rad, uniform in [0, 2 pi].

    Args:
        horizon: control steps per episode, at most, 0.015 s each.
        forward_reward_weight: of the speed in the direction.
        healthy_reward: for each step that does not end the episode by a fall.
        ctrl_cost_weight: of |a|^2.
        contact_cost_weight: of the squared contact forces; this cost is at most 10.
        terminate_when_unhealthy: end the episode at a fall.
        threads: number of threads that step the physics.
    """

    body = Body(HumanoidEnv, HumanoidVectorEnv, hidden=2)
    forward_reward_weight: float = 1.25
    healthy_reward: float = 5.0
    ctrl_cost_weight: float = 0.1
    contact_cost_weight: float = 5e-7
    terminate_when_unhealthy: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        weight = check_real("forward_reward_weight", self.forward_reward_weight, open_low=False)
        self._set_fixed(objective=partial(angle, weight=weight))
        super().__post_init__()
