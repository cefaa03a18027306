"""What is said of action spaces that work, but not as users expect; policies start near N(0, 1)."""

import math
import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.rl.actions import MOSTLY, advice

WIDE = 5  # times [-2, 2], where a new policy acts


def warn_of_action_range(space: spaces.Space[Any]) -> None:
    """Warn of integer boxes, and of bounds that N(0, 1) hardly meets, fills or keeps to."""
    if not isinstance(space, spaces.Box):
        return
    if space.dtype.kind in "iub":
        what = f"action_space {space} is of integers: a policy's normal numbers are rounded to them"
        warnings.warn(f"{what}. Where they are choices, use a Discrete.", stacklevel=3)
    low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
    outside = np.array([1 - (_below(b) - _below(a)) for a, b in zip(low, high, strict=True)])
    if (outside > MOSTLY).any():
        i = int(outside.argmax())
        found = f"{outside[i]:.0%} of N(0, 1), where policies start, is outside the bounds in dimension {i}"
        _warn(f"action_space {space}: {found}, and is clipped", space)
    width = np.where(np.isfinite(low) & np.isfinite(high), high - low, 0.0)
    if (width > 4 * WIDE).any():
        i = int(width.argmax())
        _warn(f"action_space {space} is {width[i]:g} wide in dimension {i}, but policies start within [-2, 2]", space)


def _below(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _warn(found: str, space: spaces.Box) -> None:
    warnings.warn(f"{found}. {advice(space)}.", stacklevel=4)
