"""Schedules of the outer step size that a checkpoint can hold: a name and numbers without code."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from metarl.errors import StateError, check_int, check_real
from metarl.state_dict import check_like


class Linear:
    """A factor that falls linearly from 1 to `end` over `iterations`, then stays.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> schedule = Linear(10, end=0.5)
        >>> [schedule(0), schedule(5), schedule(10), schedule(20)]
        [1.0, 0.75, 0.5, 0.5]
    """

    def __init__(self, iterations: int, end: float = 0.1) -> None:
        self.iterations, self.end = _check(iterations, end)

    def __call__(self, iteration: int) -> float:
        return 1 - (1 - self.end) * min(iteration / self.iterations, 1.0)


class Cosine:
    """A factor that falls from 1 to `end` over `iterations` along half a period of a cosine, then stays.

    Loshchilov and Hutter (2017) without restarts; MAML++ (Antoniou et al., 2019) uses it for the outer step size.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> schedule = Cosine(10, end=0.5)
        >>> [schedule(0), schedule(5), schedule(10), schedule(20)]
        [1.0, 0.75, 0.5, 0.5]
    """

    def __init__(self, iterations: int, end: float = 0.1) -> None:
        self.iterations, self.end = _check(iterations, end)

    def __call__(self, iteration: int) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * min(iteration / self.iterations, 1.0))) / 2


KnownSchedule: TypeAlias = Linear | Cosine
SCHEDULES: dict[str, type[Linear] | type[Cosine]] = {"linear": Linear, "cosine": Cosine}
"""Every schedule of this module, by name."""


def as_data(schedule: Callable[[int], float] | None) -> dict[str, Any] | None:
    """The schedule as a name and numbers; `None` without a schedule, or for a function of your own."""
    names = (name for name, kind in SCHEDULES.items() if type(schedule) is kind)
    return next(({"name": name, **vars(schedule)} for name in names), None)


def from_data(data: object) -> KnownSchedule | None:
    """The schedule from the data of `as_data`.

    Raises:
        StateError: when `data` does not describe one.
    """
    if data is None:
        return None
    check_like(data, {"name": "linear", "iterations": 1, "end": 0.1}, ("config", "schedule"))
    assert isinstance(data, Mapping)
    if data["name"] not in SCHEDULES:
        raise StateError(f"config.schedule.name must be one of {list(SCHEDULES)}, found {data['name']!r:.60}")
    return SCHEDULES[data["name"]](data["iterations"], data["end"])


def _check(iterations: int, end: float) -> tuple[int, float]:
    return check_int("iterations", iterations), check_real("end", end, high=1.0, open_low=False)
