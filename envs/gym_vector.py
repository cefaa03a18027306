"""N ordinary Gymnasium environments stepped together, speaking numpy.

`GymVectorEnv` is what callers see: it checks what comes in. Behind it an `Engine` does the stepping: a `Slice` in this
process, or `metarl.envs.workers.RemoteSlices`, one `Slice` in each worker process.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector.utils import batch_space

from metarl.envs.step_checker import StepChecker
from metarl.envs.vector import AUTORESET, numpy_reset_mask
from metarl.errors import check_int
from metarl.types import TaskParams

log = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]
AnyEnv: TypeAlias = gymnasium.Env[Any, Any]
SetTask: TypeAlias = Callable[[Any, dict[str, Any]], None]
"""Sets ONE task's parameters on an unwrapped environment: `set_task(env, task)`."""


class EpisodeLimit(gymnasium.wrappers.TimeLimit[Any, Any]):
    """Gymnasium's TimeLimit, where an episode that terminates on its last step is not truncated and an end is final.

    What the environment returns is checked (see `metarl.envs.step_checker`).

    Args:
        env: a TimeLimit it already has, as its outermost wrapper, is replaced.
        max_episode_steps: the horizon.
        checker: of what is returned; default: of the environment's own space.
    """

    task: TaskParams | None = None
    """The parameters of ONE task, for messages."""

    def __init__(self, env: AnyEnv, max_episode_steps: int, checker: StepChecker | None = None) -> None:
        inner = env.env if isinstance(env, gymnasium.wrappers.TimeLimit) else env
        super().__init__(inner, max_episode_steps)
        self._horizon, self._steps = max_episode_steps, 0
        self._checker = StepChecker(env.observation_space) if checker is None else checker
        self._ended = self._is_new = True  # nothing has begun

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            ValueError: the environment returns something else than it promised.
        """
        self._steps = 0
        result = self.env.reset(seed=seed, options=options)
        self._checker.check_reset(result, self, ranges=self._is_new)
        self._ended = False
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step.

        Raises:
            ResetNeeded: no episode has begun, or it has ended.
            ValueError: the environment returns something else than it promised.
        """
        if self._ended:
            raise ResetNeeded("call reset() before step(): no episode has begun, or it has ended")
        result = self.env.step(action)
        self._steps += 1
        terminated, truncated = self._checker.check_step(result, self, self._is_new)
        self._is_new = False
        truncated = (truncated or self._steps >= self._horizon) and not terminated
        self._ended = terminated or truncated
        return result[0], result[1], terminated, truncated, result[4]

    def where(self) -> str:
        """The environment, its task and its step, for messages."""
        task = "" if self.task is None else f" of task {numbers(self.task)}"
        return f"{type(self.env.unwrapped).__name__}{task}, step {self._steps}"


class EnvMaker(NamedTuple):
    """How one environment is made from one task's parameters."""

    env: EnvSpec | Callable[..., AnyEnv]
    env_kwargs: Mapping[str, Any]
    set_task: SetTask | None

    def build(self, task: TaskParams, render_mode: str | None = None) -> AnyEnv:
        """An environment of `task`; if there is a `set_task`, of the default parameters."""
        kwargs = {**self.env_kwargs, **({} if self.set_task else as_arguments(task))}
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        if not isinstance(self.env, EnvSpec):
            return self.env(**kwargs)
        # -1: no TimeLimit, which could be inside other wrappers. GymDistribution has looked at one environment itself.
        return gymnasium.make(self.env, max_episode_steps=-1, disable_env_checker=True, **kwargs)

    def set(self, env: AnyEnv, task: TaskParams) -> AnyEnv:
        """`env` with the parameters of `task`, where there is a `set_task`."""
        if self.set_task is not None:
            self.set_task(env.unwrapped, as_arguments(task))
        return env


def as_arguments(task: TaskParams) -> dict[str, Any]:
    """One task's parameters as constructors like them: Python scalars, and arrays."""
    return {name: value.item() if value.ndim == 0 else value for name, value in task.items()}


class EnvStore:
    """Environments to take and to put back; with a `set_task` they are used again, as making them can be slow.

    What was taken belongs to the taker alone until it is put back or discarded. Every environment is closed once: when
    nobody can use it again, or by `close`, which empties the lists of the takers. A pickle of the store holds no
    environments.

    Args:
        maker: makes them.
        horizon: steps per episode, at most.
        observation_space: of one environment, which all must keep to.
    """

    def __init__(self, maker: EnvMaker, horizon: int, observation_space: gymnasium.Space[Any]) -> None:
        self.maker, self.horizon, self.observation_space = maker, horizon, observation_space
        self._checker = StepChecker(observation_space)
        self._idle: list[EpisodeLimit] = []
        self._taken: dict[int, list[EpisodeLimit]] = {}
        weakref.finalize(self, _close_lists, self._idle, self._taken, quiet=True)

    def __reduce__(self) -> tuple[type[EnvStore], tuple[EnvMaker, int, gymnasium.Space[Any]]]:
        return EnvStore, (self.maker, self.horizon, self.observation_space)

    def make(self, task: TaskParams, render_mode: str | None = None) -> EpisodeLimit:
        """A new environment; `task` is without a leading dimension."""
        env = self.maker.build(task, render_mode)
        try:
            limited = EpisodeLimit(env, self.horizon, self._checker)
            self._set(limited, task)
            return limited
        except BaseException:
            close_all([env], quiet=True)
            raise

    def take(self, task: TaskParams) -> list[EpisodeLimit]:
        """One environment for every row of `task`, whose arrays are `[n, ...]`."""
        taken: list[EpisodeLimit] = []
        self._taken[id(taken)] = taken
        try:
            for row in _rows(task):
                if self._idle:
                    taken.append(self._idle.pop())
                    self._set(taken[-1], row)
                else:
                    taken.append(self.make(row))
        except BaseException:
            self.discard(taken)
            raise
        return taken

    def put_back(self, envs: list[EpisodeLimit], *, quiet: bool = False) -> None:
        """Keep the taken `envs` for later; without a `set_task` nothing can be done with them, so they are closed."""
        self._taken.pop(id(envs), None)
        if self.maker.set_task is None:
            close_all(envs, quiet=quiet)
        else:
            self._idle += envs
            envs.clear()

    def discard(self, envs: list[EpisodeLimit]) -> None:
        """Close the taken `envs` after an error, which is not to be hidden by another one."""
        self._taken.pop(id(envs), None)
        close_all(envs, quiet=True)

    def close(self) -> None:
        """Close all environments, also those that are in use."""
        _close_lists(self._idle, self._taken)

    def _set(self, env: EpisodeLimit, task: TaskParams) -> None:
        env.task = task
        self.maker.set(env, task)


def close_all(envs: list[Any], *, quiet: bool = False) -> None:
    """Close and remove all of `envs`, even if some of them fail; then the first error is raised, unless `quiet`."""
    failed: BaseException | None = None
    while envs:
        try:
            envs.pop().close()
        except Exception as error:  # whatever the environment raises
            log.warning("an environment could not be closed: %s: %s", type(error).__name__, error)
            failed = failed or error
    if failed is not None and not quiet:
        raise failed


def _close_lists(idle: list[EpisodeLimit], taken: dict[int, list[EpisodeLimit]], *, quiet: bool = False) -> None:
    everything = [*idle]
    idle.clear()
    while taken:
        envs = taken.popitem()[1]
        everything += envs
        envs.clear()
    close_all(everything, quiet=quiet)


def numbers(task: TaskParams) -> dict[str, Any]:
    """One task's parameters as plain numbers and lists."""
    return {name: np.asarray(value).tolist() for name, value in task.items()}


def _rows(task: TaskParams) -> Iterator[TaskParams]:
    for i in range(len(next(iter(task.values())))):
        yield {name: np.asarray(value[i]) for name, value in task.items()}


class StepResults(NamedTuple):
    """What n environments answered."""

    observations: Array  # [n, ...]
    rewards: Array  # [n], float64
    terminated: Array  # [n], bool
    truncated: Array  # [n], bool


class Engine(Protocol):
    """What steps n environments. Arguments have been checked; what is returned is the caller's."""

    def reset(self, mask: Array, seed: int | None) -> Array:
        """Begin episodes where `mask` `[n]` is true, environment i with `seed + i`; all observations `[n, ...]`."""

    def step(self, actions: Array) -> StepResults:
        """One step of those that have not ended."""

    def close(self) -> None:
        """Give the environments back."""


class Slice:
    """n environments in this process, one for each row of `task` (arrays `[n, ...]`)."""

    def __init__(self, store: EnvStore, task: TaskParams) -> None:
        space = store.observation_space
        self._store, self._envs = store, store.take(task)
        n = self._number = len(self._envs)
        self._observations = np.zeros((n, *(space.shape or ())), space.dtype)
        self._terminated, self._truncated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self._give_back = weakref.finalize(self, store.put_back, self._envs, quiet=True)

    def reset(self, mask: Array, seed: int | None) -> Array:
        """As `Engine.reset`."""
        with self._discarded_on_errors():
            for i in np.flatnonzero(mask).tolist():
                self._observations[i], _ = self._envs[i].reset(seed=None if seed is None else seed + i)
        self._terminated &= ~mask
        self._truncated &= ~mask
        return self._observations.copy()

    def step(self, actions: Array) -> StepResults:
        """As `Engine.step`."""
        rewards = np.zeros(self._number)
        with self._discarded_on_errors():
            for i in np.flatnonzero(~(self._terminated | self._truncated)).tolist():
                result = self._envs[i].step(actions[i])
                self._observations[i], rewards[i], self._terminated[i], self._truncated[i], _ = result
        return StepResults(self._observations.copy(), rewards, self._terminated.copy(), self._truncated.copy())

    def close(self) -> None:
        """As `Engine.close`; done by itself when nobody holds the slice any more."""
        if self._give_back.detach() is not None:
            self._store.put_back(self._envs)

    @contextlib.contextmanager
    def _discarded_on_errors(self) -> Iterator[None]:
        """Whatever fails in the middle of a reset or a step is not fit to be used again."""
        if len(self._envs) != self._number:
            raise ClosedEnvironmentError(
                "these environments have been closed, by close() or after an error; make others"
            )
        try:
            yield
        except BaseException:
            self._store.discard(self._envs)
            raise


class GymVectorEnv(gymnasium.vector.VectorEnv[Array, Array, Array]):
    """N environments in the order of `engine`; observations `[N, ...]` are of the observation space's type.

    Autoreset is disabled: an environment that has ended is frozen. It is not stepped, its last observation and flags
    stay as they are and its reward is 0 until `reset`.

    Args:
        engine: steps the environments.
        num_envs: N.
        observation_space: of one environment.
        action_space: of one environment.
        env_name: what one environment is called in messages.
    """

    metadata: ClassVar[dict[str, Any]] = {**AUTORESET, "render_modes": []}  # type: ignore[misc]

    def __init__(
        self,
        engine: Engine,
        num_envs: int,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        env_name: str,
    ) -> None:
        self.num_envs, self.env_name = num_envs, env_name
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._engine, self._begun = engine, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin new episodes everywhere, or where `options={"reset_mask": mask}` (bool `[N]`) says so.

        Environment i starts as one alone does with `reset(seed=seed + i)`. Returns the observations of all
        environments `[N, ...]`, also of those that were left as they are.

        Raises:
            ValueError: a seed that is no integer, an unknown option, or a mask of another shape or type.
            ResetNeeded: a mask before the first full reset.
            ClosedEnvironmentError: after `close`.
            WorkerError: a worker process failed.
        """
        self._check_open()
        mask = numpy_reset_mask(options or {}, self.num_envs, begun=self._begun)
        if seed is not None:
            seed = check_int("seed", seed, 0)
        elif not self._begun:  # environments that are used again would go on with the seed they had
            seed = int(np.random.default_rng().integers(2**31))
        observations = self._engine.reset(mask, seed)
        self._begun = True
        return observations, {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step: observations `[N, ...]`, rewards, terminated, truncated (each `[N]`), an empty info.

        Raises:
            ValueError: actions of another shape, or of a type that cannot be the action space's.
            ResetNeeded: before the first reset.
            ClosedEnvironmentError: after `close`.
            WorkerError: a worker process failed.
        """
        self._check_open()
        if not self._begun:
            raise ResetNeeded("call reset() before step()")
        return *self._engine.step(self._as_actions(actions)), {}

    def close_extras(self, **kwargs: Any) -> None:
        """Give the environments back; also done when nobody holds this object any more."""
        self._engine.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this vector environment has been closed; make another one")

    def _as_actions(self, actions: Array) -> Array:
        """A copy: environments may keep their action, and callers write into theirs."""
        array, space = np.asarray(actions), self.action_space
        if array.shape != space.shape:
            raise ValueError(f"actions must have shape {space.shape}, got {array.shape}")
        try:
            cast = array.astype(space.dtype, casting="same_kind")
        except TypeError as error:
            raise ValueError(f"actions must be of type {space.dtype}, got {array.dtype}") from error
        if array.dtype != cast.dtype and array.dtype.kind in "iu" and (cast != array).any():
            raise ValueError(f"actions must fit into {space.dtype}, got {array[cast != array][0]}")
        return cast
