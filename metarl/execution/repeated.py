"""A function that is run many times while some of its inputs stay the same, such as one step of a rollout."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, fx

from metarl.execution.cuda import CudaGraph
from metarl.execution.program import Arena, NotPlannableError, Plan, Program
from metarl.execution.tracing import traced

log = logging.getLogger(__name__)

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


class Repeated:
    """Records `function(*constants, *inputs)` once for every shape.

    What cannot be recorded, or gives something else than without when it is first run, is called as it is, and that is
    logged.

    Args:
        name: what is computed, for messages.
        function: pure; it is only called here, while a record is made, or where there is none.
    """

    def __init__(self, name: str, function: Function) -> None:
        self._name, self._function = name, function
        self._graphs: dict[Any, fx.GraphModule | None] = {}
        self._idle: dict[Any, list[Runner]] = {}

    @contextmanager
    def bound(self, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> Iterator[Runner]:
        """A runner with these constants, for inputs that look like these; to be used without gradients."""
        found = self._take(self.graph(constants, inputs), constants, inputs)
        key = _key(constants, inputs)
        found.bind(constants)
        try:
            yield found
        finally:
            self._idle[key].append(found)

    def graph(self, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> fx.GraphModule | None:
        """The record for such inputs, if it could be made."""
        key = _key(constants, inputs)
        if key not in self._graphs:
            self._make(key, constants, inputs)
        return self._graphs[key]

    @torch.no_grad()
    def _make(self, key: Any, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        self._idle[key] = []
        start = time.perf_counter()
        try:
            self._graphs[key] = traced(self._function, [*constants, *inputs])
            runner = self._take(self._graphs[key], constants, inputs)
            runner.bind(constants)
            for got, expected in zip(runner.run(inputs), self._function(*constants, *inputs), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            self._idle[key].append(runner)
            log.info("%s was recorded in %.2f s", self._name, time.perf_counter() - start)
        except Exception as error:  # whatever tracing trips over, the plain function is right
            log.warning("%s cannot be traced and runs slower: %s", self._name, str(error).strip().split("\n")[0])
            self._graphs[key] = None

    def _take(self, graph: fx.GraphModule | None, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> Runner:
        if idle := self._idle[_key(constants, inputs)]:
            return idle.pop()
        return Operations(self._function) if graph is None else make_runner(graph, constants, inputs)


def _key(constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    return (len(constants), *[(x.shape, x.dtype, x.device) for x in (*constants, *inputs)])
