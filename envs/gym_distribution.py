"""Any Gymnasium environment as a distribution of tasks: a few of its parameters vary."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import gymnasium
import numpy.typing as npt
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from metarl.envs.base import EnvDistribution, check_device
from metarl.envs.env_store import AnyEnv, EnvMaker, EnvStore, EpisodeLimit, SetTask, as_numbers
from metarl.envs.gym_vector import GymVectorEnv, LocalStepper, Stepper
from metarl.envs.step_checker import StepChecker
from metarl.envs.workers import Workers
from metarl.errors import check_callable, check_int, check_real, check_type, did_you_mean
from metarl.task_params import check_task, check_tasks
from metarl.types import TaskParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
ARRAYS: TypeAlias = Box | Discrete | MultiDiscrete | MultiBinary
OLD_GYM = "; this is the old Gym interface: wrap it with shimmy's GymV21CompatibilityV0 or GymV26CompatibilityV0"
RESET = "env must have reset(*, seed=None, options=None) that returns (observation, info)"
RESERVED = {"id", "max_episode_steps", "disable_env_checker", "render_mode"}
"""Arguments of `gymnasium.make` that GymDistribution sets itself."""


class GymDistribution(EnvDistribution):
    """Tasks made from a registered environment, or from a function; `space` describes the parameters that vary.

    Dict observations become one Box with the entries side by side, in the order of `gymnasium.spaces.flatten_space`;
    the numbers of a Discrete become one-hot vectors.

    A task's parameters are passed to the constructor (single numbers as Python scalars, others as arrays), or are set
    on the environment by `set_task`. With `set_task`, the next `make_vec` reuses the environments, which saves the cost
    of making them.

    The environments are stepped one after the other in this process, or by `workers` processes in parallel; the
    results are the same. Workers pay off where a step is slow. They start with the first `make_vec`, which takes
    seconds, and live until `close`. After a `WorkerError` the next `make_vec` starts new ones.

    Args:
        env: an environment's id, or a function (or class) that returns an environment.
        space: the space of ONE task's parameters. The constructor calls `sample`: a subclass that overrides it sets
            the attributes it needs before.
        horizon: steps per episode, at most; by default the registered `max_episode_steps`, which it replaces.
        set_task: `set_task(env, task)` sets the parameters on the unwrapped environment, and everything that depends on
            them; `reset` is called after it.
        env_kwargs: further arguments of the constructor, the same for all tasks.
        workers: number of processes; 0 steps in this one.
        timeout: seconds a worker may take to answer; to start it may take at least two minutes.
        draw_episode: `draw_episode(ax, observations, **line_kwargs)` draws one episode, `[n_steps, obs]`, into pictures
            of trajectories; default: the observation's components over the steps.
        draw_task: `draw_task(ax, task)` draws a task into them; default: its parameters as a label.

    Raises:
        ValueError: naming the argument. The constructor makes, resets and closes one environment to check. Wrappers
            that learn (NormalizeObservation, NormalizeReward) are refused if `set_task` reuses environments.

    >>> import numpy as np
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
        draw_episode: Callable[..., None] | None = None,
        draw_task: Callable[[Axes, TaskParams], None] | None = None,
    ) -> None:
        self.space = check_space(space)
        for name, function in (("draw_episode", draw_episode), ("draw_task", draw_task)):
            if function is not None:
                check_callable(name, function, "a function that draws into matplotlib axes")
        self.draw_episode, self.draw_task = draw_episode, draw_task
        self.workers, self.timeout = check_int("workers", workers, 0), check_real("timeout", timeout)
        if set_task is not None:
            check_callable("set_task", set_task, "a function of an environment and a task")
        maker = EnvMaker(find_env(env), check_kwargs(env_kwargs, space, set_task), set_task)
        if workers:
            check_picklable(maker)
        # One environment is made to learn its spaces and to find mistakes before training starts.
        one = self.example()
        with contextlib.closing(build_trial(maker, one)) as trial:
            check_trial(maker, one, trial)
            check_wrappers(trial, reused=set_task is not None)
            self._env_name = type(trial.unwrapped).__name__
            horizon = choose_horizon(horizon, maker.env, trial)
            super().__init__(space, trial.observation_space, trial.action_space, horizon)
        self._store = EnvStore(maker, self.horizon, self.observation_space)
        self._pool: Workers | None = None

    def make(self, task: TaskParams, render_mode: str | None = None) -> EpisodeLimit:
        """As `EnvDistribution.make`; `render_mode` is one of the environment's."""
        return self._store.make(check_task(self.space, task), render_mode)

    def make_vec(self, task: TaskParams, episodes: int, device: torch.device | str = "cpu") -> GymVectorEnv:
        """As `EnvDistribution.make_vec`, in numpy. The environments run on the CPU; `device` is where the policy is.

        Raises:
            ValueError: as for `EnvDistribution.make_vec`.
            WorkerError: a worker process failed.
        """
        check_int("episodes", episodes)
        check_device(device)
        each = {name: value.repeat(episodes, axis=0) for name, value in check_tasks(self.space, task).items()}
        number = len(next(iter(each.values())))
        return GymVectorEnv(self._open(each), number, self.observation_space, self.action_space, self._env_name)

    def plot_task(self, ax: Axes, task: TaskParams) -> None:
        """`draw_task`, or the parameters as a label."""
        (self.draw_task or super().plot_task)(ax, task)

    def plot_episode(self, ax: Axes, observations: npt.NDArray[Any], **line_kwargs: Any) -> None:
        """`draw_episode`, or the components over the steps."""
        (self.draw_episode or super().plot_episode)(ax, observations, **line_kwargs)

    def close(self) -> None:
        """Stop the workers and close all environments of `make_vec`; also done at exit.

        The next `make_vec` makes new ones.
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

    def _open(self, task: TaskParams) -> Stepper:
        if not self.workers:
            return LocalStepper(self._store, task)
        if self._pool is None or self._pool.closed:
            self._pool = Workers(self._store, self.workers, self.timeout)
        return self._pool.open(task)


def check_space(space: object) -> gymnasium.spaces.Dict:
    """`space` if it is a Dict that has parameters; a ValueError otherwise."""
    if not isinstance(space, gymnasium.spaces.Dict) or not space.spaces:
        raise ValueError(f"space must be a gymnasium.spaces.Dict with at least one parameter, got {space!r}")
    return space


def find_env(env: object) -> EnvSpec | Callable[..., AnyEnv]:
    """`env` if it is a function, the spec of an id: workers may not have the id in their registry.

    Raises:
        ValueError: an unknown id, with the nearest known one, or another object.
    """
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


def check_kwargs(
    env_kwargs: Mapping[str, Any] | None, space: gymnasium.spaces.Dict, set_task: SetTask | None
) -> dict[str, Any]:
    """A copy of `env_kwargs`; a ValueError if it is not a mapping or sets a parameter of `space` or a reserved one."""
    check_type("env_kwargs", env_kwargs, (Mapping, type(None)), "a mapping of names to values")
    kwargs, parameters = dict(env_kwargs or {}), set() if set_task else set(space.spaces)
    if twice := parameters & set(kwargs):
        raise ValueError(f"env_kwargs must not set parameters of space, got {sorted(twice)}")
    if reserved := RESERVED & (parameters | set(kwargs)):
        raise ValueError(f"env_kwargs and space must not set {sorted(reserved)}: see horizon, and render_mode of make")
    return kwargs


def check_picklable(maker: EnvMaker) -> None:
    """Raise a ValueError if a part of `maker` cannot be pickled for the workers."""
    for name, part in maker._asdict().items():
        try:
            pickle.dumps(part)
        except Exception as error:  # an object's own __reduce__ may raise anything
            advice = "use a function or class at the top level of a module"
            raise ValueError(f"{name} must be picklable for workers, got {part!r} ({error}); {advice}") from error


def build_trial(maker: EnvMaker, task: TaskParams) -> AnyEnv:
    """One environment for `task`; a ValueError if it cannot be made, or is not a gymnasium.Env."""
    wanted = f"env must accept the parameters of space, here {as_numbers(task)}"
    env = _attempt(wanted, lambda: maker.build(task))
    if not isinstance(env, gymnasium.Env):
        old = hasattr(env, "reset") and hasattr(env, "step")
        raise ValueError(f"env must return a gymnasium.Env, got {env!r}{OLD_GYM if old else ''}")
    return env


def check_trial(maker: EnvMaker, task: TaskParams, env: AnyEnv) -> None:
    """Raise a ValueError if `set_task`, a space or `reset` of `env` does not work."""
    wanted = f"set_task must accept the unwrapped environment and a task, here {as_numbers(task)}"
    _attempt(wanted, lambda: maker.set(env, task))
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, ARRAYS):
            wanted = f"env must have an {name} space that is a Box, Discrete, MultiDiscrete or MultiBinary"
            raise ValueError(f"{wanted}, got {space}; gymnasium.wrappers can flatten it")
    result = _attempt(RESET, lambda: env.reset(seed=0))
    StepChecker(env.observation_space).check_reset(result, lambda: f"{type(env.unwrapped).__name__}, step 0")


def _attempt(wanted: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except DependencyNotInstalled:  # its message says what to install
        raise
    except Exception as error:  # environments may refuse arguments with any error
        raise ValueError(f"{wanted}, got {type(error).__name__}: {error}") from error


def check_wrappers(trial: AnyEnv, *, reused: bool) -> None:
    """Raise a ValueError for wrappers that learn if environments are `reused`; otherwise warn.

    With such a wrapper, what an environment returns depends on all its earlier uses.
    """
    names = find_learning_layers(trial)
    if not names:
        return
    found = f"{' and '.join(names)}, which learn from every episode, including evaluations"
    advice = "use ReinforcementLearning(..., normalize_observations=True) for observations; rewards need no"
    advice += " normalisation, because advantages are normalised"
    if reused:
        raise ValueError(f"env must not learn if set_task reuses environments, got {found}; {advice}")
    warnings.warn(f"env has {found}: so draws of a task are not independent; {advice}", stacklevel=3)


def find_learning_layers(env: AnyEnv) -> list[str]:
    """Class names of the layers of `env`, outermost first, that keep running statistics and are not frozen."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    learning = (x for x in layers if any(map(_is_running, getattr(x, "__dict__", {}).values())))
    return [type(x).__name__ for x in learning if getattr(x, "update_running_mean", True)]


def _is_running(value: object) -> bool:
    """Whether `value` is a RunningMeanStd of Gymnasium, Stable-Baselines3 or another library."""
    return callable(getattr(value, "update", None)) and all(hasattr(value, name) for name in ("mean", "var", "count"))


def choose_horizon(horizon: int | None, env: EnvSpec | Callable[..., AnyEnv], trial: AnyEnv) -> int:
    """The given horizon or the registered one; a ValueError if there is neither."""
    if horizon is not None:
        return check_int("horizon", horizon)
    spec = env if isinstance(env, EnvSpec) else trial.spec
    if spec is None or spec.max_episode_steps is None:
        raise ValueError(f"horizon must be given: {trial} has no registered max_episode_steps")
    return spec.max_episode_steps
