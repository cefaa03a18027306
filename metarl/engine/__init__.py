"""The engine: how functions of all tasks, and the steps of rollouts, are computed fast.

Other packages do not depend on how. A `MetaLearner` has an `Engine` and makes it current while it learns, adapts and
evaluates; other code uses `with Engine().current():`. Without a current engine, nothing is recorded. An engine changes
results by rounding only. `docs/engine.md` explains how it works.

This file has everything that other packages use.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from metarl.engine.cache import Cache
from metarl.engine.compare import RecordWarning
from metarl.engine.linear import FixedFunction, FixedRecord
from metarl.engine.program import Arenas, NotPlannableError
from metarl.engine.records import Plain, RepeatedFunction, StepRecord, TaskRecord, compute_in_chunks, pick_chunk_size
from metarl.engine.runners import PlainRunner, Runner, repeat
from metarl.engine.threads import one_torch_thread
from metarl.errors import check_int

__all__ = ["Engine", "RecordWarning", "RepeatedFunction", "Runner", "Stacked", "current_engine", "one_torch_thread"]

log = logging.getLogger(__name__)

T = TypeVar("T")

Stacked: TypeAlias = Tensor | Mapping[str, Tensor]
"""An argument of a function of one task, stacked over tasks: every tensor is `[T, ...]`."""

Keys: TypeAlias = tuple[tuple[str, ...] | None, ...]
"""The keys of each argument; `None` stands for a tensor."""


class Engine:
    """Computes functions of all tasks and steps of rollouts, and keeps the records of both.

    Several threads may use one engine. A copy (`copy.deepcopy`, `pickle`) has the same settings and no records.

    Args:
        record: record the operations once for every shape, and run the record from then on. Functions must then be
            pure. What cannot be recorded is computed plainly, and the log says so. A record is compared with the plain
            function when it is made and at its uses 2, 4, 8, ...; a difference beyond rounding gives a `RecordWarning`,
            and the function is computed plainly from then on.
        chunk_size: tasks to compute at a time. By default all of them without a record, and with a record the number
            that fits into the cache of a CPU or half of the memory of an accelerator.

    Raises:
        ValueError: `chunk_size` is not a positive integer.

    Example:
        >>> import torch
        >>> from metarl.derivatives import gradients
        >>> from metarl.supervised import FiniteSumTaskBatch
        >>> tasks = FiniteSumTaskBatch(lambda w, batch: (w["x"] - batch["c"]) ** 2, {"c": torch.tensor([0.0, 1.0])})
        >>> with Engine().current():
        ...     gradients(tasks, {"x": torch.tensor([1.0, 3.0])}, tasks.support)
        {'x': tensor([2., 4.])}
    """

    def __init__(self, *, record: bool = True, chunk_size: int | None = None) -> None:
        self.record = record
        self.chunk_size = None if chunk_size is None else check_int("chunk_size", chunk_size)
        self._cache: Cache[TaskRecord | StepRecord | FixedRecord | None] = Cache()
        self._arenas = Arenas()

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), record=self.record, chunk_size=self.chunk_size), ()

    def __repr__(self) -> str:
        return f"Engine(record={self.record}, chunk_size={self.chunk_size})"

    @contextmanager
    def current(self) -> Iterator["Engine"]:
        """A context in which this engine computes everything in this thread."""
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)

    def over_tasks(self, name: str, function: Callable[..., Any], *stacked: Stacked) -> Any:
        """`vmap(function)(*stacked)`; `name` says what is computed."""
        leaves, keys = _flatten(stacked)

        def plain(inputs: Iterable[Tensor]) -> Any:
            return vmap(function)(*_unflatten(inputs, keys))

        differentiated = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        if self.record and not differentiated:
            record = self._cache.get(
                name, (function,), (keys, *_record_key(leaves)), lambda: self._make(name, plain, leaves)
            )
            assert record is None or isinstance(record, TaskRecord)
            if record is not None and (results := record.run(plain, leaves)) is not None:
                return results
        return compute_in_chunks(plain, leaves, self.chunk_size or len(leaves[0]))

    def linearize(self, name: str, function: Callable[..., Any], *fixed: Stacked) -> Callable[[Stacked], Any]:
        """`vector -> vmap(function)(*fixed, vector)`, for many vectors of the same shapes.

        With a record on a CPU, what does not depend on the vector is computed once, with the first one. It is kept in
        memory as long as the result of this method. Without a record and on an accelerator everything is computed for
        every vector.
        """
        made: list[FixedFunction | None] = []

        def product(vector: Stacked) -> Any:
            leaves, _ = _flatten((vector,))
            differentiated = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
            if not made:
                made.append(self._fix(name, function, fixed, vector))
            if made[0] is None or differentiated:
                return self.over_tasks(name, function, *fixed, vector)
            return made[0](leaves)

        return product

    @contextmanager
    def bind(self, repeated: RepeatedFunction, inputs: Sequence[Tensor]) -> Iterator[Runner]:
        """A runner of the function with its constants, for inputs of these shapes and types; without gradients.

        Its results are valid until its next run.
        """
        plain = PlainRunner(repeated.function)
        plain.bind(repeated.constants)
        if (record := self._find(repeated, inputs)) is None:
            yield plain
            return
        with record.lend(repeated.constants, inputs, plain) as runner:
            yield runner

    def repeat(
        self, repeated: RepeatedFunction, carried: Sequence[Tensor], sequences: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the function repeatedly; each run gets the carried results of the previous run (a scan).

        Args:
            repeated: a function whose first inputs and results are the carried tensors. The last one is bool `[N]`:
                which rows still run. On a CPU the repetition ends as soon as all are false.
            carried: the initial carried tensors.
            sequences: the other inputs of all runs: `[H, ...]`.

        Returns:
            The final carried tensors, and the other results of every run: `[h, ...]`.
        """
        inputs = [*carried, *(sequence[0] for sequence in sequences)]
        record = self._find(repeated, inputs) if inputs[0].device.type == "cuda" else None
        if record is not None and (results := record.replay(repeated.constants, carried, sequences)) is not None:
            return results
        with self.bind(repeated, inputs) as runner:
            return repeat(runner, carried, sequences)

    def _make(self, name: str, plain: Plain, leaves: list[Tensor]) -> TaskRecord | None:
        def make() -> TaskRecord:
            record = TaskRecord(name, plain, leaves, pick_chunk_size(leaves, self.chunk_size), self._arenas)
            record.check(plain, leaves)
            return record

        return _try_to_record(name, make)

    def _fix(
        self, name: str, function: Callable[..., Any], fixed: tuple[Stacked, ...], vector: Stacked
    ) -> FixedFunction | None:
        """The function with its first arguments fixed; `None` where it must be computed as a whole."""
        leaves, keys = _flatten((*fixed, vector))
        number = len(_flatten(fixed)[0])
        differentiated = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        if not self.record or differentiated or leaves[0].device.type != "cpu":
            return None

        def plain(inputs: Iterable[Tensor]) -> Any:
            return vmap(function)(*_unflatten(inputs, keys))

        def make() -> FixedRecord | None:
            record = self._make(f"{name} for many vectors", plain, leaves)
            try:
                return None if record is None else FixedRecord(record, number)
            except NotPlannableError as error:
                log.info("%s are computed as a whole for every vector: %s", name, error)
                return None

        key = (number, keys, *_record_key(leaves))
        record = self._cache.get(f"{name} for many vectors", (function,), key, make)
        assert record is None or isinstance(record, FixedRecord)
        return None if record is None else record.fix(plain, leaves[:number])

    def _find(self, repeated: RepeatedFunction, inputs: Sequence[Tensor]) -> StepRecord | None:
        if not self.record:
            return None
        key = (repeated.key, len(repeated.constants), *_record_key([*repeated.constants, *inputs]))
        record = self._cache.get(
            repeated.name,
            repeated.reads,
            key,
            lambda: _try_to_record(repeated.name, lambda: StepRecord(repeated, inputs)),
        )
        assert record is None or isinstance(record, StepRecord)
        return record


def _try_to_record(name: str, make: Callable[[], T]) -> T | None:
    """The record; `None` if there is an error: then the function is computed plainly."""
    start = time.perf_counter()
    try:
        record = make()
    except Exception as error:  # a user's function may do anything; and some records do not compute the function
        log.warning("%s cannot be recorded, which is slower: %s", name, str(error).strip().split("\n")[0])
        return None
    log.info("%s: recorded in %.2f s, %s", name, time.perf_counter() - start, record)
    return record


_CURRENT: ContextVar[Engine | None] = ContextVar("engine", default=None)
_PLAIN = Engine(record=False)


def current_engine(default: Engine = _PLAIN) -> Engine:
    """The engine of the innermost `with engine.current():` of this thread.

    Outside of all, it is `default`: an engine that records nothing, if not given.
    """
    return _CURRENT.get() or default


def _record_key(leaves: Sequence[Tensor]) -> list[Any]:
    """The properties of the inputs for which a function needs separate records."""
    return [torch.get_default_dtype(), *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)]


def _flatten(stacked: tuple[Stacked, ...]) -> tuple[list[Tensor], Keys]:
    leaves: list[Tensor] = []
    for argument in stacked:
        leaves += [argument] if isinstance(argument, Tensor) else argument.values()
    return leaves, tuple(None if isinstance(argument, Tensor) else tuple(argument) for argument in stacked)


def _unflatten(leaves: Iterable[Tensor], keys: Keys) -> list[Stacked]:
    rest = iter(leaves)
    return [next(rest) if names is None else {name: next(rest) for name in names} for names in keys]
