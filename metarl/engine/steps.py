"""A function that runs repeatedly while some of its arguments stay the same, such as one step of a rollout."""

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarl.engine.compare import Uses, difference
from metarl.engine.graph import trace
from metarl.engine.runners import CudaGraph, Function, PlainRunner, Runner, make_runner, repeat

log = logging.getLogger(__name__)


class RepeatedFunction(NamedTuple):
    """`function(*constants, *inputs)`, to be run with many inputs.

    The function must be pure. Functions with equal names, keys and shapes that read the same things share a record.
    """

    name: str  # for messages
    function: Function
    constants: list[Tensor]
    reads: tuple[Any, ...]  # functions and objects: what the function reads besides its arguments
    key: Hashable  # everything else that it depends on


class StepRecord:
    """A repeated function, recorded for inputs of certain shapes. Several threads may use it.

    Args:
        repeated: the function.
        inputs: example inputs of one run.

    Raises:
        NotRecordableError: the function cannot be recorded.
        AssertionError: the record gives other results than the function.
    """

    @torch.no_grad()
    def __init__(self, repeated: RepeatedFunction, inputs: Sequence[Tensor]) -> None:
        constants = repeated.constants
        self.graph = trace(repeated.function, [*constants, *inputs])
        runner = make_runner(self.graph, constants, inputs)
        runner.bind(constants)
        for got, expected in zip(runner.run(inputs), repeated.function(*constants, *inputs), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        self.idle = [runner]
        self.replays: dict[int, CudaGraph | None] = {}  # by the number of steps
        self._uses = Uses(repeated.name)
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"{sum(node.op == 'call_function' for node in self.graph.graph.nodes)} operations"

    @contextmanager
    def lend(self, constants: Sequence[Tensor], inputs: Sequence[Tensor], plain: PlainRunner) -> Iterator[Runner]:
        """A runner with these constants; `plain` is the function with the same constants.

        When a comparison is due, single steps are compared with the function.
        """
        if self._uses.given_up:
            yield plain
            return
        number = self._uses.count()
        with self._lock:
            runner = self.idle.pop() if self.idle else None
        runner = runner or make_runner(self.graph, constants, inputs)
        runner.bind(constants)
        try:
            due = self._uses.is_due(number)
            yield _Compared(runner, plain, constants, self._uses.give_up) if due else runner
        finally:
            with self._lock:
                self.idle.append(runner)

    def replay(
        self, constants: Sequence[Tensor], carried: Sequence[Tensor], sequences: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """All steps as one CUDA graph, without waiting for the host in between.

        `None` if that is not possible, or if a comparison is due, for which steps must run one by one.
        """
        if self._uses.given_up or self._uses.is_due(self._uses.number + 1):
            return None
        inputs = [*carried, *sequences]
        with self._lock:
            steps = sequences[0].shape[0]
            if steps not in self.replays:
                self.replays[steps] = self._make_replay(constants, inputs, len(carried))
            if (graph := self.replays[steps]) is None:
                return None
            self._uses.count()
            graph.bind(constants)
            results = [x.clone() for x in graph.run(inputs)]
        return results[: len(carried)], results[len(carried) :]

    def _make_replay(self, constants: Sequence[Tensor], inputs: Sequence[Tensor], carried: int) -> CudaGraph | None:
        first = len(constants)

        def whole(*leaves: Tensor) -> list[Tensor]:
            step = PlainRunner(self.graph.forward)
            step.bind(leaves[:first])
            at_end, kept = repeat(step, leaves[first : first + carried], leaves[first + carried :])
            return at_end + kept

        try:
            return CudaGraph(whole, constants, inputs)
        except RuntimeError as error:  # such as a constant of the environment that is not on the device
            log.warning("rollouts cannot be one CUDA graph and run step by step: %s", str(error).split("\n")[0])
            return None


class _Compared:
    """A runner whose steps 0, 1, 3, 7, ... are compared with the function, which replaces it after a difference.

    Args:
        runner: runs the record, with the constants bound.
        plain: runs the function, likewise.
        constants: the constants that both are bound to.
        tell: called with the difference.
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
        if Uses.is_due(self._step) and (found := self._difference(results, inputs)) is not None:
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
