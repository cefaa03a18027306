"""The single Gymnasium environments behind a task distribution: how they are made, limited, reused and closed."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

from metarl.envs.step_checker import StepChecker
from metarl.types import TaskParams

log = logging.getLogger(__name__)

AnyEnv: TypeAlias = gymnasium.Env[Any, Any]
SetTask: TypeAlias = Callable[[Any, dict[str, Any]], None]
"""Sets ONE task's parameters on an unwrapped environment: `set_task(env, task)`."""


class EpisodeLimit(gymnasium.wrappers.TimeLimit[Any, Any]):
    """Gymnasium's TimeLimit, but an episode that terminates on its last step is not truncated.

    It checks what the environment returns, and refuses steps after the end of an episode.

    Args:
        env: a TimeLimit that is its outermost wrapper is replaced.
        max_episode_steps: the horizon.
        checker: by default one for the environment's observation space.
    """

    task: TaskParams | None = None
    """The parameters of ONE task, for messages."""

    def __init__(self, env: AnyEnv, max_episode_steps: int, checker: StepChecker | None = None) -> None:
        inner = env.env if isinstance(env, gymnasium.wrappers.TimeLimit) else env
        super().__init__(inner, max_episode_steps)
        self._horizon, self._steps = max_episode_steps, 0
        self._checker = StepChecker(env.observation_space) if checker is None else checker
        self._ended = self._is_new = True  # no episode has begun

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            ValueError: the environment returned something that does not fit its declarations.
        """
        self._steps = 0
        result = self.env.reset(seed=seed, options=options)
        self._checker.check_reset(result, self.where, ranges=self._is_new)
        self._ended = False
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step.

        Raises:
            ResetNeeded: no episode has begun, or it has ended.
            ValueError: the environment returned something that does not fit its declarations.
        """
        if self._ended:
            raise ResetNeeded("call reset() before step(): no episode has begun, or it has ended")
        result = self.env.step(action)
        self._steps += 1
        terminated, truncated = self._checker.check_step(result, self.where, ranges=self._is_new)
        self._is_new = False
        truncated = (truncated or self._steps >= self._horizon) and not terminated
        self._ended = terminated or truncated
        return result[0], result[1], terminated, truncated, result[4]

    def where(self) -> str:
        """The environment, its task and its step, for messages."""
        task = "" if self.task is None else f" of task {as_numbers(self.task)}"
        return f"{type(self.env.unwrapped).__name__}{task}, step {self._steps}"


class EnvMaker(NamedTuple):
    """Makes one environment from one task's parameters."""

    env: EnvSpec | Callable[..., AnyEnv]
    env_kwargs: Mapping[str, Any]
    set_task: SetTask | None

    def build(self, task: TaskParams, render_mode: str | None = None) -> AnyEnv:
        """An environment for `task`; with a `set_task` it still has the default parameters."""
        kwargs = {**self.env_kwargs, **({} if self.set_task else as_arguments(task))}
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        if not isinstance(self.env, EnvSpec):
            return flatten_dict(self.env(**kwargs))
        # -1: no TimeLimit, which could end up inside other wrappers. GymDistribution itself checks one environment.
        return flatten_dict(gymnasium.make(self.env, max_episode_steps=-1, disable_env_checker=True, **kwargs))

    def set(self, env: AnyEnv, task: TaskParams) -> AnyEnv:
        """`env` with the parameters of `task`, if there is a `set_task`."""
        if self.set_task is not None:
            self.set_task(env.unwrapped, as_arguments(task))
        return env


def flatten_dict(env: AnyEnv) -> AnyEnv:
    """`env`, with the entries of Dict observations side by side in one Box, by Gymnasium's `FlattenObservation`."""
    if isinstance(getattr(env, "observation_space", None), gymnasium.spaces.Dict):
        return gymnasium.wrappers.FlattenObservation(env)
    return env


def as_arguments(task: TaskParams) -> dict[str, Any]:
    """One task's parameters as keyword arguments: Python scalars, and arrays."""
    return {name: value.item() if value.ndim == 0 else value for name, value in task.items()}


class EnvStore:
    """Lends environments. With a `set_task` it reuses them, because making them can be slow.

    A borrower alone uses its environments until it puts them back. Every environment is closed
    exactly once: when nobody can use it again, or by `close`, which also empties the borrowers' lists. A pickle of the
    store contains no environments.

    Args:
        maker: makes the environments.
        horizon: steps per episode, at most.
        observation_space: of every environment.
    """

    def __init__(self, maker: EnvMaker, horizon: int, observation_space: gymnasium.Space[Any]) -> None:
        self.maker, self.horizon, self.observation_space = maker, horizon, observation_space
        self._checker = StepChecker(observation_space)
        self._idle: list[EpisodeLimit] = []
        self._lists = {0: self._idle}  # by id, also those of the borrowers
        weakref.finalize(self, _close_lists, self._lists, quiet=True)

    def __reduce__(self) -> tuple[type[EnvStore], tuple[EnvMaker, int, gymnasium.Space[Any]]]:
        return EnvStore, (self.maker, self.horizon, self.observation_space)

    def make(self, task: TaskParams, render_mode: str | None = None) -> EpisodeLimit:
        """A new environment; the arrays of `task` have no leading dimension."""
        env = self.maker.build(task, render_mode)
        try:
            limited = EpisodeLimit(env, self.horizon, self._checker)
            self._set(limited, task)
            return limited
        except BaseException:
            close_all([env], quiet=True)
            raise

    def take(self, task: TaskParams) -> list[EpisodeLimit]:
        """One environment for each row of `task`, whose arrays are `[n, ...]`."""
        taken: list[EpisodeLimit] = []
        self._lists[id(taken)] = taken
        try:
            for row in _rows(task):
                if self._idle:
                    taken.append(self._idle.pop())
                    self._set(taken[-1], row)
                else:
                    taken.append(self.make(row))
        except BaseException:
            self.put_back(taken, failed=True, quiet=True)
            raise
        return taken

    def put_back(self, envs: list[EpisodeLimit], *, failed: bool = False, quiet: bool = False) -> None:
        """Keep `envs` for later use; those that have failed, or that have no `set_task`, are closed.

        With `quiet`, errors in closing are logged, not raised, so that they do not hide an earlier one.
        """
        self._lists.pop(id(envs), None)
        if failed or self.maker.set_task is None:
            close_all(envs, quiet=quiet)
        else:
            self._idle += envs
            envs.clear()

    def close(self) -> None:
        """Close all environments, including those in use."""
        _close_lists(self._lists)

    def _set(self, env: EpisodeLimit, task: TaskParams) -> None:
        env.task = task
        self.maker.set(env, task)


def close_all(envs: list[Any], *, quiet: bool = False) -> None:
    """Close and remove all of `envs`, even if some fail; then raise the first error, unless `quiet`."""
    failed: BaseException | None = None
    while envs:
        try:
            envs.pop().close()
        except Exception as error:  # environments may raise anything
            log.warning("an environment could not be closed: %s: %s", type(error).__name__, error)
            failed = failed or error
    if failed is not None and not quiet:
        raise failed


def _close_lists(lists: dict[int, list[EpisodeLimit]], *, quiet: bool = False) -> None:
    envs: list[EpisodeLimit] = []
    for part in list(lists.values()):  # a copy, because garbage collection may put environments back meanwhile
        envs += part
        part.clear()
    close_all(envs, quiet=quiet)


def as_numbers(task: TaskParams) -> dict[str, Any]:
    """One task's parameters as plain numbers and lists."""
    return {name: np.asarray(value).tolist() for name, value in task.items()}


def _rows(task: TaskParams) -> Iterator[TaskParams]:
    for i in range(len(next(iter(task.values())))):
        yield {name: np.asarray(value[i]) for name, value in task.items()}
