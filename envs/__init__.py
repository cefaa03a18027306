"""Task distributions: sets of environments that differ in a few parameters.

`ENVS` names them for command lines. Importing this package registers single environments with Gymnasium:
`metarl/Navigation-v0`, `metarl/GaussianBandit-v0`, `metarl/HalfCheetahVelocity-v0` and so on (see `make_env`).
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled

from metarl.envs.base import EnvDistribution
from metarl.envs.cart_pole import CartPole, CartPoleGoal
from metarl.envs.exact.gaussian_bandit import GaussianBandit
from metarl.envs.exact.linear_gaussian import LinearGaussian
from metarl.envs.exact.tabular import TabularMDP
from metarl.envs.functional import FunctionalGymEnv
from metarl.envs.functional_distribution import FunctionalDistribution
from metarl.envs.grid_world import GridWorld
from metarl.envs.gym_distribution import GymDistribution
from metarl.envs.gym_vector import GymVectorEnv
from metarl.envs.navigation import Navigation, NavigationRing
from metarl.envs.observe_task import ObserveTask
from metarl.envs.own import check_made, find_own
from metarl.envs.point_velocity import PointVelocity
from metarl.envs.vector import TorchVectorEnv
from metarl.envs.workers import WorkerError
from metarl.errors import check_callable, check_choice, check_int
from metarl.functional_env import FunctionalEnv, functional_step
from metarl.task_params import check_task

__all__ = [
    "ENVS",
    "MUJOCO",
    "CartPole",
    "CartPoleGoal",
    "EnvDistribution",
    "FunctionalDistribution",
    "FunctionalEnv",
    "FunctionalGymEnv",
    "GaussianBandit",
    "GridWorld",
    "GymDistribution",
    "GymVectorEnv",
    "LinearGaussian",
    "Navigation",
    "NavigationRing",
    "ObserveTask",
    "PointVelocity",
    "TabularMDP",
    "TorchVectorEnv",
    "WorkerError",
    "constructor",
    "functional_step",
    "make_distribution",
    "make_env",
    "register",
]

MUJOCO = {
    "half_cheetah_velocity": "HalfCheetahVelocity",
    "half_cheetah_direction": "HalfCheetahDirection",
    "ant_velocity": "AntVelocity",
    "ant_direction": "AntDirection",
    "ant_direction_2d": "AntDirection2D",
    "ant_goal": "AntGoal",
    "humanoid_direction": "HumanoidDirection",
    "walker2d_random_parameters": "Walker2dRandomParameters",
    "hopper_random_parameters": "HopperRandomParameters",
}
"""Classes in `metarl.envs.mujoco`."""

ENVS: dict[str, Callable[..., EnvDistribution] | str] = {
    "navigation": Navigation,
    "navigation_ring": NavigationRing,
    "point_velocity": PointVelocity,
    "gaussian_bandit": GaussianBandit,
    "tabular_mdp": TabularMDP,
    "linear_gaussian": LinearGaussian,
    "grid_world": GridWorld,
    "grid_world_image": partial(GridWorld, image=True),
    "cart_pole": CartPole,
    "cart_pole_goal": CartPoleGoal,
    **MUJOCO,
}
"""Names for command lines. A string is a class of `metarl.envs.mujoco`, which needs the extra `mujoco`."""


def register(name: str, make: Callable[..., EnvDistribution]) -> None:
    """Give a task distribution of your own a name, for `--env` and `make_distribution`.

    In a module that `--plugins` names:

        envs.register("my_pendulum", MyPendulums)

    Args:
        name: the name.
        make: a class or a function; its arguments are the options of `--env-options`.

    Raises:
        ValueError: the name is taken or has a colon, or `make` cannot be called.
    """
    if not isinstance(name, str) or not name or ":" in name:
        raise ValueError(f"name must be a word without a colon, got {name!r}")
    check_callable("make", make, "a class or a function that makes a task distribution")
    if name in ENVS and _place(ENVS[name]) != _place(make):  # a module may be imported again
        raise ValueError(f"name must be new, but {name!r} is {ENVS[name]!r}")
    ENVS[name] = make


def _place(make: object) -> tuple[object, object]:
    """Where a class or function is defined."""
    return getattr(make, "__module__", None), getattr(make, "__qualname__", repr(make))


def make_distribution(name: str, **options: Any) -> EnvDistribution:
    """The task distribution called `name` in `ENVS`, or `module:object`; `options` go to its constructor.

    Raises:
        ValueError: an unknown name, an unknown option or a value that does not fit, or MuJoCo is not installed.

    >>> make_distribution("navigation", horizon=50).horizon
    50
    """
    make = constructor(name)
    parameters = signature(make).parameters
    if all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options:
            check_choice("option", option, parameters)
    try:
        signature(make).bind(**options)
    except TypeError as error:
        raise ValueError(f"env {name!r} must be made with the options {options}: {error}") from error
    return check_made(name, make(**options))


def constructor(name: str) -> Callable[..., EnvDistribution]:
    """The class or function that makes the task distribution called `name` in `ENVS`, or `module:object`.

    Raises:
        ValueError: an unknown name, or MuJoCo is not installed, with the command that installs it.
    """
    if isinstance(name, str) and ":" in name:
        return find_own(name)
    make = ENVS[check_choice("name", name, ENVS)]
    if not isinstance(make, str):
        return make
    try:
        found: Callable[..., EnvDistribution] = getattr(import_module("metarl.envs.mujoco"), make)
    except (ImportError, DependencyNotInstalled) as error:
        reason = error.__cause__ or error  # Gymnasium's error has installation advice that does not apply here
        raise ValueError(f'this needs the extra mujoco: pip install "metarl-torch[mujoco]" ({reason})') from error
    return found


def make_env(name: str, render_mode: str | None = None, **settings: Any) -> gymnasium.Env[Any, Any]:
    """One environment of the task distribution called `name` in `ENVS`.

    Args:
        name: a key of `ENVS`.
        render_mode: one of the environment's, or None.
        settings: parameters of the task (`goal`, ...), options of the distribution (`horizon`, ...), and `task_seed`.
            Parameters that are not given are those of the distribution's `example`, or of a task drawn from the seed.

    Raises:
        ValueError: naming the argument.

    >>> make_env("point_velocity", goal=1.5, horizon=20).reset(seed=0)
    (array([0.], dtype=float32), {})
    """
    distribution, task = choose_task(name, settings)
    return distribution.make(task, render_mode)


class RegisteredEnv(FunctionalGymEnv):
    """`make_env` for functional environments, as a class: Gymnasium reads the render modes from it."""

    def __init__(self, name: str, render_mode: str | None = None, **settings: Any) -> None:
        distribution, task = choose_task(name, settings)
        assert isinstance(distribution, FunctionalDistribution)
        super().__init__(distribution.env, check_task(distribution.space, task), distribution.horizon, render_mode)


def choose_task(name: str, settings: dict[str, Any]) -> tuple[EnvDistribution, dict[str, Any]]:
    """The distribution and the parameters of one task, as `make_env` takes them from `settings`."""
    known = signature(constructor(name)).parameters
    distribution = make_distribution(name, **{key: value for key, value in settings.items() if key in known})
    given = {key: value for key, value in settings.items() if key not in known}
    seed = given.pop("task_seed", None)
    for setting in given:
        check_choice("setting", setting, [*distribution.space.spaces, *known, "task_seed"])
    if given.keys() == distribution.space.spaces.keys():
        return distribution, given
    if seed is None:
        return distribution, {**distribution.example(), **given}
    drawn = distribution.sample(1, np.random.default_rng(check_int("task_seed", seed, minimum=0)))
    return distribution, {**{key: values[0] for key, values in drawn.items()}, **given}


FUNCTIONAL_IDS = {
    "Navigation": "navigation",
    "PointVelocity": "point_velocity",
    "GridWorld": "grid_world",
    "GaussianBandit": "gaussian_bandit",
    "TabularMDP": "tabular_mdp",
    "LinearGaussian": "linear_gaussian",
}
# These environments end their episodes themselves (option `horizon`), so no `max_episode_steps` is registered.
for id_, name in FUNCTIONAL_IDS.items():
    gymnasium.register(f"metarl/{id_}-v0", entry_point="metarl.envs:RegisteredEnv", kwargs={"name": name})
for name, id_ in MUJOCO.items():
    gymnasium.register(f"metarl/{id_}-v0", entry_point="metarl.envs:make_env", kwargs={"name": name})
