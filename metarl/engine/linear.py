"""A recorded function over tasks with some arguments fixed, for many values of the last one.

Products with one matrix and many vectors, as conjugate gradients take them, share most of their work: everything that
does not depend on the vector. A program for each chunk of tasks computes it once and keeps it (`Program.bind`); then
each vector costs the rest alone. What is kept takes memory for all tasks at the same time.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.engine.compare import Uses
from metarl.engine.program import Arena, NotPlannableError, Plan, Program
from metarl.engine.records import Plain, TaskRecord
from metarl.engine.threads import over_threads

KEPT = 2 << 30
"""Bytes to keep for all tasks, at most; functions that need more are computed as a whole for every vector."""


class FixedRecord:
    """A record whose first `fixed` leaves stay the same over many runs.

    Args:
        record: of the whole function, for CPU tensors.
        fixed: the number of leaves.

    Raises:
        NotPlannableError: its memory cannot be planned, or is too much.
    """

    def __init__(self, record: TaskRecord, fixed: int) -> None:
        self._record, self._fixed = record, fixed
        self._plan = Plan(record.graph.graph, fixed)
        if (nbytes := self._plan.fixed_bytes * len(record.starts)) > KEPT:
            raise NotPlannableError(f"what does not change would take {nbytes / 1e6:.0f} MB")
        self._idle: list[list[list[Program]]] = []
        self.uses = Uses(record.name)

    def fix(self, plain: Plain, leaves: list[Tensor]) -> "FixedFunction":
        """The function of the other leaves, at these; it keeps its memory until nobody refers to it."""
        programs = self._idle.pop() if self._idle else self._make_programs()
        fixed = FixedFunction(self._record, self.uses, programs, plain, leaves)
        weakref.finalize(fixed, self._idle.append, programs).atexit = False
        return fixed

    def _make_programs(self) -> list[list[Program]]:
        """The chunks of each thread: they share the memory of what depends on the vector."""
        starts, groups = self._record.starts, min(torch.get_num_threads(), len(self._record.starts))
        arenas = [Arena() for _ in range(groups)]
        return [[Program(self._plan, arena) for _ in starts[k::groups]] for k, arena in enumerate(arenas)]


class FixedFunction:
    """One function of `FixedRecord.fix`; not thread-safe."""

    def __init__(
        self, record: TaskRecord, uses: Uses, programs: list[list[Program]], plain: Plain, leaves: list[Tensor]
    ) -> None:
        self._record, self._uses, self._programs, self._plain, self._leaves = record, uses, programs, plain, leaves
        self._over_groups(lambda program, rows: program.bind([leaf[rows] for leaf in leaves]))

    def __call__(self, leaves: list[Tensor]) -> Any:
        """The results for all tasks."""
        every = [*self._leaves, *leaves]
        if self._uses.given_up:
            return self._plain(every)
        wholes = self._record.empty_results(len(leaves[0]))

        def run(program: Program, rows: slice) -> None:
            for whole, part in zip(wholes, program.run([leaf[rows] for leaf in leaves]), strict=True):
                whole[rows] = part

        self._over_groups(run)
        results = pytree.tree_unflatten(wholes, self._record.spec)
        number = self._uses.count()
        if not self._uses.is_due(number):
            return results
        if (found := self._record.difference(results, self._plain, every, turn=number.bit_length())) is None:
            return results
        self._uses.give_up(found)
        return self._plain(every)

    def _over_groups(self, work: Callable[[Program, slice], None]) -> None:
        """`work` with every program and the tasks of its chunk; each thread has the programs of one arena."""
        starts, groups = self._record.starts, len(self._programs)

        def work_on(group: int) -> None:
            for program, start in zip(self._programs[group], starts[group::groups], strict=True):
                work(program, slice(start, start + self._record.chunk_size))

        over_threads(work_on, range(groups))
