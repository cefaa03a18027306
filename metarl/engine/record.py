"""A function over tasks, recorded, and run in chunks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.engine.kept import Arenas
from metarl.engine.live import difference
from metarl.engine.memory import NotRecordableError
from metarl.engine.program import Arena, peak_bytes
from metarl.engine.repeated import Runner, make_runner
from metarl.engine.threads import over_threads
from metarl.engine.tracing import results, traced, value

CACHE = 4 << 20
"""Bytes a chunk's intermediates may take on a CPU where several tasks are to share one: a core's share of its cache."""


MEMORY = 512 << 20
"""Bytes that the chunks of several threads may take together on a CPU; else fewer threads compute chunks at once."""


class Plain(Protocol):
    """A function over tasks, from flat lists of stacked leaves."""

    def __call__(self, inputs: Iterable[Tensor]) -> Any: ...


def in_chunks(plain: Plain, leaves: list[Tensor], size: int) -> Any:
    """The function of all tasks, so many at a time."""
    if size >= len(leaves[0]):
        return plain(leaves)
    chunks = zip(*(torch.split(leaf, size) for leaf in leaves), strict=True)
    parts = [pytree.tree_flatten(plain(chunk)) for chunk in chunks]
    joined = [torch.cat(pieces) for pieces in zip(*(part[0] for part in parts), strict=True)]
    return pytree.tree_unflatten(joined, parts[0][1])


class Record:
    """A function over tasks, recorded for chunks of one size; the last chunk overlaps the one before where it must.

    Args:
        function: over tasks.
        leaves: stacked, for their shapes.
        chunk_size: from the bytes that a task takes.
        arenas: where it borrows the memory of a run.
    """

    def __init__(self, function: Plain, leaves: list[Tensor], chunk_size: Callable[[int], int], arenas: Arenas) -> None:
        out: list[pytree.TreeSpec] = []

        def flat(*inputs: Tensor) -> list[Tensor]:
            results, spec = pytree.tree_flatten(function(inputs))
            out.append(spec)
            return results

        tasks = len(leaves[0])
        few = sum(leaf.nbytes for leaf in leaves) < CACHE // 32  # so all are likely to fit, and are recorded at once
        some = tasks if few else 1
        self._graph = traced(flat, [leaf[:some] for leaf in leaves])
        chunks = -(-tasks // chunk_size(-(-peak_bytes(self._graph.graph) // some)))
        self.chunk_size = size = -(-tasks // chunks)
        self._starts = [min(i * size, tasks - size) for i in range(chunks)]
        if size != some:
            self._graph = traced(flat, [leaf[:size] for leaf in leaves])
        self._nbytes = max(1, peak_bytes(self._graph.graph))
        self._like = [value(node) for node in results(self._graph.graph)]
        self._structure = out[-1]
        self._device = leaves[0].device
        self._arenas = arenas
        self.runners: dict[
            Arena, Runner
        ] = {}  # at most one for each piece of memory, which is lent to one run at a time

    def __call__(self, leaves: list[Tensor]) -> Any:
        """The function of all tasks."""
        if len(self._starts) == 1:
            with self._any_runner(leaves) as runner:
                return pytree.tree_unflatten([x.clone() for x in runner.run(leaves)], self._structure)
        wholes = [torch.empty(len(leaves[0]), *x.shape[1:], dtype=x.dtype, device=self._device) for x in self._like]

        def one_chunk(start: int) -> None:
            rows = slice(start, start + self.chunk_size)
            with self._any_runner(leaves) as runner:
                for whole, part in zip(wholes, runner.run([leaf[rows] for leaf in leaves]), strict=True):
                    whole[rows] = part

        if self._device.type == "cpu":
            over_threads(one_chunk, self._starts, max(1, MEMORY // self._nbytes))
        else:
            for start in self._starts:
                one_chunk(start)
        return pytree.tree_unflatten(wholes, self._structure)

    def __str__(self) -> str:
        calls = sum(node.op == "call_function" for node in self._graph.graph.nodes)
        return f"{calls} operations for {self.chunk_size} tasks at a time, {self._nbytes / 1e6:.1f} MB"

    def check(self, plain: Plain, leaves: list[Tensor]) -> None:
        """Compare with the function, on other data than were recorded: the first chunk's, its tasks in reverse order.

        Raises:
            NotRecordableError: when they differ by more than rounding.
        """
        first = [leaf[: self.chunk_size].flip(0) for leaf in leaves]
        with self._any_runner(leaves) as runner:
            if (found := difference(runner.run(first), _flat(plain), first)) is not None:
                raise NotRecordableError(f"the record is not what is computed: {found}")

    def difference(self, results: Any, plain: Plain, leaves: list[Tensor], turn: int) -> str | None:
        """How its results differ from the function's by more than rounding, in one chunk: another one at each turn."""
        start = self._starts[turn % len(self._starts)]
        rows = slice(start, start + self.chunk_size)
        found = [x[rows] for x in pytree.tree_leaves(results)]
        with torch.no_grad():
            return difference(found, _flat(plain), [leaf[rows] for leaf in leaves])

    @contextmanager
    def _any_runner(self, leaves: list[Tensor]) -> Iterator[Runner]:
        """One that no other thread has at the moment; without gradients."""
        arena = self._arenas.take()
        try:
            with torch.no_grad():
                if (runner := self.runners.get(arena)) is None:
                    like = [leaf[: self.chunk_size] for leaf in leaves]
                    runner = self.runners[arena] = make_runner(self._graph, [], like, arena)
                yield runner
        finally:
            self._arenas.give_back(arena)


def _flat(plain: Plain) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """The function's results, as a list."""
    return lambda inputs: [x.detach() for x in pytree.tree_leaves(plain(inputs))]
