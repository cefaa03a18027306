"""Ant: goal velocity, direction and goal position (Finn, Abbeel, Levine 2017, and its code).

The body and its time step of 0.05 s are those of Gymnasium's `Ant-v5`, and so is when it is over: unless
0.2 m <= z <= 1 m. The original code used another simulator with a control step of 0.02 s: returns differ.

Observed are positions without x and y, and velocities: 27 numbers. `contact_forces=True` adds the 78 contact forces of
`Ant-v5`; the codes of ProMP, PEARL and VariBAD had a place for them, but their simulator left it zero.

Actions are in [-1, 1], which the original code scales to its own range before it charges for them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.spaces import Box
from mujoco import MjData, MjModel

from metarl.envs.base import check_rng, check_task
from metarl.envs.mujoco.distribution import (
    ANGLES,
    DIRECTIONS,
    Angle,
    Body,
    Direction,
    GoalVelocity,
    MujocoDistribution,
    goal_space,
)
from metarl.envs.mujoco.objectives import angle, direction, goal_position, goal_velocity
from metarl.envs.mujoco.physics import Array
from metarl.envs.mujoco.vector import Flags, MujocoVectorEnv
from metarl.errors import check_choice, check_int, check_real
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        """Places as MuJoCo leaves them after a step: of its last stage, a little behind the state."""
        self._torso[i] = data.xpos[1, :2]
        if self.contact_forces:
            self._forces[i] = data.cfrc_ext

    def observe(self) -> Array:
        """Positions, velocities and, where asked for, contact forces within [-1, 1]: `[N, obs]`."""
        hidden = 2 if self.observation[HIDE_PLACE] else 0
        parts = [self.physics.qpos[:, hidden:], self.physics.qvel]
        if self.observation[CONTACTS]:
            parts.append(np.clip(self._forces[:, 1:], -1.0, 1.0).reshape(self.num_envs, -1))
        return np.concatenate(parts, axis=1)

    def place(self) -> Array:
        """x and y of the torso, m."""
        return self._torso.copy()

    def healthy(self) -> Flags:
        """Neither fallen nor on its back: 0.2 m <= z <= 1 m."""
        z = self.physics.qpos[:, 2]
        finite = np.isfinite(self.physics.qpos).all(1) & np.isfinite(self.physics.qvel).all(1)
        fine: Flags = finite & (z >= 0.2) & (z <= 1.0)
        return fine

    def contact_cost(self, weight: float) -> Array | float:
        """Of the forces' squares, each force clipped to [-1, 1]."""
        if weight == 0:
            return 0.0
        forces = np.clip(self._forces, -1.0, 1.0).reshape(self.num_envs, -1)
        cost: Array = weight * np.sum(np.square(forces), axis=1)
        return cost


BODY = Body(AntEnv, AntVectorEnv, hidden=2)


def _weights(healthy_reward: float, ctrl: float, contact: float, terminate: bool) -> dict[str, Any]:
    return {
        "healthy_reward": healthy_reward,
        "ctrl_cost_weight": ctrl,
        "contact_cost_weight": contact,
        "terminate_when_unhealthy": terminate,
    }


def _seen(contact_forces: bool, place: bool = False) -> dict[str, bool]:
    return {CONTACTS: bool(contact_forces), HIDE_PLACE: not place}


class AntVelocity(GoalVelocity):
    """Run at a speed that is not told: reward `-|v - goal| + 1.05 - 0.005 |a|^2 - 0.0005 |contact forces|^2`.

    That is the paper's code: an offset of 1 and 0.05 for being alive, here one `healthy_reward`. Goals are uniform in
    [0, 3] m/s in the paper and its code. `task["goal"]` is a number, m/s.

    Args:
        horizon: control steps per episode, at most, 0.05 s each.
        goal_low: slowest goal, m/s.
        goal_high: fastest goal, m/s.
        healthy_reward: for each step that does not end the episode by a fall.
        ctrl_cost_weight: of |a|^2.
        contact_cost_weight: of the contact forces' squares, each force clipped to [-1, 1].
        terminate_when_unhealthy: end the episode when it falls or turns over.
        contact_forces: observe them, too.
        threads: that step the physics.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        horizon: int = 200,
        goal_low: float = 0.0,
        goal_high: float = 3.0,
        healthy_reward: float = 1.05,
        ctrl_cost_weight: float = 0.005,
        contact_cost_weight: float = 5e-4,
        terminate_when_unhealthy: bool = True,
        contact_forces: bool = False,
        threads: int | None = None,
    ) -> None:
        weights = _weights(healthy_reward, ctrl_cost_weight, contact_cost_weight, terminate_when_unhealthy)
        space = goal_space(goal_low, goal_high)
        super().__init__(BODY, goal_velocity, space, horizon, weights, _seen(contact_forces), threads)


class AntDirection(Direction):
    """Run forward (1) or backward (-1): reward `direction v + 0.05 - 0.005 |a|^2 - 0.0005 |contact forces|^2`.

    That is the paper's code. ProMP, PEARL and VariBAD have `healthy_reward=1` and `ctrl_cost_weight=0.5`.
    `task["direction"]` is a number.

    Args:
        horizon: control steps per episode, at most, 0.05 s each.
        healthy_reward: for each step that does not end the episode by a fall.
        ctrl_cost_weight: of |a|^2.
        contact_cost_weight: of the contact forces' squares, each force clipped to [-1, 1].
        terminate_when_unhealthy: end the episode when it falls or turns over.
        contact_forces: observe them, too.
        threads: that step the physics.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        horizon: int = 200,
        healthy_reward: float = 0.05,
        ctrl_cost_weight: float = 0.005,
        contact_cost_weight: float = 5e-4,
        terminate_when_unhealthy: bool = True,
        contact_forces: bool = False,
        threads: int | None = None,
    ) -> None:
        weights = _weights(healthy_reward, ctrl_cost_weight, contact_cost_weight, terminate_when_unhealthy)
        super().__init__(BODY, direction, DIRECTIONS, horizon, weights, _seen(contact_forces), threads)


class AntDirection2D(Angle):
    """Run in a direction of the plane: reward `v . (cos, sin)(angle) + 1 - 0.5 |a|^2`, as in ProMP.

    `task["angle"]` is a number, rad, uniform in [0, 2 pi].

    Args:
        horizon: control steps per episode, at most, 0.05 s each.
        healthy_reward: for each step that does not end the episode by a fall.
        ctrl_cost_weight: of |a|^2.
        contact_cost_weight: of the contact forces' squares, each force clipped to [-1, 1].
        terminate_when_unhealthy: end the episode when it falls or turns over.
        contact_forces: observe them, too.
        threads: that step the physics.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        horizon: int = 200,
        healthy_reward: float = 1.0,
        ctrl_cost_weight: float = 0.5,
        contact_cost_weight: float = 0.0,
        terminate_when_unhealthy: bool = True,
        contact_forces: bool = False,
        threads: int | None = None,
    ) -> None:
        weights = _weights(healthy_reward, ctrl_cost_weight, contact_cost_weight, terminate_when_unhealthy)
        super().__init__(BODY, angle, ANGLES, horizon, weights, _seen(contact_forces), threads)


class AntGoal(MujocoDistribution):
    """Reach a place that is not told: reward `-|x - goal|_1 + 4.05 - 0.005 |a|^2 - 0.0005 |contact forces|^2`.

    That is the paper's code: an offset of 4 and 0.05 for being alive, here one `healthy_reward`; in ProMP there is none
    for being alive. Goals, `task["goal"]` in m, are uniform in the square [-3, 3]^2, or in the `disc` of radius 3 as in
    VariBAD. The place is observed: x and y come first.

    Args:
        horizon: control steps per episode, at most, 0.05 s each.
        radius: of the disc, or half the side of the square, m.
        region: `square` or `disc`.
        healthy_reward: for each step that does not end the episode by a fall.
        ctrl_cost_weight: of |a|^2.
        contact_cost_weight: of the contact forces' squares, each force clipped to [-1, 1].
        terminate_when_unhealthy: end the episode when it falls or turns over.
        contact_forces: observe them, too.
        threads: that step the physics.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        horizon: int = 200,
        radius: float = 3.0,
        region: str = "square",
        healthy_reward: float = 4.05,
        ctrl_cost_weight: float = 0.005,
        contact_cost_weight: float = 5e-4,
        terminate_when_unhealthy: bool = True,
        contact_forces: bool = False,
        threads: int | None = None,
    ) -> None:
        self.radius = check_real("radius", radius)
        self.region = check_choice("region", region, ("square", "disc"))
        space = gymnasium.spaces.Dict({"goal": Box(-self.radius, self.radius, (2,), np.float32)})
        weights = _weights(healthy_reward, ctrl_cost_weight, contact_cost_weight, terminate_when_unhealthy)
        super().__init__(BODY, goal_position, space, horizon, weights, _seen(contact_forces, place=True), threads)

    def example(self) -> TaskParams:
        """A place to the front and left."""
        return {"goal": np.array([2.0, 1.0], np.float32)}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """`num_tasks` goals, float32 `[T, 2]`, uniform by area."""
        if self.region == "square":
            return super().sample(num_tasks, rng)
        check_int("num_tasks", num_tasks)
        turn = check_rng(rng).uniform(0.0, 2.0 * math.pi, num_tasks)
        radius = self.radius * np.sqrt(rng.uniform(size=num_tasks))  # the square root: by area
        return {"goal": (radius * np.stack([np.cos(turn), np.sin(turn)])).T.astype(np.float32)}

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The goal as a star; the axes in equal scale."""
        x, y = check_task(self.space, task)["goal"]
        ax.plot([x], [y], marker="*", markersize=12, color="tab:green", linestyle="none")
        ax.set_aspect("equal")

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """The path in the plane."""
        ax.plot(observations[:, 0], observations[:, 1], **line_kwargs)
