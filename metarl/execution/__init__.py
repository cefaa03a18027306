"""How a function of one task is computed for all of them: all at once or in chunks, recorded or not.

An oracle may carry an `Execution`; `metarl.derivatives` computes with it. Its choices change the results by rounding
only: chunks bound the memory, a record saves the time that `vmap` and `grad` spend in Python at every call, and runs in
memory of its own: on a CPU as a `Program`, its chunks in threads; on an accelerator as a CUDA graph.
"""

import itertools
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from metarl.errors import check_int
from metarl.execution.program import Arena, peak_bytes
from metarl.execution.repeated import Runner, make_runner
from metarl.execution.threads import over_threads
from metarl.execution.tracing import results, traced, value

log = logging.getLogger(__name__)

Stacked: TypeAlias = Tensor | Mapping[str, Tensor]
"""What a function of one task takes, stacked over tasks: every tensor is `[T, ...]`."""

Structure: TypeAlias = tuple[tuple[str, ...] | None, ...]
"""The keys of each argument; `None` stands for a tensor."""

CACHE = 4 << 20
"""Bytes a chunk's intermediates may take on a CPU where several tasks are to share one: a core's share of its cache."""


MEMORY = 512 << 20
"""Bytes that the chunks of several threads may take together on a CPU; else fewer threads compute chunks at once."""


@dataclass(eq=False)
class Execution:
    """One of these is kept by whoever makes oracles of the same kind, and given to each: it holds the records.

    Args:
        chunk_size: tasks computed at a time. `None` takes all of them, or with `trace` as many as fit the cache of a
            CPU, or the memory of an accelerator.
        memory_budget: bytes that the intermediates of a chunk may take at most, wherever `chunk_size` is not given;
            a single task is computed whatever it takes, and what cannot be traced is computed a task at a time.
            `None`: half of an accelerator's memory.
        trace: record the operations once for every shape, and run the record from then on. The function must then be
            pure, whatever oracle it comes from: what it reads besides its arguments is frozen into the record. What
            cannot be recorded, or gives something else than without when it is first run, is computed as without, and
            that is logged.
    """

    _: KW_ONLY
    chunk_size: int | None = None
    memory_budget: int | None = None
    trace: bool = False
    _records: dict[Any, "Record | None"] = field(default_factory=dict, repr=False)
    _arenas: list[Arena] = field(default_factory=list, repr=False)  # of the first runner of every record, the second...

    def __post_init__(self) -> None:
        for name in ("chunk_size", "memory_budget"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name))

    def over_tasks(self, name: str, function: Callable[..., Any], *stacked: Stacked, key: Hashable = None) -> Any:
        """`vmap(function)(*stacked)`; `name` and `key` tell records of different functions apart."""
        leaves, structure = _flatten(stacked)

        def plain(inputs: Iterable[Tensor]) -> Any:
            return vmap(function)(*_unflatten(inputs, structure))

        differentiated = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        if differentiated or (not self.trace and self.memory_budget is None):
            return _in_chunks(plain, leaves, self.chunk_size or len(leaves[0]))
        shapes = [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        key = (name, key, structure, *shapes)
        if key not in self._records:
            self._records[key] = self._record(name, plain, leaves)
        record = self._records[key]
        if record is None:
            return _in_chunks(plain, leaves, self.chunk_size or (1 if self.memory_budget else len(leaves[0])))
        return record(leaves) if self.trace else _in_chunks(plain, leaves, record.chunk_size)

    def _record(self, name: str, plain: "Plain", leaves: list[Tensor]) -> "Record | None":
        start = time.perf_counter()
        try:
            record = Record(plain, leaves, self._chunk_size(leaves), self._arenas)
            if self.trace:
                record.check(plain, leaves)
            log.info("%s were recorded in %.2f s, %s", name, time.perf_counter() - start, record)
            return record
        except (
            Exception
        ) as error:  # whatever a user's loss may do, and operations whose record is not what they compute
            log.warning("%s are computed without a trace, which is slower: %s", name, str(error).strip().split("\n")[0])
            return None

    def _chunk_size(self, leaves: list[Tensor]) -> Callable[[int], int]:
        """From the bytes that a task takes to the number of tasks in a chunk."""
        tasks, device = len(leaves[0]), leaves[0].device
        budget = self.memory_budget
        if device.type == "cpu":
            budget = CACHE if budget is None else min(CACHE, budget)
        elif budget is None:
            budget = torch.cuda.get_device_properties(device).total_memory // 2
        return lambda nbytes: self.chunk_size or max(1, min(tasks, budget // max(nbytes, 1)))


class Plain(Protocol):
    """A function over tasks, from flat lists of stacked leaves."""

    def __call__(self, inputs: Iterable[Tensor]) -> Any: ...


def _in_chunks(plain: Plain, leaves: list[Tensor], size: int) -> Any:
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
        arenas: memory that it shares with records that do not run at the same time.
    """

    def __init__(
        self, function: Plain, leaves: list[Tensor], chunk_size: Callable[[int], int], arenas: list[Arena]
    ) -> None:
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
        self._idle: list[Runner] = []
        self._arenas, self._next_arena = arenas, itertools.count()

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
            AssertionError: when they differ by more than rounding.
        """
        first = [leaf[: self.chunk_size].flip(0) for leaf in leaves]
        wanted = pytree.tree_leaves(plain(first))
        scale = max(float(x.abs().max()) for x in wanted if x.numel())
        with self._any_runner(leaves) as runner:
            for got, expected in zip(runner.run(first), wanted, strict=True):
                torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-5 * scale)

    @contextmanager
    def _any_runner(self, leaves: list[Tensor]) -> Iterator[Runner]:
        """One that no other thread has at the moment; without gradients."""
        try:
            found = self._idle.pop()
        except IndexError:
            found = self._new_runner(leaves)
        with torch.no_grad():
            yield found
        self._idle.append(found)

    def _new_runner(self, leaves: list[Tensor]) -> Runner:
        number = next(self._next_arena)
        while len(self._arenas) <= number:
            self._arenas.append(Arena())
        return make_runner(self._graph, [], [leaf[: self.chunk_size] for leaf in leaves], self._arenas[number])


def _flatten(stacked: tuple[Stacked, ...]) -> tuple[list[Tensor], Structure]:
    leaves: list[Tensor] = []
    for part in stacked:
        leaves += [part] if isinstance(part, Tensor) else part.values()
    return leaves, tuple(None if isinstance(part, Tensor) else tuple(part) for part in stacked)


def _unflatten(leaves: Iterable[Tensor], structure: Structure) -> list[Stacked]:
    rest = iter(leaves)
    return [next(rest) if keys is None else {key: next(rest) for key in keys} for keys in structure]
