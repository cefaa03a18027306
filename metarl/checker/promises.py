"""What the environments of `make` and those of `make_vec` both promise, and how it is said that they do not keep it."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np
from gymnasium import spaces
from torch import Tensor

from metarl.checker.episodes import Array, Env, Episode, Space, VectorEnv, as_action, plain
from metarl.checker.gaps import first, gaps
from metarl.checker.probe import copied
from metarl.checker.reporting import say
from metarl.types import TaskDistribution, TaskParams

FINITE = "look for a division, a logarithm or a root gone wrong, or a state that grows without bound"
SHARED = "keep what belongs to one environment in its self: not in class or module variables, nor in a shared object"
REPEATS = "give the same numbers for the same seed and actions"

E = TypeVar("E", Env, VectorEnv)


def other_returns(call: str, env: Env | VectorEnv, action: Array, seed: int) -> Iterator[str]:
    """Other numbers of things than `reset` and `step` have to return."""
    start: Any = env.reset(seed=seed)
    if not isinstance(start, tuple) or len(start) != 2:
        yield say(f"{call}.reset(seed)", "return (observation, info)", _form(start), "return both, info may be {}")
        return
    result: Any = env.step(as_action(action, start[0]))
    if not isinstance(result, tuple) or len(result) != 5:
        wanted = "return (observation, reward, terminated, truncated, info)"
        yield say(f"{call}.step(action)", wanted, _form(result), "return all five; `done` has become two flags")


def _form(value: Any) -> str:
    return type(value).__name__ + (f" of {len(value)}" if isinstance(value, tuple) else "")


def other_spaces(call: str, env: object, distribution: TaskDistribution, prefix: str) -> Iterator[str]:
    """Spaces that are not the distribution's."""
    for name in ("observation_space", "action_space"):
        wanted, found = getattr(distribution, name), getattr(env, prefix + name, None)
        if found != wanted:
            mend = f"set {prefix}{name} of the environment from {name} of the distribution"
            yield say(f"{call}.{prefix}{name}", f"equal the distribution's {wanted}", found, mend)


class Misfit(NamedTuple):
    """Why a value is not what was promised."""

    wanted: str
    found: str
    mend: str


def observation_misfit(value: Any, space: Space, number: int | None = None) -> Misfit | None:
    """Of one environment, or of `number`."""
    kinds = (np.ndarray, np.generic, int) if number is None else (np.ndarray, Tensor)
    if not isinstance(value, kinds):
        kind = "a numpy array" if number is None else "a numpy array or a torch tensor"
        return Misfit(f"be {kind}", type(value).__name__, "convert it")
    array, shape = plain(value), (*([] if number is None else [number]), *(space.shape or ()))
    if array.shape != shape:
        return Misfit(f"have shape {shape}", str(array.shape), "reshape it, or mend the shape of observation_space")
    if not np.issubdtype(array.dtype, np.integer) if isinstance(space, spaces.Discrete) else array.dtype != space.dtype:
        mend = "convert it, or mend the dtype of observation_space"
        return Misfit(f"have dtype {space.dtype}", str(array.dtype), mend)
    if not np.isfinite(array).all():
        return Misfit("be finite", f"NaN or infinity{_where(~np.isfinite(array), number)}", FINITE)
    low, high = (space.low, space.high) if isinstance(space, spaces.Box) else (0, getattr(space, "n", 1) - 1)
    if (outside := (array < low) | (array > high)).any():
        mend = "clip it, or widen the bounds of observation_space"
        return Misfit(f"lie inside {space}", f"{array[outside][0]}{_where(outside, number)}", mend)
    return None


def _where(bad: Array, number: int | None) -> str:
    return "" if number is None else f" in environment {first(bad)}"


def wrong_end(call: str, terminated: bool, truncated: bool, step: int, horizon: int) -> str | None:
    """Of an episode, after `step` steps."""
    if terminated and truncated:
        mend = "set truncated to steps >= horizon and not terminated"
        return say(f"{call}: an episode", "end in one way", f"terminated and truncated, both at step {step}", mend)
    wanted = f"be truncated at step {horizon}, the horizon, if it has not terminated"
    if truncated and step < horizon:
        mend = "count the steps since reset, and compare with the distribution's horizon"
        return say(f"{call}: an episode", wanted, f"truncated at step {step}", mend)
    if step == horizon and not (terminated or truncated):
        mend = "count the steps since reset, and return truncated=True at the horizon"
        return say(f"{call}: an episode", wanted, "an episode that goes on", mend)
    return None


def task_is_touched(
    name: str, make: Callable[[TaskParams], E], whole: Callable[[E], list[Episode]], task: TaskParams, other: TaskParams
) -> Iterator[str]:
    """`make` writes into the caller's arrays, or `whole` depends on what is written into them later."""
    before = copied(task)
    with closing(make(task)) as env:
        expected = whole(env)
    if changed := [key for key in task if not np.array_equal(task[key], before[key], equal_nan=True)]:
        mend = "change a copy: np.array(...)"
        yield say(name, "not write into the caller's task", f"other values in {changed}", mend)
        return
    with closing(make(task)) as env:
        for key, value in task.items():
            value[...] = other[key]
        found = [gap for pair in zip(expected, whole(env), strict=True) for gap in gaps(*pair)]
    if found:
        mend = "copy what is kept: np.array(...) or torch.tensor(...), not np.asarray(...) or torch.from_numpy(...)"
        wanted = "not depend on what the caller writes into the task afterwards"
        yield say(name, wanted, str(found[0]), mend)
