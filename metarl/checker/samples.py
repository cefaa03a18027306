"""Checks of `sample`: what it draws, and from which generator."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from metarl.checker.episodes import Space
from metarl.checker.gaps import first
from metarl.checker.global_generators import under_two_global_seeds
from metarl.checker.probe import MANY, Probe, copied, same
from metarl.checker.reporting import first_found, say
from metarl.types import TaskParams


def sample_has_the_form_of_the_space(probe: Probe) -> Iterator[str]:
    """Keys and shapes `[T, ...]`, also for one task."""
    yield from first_found(_other_form(probe, number) for number in (probe.num_tasks, 1))


def _other_form(probe: Probe, number: int) -> Iterator[str]:
    call, space = f"sample({number}, rng)", probe.distribution.space
    drawn: Any = probe.distribution.sample(number, np.random.default_rng(probe.seed))
    keys = sorted(space.spaces)
    if not isinstance(drawn, Mapping) or set(drawn) != set(keys):
        found = f"the keys {sorted(drawn)}" if isinstance(drawn, Mapping) else type(drawn).__name__
        yield say(call, f"be a dictionary with the keys of space, {keys}", found, "name entries alike in both places")
        return
    for name, entry in space.items():
        shape, value = (number, *(entry.shape or ())), drawn[name]
        if not isinstance(value, np.ndarray) or value.shape != shape:
            found = f"shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            mend = f"draw with size=(num_tasks, ...), or mend the shape of space[{name!r}]"
            yield say(f"{call}[{name!r}]", f"be an array of shape {shape}, a row for each task", found, mend)


def sample_is_inside_the_space(probe: Probe) -> Iterator[str]:
    """Types and bounds, of many tasks."""
    drawn = probe.distribution.sample(MANY, np.random.default_rng(probe.seed))
    for name, entry in probe.distribution.space.items():
        subject, value = f"sample(...)[{name!r}]", drawn[name]
        if value.dtype != entry.dtype:
            mend = f"end with .astype({entry.dtype}), or mend the dtype of space[{name!r}]"
            yield say(subject, f"have the dtype of its space, {entry.dtype}", value.dtype, mend)
        elif not np.isfinite(value).all():
            mend = "look for a division, a logarithm or a root in sample"
            yield say(subject, "be finite", f"NaN or infinity in task {first(~np.isfinite(value))}", mend)
        elif outside := [row for row in value if not entry.contains(np.asarray(row))]:
            mend = f"draw inside the bounds, or widen those of space[{name!r}]"
            yield say(subject, f"lie inside {entry}", f"{outside[0]} ({len(outside)} of {MANY} tasks)", mend)


def sample_uses_only_the_generator_it_is_given(probe: Probe) -> Iterator[str]:
    """The same generator the same tasks, and no other is touched."""

    def draw() -> TaskParams:
        return copied(probe.distribution.sample(MANY, np.random.default_rng(probe.seed)))

    one, other, used = under_two_global_seeds(draw)
    if used:
        mend = "draw from the argument rng: rng.uniform(...), not np.random.uniform(...)"
        yield say("sample", "leave the global random generators alone", f"draws from {' and '.join(used)}", mend)
    elif not same(one, other):
        mend = "draw everything from the argument rng; make no generator in sample, keep none in self"
        yield say("sample", "give the same tasks for the same rng", "other tasks the second time", mend)


def sample_draws_different_tasks(probe: Probe) -> Iterator[str]:
    """Between generators, between calls and within one."""
    if all(_is_one_point(entry) for entry in probe.distribution.space.values()):
        return
    sample, rng = probe.distribution.sample, np.random.default_rng([probe.seed, 1])
    one, other = copied(sample(MANY, rng)), copied(sample(MANY, rng))
    mend = "draw from the argument rng itself, neither from a copy nor from a generator with a seed of its own"
    if same(one, sample(MANY, np.random.default_rng([probe.seed, 2]))):
        yield say("sample", "give other tasks for another rng", "the same tasks", mend)
    elif same(one, other):
        yield say("sample", "give other tasks in the next call with the same rng", "the same tasks", mend)
    elif all((value == value[:1]).all() for value in one.values()):
        mend = "draw with size=(num_tasks, ...) instead of repeating one draw"
        yield say(f"sample({MANY}, rng)", "draw each task anew", f"one task {MANY} times", mend)


def _is_one_point(space: Space) -> bool:
    if isinstance(space, spaces.Box):
        return bool((space.low == space.high).all())
    numbers = space.n if isinstance(space, spaces.Discrete) else getattr(space, "nvec", 2)
    return bool(np.all(np.asarray(numbers) == 1))
