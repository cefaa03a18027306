"""Policies with context inputs (CAVIA; Zintgraf et al., 2019)."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from metarl.agents.policy import make_policy
from metarl.context import WithContext
from metarl.errors import check_int


def make_context_policy(
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    context_size: int,
    *,
    policy_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> WithContext:
    """A policy as `make_policy` makes it, which gets `context_size` numbers beside each observation.

    Args:
        observation_space: a Box of one dimension.
        action_space: as for `make_policy`, like the arguments after the next one.
        context_size: numbers in the context.
        policy_kwargs: see `make_policy`.
        seed: of the initial weights.

    Raises:
        ValueError: for another observation space, and for what `make_policy` refuses.

    Example:
        >>> import gymnasium, torch
        >>> env = gymnasium.make("Pendulum-v1")
        >>> policy = make_context_policy(env.observation_space, env.action_space, 5)
        >>> policy.context.shape, policy(torch.zeros(2, 3))[0].shape
        (torch.Size([5]), torch.Size([2, 1]))
    """
    size = check_int("context_size", context_size)
    if not isinstance(observation_space, Box) or len(observation_space.shape) != 1:
        raise ValueError(f"context_size needs observations of a Box of one dimension, got {observation_space}")
    wider = Box(-np.inf, np.inf, (observation_space.shape[0] + size,), np.float32)
    return WithContext(make_policy(wider, action_space, policy_kwargs=policy_kwargs, seed=seed), size)
