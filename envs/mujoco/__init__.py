"""MuJoCo task distributions; their vector environments step in threads.

Needs the extra `mujoco`: `pip install "metarl-torch[mujoco]"`.
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
