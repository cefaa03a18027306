"""MuJoCo task distributions, all environments of which advance together in threads.

Needs the extra `mujoco`; without it, importing this package says how to install it.
"""

from inspect import signature
from typing import Any

from metarl.envs.mujoco.ant import AntDirection, AntDirection2D, AntGoal, AntVelocity
from metarl.envs.mujoco.half_cheetah import HalfCheetahDirection, HalfCheetahVelocity
from metarl.envs.mujoco.humanoid import HumanoidDirection
from metarl.envs.mujoco.random_parameters import HopperRandomParameters, Walker2dRandomParameters
from metarl.envs.mujoco.tasks import MujocoDistribution, TaskEnv
from metarl.envs.mujoco.vector import MujocoVectorEnv
from metarl.errors import check_choice

__all__ = [
    "AntDirection",
    "AntDirection2D",
    "AntGoal",
    "AntVelocity",
    "HalfCheetahDirection",
    "HalfCheetahVelocity",
    "HopperRandomParameters",
    "HumanoidDirection",
    "MujocoDistribution",
    "MujocoVectorEnv",
    "TaskEnv",
    "Walker2dRandomParameters",
    "make_env",
]


def make_env(distribution: str, render_mode: str | None = None, **settings: Any) -> TaskEnv:
    """One environment, for Gymnasium's registry.

    Args:
        distribution: the class of its tasks.
        render_mode: None or one of Gymnasium's.
        settings: parameters of the task (`goal`, `direction`, ...), and arguments of the class.

    Raises:
        ValueError: naming what cannot work.

    >>> env = make_env("HalfCheetahVelocity", goal=1.5, horizon=100)
    >>> env.reset(seed=0)[0].shape
    (17,)
    """
    tasks_class = globals()[check_choice("distribution", distribution, __all__)]
    options = {name: settings.pop(name) for name in list(settings) if name in signature(tasks_class).parameters}
    tasks: MujocoDistribution = tasks_class(**options)
    for name in settings:
        check_choice("setting", name, [*tasks.space.spaces, *signature(tasks_class).parameters])
    return tasks.make({**tasks.example(), **settings}, render_mode)
