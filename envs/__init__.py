"""Task distributions: sets of environments that differ in a few parameters.

Importing this package registers `metarl/Navigation-v0`, `metarl/PointVelocity-v0` and the problems with exact answers,
`metarl/GaussianBandit-v0`, `metarl/TabularMDP-v0` and `metarl/LinearGaussian-v0`, with Gymnasium. They end their
episodes themselves (keyword `horizon`), so the registration sets no `max_episode_steps`.
"""

from collections.abc import Callable
from typing import Any

import gymnasium

from envs.functional import FunctionalEnv, FunctionalGymEnv
from envs.functional_tasks import FunctionalTasks
from envs.gaussian_bandit import GaussianBandit
from envs.linear_gaussian import LinearGaussian
from envs.navigation import Navigation, NavigationRing
from envs.point_velocity import PointVelocity
from envs.tabular import TabularMDP
from envs.tasks import EnvTasks
from envs.vector import TorchVectorEnv
from metarl.errors import check_choice

__all__ = [
    "ENVS",
    "EnvTasks",
    "FunctionalEnv",
    "FunctionalGymEnv",
    "FunctionalTasks",
    "GaussianBandit",
    "LinearGaussian",
    "Navigation",
    "NavigationRing",
    "PointVelocity",
    "TabularMDP",
    "TorchVectorEnv",
    "make_distribution",
]

ENVS: dict[str, Callable[..., EnvTasks]] = {
    "navigation": Navigation,
    "navigation_ring": NavigationRing,
    "point_velocity": PointVelocity,
    "gaussian_bandit": GaussianBandit,
    "tabular_mdp": TabularMDP,
    "linear_gaussian": LinearGaussian,
}
"""Names for command lines."""


def make_distribution(name: str, **kwargs: Any) -> EnvTasks:
    """The task distribution called `name` in `ENVS`; `kwargs` go to its constructor.

    Raises:
        ValueError: an unknown name.

    >>> make_distribution("navigation", horizon=50).horizon
    50
    """
    return ENVS[check_choice("name", name, ENVS)](**kwargs)


gymnasium.register("metarl/Navigation-v0", entry_point="envs.navigation:NavigationGymEnv")
gymnasium.register("metarl/PointVelocity-v0", entry_point="envs.point_velocity:PointVelocityGymEnv")
gymnasium.register("metarl/GaussianBandit-v0", entry_point="envs.gaussian_bandit:GaussianBanditGymEnv")
gymnasium.register("metarl/TabularMDP-v0", entry_point="envs.tabular:TabularGymEnv")
gymnasium.register("metarl/LinearGaussian-v0", entry_point="envs.linear_gaussian:LinearGaussianGymEnv")
