"""MuJoCo task distributions, all environments of which advance together in threads.

Needs the extra `mujoco`; without it, importing this package says how to install it.
"""

from metarl.envs.mujoco.ant import AntDirection, AntDirection2D, AntGoal, AntVelocity
from metarl.envs.mujoco.distribution import MujocoDistribution, TaskEnv
from metarl.envs.mujoco.half_cheetah import HalfCheetahDirection, HalfCheetahVelocity
from metarl.envs.mujoco.humanoid import HumanoidDirection
from metarl.envs.mujoco.random_parameters import HopperRandomParameters, Walker2dRandomParameters
from metarl.envs.mujoco.vector import MujocoVectorEnv

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
]
