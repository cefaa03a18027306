"""The two kinds of record: of a function over tasks, and of a function that runs repeatedly.

A function over tasks is run in chunks of tasks. A repeated function, such as a rollout's step, keeps some arguments.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.engine.compare import Uses, difference
from metarl.engine.graph import outputs, trace, value
from metarl.engine.memory import NotRecordableError
from metarl.engine.program import Arena, Arenas, peak_bytes
from metarl.engine.runners import CudaGraph, Function, PlainRunner, Runner, make_runner, repeat
from metarl.engine.threads import over_threads

CACHE = 4 << 20
"""Bytes that the intermediates of a chunk of several tasks may take on a CPU: a core's share of its cache."""

MEMORY = 512 << 20
"""Bytes that the chunks of all threads may take on a CPU; if they need more, fewer threads work at the same time."""


Plain: TypeAlias = Callable[[Iterable[Tensor]], Any]
"""A function over tasks, from flat lists of stacked leaves."""


def compute_in_chunks(plain: Plain, leaves: list[Tensor], size: int) -> Any:
    """The function's results for all tasks, computed for `size` of them at a time."""
    if size >= len(leaves[0]):
        return plain(leaves)
    chunks = zip(*(torch.split(leaf, size) for leaf in leaves), strict=True)
    parts = [pytree.tree_flatten(plain(chunk)) for chunk in chunks]
    joined = [torch.cat(pieces) for pieces in zip(*(part[0] for part in parts), strict=True)]
    return pytree.tree_unflatten(joined, parts[0][1])


def pick_chunk_size(leaves: list[Tensor], given: int | None) -> Callable[[int], int]:
    """A function from the bytes of a task's intermediates to the number of tasks in a chunk."""
    tasks, budget = len(leaves[0]), memory_budget(leaves[0].device)
    return lambda nbytes: given or max(1, min(tasks, budget // max(nbytes, 1)))


def memory_budget(device: torch.device) -> int:
    """Bytes for the intermediates of a chunk: the cache of a CPU, or half of the memory of an accelerator."""
    return CACHE if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory // 2


class TaskRecord:
    """A function over tasks, recorded for chunks of one size; the last chunk may overlap with the previous one.

    Args:
        name: of the function, for messages.
        function: a function over tasks.
        leaves: stacked inputs, for their shapes.
        chunk_size: from `pick_chunk_size`.
        arenas: the memory for runs.

    Raises:
        NotRecordableError: the function cannot be recorded.
    """

    def __init__(
        self, name: str, function: Plain, leaves: list[Tensor], chunk_size: Callable[[int], int], arenas: Arenas
    ) -> None:
        specs: list[pytree.TreeSpec] = []

        def flat(*inputs: Tensor) -> list[Tensor]:
            results, spec = pytree.tree_flatten(function(inputs))
            specs.append(spec)
            return results

        tasks = len(leaves[0])
        # A first record tells how much memory a task takes. Small tasks will fit in one chunk, so all are recorded.
        few = sum(leaf.nbytes for leaf in leaves) < CACHE // 32
        some = tasks if few else 1
        self.graph = trace(flat, [leaf[:some] for leaf in leaves])
        chunks = -(-tasks // chunk_size(-(-peak_bytes(self.graph.graph) // some)))
        self.chunk_size = size = -(-tasks // chunks)
        self.starts = [min(i * size, tasks - size) for i in range(chunks)]
        if size != some:
            self.graph = trace(flat, [leaf[:size] for leaf in leaves])
        self._nbytes = max(1, peak_bytes(self.graph.graph))
        self._like = [value(node) for node in outputs(self.graph.graph)]
        self.spec = specs[-1]
        self._device = leaves[0].device
        self._arenas, self._uses, self.name = arenas, Uses(name), name
        self.runners: dict[Arena, Runner] = {}  # at most one for each arena, which is lent to one run at a time

    def run(self, plain: Plain, leaves: list[Tensor]) -> Any:
        """The function's results for all tasks; `None` if a comparison has shown that the record is wrong."""
        if self._uses.given_up:
            return None
        number = self._uses.count()
        results = self(leaves)
        if number == 1 or not self._uses.is_due(number):  # the first use was compared when the record was made
            return results
        if (found := self.difference(results, plain, leaves, turn=number.bit_length())) is None:
            return results
        self._uses.give_up(found)
        return None

    def __call__(self, leaves: list[Tensor]) -> Any:
        """The record's results for all tasks."""
        if len(self.starts) == 1:
            with self._borrow_runner(leaves) as runner:
                return pytree.tree_unflatten([x.clone() for x in runner.run(leaves)], self.spec)
        wholes = self.empty_results(len(leaves[0]))

        def run_chunk(start: int) -> None:
            rows = slice(start, start + self.chunk_size)
            with self._borrow_runner(leaves) as runner:
                for whole, part in zip(wholes, runner.run([leaf[rows] for leaf in leaves]), strict=True):
                    whole[rows] = part

        if self._device.type == "cpu":
            over_threads(run_chunk, self.starts, max(1, MEMORY // self._nbytes))
        else:
            for start in self.starts:
                run_chunk(start)
        return pytree.tree_unflatten(wholes, self.spec)

    def empty_results(self, tasks: int) -> list[Tensor]:
        """Memory for the results of `tasks` tasks."""
        return [torch.empty(tasks, *x.shape[1:], dtype=x.dtype, device=self._device) for x in self._like]

    def __str__(self) -> str:
        calls = sum(node.op == "call_function" for node in self.graph.graph.nodes)
        return f"{calls} operations for {self.chunk_size} tasks at a time, {self._nbytes / 1e6:.1f} MB"

    def check(self, plain: Plain, leaves: list[Tensor]) -> None:
        """Compare with the function on data that were not recorded: the first chunk with its tasks in reverse order.

        Raises:
            NotRecordableError: they differ by more than rounding.
        """
        first = [leaf[: self.chunk_size].flip(0) for leaf in leaves]
        with self._borrow_runner(leaves) as runner:
            if (found := difference(runner.run(first), _flat(plain), first)) is not None:
                raise NotRecordableError(f"the record does not compute the function: {found}")

    def difference(self, results: Any, plain: Plain, leaves: list[Tensor], turn: int) -> str | None:
        """The difference beyond rounding between one chunk's results and the function's; each turn another chunk."""
        start = self.starts[turn % len(self.starts)]
        rows = slice(start, start + self.chunk_size)
        found = [x[rows] for x in pytree.tree_leaves(results)]
        with torch.no_grad():
            return difference(found, _flat(plain), [leaf[rows] for leaf in leaves])

    @contextmanager
    def _borrow_runner(self, leaves: list[Tensor]) -> Iterator[Runner]:
        """A runner that no other thread is using; without gradients."""
        with self._arenas.lend() as arena, torch.no_grad():
            if (runner := self.runners.get(arena)) is None:
                like = [leaf[: self.chunk_size] for leaf in leaves]
                runner = self.runners[arena] = make_runner(self.graph, [], like, arena)
            yield runner


def _flat(plain: Plain) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """The function's results as a list."""
    return lambda inputs: [x.detach() for x in pytree.tree_leaves(plain(inputs))]


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
