"""Schedules of the outer step size that a checkpoint can hold: a name and numbers without code."""

from collections.abc import Callable, Mapping
from typing import Any

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
        self.iterations = check_int("iterations", iterations)
        self.end = check_real("end", end, high=1.0, open_low=False)

    def __call__(self, iteration: int) -> float:
        return 1 - (1 - self.end) * min(iteration / self.iterations, 1.0)


def as_data(schedule: Callable[[int], float] | None) -> dict[str, Any] | None:
    """The schedule as a name and numbers; `None` without a schedule, or for a function of your own."""
    return {"name": "linear", **vars(schedule)} if type(schedule) is Linear else None


def from_data(data: object) -> Linear | None:
    """The schedule from the data of `as_data`.

    Raises:
        StateError: when `data` does not describe one.
    """
    if data is None:
        return None
    check_like(data, {"name": "linear", "iterations": 1, "end": 0.1}, ("config", "schedule"))
    assert isinstance(data, Mapping)
    if data["name"] != "linear":
        raise StateError(f"config.schedule.name must be 'linear', found {data['name']!r:.60}")
    return Linear(data["iterations"], data["end"])
