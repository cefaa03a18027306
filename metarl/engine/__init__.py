"""How a function of one task is computed for all of them: all at once or in chunks, recorded or not.

An oracle may carry an `Execution`; `metarl.derivatives` computes with it. Its choices change the results by rounding
only: chunks bound the memory, a record saves the time that `vmap` and `grad` spend in Python at every call, and runs in
memory of its own: on a CPU as a `Program`, its chunks in threads; on an accelerator as a CUDA graph.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from metarl.engine.kept import Arenas, Kept
from metarl.engine.live import RecordWarning, is_due
from metarl.engine.record import CACHE, Plain, Record, in_chunks
from metarl.errors import check_int

__all__ = ["Execution", "RecordWarning", "Stacked"]

log = logging.getLogger(__name__)

Stacked: TypeAlias = Tensor | Mapping[str, Tensor]
"""What a function of one task takes, stacked over tasks: every tensor is `[T, ...]`."""

Structure: TypeAlias = tuple[tuple[str, ...] | None, ...]
"""The keys of each argument; `None` stands for a tensor."""


class _Recorded:
    """A record and how often it was used; `record` is `None` where the function is computed as it is."""

    def __init__(self, name: str, record: Record | None) -> None:
        self.record, self._name, self._uses = record, name, 1

    def run(self, record: Record, plain: Plain, leaves: list[Tensor]) -> Any:
        """What the record gives; where that is due and not what `plain` gives, `None`, and the record is given up."""
        results = record(leaves)
        use, self._uses = self._uses, self._uses + 1
        if use == 1 or not is_due(use):  # it was compared when it was made
            return results
        found = record.difference(results, plain, leaves, turn=use.bit_length())
        if found is None:
            return results
        self.record = None
        warnings.warn(
            f"the record of {self._name} is wrong at use {use} and not used any more: {found}",
            RecordWarning,
            stacklevel=2,
        )
        return None


@dataclass(eq=False)
class Execution:
    """One of these is kept by whoever makes oracles of the same kind, and given to each: it holds the records.

    Several threads may use one. A copy (`copy.deepcopy`, `pickle`) has the same settings and no records.

    Args:
        chunk_size: tasks computed at a time. `None` takes all of them, or with `trace` as many as fit the cache of a
            CPU, or the memory of an accelerator.
        memory_budget: bytes that the intermediates of a chunk may take at most, wherever `chunk_size` is not given;
            a single task is computed whatever it takes, and what cannot be traced is computed a task at a time.
            `None`: half of an accelerator's memory.
        trace: record the operations once for every shape, and run the record from then on, in rollouts as well. The
            function must then be pure: what it reads besides its arguments is frozen into the record, and a change
            makes a new record as far as it can be seen (`metarl.engine.frozen`). What cannot be recorded, or gives
            something else than without when it is first run, is computed as without, and that is logged. A record is
            compared again on live data at its uses 2, 4, 8, ...: a difference beyond rounding gives a `RecordWarning`,
            and the function is computed as without from then on.
    """

    _: KW_ONLY
    chunk_size: int | None = None
    memory_budget: int | None = None
    trace: bool = False
    _kept: Kept[_Recorded] = field(default_factory=Kept, init=False, repr=False)
    _arenas: Arenas = field(default_factory=Arenas, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("chunk_size", "memory_budget"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name))

    def over_tasks(self, name: str, function: Callable[..., Any], *stacked: Stacked) -> Any:
        """`vmap(function)(*stacked)`; `name` says what is computed."""
        leaves, structure = _flatten(stacked)

        def plain(inputs: Iterable[Tensor]) -> Any:
            return vmap(function)(*_unflatten(inputs, structure))

        differentiated = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        if differentiated or (not self.trace and self.memory_budget is None):
            return in_chunks(plain, leaves, self.chunk_size or len(leaves[0]))
        shapes = [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]
        settings = (self.chunk_size, self.memory_budget, self.trace, torch.get_default_dtype())
        key = (structure, settings, *shapes)
        recorded = self._kept.get(name, (function,), key, lambda: _Recorded(name, self._record(name, plain, leaves)))
        if (record := recorded.record) is not None:
            if not self.trace:
                return in_chunks(plain, leaves, record.chunk_size)
            if (results := recorded.run(record, plain, leaves)) is not None:
                return results
        return in_chunks(plain, leaves, self.chunk_size or (1 if self.memory_budget else len(leaves[0])))

    def _record(self, name: str, plain: Plain, leaves: list[Tensor]) -> Record | None:
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


def _flatten(stacked: tuple[Stacked, ...]) -> tuple[list[Tensor], Structure]:
    leaves: list[Tensor] = []
    for part in stacked:
        leaves += [part] if isinstance(part, Tensor) else part.values()
    return leaves, tuple(None if isinstance(part, Tensor) else tuple(part) for part in stacked)


def _unflatten(leaves: Iterable[Tensor], structure: Structure) -> list[Stacked]:
    rest = iter(leaves)
    return [next(rest) if keys is None else {key: next(rest) for key in keys} for keys in structure]
