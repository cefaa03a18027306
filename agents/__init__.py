"""Policies for metarl, built from Stable-Baselines3's networks, and the bridge to and from its algorithms.

`make_policy` builds a network that `torch.func` can batch and differentiate; `to_sb3` turns it, with meta-trained or
adapted parameters, into a PPO model; `from_sb3` goes the other way. `agents.exact` has the small policies under which
the problems with exact answers have them.
"""

from agents.exact import GaussianMean, LinearPolicy, TabularSoftmax
from agents.policy import PolicyModule, make_policy
from agents.sb3 import from_sb3, to_sb3

__all__ = ["GaussianMean", "LinearPolicy", "PolicyModule", "TabularSoftmax", "from_sb3", "make_policy", "to_sb3"]
