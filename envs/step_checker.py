"""Checks what one Gymnasium environment returns, before it is copied into the arrays of many.

At every reset and step: the number of values returned, the shape and type of the observation, Discrete observations,
the reward, both flags, the info. At the first reset and step of an environment, and whenever integers are converted:
the range of the observation. NaN and infinity are checked after a whole rollout (`metarl.rl.incoming`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from metarl.rl.incoming import outside_of, warn_outside

Where: TypeAlias = Callable[[], str]
"""Names the environment and its step, for messages; called only when a check fails."""

STEP = "(observation, reward, terminated, truncated, info)"
REWARDS = frozenset({float, int, np.float64, np.float32})
FLAGS = frozenset({bool, np.bool_})


class StepChecker:
    """Checks what environments with one observation space return.

    Args:
        space: the observation space.
    """

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self._space, self._shape, self._dtype = space, space.shape, np.dtype(space.dtype)
        self._numbers = range(space.start, space.start + space.n) if isinstance(space, Discrete) else range(0)

    def check_reset(self, result: Any, where: Where, *, ranges: bool = True) -> None:
        """Raise a ValueError unless `result` is (observation, info)."""
        _check_form(result, where, "reset", "(observation, info)", 2)
        self._check_observation(result[0], where, ranges)

    def check_step(self, result: Any, where: Where, *, ranges: bool) -> tuple[bool, bool]:
        """Raise a ValueError unless `result` is what a step returns; returns both flags as Python booleans."""
        _check_form(result, where, "step", STEP, 5)
        observation, reward, terminated, truncated, _ = result
        if (  # fast path: nearly every step ends here, after a few comparisons
            type(observation) is np.ndarray
            and observation.dtype is self._dtype
            and observation.shape == self._shape
            and type(reward) in REWARDS
            and type(terminated) is type(truncated) is bool
            and not ranges
        ):
            return terminated, truncated
        if _scalar_kind(reward) not in "biuf":
            refuse(where, "the reward must be one number", repr(reward))
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if type(flag) not in FLAGS and (_scalar_kind(flag) not in "biu" or np.asarray(flag) not in (0, 1)):
                refuse(where, f"{name} must be True or False", repr(flag))
        self._check_observation(observation, where, ranges)
        return bool(terminated), bool(truncated)

    def _check_observation(self, x: Any, where: Where, ranges: bool) -> None:
        if type(x) is np.ndarray and x.dtype is self._dtype and x.shape == self._shape:
            if ranges:
                self._check_range(x, where)
            return
        if isinstance(x, int | np.integer) and x in self._numbers:
            return
        try:
            array = np.asarray(x)
        except ValueError:  # rows of different lengths
            array = np.asarray(None)
        # Integers of any type fit, because their range is checked below. Floats may be rounded; fractions do not fit.
        whole = self._dtype.kind in "iub"
        if array.shape != self._shape or array.dtype.kind not in ("iub" if whole else "iubf"):
            wanted = f"env must return observations of shape {self._shape} and type {self._dtype}, as its space says"
            found = f"{array.dtype} of shape {array.shape}" if array.dtype != object else repr(x)
            hint = "; multiply images in [0, 1] by 255" if array.dtype.kind == "f" and self._dtype == np.uint8 else ""
            refuse(where, wanted, found + hint)
        if ranges or whole:
            self._check_range(array, where)

    def _check_range(self, array: Any, where: Where) -> None:
        if not (outside := outside_of(self._space, array)).any():
            return
        if self._dtype.kind in "iub":
            refuse(where, f"observations must lie inside {self._space}", f"{array[outside][0]}")
        warn_outside(where().partition(" ")[0].rstrip(","), self._space)


def refuse(where: Where, wanted: str, found: str) -> NoReturn:
    """Raise a ValueError that names the environment, what was wanted and what was found."""
    raise ValueError(f"{where()}: {wanted}, got {found}")


def _scalar_kind(x: Any) -> str:
    """The kind of number `x` is, as numpy names kinds, or "O" if it is not a scalar."""
    array = np.asarray(None) if isinstance(x, list | tuple) else np.asarray(x)
    return array.dtype.kind if array.shape == () else "O"


def _check_form(result: Any, where: Where, method: str, wanted: str, size: int) -> None:
    if not isinstance(result, tuple) or len(result) != size:
        found = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        refuse(where, f"{method} must return {wanted}, unlike the old Gym interface", found)
    if not isinstance(result[-1], dict):
        refuse(where, f"the info of {method} must be a dict", repr(result[-1]))
