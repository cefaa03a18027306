"""Wrappers around a batch of tasks.

Only `draw` has side effects, so a wrapper that records, replays, counts or checks needs a few lines, and no outer
update knows about it.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from metarl.errors import CHECK_DATA, SMALLER_STEPS, NonFiniteError
from metarl.types import Batch, HasParticles, Loss, Params, Role, TaskBatch

Derivative: TypeAlias = Literal["gradients", "hessian_vector_products"]


class TaskWrapper:
    """Passes everything on to `tasks`; the base class of all wrappers."""

    def __init__(self, tasks: TaskBatch) -> None:
        self.tasks = tasks

    @property
    def num_tasks(self) -> int:
        return self.tasks.num_tasks

    @property
    def loss(self) -> Loss:  # the wrapped tasks' own function: a new wrapper needs no new record
        return self.tasks.loss

    @property
    def score(self) -> Loss:
        return self.tasks.score

    def draw(self, params: Params, role: Role) -> Batch:
        return self.tasks.draw(params, role)

    def cost(self, batch: Batch) -> Mapping[str, int]:
        return self.tasks.cost(batch)

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        """Called once for every derivative of all tasks."""

    def wants_scores(self, params: Params, batch: Batch) -> bool:
        """Whether the scores at `params` on `batch` are wanted; a gradient there then computes them, too."""
        return False

    def on_scores(self, scores: Tensor) -> None:
        """Called with the scores that were wanted, `[t]`."""

    def wrap(self, tasks: TaskBatch) -> TaskBatch:
        """Other `tasks` in a wrapper like this one, for `wrap_like`; by default they are returned as they are."""
        return tasks

    @property
    def first_task(self) -> int:
        """The number of the first task in the whole batch: other processes may have the tasks before it."""
        return first_task(self.tasks)

    def gather(self, own: Tensor) -> Tensor:
        """The rows of the whole batch, `[T, ...]`, from one row for each of these tasks, `[t, ...]`."""
        return gather(self.tasks, own)


def report(tasks: TaskBatch, kind: Derivative, result: Params, losses: Tensor | None = None) -> None:
    """Tell every wrapper around `tasks` that a derivative was taken."""
    while isinstance(tasks, TaskWrapper):
        tasks.on_derivative(kind, result, losses)
        tasks = tasks.tasks


def wants_scores(tasks: TaskBatch, params: Params, batch: Batch) -> bool:
    """Whether a wrapper around `tasks` wants the scores at `params` on `batch`."""
    while isinstance(tasks, TaskWrapper):
        if tasks.wants_scores(params, batch):
            return True
        tasks = tasks.tasks
    return False


def report_scores(tasks: TaskBatch, params: Params, batch: Batch, scores: Tensor) -> None:
    """Tell the wrappers around `tasks` that want these scores."""
    while isinstance(tasks, TaskWrapper):
        if tasks.wants_scores(params, batch):
            tasks.on_scores(scores)
        tasks = tasks.tasks


def unwrap(tasks: TaskBatch) -> TaskBatch:
    """The task batch inside all wrappers."""
    while isinstance(tasks, TaskWrapper):
        tasks = tasks.tasks
    return tasks


def first_task(tasks: TaskBatch) -> int:
    """The number of the first of `tasks` in the whole batch; 0 unless several processes share the batch."""
    return tasks.first_task if isinstance(tasks, TaskWrapper) else 0


def gather(tasks: TaskBatch, own: Tensor) -> Tensor:
    """The rows of the whole batch, `[T, ...]`, from one row for each of `tasks`, `[t, ...]`."""
    return tasks.gather(own) if isinstance(tasks, TaskWrapper) else own


def wrap_like(new: TaskBatch, tasks: TaskBatch) -> TaskBatch:
    """`new` tasks in the wrappers of `tasks` that shard, count (in the same counts) and check; in no others."""
    return tasks.wrap(wrap_like(new, tasks.tasks)) if isinstance(tasks, TaskWrapper) else new


class TaskSlice(TaskWrapper):
    """The tasks `first` ... `last` - 1, cut out of a draw for all tasks: data must not depend on the parameters."""

    def __init__(self, tasks: TaskBatch, first: int, last: int) -> None:
        super().__init__(tasks)
        self._first, self._last = first, last

    @property
    def num_tasks(self) -> int:
        return self._last - self._first

    def draw(self, params: Params, role: Role) -> Batch:
        return {key: leaf[self._first : self._last] for key, leaf in self.tasks.draw(params, role).items()}


class RecordedDraw(NamedTuple):
    """The role, parameters and batch of one draw."""

    role: Role
    params: Params
    batch: Batch


class RecordDraws(TaskWrapper):
    """Keeps all draws, in order, in `draws`."""

    def __init__(self, tasks: TaskBatch) -> None:
        super().__init__(tasks)
        self.draws: list[RecordedDraw] = []

    def draw(self, params: Params, role: Role) -> Batch:
        batch = super().draw(params, role)
        self.draws.append(RecordedDraw(role, params, batch))
        return batch


class ReplayDraws(TaskWrapper):
    """Returns recorded batches in the same order, at any parameters.

    Raises:
        LookupError: when the next draw was not recorded, or had another role.
    """

    def __init__(self, tasks: TaskBatch, draws: Iterable[RecordedDraw]) -> None:
        super().__init__(tasks)
        self._draws = deque(draws)

    def draw(self, params: Params, role: Role) -> Batch:
        if not self._draws:
            raise LookupError(f"the recording has ended, but another {role!r} batch was requested")
        if self._draws[0].role != role:
            raise LookupError(f"the next recorded batch is {self._draws[0].role!r}, but {role!r} was requested")
        return self._draws.popleft().batch


class CountCost(TaskWrapper):
    """Counts gradients, Hessian-vector products and the cost of draws: the x-axes of the convergence theorems.

    A gradient of T tasks counts T, and T M if each has M particles. Several task batches may share `counts`, so that a
    run adds up.
    """

    def __init__(self, tasks: TaskBatch, counts: Counter[str] | None = None) -> None:
        super().__init__(tasks)
        source = unwrap(tasks)
        self._particles = source.particles if isinstance(source, HasParticles) else 1
        self.counts: Counter[str] = Counter() if counts is None else counts

    def draw(self, params: Params, role: Role) -> Batch:
        batch = super().draw(params, role)
        self.counts.update(self.tasks.cost(batch))
        return batch

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        self.counts[kind] += self.num_tasks * self._particles

    def wrap(self, tasks: TaskBatch) -> TaskBatch:
        return CountCost(tasks, self.counts)


class CheckFinite(TaskWrapper):
    """Stops at the first NaN or infinity in parameters, data, losses or derivatives.

    Raises:
        NonFiniteError: naming the quantity and the first task with it.
    """

    def __init__(self, tasks: TaskBatch) -> None:
        super().__init__(tasks)
        self._first = first_task(tasks)

    def draw(self, params: Params, role: Role) -> Batch:
        check_finite(params, f"parameters the {role!r} batch is drawn at", self._first)
        batch = super().draw(params, role)
        check_finite(batch, f"{role!r} batch", self._first, CHECK_DATA)
        return batch

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        if look_finite(result.values() if losses is None else [losses, *result.values()]):
            return
        if losses is not None:
            check_finite({"": losses}, "loss", self._first)
        check_finite(result, kind.replace("_", " ").removesuffix("s"), self._first)

    def wrap(self, tasks: TaskBatch) -> TaskBatch:
        return CheckFinite(tasks)


def check_finite(stacked: Mapping[str, Tensor], quantity: str, first: int = 0, advice: str = SMALLER_STEPS) -> None:
    """Raise a `NonFiniteError` that names the first non-finite leaf and task of `stacked`; `first` is added to it."""
    for key, leaf in find_non_finite(stacked):
        bad = ~torch.isfinite(leaf).flatten(1).all(1) if leaf.ndim > 1 else ~torch.isfinite(leaf)
        raise NonFiniteError(f"{quantity} {key}".rstrip(), task=first + int(bad.nonzero()[0]), advice=advice)


def find_non_finite(stacked: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The names and leaves that have a NaN or an infinity."""
    if not look_finite(stacked.values()):
        leaves = ((key, leaf) for key, leaf in stacked.items() if leaf.is_floating_point())
        yield from ((key, leaf) for key, leaf in leaves if not torch.isfinite(leaf).all())


def look_finite(leaves: Iterable[Tensor]) -> bool:
    """Whether the leaves surely have no NaN and no infinity: one look at all of them.

    A sum is fast, and finite only if all its terms are. It may overflow, so after `False` look at every number.
    """
    sums = [leaf.sum() for leaf in leaves if leaf.is_floating_point()]
    if sums and sums[0].device.type != "cpu":
        sums = [torch.stack([x.float() for x in sums]).sum()]  # one synchronisation
    return math.isfinite(sum(map(float, sums)))
