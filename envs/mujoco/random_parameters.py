"""Walker2d and hopper with random masses, inertias, joint damping and friction.

Every entry of `body_mass`, `body_inertia`, `dof_damping` and `geom_friction` is multiplied by 1.5^u, u uniform in
[-3, 3]; a task consists of the exponents u. This is the family of `rand_param_envs`, used by ProMP and PEARL. The
bodies, their observations, rewards `v + 1 - 0.001 |a|^2` and terminations are those of Gymnasium's `Walker2d-v5` and
`Hopper-v5`. A control step is 0.008 s.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from gymnasium.spaces import Box
from mujoco import MjData, MjModel

from metarl.envs.mujoco.distribution import Body, MujocoDistribution
from metarl.envs.mujoco.objectives import forward
from metarl.envs.mujoco.physics import Array
from metarl.envs.mujoco.vector import Flags, MujocoVectorEnv
from metarl.errors import check_real
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCALED = ("body_mass", "body_inertia", "dof_damping", "geom_friction")


class PlanarVectorEnv(MujocoVectorEnv):
    """Many bodies that walk in a plane."""

    reset_noise = 5e-3

    def observe(self) -> Array:
        """Positions except x, velocities clipped to [-10, 10]: `[N, obs]`."""
        return np.concatenate((self.physics.qpos[:, 1:], np.clip(self.physics.qvel, -10.0, 10.0)), axis=1)


class Walker2dVectorEnv(PlanarVectorEnv):
    """Many walkers."""

    def healthy(self) -> Flags:
        """Upright: 0.8 m < z < 2 m, the torso within 1 rad."""
        z, turn = self.physics.qpos[:, 1], self.physics.qpos[:, 2]
        upright: Flags = (z > 0.8) & (z < 2.0) & (turn > -1.0) & (turn < 1.0)
        return upright


class HopperVectorEnv(PlanarVectorEnv):
    """Many hoppers."""

    def healthy(self) -> Flags:
        """Upright: z > 0.7 m, the torso within 0.2 rad, and no entry of the state beyond 100."""
        z, turn = self.physics.qpos[:, 1], self.physics.qpos[:, 2]
        state = np.concatenate((self.physics.qpos[:, 2:], self.physics.qvel), axis=1)
        upright: Flags = (z > 0.7) & (z < np.inf) & (turn > -0.2) & (turn < 0.2) & (np.abs(state) < 100.0).all(1)
        return upright


@dataclass(eq=False)
class RandomParameters(MujocoDistribution):
    """Tasks with randomly scaled bodies: each has its own model.

    Args:
        horizon: control steps per episode, at most, 0.008 s each.
        log_scale: largest exponent.
        base: the number raised to the exponents.
        healthy_reward: for each step that does not end the episode by a fall.
        ctrl_cost_weight: of |a|^2.
        terminate_when_unhealthy: end the episode at a fall.
        threads: number of threads that step the physics.
    """

    objective = staticmethod(forward)
    log_scale: float = 3.0
    base: float = 1.5
    healthy_reward: float = 1.0
    ctrl_cost_weight: float = 1e-3
    terminate_when_unhealthy: bool = True
    threads: int | None = None

    def choose_space(self) -> gymnasium.spaces.Dict:
        """The exponents."""
        size = check_real("log_scale", self.log_scale)
        self._set_fixed(log_scale=size, base=check_real("base", self.base, 1.0))
        shapes = {name: getattr(self.template.model, name).shape for name in SCALED}
        return gymnasium.spaces.Dict({name: Box(-size, size, shape, np.float32) for name, shape in shapes.items()})

    def make_models(self, tasks: TaskParams) -> Sequence[MjModel]:
        """Changed copies of the body's model."""
        models = []
        for t in range(len(tasks["body_mass"])):
            model = copy.copy(self.template.model)
            self.change_model(model, MjData(model), {name: value[t] for name, value in tasks.items()})
            models.append(model)
        return models

    def example(self) -> TaskParams:
        """The unchanged body."""
        return {name: np.zeros(entry.shape or (), np.float32) for name, entry in self.space.items()}

    def change_model(self, model: MjModel, data: MjData, task: TaskParams) -> None:
        """Scale the parameters, and let MuJoCo recompute what depends on masses and inertias."""
        for name, exponents in task.items():
            getattr(model, name)[:] *= self.base ** exponents.astype(np.float64)
        mujoco.mj_setConst(model, data)

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The mass of the body relative to the unchanged one, as a label."""
        mass = self.template.model.body_mass
        heavier = (mass * self.base ** task["body_mass"].astype(np.float64)).sum() / mass.sum()
        ax.set_xlabel(f"{heavier:.2f} times the mass", fontsize=8)


class Walker2dRandomParameters(RandomParameters):
    """`Walker2d-v5` with a randomly scaled body."""

    body = Body(Walker2dEnv, Walker2dVectorEnv, hidden=1)


class HopperRandomParameters(RandomParameters):
    """`Hopper-v5` with a randomly scaled body."""

    body = Body(HopperEnv, HopperVectorEnv, hidden=1)
