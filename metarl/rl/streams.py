"""Random streams of tasks: the numbers of a task follow only from the batch's seed and the task's place in it.

So they do not depend on the other tasks, nor on the thread or process that computes them.
"""

import copy
from collections.abc import Callable
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

MOST_STREAMS = 1024
"""In larger batches, neighbouring tasks share a stream: starting one takes longer than drawing a few numbers."""

DrawNumbers: TypeAlias = Callable[[int, torch.Generator], Tensor]
"""`draw(n, generator)`: random numbers of n tasks, `[n, ...]`."""


class Streams:
    """The streams of a batch of tasks, or of some of them in a row.

    Args:
        seed: of the whole batch.
        num_tasks: T of the whole batch.
        device: where numbers are drawn.
        first: the first task of these streams.
        last: the task after the last one; default: T.
    """

    def __init__(
        self, seed: int, num_tasks: int, device: torch.device | str = "cpu", first: int = 0, last: int | None = None
    ) -> None:
        self._seed, self._num_tasks, self._device = seed, num_tasks, device
        self.first, self.last = first, num_tasks if last is None else last
        self._block = -(-num_tasks // MOST_STREAMS)
        self._blocks = range(self.first // self._block, -(-self.last // self._block))
        seeds = np.random.SeedSequence(seed).generate_state(-(-num_tasks // self._block), np.uint64)
        self._generators = [torch.Generator(device).manual_seed(int(seeds[block] >> 1)) for block in self._blocks]
        self._common = np.random.default_rng([seed, num_tasks])

    def shard(self, first: int, last: int) -> Self:
        """The streams of tasks `first` ... `last` - 1, counted from the first of these, in their initial state."""
        return type(self)(self._seed, self._num_tasks, self._device, self.first + first, self.first + last)

    def draw(self, draw: DrawNumbers) -> Tensor:
        """Numbers of every task, `[last - first, ...]`."""
        sizes = [min(self._block, self._num_tasks - block * self._block) for block in self._blocks]
        parts = [draw(size, generator) for size, generator in zip(sizes, self._generators, strict=True)]
        skipped = self.first - self._blocks.start * self._block  # tasks of the first block before this shard
        return torch.cat(parts)[skipped : skipped + self.last - self.first]

    def later(self) -> "Callable[[], Streams]":
        """A function that makes new streams, seeded from these.

        The seeds are drawn now, so these streams continue in the same way whether the new ones are used or not.
        """
        seeds = [int(torch.randint(2**63 - 1, (), generator=g, device=g.device)) for g in self._generators]

        def make() -> Streams:
            new = copy.copy(self)
            new._generators = [torch.Generator(self._device).manual_seed(seed) for seed in seeds]
            return new

        return make

    def seed(self, episodes: int) -> int:
        """A seed for T x `episodes` environments; each uses the seed plus its number."""
        return int(self._common.integers(2**31 - self._num_tasks * episodes)) + self.first * episodes
