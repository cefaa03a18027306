"""What the MuJoCo task distributions share: one environment of a body, or many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from mujoco import MjData, MjModel

from metarl.envs.base import EnvDistribution, check_device, check_rng, check_task, check_tasks
from metarl.envs.mujoco.objectives import Motion, Objective
from metarl.envs.mujoco.vector import MujocoVectorEnv, Rewards
from metarl.errors import check_choice, check_int, check_real
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes


log = logging.getLogger(__name__)


class Body(NamedTuple):
    """A walker: Gymnasium's environment of one, ours of many."""

    env: Callable[..., MujocoEnv]
    vector: type[MujocoVectorEnv]
    hidden: int  # its first positions, which are not observed

    def make(self, settings: Mapping[str, Any], render_mode: str | None) -> MujocoEnv:
        """Gymnasium's environment."""
        camera = {} if render_mode is None else {"camera_name": "track"}  # the default one lets the body run away
        with _remarks_logged():
            return self.env(**settings, **camera, render_mode=render_mode)


class MujocoDistribution(EnvDistribution):
    """Tasks for one body.

    Args:
        body: the walker.
        objective: what the tasks differ in.
        space: the space of ONE task's parameters.
        horizon: control steps per episode, at most.
        weights: of the reward, as keywords of Gymnasium's environment (`ctrl_cost_weight`, ...).
        observation: what is seen, as keywords of Gymnasium's environment (`include_cfrc_ext_in_observation`, ...).
        threads: that step the physics; default: as many as there are CPUs. Results do not depend on it.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(
        self,
        body: Body,
        objective: Objective,
        space: gymnasium.spaces.Dict,
        horizon: int,
        weights: Mapping[str, Any],
        observation: Mapping[str, bool] | None = None,
        threads: int | None = None,
    ) -> None:
        self.rewards = _checked(Rewards(**weights))
        self.threads = None if threads is None else check_int("threads", threads)
        self.body, self.objective, self._observation = body, objective, observation or {}
        self._settings = {**weights, **self._observation}
        self.template = body.make(self._settings, None)
        super().__init__(space, self.template.observation_space, self.template.action_space, horizon)

    def make(self, task: TaskParams, render_mode: str | None = None) -> TaskEnv:
        """Gymnasium's own environment with this task's reward; truncates itself at the horizon."""
        one = check_task(self.space, task)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.template.metadata["render_modes"])
        env = self.body.make(self._settings, render_mode)
        self.change(env.model, env.data, one)
        return TaskEnv(env, self.objective, one, self.horizon)

    def make_vec(self, task: TaskParams, episodes: int, device: torch.device | str = "cpu") -> MujocoVectorEnv:
        """As `EnvDistribution.make_vec`; MuJoCo steps on the CPU and numpy is spoken, whatever the `device`."""
        check_int("episodes", episodes)
        check_device(device)
        tasks = check_tasks(self.space, task)
        models = [model for model in self.models(tasks) for _ in range(episodes)]
        return self.body.vector(
            self.template, models, self.objective, tasks, self.rewards, self._observation, self.horizon, self.threads
        )

    def models(self, tasks: TaskParams) -> Sequence[MjModel]:
        """A model for each of T tasks."""
        return [self.template.model] * len(next(iter(tasks.values())))

    def change(self, model: MjModel, data: MjData, task: TaskParams) -> None:
        """Change a model into that of ONE task; by default all tasks share one."""

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """The forward velocity, m/s, over time, s."""
        first = self.template.model.nq - self.body.hidden
        ax.plot(self.template.dt * np.arange(len(observations)), observations[:, first], **line_kwargs)


class TaskEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A Gymnasium environment of version 5 with the objective in place of the reward for going forward.

    What the body costs and earns besides (`reward_ctrl`, `reward_contact`, `reward_survive` of its info) stays.
    """

    def __init__(self, env: MujocoEnv, objective: Objective, task: TaskParams, horizon: int) -> None:
        super().__init__(env)
        self.objective, self.task, self.horizon = objective, task, horizon
        self._steps, self._ended = 0, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._steps, self._ended = 0, False
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, Gymnasium's info with `reward_task`."""
        if self._ended:
            raise ResetNeeded("call reset() before step(): no episode has begun, or it has ended")
        observation, _, terminated, _, info = self.env.step(action)
        motion = Motion(*([info[f"{axis}_{what}"] for axis in "xy" if f"{axis}_{what}" in info] for what in _MOTION))
        task_reward = self.objective(motion, self.task)
        gain = task_reward + info.get("reward_survive", 0.0)
        reward = gain + info["reward_ctrl"] + info.get("reward_contact", 0.0)
        self._steps += 1
        truncated = self._steps >= self.horizon and not terminated
        self._ended = bool(terminated) or truncated
        return observation, float(reward), bool(terminated), truncated, {**info, "reward_task": float(task_reward)}


_MOTION = ("velocity", "position")


class GoalVelocity(MujocoDistribution):
    """Tasks whose parameter is a goal velocity: their space and pictures."""

    def example(self) -> TaskParams:
        """1 m/s."""
        return {"goal": np.array(1.0, np.float32)}

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The goal velocity as a dashed line."""
        ax.axhline(float(check_task(self.space, task)["goal"]), color="tab:green", linestyle="--")
        ax.set_ylabel("speed, m/s", fontsize=8)


class Direction(MujocoDistribution):
    """Tasks whose parameter is forward (1) or backward (-1), with equal probability."""

    def example(self) -> TaskParams:
        """Forward."""
        return {"direction": np.array(1.0, np.float32)}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """`num_tasks` directions, float32 `[T]`."""
        check_int("num_tasks", num_tasks)
        return {"direction": (2 * check_rng(rng).integers(2, size=num_tasks) - 1).astype(np.float32)}

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """A dashed line at rest, and which side of it is wanted."""
        forwards = float(check_task(self.space, task)["direction"]) > 0
        ax.axhline(0.0, color="tab:green", linestyle="--")
        ax.set_xlabel("wanted: forward (up)" if forwards else "wanted: backward (down)", fontsize=8)
        ax.set_ylabel("speed, m/s", fontsize=8)


class Angle(MujocoDistribution):
    """Tasks whose parameter is a direction in the plane, rad."""

    def example(self) -> TaskParams:
        """Straight ahead."""
        return {"angle": np.array(0.0, np.float32)}

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The direction as a dashed ray; the axes in equal scale."""
        turn = float(check_task(self.space, task)["angle"])
        ax.plot([0.0, np.cos(turn)], [0.0, np.sin(turn)], color="tab:green", linestyle="--")
        ax.set_aspect("equal")

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """The way made in the plane, m, from the velocities seen."""
        first = self.template.model.nq - self.body.hidden
        velocities = observations[:, first : first + 2]
        x, y = self.template.dt * velocities.cumsum(0).T
        ax.plot(x, y, **line_kwargs)


@contextmanager
def _remarks_logged() -> Iterator[None]:
    """MuJoCo 4 remarks on Gymnasium's half-cheetah file, and would write so into a file in the working directory."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: log.info("%s", text))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)


def goal_space(low: float, high: float) -> gymnasium.spaces.Dict:
    """Goal velocities in [low, high], m/s.

    Raises:
        ValueError: no numbers, or `high` not above `low`.
    """
    low = check_real("goal_low", low, -np.inf)
    return gymnasium.spaces.Dict({"goal": Box(low, check_real("goal_high", high, low), (), np.float32)})


ANGLES = gymnasium.spaces.Dict({"angle": Box(0.0, 2.0 * np.pi, (), np.float32)})
DIRECTIONS = gymnasium.spaces.Dict({"direction": Box(-1.0, 1.0, (), np.float32)})


def _checked(rewards: Rewards) -> Rewards:
    for name, value in rewards._asdict().items():
        if name != "terminate_when_unhealthy":
            check_real(name, value, open_low=False)
        elif not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")
    return rewards
