"""The parts of the reward that differ between tasks: functions of a body's motion, for one environment or N at once."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from metarl.types import TaskParams


class Motion(NamedTuple):
    """The motion of one environment (numbers) or of N (arrays `[N]`)."""

    velocity: Any  # x, and y where the body has one; m/s, over the last control step
    position: Any  # x, y, ...; m


class Objective(Protocol):
    """The part of the reward that differs between tasks; the entries of `task` are `[...]` or `[N, ...]`."""

    def __call__(self, motion: Motion, task: TaskParams) -> Any: ...


def goal_velocity(motion: Motion, task: TaskParams) -> Any:
    """`-|v - goal|`."""
    return -np.abs(motion.velocity[0] - task["goal"])


def direction(motion: Motion, task: TaskParams) -> Any:
    """`direction v`, forward (1) or backward (-1)."""
    return task["direction"] * motion.velocity[0]


def angle(motion: Motion, task: TaskParams, weight: float = 1.0) -> Any:
    """The speed in the direction `angle`, rad, times `weight`."""
    return weight * (np.cos(task["angle"]) * motion.velocity[0] + np.sin(task["angle"]) * motion.velocity[1])


def goal_position(motion: Motion, task: TaskParams) -> Any:
    """`-|x - goal|_1`."""
    x, y = (motion.position[i] - task["goal"][..., i] for i in (0, 1))
    return -(np.abs(x) + np.abs(y))


def forward(motion: Motion, task: TaskParams) -> Any:
    """The forward velocity; these tasks differ in the body."""
    return motion.velocity[0]
