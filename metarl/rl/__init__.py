"""Reinforcement learning as an oracle: task-batched rollouts, advantages, surrogate losses."""

from metarl.rl.actor import Actor
from metarl.rl.adapted_policy import AdaptedPolicy
from metarl.rl.distributions import (
    ActionDistribution,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
)
from metarl.rl.normalization import NormalizedPolicy
from metarl.rl.oracle import ReinforcementLearning, RLTaskBatch
from metarl.rl.policy import policy_params
from metarl.rl.surrogates import SURROGATES

__all__ = [
    "SURROGATES",
    "ActionDistribution",
    "Actor",
    "AdaptedPolicy",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "MultiCategorical",
    "NormalizedPolicy",
    "RLTaskBatch",
    "ReinforcementLearning",
    "SquashedGaussian",
    "policy_params",
]
