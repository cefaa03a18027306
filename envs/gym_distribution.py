"""Any Gymnasium environment as a distribution of tasks: a few of its parameters vary."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeAlias, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from metarl.envs.base import EnvDistribution, check_device, check_task, check_tasks
from metarl.envs.gym_vector import (
    AnyEnv,
    Engine,
    EnvMaker,
    EnvStore,
    EpisodeLimit,
    GymVectorEnv,
    SetTask,
    Slice,
    numbers,
)
from metarl.envs.step_checker import StepChecker, Trial
from metarl.envs.workers import Workers
from metarl.errors import check_int, check_real, did_you_mean
from metarl.types import TaskParams

T = TypeVar("T")
ARRAYS: TypeAlias = Box | Discrete | MultiDiscrete | MultiBinary
OLD_GYM = "; this is the old Gym interface: wrap it with shimmy's GymV21CompatibilityV0 or GymV26CompatibilityV0"
RESET = "env must have reset(*, seed=None, options=None) that returns (observation, info)"
RESERVED = {"id", "max_episode_steps", "disable_env_checker", "render_mode"}
"""Arguments of `gymnasium.make` that are not the user's to give here."""


class GymDistribution(EnvDistribution):
    """Environments that Gymnasium knows, or that a function returns, with the parameters `space` describes.

    A task's parameters are passed to the constructor (single numbers as Python scalars, others as arrays), or are set
    on the environment by `set_task`. With `set_task`, environments are used again from one `make_vec` to the next,
    which saves what making them costs.

    The environments are stepped one after the other in this process, or by `workers` processes at the same time; the
    results are the same. Processes are worth it where a step is slow. They start with the first `make_vec`, which
    takes seconds, and live until `close`. After a `WorkerError` the next `make_vec` starts others.

    Args:
        env: an environment's id, or a function (or class) that returns an environment.
        space: the space of ONE task's parameters; a subclass that overrides `sample` sets up what that needs first.
        horizon: steps per episode, at most, in place of the registered `max_episode_steps`, which is the default.
        set_task: `set_task(env, task)` sets parameters on the unwrapped environment, everything that depends on them
            included; `reset` comes after it.
        env_kwargs: the same for all tasks, passed to the constructor.
        workers: processes; 0 steps in this one.
        timeout: seconds within which workers must have answered; for starting they have two minutes at least.

    Raises:
        ValueError: naming the argument; for this one environment is made, reset and closed. Also where wrappers learn
            (NormalizeObservation, NormalizeReward) and `set_task` uses environments again.

    >>> gravity = gymnasium.spaces.Dict({"g": Box(5.0, 15.0, (), np.float32)})
    >>> tasks = GymDistribution("Pendulum-v1", gravity)
    >>> tasks.horizon, tasks.sample(2, np.random.default_rng(0))["g"].round(2)
    (200, array([11.37,  7.7 ], dtype=float32))
    >>> vec = tasks.make_vec({"g": np.array([9.8, 1.6])}, episodes=3)
    >>> vec.reset(seed=0)[0].shape
    (6, 3)
    """

    def __init__(
        self,
        env: str | Callable[..., AnyEnv],
        space: gymnasium.spaces.Dict,
        *,
        horizon: int | None = None,
        set_task: SetTask | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        workers: int = 0,
        timeout: float = 60.0,
    ) -> None:
        self.space = _checked_space(space)
        self.workers, self.timeout = check_int("workers", workers, 0), check_real("timeout", timeout)
        maker = EnvMaker(_checked_env(env), _checked_kwargs(env_kwargs, space, set_task), _checked_set_task(set_task))
        if workers:
            _check_picklable(maker)
        one = {name: value[0] for name, value in self.sample(1, np.random.default_rng(0)).items()}
        with contextlib.closing(_made(maker, one)) as trial:
            _check_made(maker, one, trial)
            _check_wrappers(trial, reused=set_task is not None)
            self._env_name = type(trial.unwrapped).__name__
            super().__init__(space, trial.observation_space, trial.action_space, _horizon(horizon, maker.env, trial))
        self._store = EnvStore(maker, self.horizon, self.observation_space)
        self._pool: Workers | None = None

    def make(self, task: TaskParams, render_mode: str | None = None) -> EpisodeLimit:
        """As `EnvDistribution.make`; `render_mode` is one of the environment's."""
        return self._store.make(check_task(self.space, task), render_mode)

    def make_vec(self, task: TaskParams, episodes: int, device: torch.device | str = "cpu") -> GymVectorEnv:
        """As `EnvDistribution.make_vec`, in numpy: environments run on the CPU, whatever `device` the policy is on.

        Raises:
            ValueError: as for `EnvDistribution.make_vec`.
            WorkerError: a worker process failed.
        """
        check_int("episodes", episodes)
        check_device(device)
        each = {name: value.repeat(episodes, axis=0) for name, value in check_tasks(self.space, task).items()}
        number = len(next(iter(each.values())))
        return GymVectorEnv(self._engine(each), number, self.observation_space, self.action_space, self._env_name)

    def close(self) -> None:
        """Stop the workers and close all environments of `make_vec`; also done at exit.

        The next `make_vec` makes others.
        """
        if self._pool is not None:
            self._pool.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def _engine(self, task: TaskParams) -> Engine:
        if not self.workers:
            return Slice(self._store, task)
        if self._pool is None or self._pool.closed:
            self._pool = Workers(self._store, self.workers, self.timeout)
        return self._pool.open(task)


def _checked_space(space: object) -> gymnasium.spaces.Dict:
    if not isinstance(space, gymnasium.spaces.Dict) or not space.spaces:
        raise ValueError(f"space must be a gymnasium.spaces.Dict with at least one parameter, got {space!r}")
    return space


def _checked_env(env: object) -> EnvSpec | Callable[..., AnyEnv]:
    """The spec of an id: workers, in whose registry it may not be, get the spec too."""
    if callable(env):
        return env
    if not isinstance(env, str):
        raise ValueError(f"env must be an environment's id or a function that returns an environment, got {env!r}")
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except (ImportError, gymnasium.error.Error) as error:
        hint = did_you_mean(name, gymnasium.registry)
        raise ValueError(f"env must be the id of a registered environment, got {env!r}{hint} ({error})") from error


def _checked_kwargs(
    env_kwargs: Mapping[str, Any] | None, space: gymnasium.spaces.Dict, set_task: SetTask | None
) -> dict[str, Any]:
    if not isinstance(env_kwargs, Mapping | None):
        raise ValueError(f"env_kwargs must be a mapping of names to values, got {env_kwargs!r}")
    kwargs, parameters = dict(env_kwargs or {}), set() if set_task else set(space.spaces)
    if twice := parameters & set(kwargs):
        raise ValueError(f"env_kwargs must not set parameters of space, got {sorted(twice)}")
    if reserved := RESERVED & (parameters | set(kwargs)):
        raise ValueError(f"env_kwargs and space must not set {sorted(reserved)}: see horizon, and render_mode of make")
    return kwargs


def _checked_set_task(set_task: SetTask | None) -> SetTask | None:
    if set_task is not None and not callable(set_task):
        raise ValueError(f"set_task must be a function of an environment and a task, got {set_task!r}")
    return set_task


def _check_picklable(maker: EnvMaker) -> None:
    for name, part in maker._asdict().items():
        try:
            pickle.dumps(part)
        except Exception as error:  # whatever an object's own __reduce__ raises
            advice = "must be picklable to be sent to workers: use a function or class at the top level of a module"
            raise ValueError(f"{name} {advice}, got {part!r} ({error})") from error


def _made(maker: EnvMaker, task: TaskParams) -> AnyEnv:
    wanted = f"env must be one that can be made with the parameters of space, here {numbers(task)}"
    env = _attempt(wanted, lambda: maker.build(task))
    if not isinstance(env, gymnasium.Env):
        old = hasattr(env, "reset") and hasattr(env, "step")
        raise ValueError(f"env must return a gymnasium.Env, got {env!r}{OLD_GYM if old else ''}")
    return env


def _check_made(maker: EnvMaker, task: TaskParams, env: AnyEnv) -> None:
    wanted = f"set_task must accept the unwrapped environment and a task, here {numbers(task)}"
    _attempt(wanted, lambda: maker.set(env, task))
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, ARRAYS):
            wanted = f"env must have an {name} space that is a Box, Discrete, MultiDiscrete or MultiBinary"
            raise ValueError(f"{wanted}, got {space}; gymnasium.wrappers can flatten it")
    result = _attempt(RESET, lambda: env.reset(seed=0))
    StepChecker(env.observation_space).check_reset(result, Trial(f"{type(env.unwrapped).__name__}, step 0"))


def _attempt(wanted: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except DependencyNotInstalled:  # says by itself what to do
        raise
    except Exception as error:  # environments refuse arguments with whatever they like
        raise ValueError(f"{wanted}, got {type(error).__name__}: {error}") from error


def _check_wrappers(trial: AnyEnv, *, reused: bool) -> None:
    """Wrappers that learn make what an environment returns depend on all that it has been used for."""
    names = learning_layers(trial)
    if not names:
        return
    found = f"{' and '.join(names)}, which learn from every episode, evaluations included"
    advice = "use ReinforcementLearning(..., normalize_observations=True) for observations; rewards need nothing, as"
    advice += " advantages are normalised"
    if reused:
        raise ValueError(f"env must not learn where set_task uses environments again, got {found}; {advice}")
    warnings.warn(f"env has {found}: draws of a task are not independent; {advice}", stacklevel=3)


def learning_layers(env: AnyEnv) -> list[str]:
    """The layers of `env`, from the outermost wrapper on, that keep running statistics and have not been frozen."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    learning = (x for x in layers if any(map(_is_running, getattr(x, "__dict__", {}).values())))
    return [type(x).__name__ for x in learning if getattr(x, "update_running_mean", True)]


def _is_running(value: object) -> bool:
    """Whether it is a RunningMeanStd, of Gymnasium, Stable-Baselines3 or another library."""
    return callable(getattr(value, "update", None)) and all(hasattr(value, name) for name in ("mean", "var", "count"))


def _horizon(horizon: int | None, env: EnvSpec | Callable[..., AnyEnv], trial: AnyEnv) -> int:
    if horizon is not None:
        return check_int("horizon", horizon)
    spec = env if isinstance(env, EnvSpec) else trial.spec
    if spec is None or spec.max_episode_steps is None:
        raise ValueError(f"horizon must be given: {trial} has no registered max_episode_steps")
    return spec.max_episode_steps
