"""T x E MuJoCo environments of one body as a Gymnasium vector environment, bit for bit equal to single ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.error import ResetNeeded
from gymnasium.utils.seeding import np_random
from mujoco import MjData, MjModel

from metarl.envs.mujoco.objectives import Motion, Objective
from metarl.envs.mujoco.physics import Array, Physics
from metarl.envs.vector import TaskVectorEnv, read_reset_mask
from metarl.errors import check_int
from metarl.types import TaskParams

Flags = npt.NDArray[np.bool_]


class Rewards(NamedTuple):
    """The weights of a body's reward, and whether a fall ends the episode; named as in Gymnasium's environments."""

    ctrl_cost_weight: float
    contact_cost_weight: float = 0.0
    healthy_reward: float = 0.0
    terminate_when_unhealthy: bool = True


class MujocoVectorEnv(TaskVectorEnv, ABC):
    """N = T x E environments, task-major, in numpy. A subclass defines a body: its observations, costs and falls.

    Autoreset is disabled: an environment that has ended is not stepped. Its state and flags stay as they are and its
    reward is 0 until `reset`. An episode is truncated at its step `horizon`, unless it terminates on that step. As in
    Gymnasium's vector environments, environment i of `reset(seed=s)` starts like a single one with `seed=s + i`.

    Args:
        env: one environment of this body, for its spaces, time step and initial state.
        models: N models, or the same one N times.
        objective: the part of the reward that differs between tasks.
        task: arrays `[T, ...]`.
        rewards: the weights of the other parts.
        observation: what is observed, as keywords of Gymnasium's environment.
        horizon: steps per episode, at most.
        threads: number of threads that step the physics; by default one for each CPU.
    """

    contact_forces = False  # whether they are needed after a step
    normal_velocities: ClassVar[bool] = False  # whether initial velocities are normal; otherwise uniform
    reset_noise: ClassVar[float]

    def __init__(
        self,
        env: MujocoEnv,
        models: Sequence[MjModel],
        objective: Objective,
        task: TaskParams,
        rewards: Rewards,
        observation: Mapping[str, bool],
        horizon: int,
        threads: int | None = None,
    ) -> None:
        super().__init__(len(models), env.observation_space, env.action_space)
        self.horizon = horizon
        # The body, and what differs between tasks.
        self._dt, self._init_qpos, self._init_qvel = env.dt, env.init_qpos, env.init_qvel
        self._objective, self.rewards, self.observation = objective, rewards, observation
        self._task = {k: np.repeat(v, self.num_envs // len(v), 0) for k, v in task.items()}  # [N, ...]
        self.allocate(env.model)
        self.physics = Physics(models, env.frame_skip, self.contact_forces, threads)
        # The running episodes.
        self._rngs: list[np.random.Generator] = []
        self._all = range(self.num_envs)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._terminated = np.zeros(self.num_envs, dtype=bool)

    @property
    def threads(self) -> int:
        """Number of threads that step the physics; the results do not depend on it."""
        return self.physics.threads

    @threads.setter
    def threads(self, number: int) -> None:
        self.physics.threads = check_int("threads", number)

    def allocate(self, model: MjModel) -> None:
        """Make the arrays that `read` fills; none by default."""

    def read(self, model: MjModel, data: MjData, i: int) -> None:
        """Copy from `data` what is not in the state of environment i; called in a thread."""

    @abstractmethod
    def observe(self) -> Array:
        """The observations, a new array `[N, obs]`."""

    def place(self) -> Array:
        """Places from which velocities are computed, a new array `[N, 1]` or `[N, 2]`; x by default, m."""
        return self.physics.qpos[:, :1].copy()

    def healthy(self) -> Flags:
        """Which bodies have not fallen, `[N]`."""
        return np.ones(self.num_envs, dtype=bool)

    def contact_cost(self, weight: float) -> Array | float:
        """The cost of contacts, `[N]`."""
        return 0.0

    def control_cost(self, actions: npt.NDArray[Any]) -> Array:
        """The cost of the actions, `[N]`."""
        cost: Array = self.rewards.ctrl_cost_weight * np.sum(np.square(actions), axis=1)
        return cost

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin new episodes everywhere, or only where the mask of `options={"reset_mask": mask}` (bool `[N]`) is true.

        Returns the observations of all environments `[N, ...]`, including those not reset.

        Raises:
            ValueError: an unknown option, or a mask of another shape or type.
            ResetNeeded: a mask before the first full reset.
        """
        super().reset(seed=seed)
        mask = read_reset_mask(options or {}, self.num_envs, begun=bool(self._rngs))
        if seed is not None or not self._rngs:
            first = int(self.np_random.integers(2**31)) if seed is None else seed
            self._rngs = [np_random(first + i)[0] for i in self._all]
        where = self._all if mask.all() else np.flatnonzero(mask).tolist()
        noise = [self._noise(self._rngs[i]) for i in where]
        if noise:
            qpos, qvel = (np.array(part) for part in zip(*noise, strict=True))
            self.physics.reset(where, self._init_qpos + qpos, self._init_qvel + qvel, self.read)
        self._steps[mask] = 0
        self._ended[mask] = self._terminated[mask] = False
        return self.observe(), {}

    def step(self, actions: npt.NDArray[Any]) -> tuple[Array, Array, Flags, Flags, dict[str, Any]]:
        """One step everywhere: observations `[N, ...]`, rewards, terminated, truncated (each `[N]`), an empty info.

        Raises:
            ValueError: actions of another shape.
            ResetNeeded: before the first reset.
        """
        if not self._rngs:
            raise ResetNeeded("call reset() before step()")
        actions = np.asarray(actions)
        self.check_shape(actions)
        running = ~self._ended
        where = self._all if running.all() else np.flatnonzero(running).tolist()
        before = self.place()
        self.physics.ctrl[where] = actions[where]
        self.physics.step(where, self.read)
        self._steps[where] += 1
        healthy = self.healthy()
        self._terminated = ~healthy & self.rewards.terminate_when_unhealthy
        truncated = (self._steps >= self.horizon) & ~self._terminated
        self._ended = self._terminated | truncated
        rewards = np.where(running, self._reward(before, actions, healthy), 0.0)
        return self.observe(), rewards, self._terminated.copy(), truncated, {}

    def _reward(self, before: Array, actions: npt.NDArray[Any], healthy: Flags) -> Array:
        velocity = (self.place() - before) / self._dt
        motion = Motion(velocity.T, self.physics.qpos.T)
        gain = self._objective(motion, self._task) + healthy * self.rewards.healthy_reward
        cost = self.contact_cost(self.rewards.contact_cost_weight)
        reward: Array = gain - self.control_cost(actions) - cost
        return reward

    def _noise(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """The noise that Gymnasium's environment of this body adds to its initial positions and velocities."""
        scale = self.reset_noise
        qpos = rng.uniform(-scale, scale, len(self._init_qpos))
        size = len(self._init_qvel)
        return qpos, scale * rng.standard_normal(size) if self.normal_velocities else rng.uniform(-scale, scale, size)
