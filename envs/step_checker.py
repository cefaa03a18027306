"""What one Gymnasium environment returns, checked before it is put into the arrays of many.

At every reset and step: the number of things returned, the shape of the observation and whether its type can be the
space's, Discrete observations, the reward, both flags, the info. At the first reset and step of an environment, and
wherever integers are converted: the range of the observation. NaN and infinity are looked for in whole rollouts
(`metarl.rl.incoming`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from metarl.rl.incoming import outside_of, warn_outside


class Named(Protocol):
    """What is checked."""

    def where(self) -> str:
        """The environment and its step, for messages."""


class Trial(NamedTuple):
    """A name that is known already."""

    name: str

    def where(self) -> str:
        """The name."""
        return self.name


REWARDS = frozenset({float, int, np.float64, np.float32})
FLAGS = frozenset({bool, np.bool_})


class StepChecker:
    """Checks what environments of one observation space return.

    Args:
        space: the observations'.
    """

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self._space, self._shape, self._dtype = space, space.shape, np.dtype(space.dtype)
        self._numbers = range(space.start, space.start + space.n) if isinstance(space, Discrete) else range(0)

    def check_reset(self, result: Any, env: Named, *, ranges: bool = True) -> None:
        """Raise a ValueError unless `result` is (observation, info)."""
        if not isinstance(result, tuple) or len(result) != 2:
            refuse(env, "reset must return (observation, info), unlike the old Gym interface", _form(result))
        if not isinstance(result[1], dict):
            refuse(env, "the info of reset must be a dict", repr(result[1]))
        self._check_observation(result[0], env, ranges)

    def check_step(self, result: Any, env: Named, ranges: bool) -> tuple[bool, bool]:
        """Raise a ValueError unless `result` is what a step returns; both flags, as Python's own."""
        if not isinstance(result, tuple) or len(result) != 5:
            refuse(
                env,
                "step must return (observation, reward, terminated, truncated, info), unlike the old Gym interface",
                _form(result),
            )
        observation, reward, terminated, truncated, info = result
        if (  # the usual case, at the price of a few comparisons
            type(observation) is np.ndarray
            and observation.dtype is self._dtype
            and observation.shape == self._shape
            and type(reward) in REWARDS
            and type(terminated) is type(truncated) is bool
            and type(info) is dict
            and not ranges
        ):
            return terminated, truncated
        _check_reward(reward, env)
        if type(terminated) not in FLAGS or type(truncated) not in FLAGS:
            terminated, truncated = (
                _as_flag(name, x, env) for name, x in (("terminated", terminated), ("truncated", truncated))
            )
        if not isinstance(info, dict):
            refuse(env, "the info of step must be a dict", repr(info))
        self._check_observation(observation, env, ranges)
        return bool(terminated), bool(truncated)

    def _check_observation(self, x: Any, env: Named, ranges: bool) -> None:
        if type(x) is np.ndarray and x.dtype is self._dtype and x.shape == self._shape:
            if ranges:
                self._check_range(x, env)
            return
        if isinstance(x, int | np.integer) and x in self._numbers:
            return
        try:
            array = np.asarray(x)
        except ValueError:  # rows of different lengths
            array = np.asarray(None)
        if array.shape != self._shape or not self._can_be(array.dtype):
            wanted = f"env must return observations of shape {self._shape} and type {self._dtype}, as its space says"
            found = f"{array.dtype} of shape {array.shape}" if array.dtype != object else repr(x)
            hint = "; multiply images in [0, 1] by 255" if array.dtype.kind == "f" and self._dtype == np.uint8 else ""
            refuse(env, wanted, found + hint)
        if ranges or self._dtype.kind in "iub":
            self._check_range(array, env)

    def _can_be(self, found: np.dtype[Any]) -> bool:
        """Integers of any type can, as their range is looked at; floats round, but fractions are no integers."""
        if self._dtype.kind in "iub":
            return found.kind in "iub"
        return found.kind in "iubf"

    def _check_range(self, array: Any, env: Named) -> None:
        if not (outside := outside_of(self._space, array)).any():
            return
        if self._dtype.kind in "iub":
            refuse(env, f"observations must lie inside {self._space}", f"{array[outside][0]}")
        warn_outside(env.where().partition(" ")[0].rstrip(","), self._space)


def _check_reward(reward: Any, env: Named) -> None:
    array = np.asarray(None) if isinstance(reward, list | tuple) else np.asarray(reward)
    if array.shape != () or array.dtype.kind not in "biuf":
        refuse(env, "the reward must be one number", repr(reward))


def _as_flag(name: str, x: Any, env: Named) -> bool:
    array = np.asarray(None) if isinstance(x, list | tuple) else np.asarray(x)
    if array.shape != () or array.dtype.kind not in "biu" or array not in (0, 1):
        refuse(env, f"{name} must be True or False", repr(x))
    return bool(array)


def refuse(env: Named, wanted: str, found: str) -> NoReturn:
    """Raise a ValueError that names the environment, what was wanted and what was found."""
    raise ValueError(f"{env.where()}: {wanted}, got {found}")


def _form(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"
