"""What the checks share: a distribution, tasks drawn from it, actions to try and episodes of them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from typing import TypeAlias

import numpy as np

from metarl.checker.episodes import Array, Env, Episode, VectorEnv, play, play_vec, random_actions
from metarl.checker.gaps import Gap, gaps
from metarl.types import TaskDistribution, TaskParams

SHORT = 50  # steps for which behaviours are compared
LONG = 1_000  # for which values are looked at
LONGEST = 10_000  # for which the end is waited for
MANY = 64  # tasks of a large draw, and episodes of a comparison of means
SEEDS = 8  # that must agree for an environment to pass for deterministic


class Probe:
    """A distribution, tasks drawn from it and actions to try."""

    def __init__(self, distribution: TaskDistribution, num_tasks: int, episodes: int, seed: int) -> None:
        self.distribution, self.num_tasks, self.episodes, self.seed = distribution, num_tasks, episodes, seed
        self.num_envs = num_tasks * episodes

    @cached_property
    def _tasks(self) -> TaskParams:
        return copied(self.distribution.sample(self.num_tasks, np.random.default_rng(self.seed)))

    def tasks(self) -> TaskParams:
        """All tasks, as a copy: arrays `[T, ...]`."""
        return copied(self._tasks)

    def other_tasks(self) -> TaskParams:
        """The same in another order: each has the next one's place."""
        return {name: np.roll(value, 1, axis=0) for name, value in self._tasks.items()}

    def task(self, number: int) -> TaskParams:
        """One of them."""
        return {name: np.array(value[number]) for name, value in self._tasks.items()}

    @cached_property
    def pair(self) -> tuple[int, int]:
        """Two different tasks, if there are any."""
        tasks = [self.task(number) for number in range(self.num_tasks)]
        return 0, next((number for number, task in enumerate(tasks) if not same(task, tasks[0])), 1)

    def actions(self, most: int, *shape: int, key: int = 0, beyond: int = 0) -> Array:
        """Random actions, `[steps, *shape, *action]`: up to the horizon, but `most`, and `beyond` more.

        There are others for another `key`.
        """
        steps = min(self.distribution.horizon, most) + beyond
        return random_actions(self.distribution.action_space, (steps, *shape), np.random.default_rng([self.seed, key]))

    def make(self, number: int) -> "closing[Env]":
        """One environment of a task, to be closed."""
        return closing(self.distribution.make(self.task(number)))

    def make_vec(self, task: TaskParams | None = None) -> "closing[VectorEnv]":
        """A vector environment, of all tasks unless others are given, to be closed."""
        return closing(self.distribution.make_vec(self.tasks() if task is None else task, self.episodes, "cpu"))

    def alone(self, number: int, actions: Array, seed: int) -> Episode:
        """An episode in a fresh environment of a task."""
        with self.make(number) as env:
            return play(env, actions, seed)

    def together(self, actions: Array, seed: int) -> list[Episode]:
        """An episode in each environment of a fresh vector environment."""
        with self.make_vec() as vec:
            return play_vec(vec, actions, seed)

    @cached_property
    def samples(self) -> list[list[Episode]]:
        """Of each task, episodes that differ in the seed alone."""
        actions = self.actions(SHORT)
        seeds = range(self.seed, self.seed + SEEDS)
        return [[self.alone(t, actions, seed) for seed in seeds] for t in range(self.num_tasks)]

    @cached_property
    def random_starts(self) -> bool:
        """Whether what a reset returns depends on its seed."""
        return any(gaps(several[0][:1], other[:1]) for several in self.samples for other in several)

    @cached_property
    def random(self) -> bool:
        """Whether an episode depends on the seed."""
        return any(gaps(several[0], other) for several in self.samples for other in several)

    def which(self, i: int) -> str:
        """Environment i of the vector environment, in words."""
        return f"environment {i} (task {i // self.episodes}, episode {i % self.episodes})"

    def apart(self, expected: list[Episode], got: list[Episode], tolerance: float = 0.0) -> str:
        """In what all environments together differ, in words; empty where they do not."""
        worst: dict[str, tuple[Gap, int]] = {}
        for i, pair in enumerate(zip(expected, got, strict=True)):
            for gap in gaps(*pair, tolerance):
                if gap.quantity not in worst or gap.size > worst[gap.quantity][0].size:
                    worst[gap.quantity] = gap, i
        return ", and ".join(f"{gap} in {self.which(i)}" for gap, i in worst.values())


Check: TypeAlias = Callable[[Probe], Iterator[str]]
"""Yields the problems it finds."""


def copied(task: TaskParams) -> TaskParams:
    """A task of its own."""
    return {name: np.array(value) for name, value in task.items()}


def same(one: TaskParams, other: TaskParams) -> bool:
    """Whether both have the same parameters."""
    return all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)
