"""Policies for metarl, built from Stable-Baselines3's networks, and the bridge to and from its algorithms.

`make_policy` builds a network that `torch.func` can batch and differentiate. `to_sb3` turns it, with meta-trained or
adapted parameters, into a PPO model; `from_sb3` does the reverse.
"""

from metarl.agents.context import make_context_policy
from metarl.agents.policy import PolicyModule, make_policy
from metarl.agents.sb3 import from_sb3, to_sb3
from metarl.agents.vec_env import TaskVecEnv

__all__ = ["PolicyModule", "TaskVecEnv", "from_sb3", "make_context_policy", "make_policy", "to_sb3"]
