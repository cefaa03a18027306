"""What the MuJoCo task distributions share: one environment of a body or many, and four kinds of tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from mujoco import MjData, MjModel

from metarl.envs.base import EnvDistribution, check_device, check_rng
from metarl.envs.mujoco.objectives import Motion, Objective, angle, direction, goal_position, goal_velocity
from metarl.envs.mujoco.vector import MujocoVectorEnv, Rewards
from metarl.envs.plots import PlanePlots, plot_goal_speed
from metarl.errors import check_bool, check_choice, check_int, check_real
from metarl.task_params import Ends, check_task, check_tasks
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes


log = logging.getLogger(__name__)


class Body(NamedTuple):
    """A walker: Gymnasium's environment for one, and ours for many."""

    env: Callable[..., MujocoEnv]
    vector: type[MujocoVectorEnv]
    hidden: int  # number of its first positions that are not observed

    def make(self, settings: Mapping[str, Any], render_mode: str | None) -> MujocoEnv:
        """Gymnasium's environment."""
        camera = {} if render_mode is None else {"camera_name": "track"}  # the default camera does not follow the body
        with log_mujoco_warnings():
            return self.env(**settings, **camera, render_mode=render_mode)


@dataclass(eq=False)
class MujocoDistribution(EnvDistribution):
    """Tasks for one body; a subclass declares its options as fields, among them `threads` and those of `Rewards`.

    Args:
        horizon: control steps per episode, at most.
    """

    body: ClassVar[Body]
    objective: ClassVar[Objective]
    task_space: ClassVar[gymnasium.spaces.Dict]
    threads = None  # type: int | None  # not a field yet: it is the last argument of all subclasses
    horizon: int = 200

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in Rewards._fields if hasattr(self, name)}
        for name, value in weights.items():
            if name == "terminate_when_unhealthy":
                check_bool(name, value)
            else:
                check_real(name, value, open_low=False)
        self.rewards = Rewards(**weights)
        if self.threads is not None:
            check_int("threads", self.threads)
        self._observation = self.choose_observation()
        self._settings = {**weights, **self._observation}
        self.template = self.body.make(self._settings, None)
        spaces = self.choose_space(), self.template.observation_space, self.template.action_space
        super().__init__(*spaces, self.horizon)

    def choose_observation(self) -> dict[str, bool]:
        """What is observed, as keywords of Gymnasium's environment."""
        return {}

    def choose_space(self) -> gymnasium.spaces.Dict:
        """The space of ONE task's parameters; a ValueError that names an option that does not fit."""
        return self.task_space

    def make(self, task: TaskParams, render_mode: str | None = None) -> TaskEnv:
        """Gymnasium's own environment with this task's reward; it truncates itself at the horizon."""
        one = check_task(self.space, task)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.template.metadata["render_modes"])
        env = self.body.make(self._settings, render_mode)
        self.change_model(env.model, env.data, one)
        return TaskEnv(env, self.objective, one, self.horizon)

    def make_vec(self, task: TaskParams, episodes: int, device: torch.device | str = "cpu") -> MujocoVectorEnv:
        """As `EnvDistribution.make_vec`, in numpy: MuJoCo always runs on the CPU."""
        check_int("episodes", episodes)
        check_device(device)
        tasks = check_tasks(self.space, task)
        models = [model for model in self.make_models(tasks) for _ in range(episodes)]
        return self.body.vector(
            self.template, models, self.objective, tasks, self.rewards, self._observation, self.horizon, self.threads
        )

    def make_models(self, tasks: TaskParams) -> Sequence[MjModel]:
        """A model for each of T tasks."""
        return [self.template.model] * len(next(iter(tasks.values())))

    def change_model(self, model: MjModel, data: MjData, task: TaskParams) -> None:
        """Change the model into that of ONE task; by default all tasks share one model."""

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """The forward velocity, m/s, over time, s."""
        first = self.template.model.nq - self.body.hidden
        ax.plot(self.template.dt * np.arange(len(observations)), observations[:, first], **line_kwargs)


class TaskEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A Gymnasium environment of version 5 with an objective in place of its reward for moving forward.

    The other parts of its reward (`reward_ctrl`, `reward_contact`, `reward_survive` in its info) stay.
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


@dataclass(eq=False)
class GoalVelocity(MujocoDistribution):
    """Tasks whose parameter is a goal velocity, uniform in [`goal_low`, `goal_high`] m/s."""

    objective = staticmethod(goal_velocity)
    goal_low: float = 0.0
    goal_high: float = 2.0

    def choose_space(self) -> gymnasium.spaces.Dict:
        """The goals."""
        low = check_real("goal_low", self.goal_low, -np.inf)
        high = check_real("goal_high", self.goal_high, low)
        self._set_fixed(goal_low=low, goal_high=high)
        return gymnasium.spaces.Dict({"goal": Box(low, high, (), np.float32)})

    def example(self) -> TaskParams:
        """1 m/s."""
        return {"goal": np.array(1.0, np.float32)}

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The goal velocity as a dashed line."""
        plot_goal_speed(ax, float(check_task(self.space, task)["goal"]))
        ax.set_ylabel("speed, m/s", fontsize=8)


class Direction(MujocoDistribution):
    """Tasks whose parameter is forward (1) or backward (-1), with equal probability."""

    objective = staticmethod(direction)
    task_space = gymnasium.spaces.Dict({"direction": Ends(-1.0, 1.0, (), np.float32)})

    def example(self) -> TaskParams:
        """Forward."""
        return {"direction": np.array(1.0, np.float32)}

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """A dashed line at rest, and the direction as a label."""
        forwards = float(check_task(self.space, task)["direction"]) > 0
        ax.axhline(0.0, color="tab:green", linestyle="--")
        ax.set_xlabel("wanted: forward (up)" if forwards else "wanted: backward (down)", fontsize=8)
        ax.set_ylabel("speed, m/s", fontsize=8)


class Angle(MujocoDistribution):
    """Tasks whose parameter is a direction in the plane, uniform in [0, 2 pi] rad."""

    objective = staticmethod(angle)
    task_space = gymnasium.spaces.Dict({"angle": Box(0.0, 2.0 * np.pi, (), np.float32)})

    def example(self) -> TaskParams:
        """Straight ahead."""
        return {"angle": np.array(0.0, np.float32)}

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """The direction as a dashed ray, on axes of equal scale."""
        turn = float(check_task(self.space, task)["angle"])
        ax.plot([0.0, np.cos(turn)], [0.0, np.sin(turn)], color="tab:green", linestyle="--")
        ax.set_aspect("equal")

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """The path in the plane, m, from the observed velocities."""
        first = self.template.model.nq - self.body.hidden
        velocities = observations[:, first : first + 2]
        x, y = self.template.dt * velocities.cumsum(0).T
        ax.plot(x, y, **line_kwargs)


@dataclass(eq=False)
class GoalPlace(PlanePlots, MujocoDistribution):
    """Tasks whose parameter is a place, uniform in the square [-`radius`, `radius`]^2 or in the disc of this radius."""

    objective = staticmethod(goal_position)
    radius: float = 3.0
    region: str = "square"

    def choose_space(self) -> gymnasium.spaces.Dict:
        """The square."""
        self._set_fixed(radius=check_real("radius", self.radius))
        check_choice("region", self.region, ("square", "disc"))
        return gymnasium.spaces.Dict({"goal": Box(-self.radius, self.radius, (2,), np.float32)})

    def example(self) -> TaskParams:
        """A place to the front and left."""
        return {"goal": np.array([2.0, 1.0], np.float32)}

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """`num_tasks` goals, float32 `[T, 2]`, uniform by area."""
        if self.region == "square":
            return super().sample(num_tasks, rng)
        check_int("num_tasks", num_tasks)
        turn = check_rng(rng).uniform(0.0, 2.0 * np.pi, num_tasks)
        radius = self.radius * np.sqrt(rng.uniform(size=num_tasks))  # the square root makes it uniform by area
        return {"goal": (radius * np.stack([np.cos(turn), np.sin(turn)])).T.astype(np.float32)}


@contextmanager
def log_mujoco_warnings() -> Iterator[None]:
    """MuJoCo 4 warns of Gymnasium's half-cheetah file; by default it writes a file in the working directory."""
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: log.info("%s", text))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)
