"""A function that is run many times while some of its inputs stay the same, such as one step of a rollout."""

import functools
import logging
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, fx

from metarl.engine.cuda import CudaGraph
from metarl.engine.live import RecordWarning, difference, is_due
from metarl.engine.program import Arena, NotPlannableError, Plan, Program
from metarl.engine.tracing import traced

log = logging.getLogger(__name__)

MOST_SHAPES = 32
"""Shapes of one function whose records are kept; the one that was not used for the longest time goes first."""

Function: TypeAlias = Callable[..., Sequence[Tensor]]


class Runner(Protocol):
    """A recorded function; not for two threads at once. Results are valid until the next run."""

    def bind(self, constants: Sequence[Tensor]) -> None:
        """Set the inputs that stay the same."""

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results for the others."""


def repeat(runner: Runner, carried: Sequence[Tensor], sequences: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Run again and again, each time with what the last run left.

    Args:
        runner: of a function whose first inputs and results are what is carried, the last of it bool `[N]`: what runs
            on. On a CPU it is over as soon as nothing does.
        carried: at first.
        sequences: the other inputs, one after the other: `[H, ...]`.

    Returns:
        What is carried at last, and the other results of every run: `[h, ...]`.
    """
    if isinstance(runner, Program):
        return runner.repeat(carried, sequences)
    kept, carried = [], list(carried)
    for inputs in zip(*sequences, strict=True):
        results = runner.run([*carried, *inputs])
        carried = [x.clone() for x in results[: len(carried)]]
        kept.append([x.clone() for x in results[len(carried) :]])
        if carried[-1].device.type == "cpu" and not carried[-1].any():  # elsewhere it would cost a synchronisation
            break
    return carried, [torch.stack(column) for column in zip(*kept, strict=True)]


class Operations:
    """Calls a function as it is: the last resort, and what others are compared with."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._constants: list[Tensor] = []

    def bind(self, constants: Sequence[Tensor]) -> None:
        self._constants = [x.contiguous() for x in constants]

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._function(*self._constants, *[x.contiguous() for x in inputs])


def make_runner(
    graph: fx.GraphModule, constants: Sequence[Tensor], inputs: Sequence[Tensor], arena: Arena | None = None
) -> Runner:
    """The fastest way to run a traced graph on the device its inputs are on; `arena` is for programs to share."""
    device = inputs[0].device.type
    if device == "cuda":
        return CudaGraph(graph.forward, constants, inputs)
    if device == "cpu":
        try:
            return Program(Plan(graph.graph, len(constants)), arena)
        except NotPlannableError as error:
            log.info("run operation by operation: %s", error)
    return Operations(graph.forward)


class _Entry:
    """What is kept for inputs of the same shapes; without a graph the function is called as it is."""

    def __init__(self, graph: fx.GraphModule | None) -> None:
        self.graph, self.uses = graph, 0
        self.idle: list[Runner] = []

    def give_up(self) -> None:
        """Use the record no more."""
        self.graph = None
        self.idle.clear()


class _Compared:
    """A runner whose steps 0, 1, 3, 7, ... are compared with the function; from a difference on, only that is called.

    Args:
        runner: of the record, bound.
        plain: the function, bound.
        constants: what both are bound to.
        tell: called with what differs.
    """

    def __init__(self, runner: Runner, plain: Runner, constants: Sequence[Tensor], tell: Callable[[str], None]) -> None:
        self._runner, self._plain, self._constants, self._tell = runner, plain, constants, tell
        self._step, self._wrong = 0, False

    def bind(self, constants: Sequence[Tensor]) -> None:
        for runner in (self._runner, self._plain):
            runner.bind(constants)
        self._constants = constants

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        self._step += 1
        if self._wrong:
            return self._plain.run(inputs)
        results = self._runner.run(inputs)
        if is_due(self._step) and (found := self._difference(results, inputs)) is not None:
            self._wrong = True
            self._tell(found)
            return self._plain.run(inputs)
        return results

    def _difference(self, results: Sequence[Tensor], inputs: Sequence[Tensor]) -> str | None:
        number = len(self._constants)

        def plain(leaves: Sequence[Tensor]) -> Sequence[Tensor]:
            self._plain.bind(leaves[:number])
            return self._plain.run(leaves[number:])

        found = difference(results, plain, [*self._constants, *inputs])
        self._plain.bind(self._constants)
        return found


class Repeated:
    """Records `function(*constants, *inputs)` once for every shape. Several threads may use it.

    What cannot be recorded, or gives something else than without when it is first run, is called as it is, and that is
    logged. At uses 1, 2, 4, 8, ... single steps are compared with the function: a difference beyond rounding gives a
    `RecordWarning`, and the function is called from then on.

    Args:
        name: what is computed, for messages.
        function: pure; it is only called here, while a record is made or compared, or where there is none.
        trace: whether anything is recorded.
    """

    def __init__(self, name: str, function: Function, trace: bool = True) -> None:
        self._name, self._function, self._trace = name, function, trace
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """For how many shapes there is a record, or was an attempt at one."""
        return len(self._entries)

    def idle(self, number: int) -> list[Runner]:
        """The runners for the shapes that were seen as this number, of those nobody uses at the moment."""
        return list(self._entries.values())[number].idle

    @contextmanager
    def bound(self, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> Iterator[Runner]:
        """A runner with these constants, for inputs that look like these; to be used without gradients."""
        plain = Operations(self._function)
        plain.bind(constants)
        if not self._trace:
            yield plain
            return
        with self._lock:
            entry = self._entry(constants, inputs)
            graph = entry.graph
            entry.uses += 1
            due = is_due(entry.uses)
            found = entry.idle.pop() if entry.idle else None
        if graph is None:
            yield plain
            return
        found = found or make_runner(graph, constants, inputs)
        found.bind(constants)
        try:
            yield _Compared(found, plain, constants, functools.partial(self._give_up, entry)) if due else found
        finally:
            with self._lock:
                if entry.graph is not None:
                    entry.idle.append(found)

    def graph(self, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> fx.GraphModule | None:
        """The record for such inputs, to be used once; `None` where there is none, or it has to be compared first."""
        if not self._trace:
            return None
        with self._lock:
            entry = self._entry(constants, inputs)
            if entry.graph is None or is_due(entry.uses + 1):
                return None
            entry.uses += 1
            return entry.graph

    def _give_up(self, entry: _Entry, found: str) -> None:
        warnings.warn(
            f"the record of {self._name} is wrong at use {entry.uses} and not used any more: {found}",
            RecordWarning,
            stacklevel=2,
        )
        with self._lock:
            entry.give_up()

    def _entry(self, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> _Entry:
        key = (len(constants), *[(x.shape, x.dtype, x.device) for x in (*constants, *inputs)])
        if key not in self._entries:
            self._entries[key] = self._make(constants, inputs)
        self._entries.move_to_end(key)
        while len(self._entries) > MOST_SHAPES:
            self._entries.popitem(last=False)
        return self._entries[key]

    @torch.no_grad()
    def _make(self, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> _Entry:
        start = time.perf_counter()
        try:
            entry = _Entry(traced(self._function, [*constants, *inputs]))
            assert entry.graph is not None
            runner = make_runner(entry.graph, constants, inputs)
            runner.bind(constants)
            for got, expected in zip(runner.run(inputs), self._function(*constants, *inputs), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            entry.idle.append(runner)
            log.info("%s was recorded in %.2f s", self._name, time.perf_counter() - start)
        except Exception as error:  # whatever tracing trips over, the plain function is right
            log.warning("%s cannot be traced and runs slower: %s", self._name, str(error).strip().split("\n")[0])
            return _Entry(None)
        return entry
