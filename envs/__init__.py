"""Task distributions: sets of environments that differ in a few parameters.

Importing this package registers with Gymnasium `metarl/Navigation-v0`, `metarl/PointVelocity-v0`,
`metarl/GridWorld-v0`, the problems with exact answers (`metarl/GaussianBandit-v0`, `metarl/TabularMDP-v0` and
`metarl/LinearGaussian-v0`), and those of MuJoCo (`metarl/HalfCheetahVelocity-v0` and so on). They end their episodes
themselves (keyword `horizon`), so the registration sets no `max_episode_steps`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled

from metarl.envs.base import EnvDistribution
from metarl.envs.cart_pole import CartPole, CartPoleGoal
from metarl.envs.exact.gaussian_bandit import GaussianBandit
from metarl.envs.exact.linear_gaussian import LinearGaussian
from metarl.envs.exact.tabular import TabularMDP
from metarl.envs.functional import FunctionalEnv, FunctionalGymEnv
from metarl.envs.functional_tasks import FunctionalDistribution
from metarl.envs.grid_world import GridWorld
from metarl.envs.gym_tasks import GymDistribution
from metarl.envs.gym_vector import GymVectorEnv
from metarl.envs.navigation import Navigation, NavigationRing
from metarl.envs.point_velocity import PointVelocity
from metarl.envs.vector import TorchVectorEnv
from metarl.envs.workers import WorkerError
from metarl.errors import check_choice

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
    "PointVelocity",
    "TabularMDP",
    "TorchVectorEnv",
    "WorkerError",
    "constructor",
    "make_distribution",
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


def make_mujoco_distribution(class_name: str, **kwargs: Any) -> EnvDistribution:
    """A task distribution of `metarl.envs.mujoco`, which is imported only now: all else works without MuJoCo.

    Raises:
        ValueError: MuJoCo is not installed, with the command that installs it; or as the class.
    """
    tasks: EnvDistribution = _checked(getattr(mujoco_tasks(), class_name), kwargs)(**kwargs)
    return tasks


def mujoco_tasks() -> ModuleType:
    """The package `metarl.envs.mujoco`.

    Raises:
        ValueError: MuJoCo is not installed, with the command that installs it.
    """
    try:
        return import_module("metarl.envs.mujoco")
    except (ImportError, DependencyNotInstalled) as error:
        reason = error.__cause__ or error  # Gymnasium's own advice would be a second one
        raise ValueError(f'this needs the extra mujoco: pip install "metarl-torch[mujoco]" ({reason})') from error


def make_mujoco_env(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """One MuJoCo environment, for Gymnasium's registry; `metarl.envs.mujoco.make_env` has the arguments.

    Raises:
        ValueError: as that, or MuJoCo is not installed, with the command that installs it.
    """
    env: gymnasium.Env[Any, Any] = mujoco_tasks().make_env(**kwargs)
    return env


ENVS: dict[str, Callable[..., EnvDistribution]] = {
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
}
ENVS |= {name: partial(make_mujoco_distribution, class_name) for name, class_name in MUJOCO.items()}
"""Names for command lines; those of MuJoCo need the extra `mujoco`."""


def make_distribution(name: str, **kwargs: Any) -> EnvDistribution:
    """The task distribution called `name` in `ENVS`; `kwargs` go to its constructor.

    Raises:
        ValueError: an unknown name, or an unknown or unfit argument.

    >>> make_distribution("navigation", horizon=50).horizon
    50
    """
    return _checked(ENVS[check_choice("name", name, ENVS)], kwargs)(**kwargs)


def constructor(name: str) -> Callable[..., EnvDistribution]:
    """What makes the task distribution called `name` in `ENVS`, with its parameters: `inspect.signature` shows them.

    Raises:
        ValueError: an unknown name, or MuJoCo is needed and not installed.
    """
    make = ENVS[check_choice("name", name, ENVS)]
    return getattr(mujoco_tasks(), MUJOCO[name]) if name in MUJOCO else make


def _checked(make: Callable[..., EnvDistribution], kwargs: Mapping[str, Any]) -> Callable[..., EnvDistribution]:
    """`make`, if it takes all of `kwargs`."""
    parameters = signature(make).parameters
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in kwargs:
            check_choice("option", name, parameters)
    return make


gymnasium.register("metarl/Navigation-v0", entry_point="metarl.envs.navigation:NavigationGymEnv")
gymnasium.register("metarl/PointVelocity-v0", entry_point="metarl.envs.point_velocity:PointVelocityGymEnv")
gymnasium.register("metarl/GaussianBandit-v0", entry_point="metarl.envs.exact.gaussian_bandit:GaussianBanditGymEnv")
gymnasium.register("metarl/TabularMDP-v0", entry_point="metarl.envs.exact.tabular:TabularGymEnv")
gymnasium.register("metarl/LinearGaussian-v0", entry_point="metarl.envs.exact.linear_gaussian:LinearGaussianGymEnv")
gymnasium.register("metarl/GridWorld-v0", entry_point="metarl.envs.grid_world:GridWorldGymEnv")
for class_name in MUJOCO.values():
    gymnasium.register(
        f"metarl/{class_name}-v0", entry_point="metarl.envs:make_mujoco_env", kwargs={"distribution": class_name}
    )
