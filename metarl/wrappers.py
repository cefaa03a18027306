"""Oracles that wrap another one.

`draw` is the only impure door to a batch of tasks, so recording, replaying, counting and checking are each a few lines,
and no outer update knows about them.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from metarl.errors import LOOK_AT_DATA, SMALLER_STEPS, NonFiniteError
from metarl.processes import ALONE, Processes, Share
from metarl.types import Batch, HasEqualLengths, Params, Role, Shardable, TaskBatch

Derivative: TypeAlias = Literal["gradients", "hessian_vector_products"]


class TaskWrapper:
    """An oracle that passes everything on to `tasks`; the base of the ones below."""

    def __init__(self, tasks: TaskBatch) -> None:
        self.tasks = tasks

    @property
    def num_tasks(self) -> int:
        return self.tasks.num_tasks

    @property
    def execution_key(self) -> TaskBatch:
        """What the losses and scores read (see `metarl.engine.frozen`)."""
        return self.tasks

    def draw(self, params: Params, role: Role) -> Batch:
        return self.tasks.draw(params, role)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return self.tasks.loss(params, batch)

    def score(self, params: Params, batch: Batch) -> Tensor:
        return self.tasks.score(params, batch)

    def cost(self, batch: Batch) -> Mapping[str, int]:
        return self.tasks.cost(batch)

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        """Called once for every derivative that was taken of all tasks."""


def report(tasks: TaskBatch, kind: Derivative, result: Params, losses: Tensor | None = None) -> None:
    """Tell every wrapper around `tasks` that a derivative was taken."""
    while isinstance(tasks, TaskWrapper):
        tasks.on_derivative(kind, result, losses)
        tasks = tasks.tasks


def unwrap(tasks: TaskBatch) -> TaskBatch:
    """The oracle behind all wrappers."""
    while isinstance(tasks, TaskWrapper):
        tasks = tasks.tasks
    return tasks


class Sharded(TaskWrapper):
    """The share that one of several processes has of `tasks`.

    Raises:
        ValueError: when there are fewer tasks than processes, or the tasks cannot be shared.
    """

    def __init__(self, tasks: TaskBatch, processes: Processes) -> None:
        self.share = Share(processes, tasks.num_tasks)
        if tasks.num_tasks < processes.size:
            raise ValueError(f"{processes.size} processes need at least as many tasks, got {tasks.num_tasks}")
        if not isinstance(tasks, Shardable):
            raise ValueError(
                f"tasks must have a method shard(first, last) -> Tasks to be trained in several processes "
                f"(see metarl.types.Shardable), which {type(tasks).__name__} lacks"
            )
        super().__init__(tasks.shard(self.share.first, self.share.last))
        if isinstance(self.tasks, HasEqualLengths):
            self.tasks.agree = processes.max


def sharded(tasks: TaskBatch, processes: Processes) -> TaskBatch:
    """This process's share of `tasks`; where it is alone, all of them."""
    return tasks if processes.size == 1 else Sharded(tasks, processes)


def share_of(tasks: TaskBatch) -> Share:
    """Which of all tasks `tasks` are, and how to reach the others."""
    while isinstance(tasks, TaskWrapper):
        if isinstance(tasks, Sharded):
            return tasks.share
        tasks = tasks.tasks
    return Share(ALONE, tasks.num_tasks)


class TaskSlice(TaskWrapper):
    """The tasks `first` ... `last` - 1, cut out of what is drawn for all: data may not depend on parameters."""

    def __init__(self, tasks: TaskBatch, first: int, last: int) -> None:
        super().__init__(tasks)
        self._first, self._last = first, last

    @property
    def num_tasks(self) -> int:
        return self._last - self._first

    def draw(self, params: Params, role: Role) -> Batch:
        return {key: leaf[self._first : self._last] for key, leaf in self.tasks.draw(params, role).items()}


class RecordedDraw(NamedTuple):
    """One draw as it was recorded."""

    role: Role
    params: Params
    batch: Batch


class RecordDraws(TaskWrapper):
    """Keeps what was drawn, in order, in `draws`."""

    def __init__(self, tasks: TaskBatch) -> None:
        super().__init__(tasks)
        self.draws: list[RecordedDraw] = []

    def draw(self, params: Params, role: Role) -> Batch:
        batch = super().draw(params, role)
        self.draws.append(RecordedDraw(role, params, batch))
        return batch


class ReplayDraws(TaskWrapper):
    """Gives recorded batches back in the same order, at whatever parameters it is asked.

    Raises:
        LookupError: when a draw is asked for that was not recorded at this place.
    """

    def __init__(self, tasks: TaskBatch, draws: Iterable[RecordedDraw]) -> None:
        super().__init__(tasks)
        self._draws = deque(draws)

    def draw(self, params: Params, role: Role) -> Batch:
        if not self._draws:
            raise LookupError(f"the recording has ended, but another {role!r} batch was asked for")
        if self._draws[0].role != role:
            raise LookupError(f"the next recorded batch is {self._draws[0].role!r}, but {role!r} was asked for")
        return self._draws.popleft().batch


class CountCost(TaskWrapper):
    """Counts gradients, Hessian-vector products and what draws cost: the x-axes of the convergence theorems.

    A gradient of T tasks counts T. `counts` may be shared by many oracles, so that a run adds up.
    """

    def __init__(self, tasks: TaskBatch, counts: Counter[str] | None = None) -> None:
        super().__init__(tasks)
        self.counts: Counter[str] = Counter() if counts is None else counts

    def draw(self, params: Params, role: Role) -> Batch:
        batch = super().draw(params, role)
        self.counts.update(self.tasks.cost(batch))
        return batch

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        self.counts[kind] += self.num_tasks


class CheckFinite(TaskWrapper):
    """Stops at the first NaN or infinity in parameters, data, losses or derivatives.

    Raises:
        NonFiniteError: naming the quantity and the first task it was seen in.
    """

    def __init__(self, tasks: TaskBatch) -> None:
        super().__init__(tasks)
        self._first = share_of(tasks).first

    def draw(self, params: Params, role: Role) -> Batch:
        check_finite(params, f"parameters the {role!r} batch is drawn at", self._first)
        batch = super().draw(params, role)
        check_finite(batch, f"{role!r} batch", self._first, LOOK_AT_DATA)
        return batch

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        if losses is not None:
            check_finite({"": losses}, "loss", self._first)
        check_finite(result, kind.replace("_", " ").removesuffix("s"), self._first)


def wrap_like(new: TaskBatch, tasks: TaskBatch) -> TaskBatch:
    """`new` tasks, shared, counted in the same counts and checked where `tasks` are; no other wrapper is taken over."""
    if not isinstance(tasks, TaskWrapper):
        return new
    within = wrap_like(new, tasks.tasks)
    if isinstance(tasks, Sharded):
        return sharded(within, tasks.share.processes)
    if isinstance(tasks, CountCost):
        return CountCost(within, tasks.counts)
    return CheckFinite(within) if isinstance(tasks, CheckFinite) else within


def check_finite(stacked: Mapping[str, Tensor], quantity: str, first: int = 0, advice: str = SMALLER_STEPS) -> None:
    """Raise `NonFiniteError` naming the first leaf and task of `stacked` that is not finite; tasks begin at `first`."""
    for key, leaf in not_finite(stacked):
        bad = ~torch.isfinite(leaf).flatten(1).all(1) if leaf.ndim > 1 else ~torch.isfinite(leaf)
        raise NonFiniteError(f"{quantity} {key}".rstrip(), task=first + int(bad.nonzero()[0]), advice=advice)


def not_finite(stacked: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The leaves with a NaN or an infinity, and their names."""
    leaves = {key: leaf for key, leaf in stacked.items() if leaf.is_floating_point() and leaf.numel()}
    if not leaves:
        return
    # A sum is finite only if all its terms are, and takes no time; one that overflows is looked at again.
    sums = [leaf.sum() for leaf in leaves.values()]
    if sums[0].device.type != "cpu":
        sums = [torch.stack([x.float() for x in sums]).sum()]  # one synchronisation
    if not math.isfinite(sum(map(float, sums))):
        yield from ((key, leaf) for key, leaf in leaves.items() if not torch.isfinite(leaf).all())
