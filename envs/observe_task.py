"""A distribution whose environments show the task: its parameters are appended to the observation.

    obs' = (obs, phi(task))

A policy that sees the task need not find out what it is, so it is the *oracle* of comparisons: no adaptation can be
expected to do better than what such a policy reaches. phi scales the numbers of a bounded Box to [-1, 1] and turns
whole numbers of a Discrete or MultiDiscrete into one-hot vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor

from metarl.envs.base import EnvDistribution
from metarl.envs.vector import TaskVectorEnv
from metarl.errors import check_type
from metarl.functional_env import Frame, FunctionalEnv, FunctionalEnvs, FunctionalTaskDistribution, TaskTensors
from metarl.task_params import check_task, check_tasks
from metarl.types import HasName, HasThreads, TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = "shown"
"""The key of phi(task) among a functional environment's task parameters; tasks must not have it."""


class ObserveTask(EnvDistribution):
    """`distribution` with the task's parameters in the observation, a float32 Box.

    Args:
        distribution: its observations must be a vector, a number or a Discrete, which becomes a one-hot vector.
        scale: the space whose bounds are scaled to [-1, 1]; default: the distribution's own. Tasks outside it are
            shown as numbers outside [-1, 1], or as zeros where vectors are one-hot.

    Raises:
        ValueError: for other observations, such as images, and for a task parameter called `shown`.

    >>> from metarl.envs.navigation import Navigation
    >>> tasks = ObserveTask(Navigation())
    >>> tasks.make({"goal": np.array([0.5, -0.25])}).reset()[0]
    array([ 0. ,  0. ,  1. , -0.5], dtype=float32)
    """

    def __init__(self, distribution: EnvDistribution, scale: gymnasium.spaces.Dict | None = None) -> None:
        check_type("distribution", distribution, EnvDistribution, "a task distribution, such as envs.Navigation()")
        if SHOWN in distribution.space.spaces:
            raise ValueError(f"distribution must not have a task parameter called {SHOWN!r}, which is used here")
        self.distribution, self.scale = distribution, distribution.space if scale is None else scale
        low, high = _bounds(distribution.observation_space)
        size = sum(_size(entry) for entry in self.scale.values())
        # other tasks than the distribution's may lie outside [-1, 1]
        unbounded = np.full(size, np.inf, np.float32)
        observations = Box(np.concatenate([low, -unbounded]), np.concatenate([high, unbounded]), dtype=np.float32)
        super().__init__(distribution.space, observations, distribution.action_space, distribution.horizon)
        self._width = len(low)
        self._shown_env: ShowTaskEnv | None = None

    def sample(self, num_tasks: int, rng: np.random.Generator) -> TaskParams:
        """The tasks of the distribution itself."""
        return self.distribution.sample(num_tasks, rng)

    def make(self, task: TaskParams, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """As `EnvDistribution.make`."""
        checked = check_task(self.space, task)
        row = {name: torch.from_numpy(np.array(value)[None]) for name, value in checked.items()}
        shown = show_task(self.scale, row)[0].numpy()
        return ShowTask(self.distribution.make(task, render_mode), shown, self.observation_space)

    def make_vec(self, task: TaskParams, episodes: int, device: torch.device | str = "cpu") -> ShowTaskVectorEnv:
        """As `EnvDistribution.make_vec`."""
        vec = self.distribution.make_vec(task, episodes, device)
        checked = check_tasks(self.space, task)
        each = {name: torch.from_numpy(value).repeat_interleave(episodes, 0) for name, value in checked.items()}
        return ShowTaskVectorEnv(vec, show_task(self.scale, each), self.observation_space)

    def make_functional(
        self, task: TaskParams, episodes: int, device: torch.device | str = "cpu"
    ) -> FunctionalEnvs | None:
        """The environments as functions where the distribution has them, else `None`."""
        if not isinstance(self.distribution, FunctionalTaskDistribution):
            return None
        found = self.distribution.make_functional(task, episodes, device)
        if found is None:
            return None
        if self._shown_env is None or self._shown_env.env is not found.env:  # records belong to one object
            self._shown_env = ShowTaskEnv(found.env, self.observation_space)
        return FunctionalEnvs(self._shown_env, {**found.task, SHOWN: show_task(self.scale, found.task)})

    def example(self) -> TaskParams:
        """That of the distribution."""
        return self.distribution.example()

    def out_of_distribution(self) -> ObserveTask:
        """The distribution's, with the task in the observation in the same scale."""
        return ObserveTask(self.distribution.out_of_distribution(), self.scale)

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """As the distribution does it."""
        self.distribution.plot_task(ax, task)

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """As the distribution does it, which gets its own observations back."""
        space, own = self.distribution.observation_space, observations[:, : self._width]
        if isinstance(space, Discrete):
            own = space.start + own.argmax(1)
        self.distribution.plot_episode(ax, own.reshape(len(own), *(space.shape or ())), **line_kwargs)

    def close(self) -> None:
        """Close the environments of the distribution, if it keeps any."""
        if hasattr(self.distribution, "close"):
            self.distribution.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def show_task(space: gymnasium.spaces.Dict, task: Mapping[str, Tensor]) -> Tensor:
    """phi of n tasks `[n, ...]`: the parameters of each as one row of numbers, float32 `[n, k]`.

    >>> show_task(gymnasium.spaces.Dict({"arm": Discrete(3), "x": Box(0.0, 4.0)}),
    ...           {"arm": torch.tensor([0, 2]), "x": torch.tensor([[1.0], [4.0]])})
    tensor([[ 1.0000,  0.0000,  0.0000, -0.5000],
            [ 0.0000,  0.0000,  1.0000,  1.0000]])
    """
    return torch.cat([_encode(entry, task[name]) for name, entry in space.items()], -1)


def _encode(entry: gymnasium.Space[Any], value: Tensor) -> Tensor:
    """One parameter of n tasks, `[n, k]`."""
    flat = value.reshape(len(value), -1)
    if isinstance(entry, Discrete | MultiDiscrete):
        numbers = np.atleast_1d(entry.n if isinstance(entry, Discrete) else entry.nvec).ravel()
        starts = np.broadcast_to(entry.start, entry.shape or (1,)).ravel()
        columns = [_one_hot(flat[:, i], int(starts[i]), int(n)) for i, n in enumerate(numbers)]
        return torch.cat(columns, -1)
    assert isinstance(entry, Box)
    bounds = (torch.as_tensor(bound.astype(np.float64)).ravel() for bound in (entry.low, entry.high))
    low, high = (bound.to(value.device) for bound in bounds)
    scaled = torch.isfinite(low) & torch.isfinite(high) & (low < high)
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    return torch.where(scaled, (flat - middle) / half, flat.to(low.dtype)).float()


def _one_hot(value: Tensor, start: int, number: int) -> Tensor:
    """`[n, number]` float32 from whole numbers `[n]`."""
    return (value[:, None] == torch.arange(start, start + number, device=value.device)).float()


def _size(entry: gymnasium.Space[Any]) -> int:
    """The numbers of a task parameter in the observation."""
    if isinstance(entry, Discrete | MultiDiscrete):
        return int(entry.n if isinstance(entry, Discrete) else entry.nvec.sum())
    if not isinstance(entry, Box):
        raise ValueError(f"distribution must have task parameters in a Box, Discrete or MultiDiscrete, got {entry}")
    return int(np.prod(entry.shape))


def _bounds(space: gymnasium.Space[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The bounds of an observation as a vector of numbers."""
    if isinstance(space, Discrete):
        return np.zeros(int(space.n), np.float32), np.ones(int(space.n), np.float32)
    if not isinstance(space, Box) or len(space.shape) > 1:
        raise ValueError(f"distribution must have observations that are a vector or a Discrete, got {space}")
    low, high = (np.atleast_1d(bound).astype(np.float32) for bound in (space.low, space.high))
    return low, high


def _flatten(space: gymnasium.Space[Any], obs: Tensor) -> Tensor:
    """Observations `[n, ...]` as vectors `[n, k]`, float32."""
    if isinstance(space, Discrete):
        return _one_hot(obs, int(space.start), int(space.n))
    return obs.reshape(len(obs), -1).float()


class ShowTaskEnv(FunctionalEnv):
    """The functions of `env`, with `task["shown"]` `[n, k]` appended to its observation."""

    def __init__(self, env: FunctionalEnv, observation_space: gymnasium.Space[Any]) -> None:
        self.env, self.observation_space, self.action_space = env, observation_space, env.action_space
        self.initial_noise, self.transition_noise = env.initial_noise, env.transition_noise

    def initial(self, task: TaskTensors, noise: Tensor) -> Tensor:
        """Those of `env`."""
        return self.env.initial(_without_shown(task), noise)

    def transition(self, state: Tensor, action: Tensor, task: TaskTensors, noise: Tensor) -> Tensor:
        """That of `env`."""
        return self.env.transition(state, action, _without_shown(task), noise)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor, task: TaskTensors) -> Tensor:
        """That of `env`."""
        return self.env.reward(state, action, next_state, _without_shown(task))

    def observation(self, state: Tensor, task: TaskTensors) -> Tensor:
        """The observation and the task."""
        own = self.env.observation(state, _without_shown(task))
        return torch.cat([_flatten(self.env.observation_space, own), task[SHOWN]], -1)

    def terminal(self, state: Tensor, task: TaskTensors) -> Tensor:
        """That of `env`."""
        return self.env.terminal(state, _without_shown(task))

    def render(self, state: Tensor, task: TaskTensors) -> Frame:
        """That of `env`."""
        return self.env.render(state, _without_shown(task))


def _without_shown(task: TaskTensors) -> TaskTensors:
    return {name: value for name, value in task.items() if name != SHOWN}


class ShowTask(gymnasium.ObservationWrapper[Any, Any, Any]):
    """ONE environment with a row of numbers appended to its observation."""

    def __init__(
        self, env: gymnasium.Env[Any, Any], shown: npt.NDArray[np.float32], space: gymnasium.Space[Any]
    ) -> None:
        super().__init__(env)
        self.shown, self.observation_space = shown, space

    def observation(self, observation: Any) -> npt.NDArray[np.float32]:
        """The observation and the task."""
        own = torch.as_tensor(np.asarray(observation))[None]
        return np.concatenate([_flatten(self.env.observation_space, own)[0].numpy(), self.shown])


class ShowTaskVectorEnv(TaskVectorEnv):
    """The environments of `vec` with `shown` `[N, k]` appended to their observations, in numpy or torch as they are."""

    def __init__(
        self, vec: gymnasium.vector.VectorEnv[Any, Any, Any], shown: Tensor, observation_space: gymnasium.Space[Any]
    ) -> None:
        super().__init__(vec.num_envs, observation_space, vec.single_action_space)
        self.vec, self.shown = vec, shown
        self.env_name = vec.env_name if isinstance(vec, HasName) else type(vec).__name__

    @property
    def threads(self) -> int:
        """The threads that step the environments; 1 if these have none."""
        return self.vec.threads if isinstance(self.vec, HasThreads) else 1

    @threads.setter
    def threads(self, threads: int) -> None:
        if isinstance(self.vec, HasThreads):
            self.vec.threads = threads

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As that of `vec`."""
        obs, info = self.vec.reset(seed=seed, options=options)
        return self._show(obs), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As that of `vec`."""
        obs, *rest = self.vec.step(actions)
        return self._show(obs), rest[0], rest[1], rest[2], rest[3]

    def close_extras(self, **kwargs: Any) -> None:
        """Close `vec`."""
        self.vec.close(**kwargs)

    def _show(self, obs: Any) -> Any:
        own = _flatten(self.vec.single_observation_space, torch.as_tensor(obs))
        both = torch.cat([own, self.shown.to(own.device)], -1)
        return both if isinstance(obs, Tensor) else both.numpy()
