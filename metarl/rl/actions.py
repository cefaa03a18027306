"""From the policy's samples to the actions that environments take.

    clip      a, clipped to the bounds of the action space, as Stable-Baselines3 does
    rescale   low + (a + 1) (high - low) / 2, clipped: [-1, 1] is the whole box
    squash    low + (tanh a + 1) (high - low) / 2, which needs no clipping

The log-probability is always that of the sampled action, before clipping. Integer boxes get the nearest integer inside
their bounds.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.errors import check_choice

Sender: TypeAlias = Callable[[Tensor], Tensor]
"""From sampled actions `[N, *action]` to those for the environments, `[N, *action]`."""

ACTIONS = ("clip", "rescale", "squash")

MOSTLY = 0.9
"""The share of clipped actions from which a warning is given: the policy can hardly learn from them."""

WIDE = 20
"""The width of a box from which a warning is given: a new policy acts within [-2, 2]."""


def check_actions(actions: str, space: spaces.Space[Any]) -> str:
    """`actions` if it is one of `ACTIONS` and fits the action space.

    Raises:
        ValueError: for an unknown name, and for `rescale` or `squash` unless the space is a Box with finite bounds.
    """
    check_choice("actions", actions, ACTIONS)
    if actions != "clip" and not (isinstance(space, spaces.Box) and space.is_bounded()):
        raise ValueError(f"actions={actions!r} needs a Box with finite bounds, got {space}; use actions='clip'")
    return actions


def make_clipper(
    space: spaces.Space[Any], device: torch.device, actions: str = "clip", dtype: torch.dtype | None = None
) -> Sender:
    """A function from sampled actions to those for the environments, inside the bounds of a Box.

    Args:
        space: the action space of one environment; actions of a Discrete do not change.
        device: of the actions.
        actions: one of `ACTIONS`.
        dtype: of the result; default: the space's.
    """
    if not isinstance(space, spaces.Box):
        return lambda action: action
    own = torch.from_numpy(np.zeros(0, space.dtype)).dtype
    whole, target = not own.is_floating_point, own if dtype is None else dtype
    low, high = (_inside(bound, own).to(device) for bound in (space.low, space.high))
    exact = _keep_exact_bounds(space, device) if target in (torch.int64, torch.uint64) else lambda action, sent: sent

    if actions == "clip" and not whole and target == own:
        return lambda action: action.to(own).clamp(low, high)

    def send(action: Tensor) -> Tensor:
        action = action.to(torch.float64 if whole else torch.promote_types(action.dtype, own))
        if actions != "clip":
            inside = action.tanh() if actions == "squash" else action
            action = low + (inside + 1) * (0.5 * (high - low))
        action = action.to(low.dtype).clamp(low, high)
        return exact(action, (action.round() if whole else action).to(target))

    return send


def _inside(bound: Any, own: torch.dtype) -> Tensor:
    """The bounds as numbers that can be cast to the space's type: float64 for integers, else the type itself."""
    if own.is_floating_point:
        most = torch.finfo(own).max
        return torch.as_tensor(bound).clamp(-most, most)
    nearest = torch.as_tensor(bound.astype(np.float64))
    too_high = torch.tensor([float(x) > int(y) for x, y in zip(nearest.flatten(), bound.flatten(), strict=True)])
    below = nearest.nextafter(torch.full_like(nearest, -torch.inf))
    return torch.where(too_high.view(nearest.shape), below, nearest)


def _keep_exact_bounds(space: spaces.Box, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Use the exact bounds of 64-bit integers, which float64 may not hold."""
    low, high = (_inside(bound, torch.int64).to(device) for bound in (space.low, space.high))
    lowest, highest = (torch.as_tensor(bound.view(np.int64)).to(device) for bound in (space.low, space.high))

    def exact(action: Tensor, sent: Tensor) -> Tensor:
        bits = torch.where(action >= high, highest, sent.view(torch.int64))
        return torch.where(action <= low, lowest, bits).view(sent.dtype)

    return exact


def clipped_share(space: spaces.Space[Any], sampled: Tensor, actions: str = "clip") -> Tensor | None:
    """The share of sampled actions `[..., A]` outside the bounds, for each dimension `[A]`; `None` without clipping."""
    if not isinstance(space, spaces.Box) or actions == "squash":
        return None
    low, high = (torch.as_tensor(bound.astype(np.float64)).to(sampled.device) for bound in (space.low, space.high))
    if actions == "rescale":
        low, high = -torch.ones_like(low), torch.ones_like(high)
    elif np.issubdtype(space.dtype, np.integer) or space.dtype == bool:
        low, high = low - 0.5, high + 0.5  # rounding to a bound is not clipping
    return ((sampled < low) | (sampled > high)).double().flatten(0, -2).mean(0)


def warn_if_clipped(space: spaces.Space[Any], sampled: Tensor, actions: str = "clip") -> None:
    """Warn if nearly all actions `[n, A]` of the first rollout are clipped in some dimension."""
    share = clipped_share(space, sampled, actions)
    if share is None or float(share.max()) < MOSTLY:
        return
    worst = int(share.argmax())
    warnings.warn(
        f"{float(share[worst]):.0%} of the first actions in dimension {worst} are outside the action space {space} and"
        f" are clipped: the policy can hardly learn. {advice(space)}",
        stacklevel=2,
    )


def warn_of_action_range(space: spaces.Space[Any]) -> None:
    """Warn of integer boxes, and of bounds far from N(0, 1), where policies start: nearly all is clipped or unused."""
    if not isinstance(space, spaces.Box):
        return
    found = f"action_space {space}"
    if space.dtype.kind in "iub":
        fix = "Use a Discrete if they are choices"
        warnings.warn(f"{found} is of integers: the policy's numbers are rounded. {fix}.", stacklevel=3)
    low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
    below = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))  # of N(0, 1)
    outside = 1 - (below(high) - below(low))
    if (outside > MOSTLY).any():
        i = int(outside.argmax())
        found += f": in dimension {i}, {outside[i]:.0%} of N(0, 1), where policies start, is outside and clipped"
        warnings.warn(f"{found}. {advice(space)}.", stacklevel=3)
    width = np.where(np.isfinite(low) & np.isfinite(high), high - low, 0.0)
    if (width > WIDE).any():
        i = int(width.argmax())
        found = f"action_space {space} is {width[i]:g} wide in dimension {i}, but policies start within [-2, 2]"
        warnings.warn(f"{found}. {advice(space)}.", stacklevel=3)


def advice(space: spaces.Space[Any]) -> str:
    """How to fix a box that is far from the policy's first actions."""
    if isinstance(space, spaces.Box) and space.is_bounded():
        return "Pass actions='rescale' or 'squash', under which [-1, 1] is the whole box"
    return "Shift and scale the actions in a wrapper, such as gymnasium.wrappers.TransformAction"
