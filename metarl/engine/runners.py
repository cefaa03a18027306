"""The ways to run a recorded function: a program in planned memory (CPU), a CUDA graph, or operation by operation."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, fx

from metarl.engine.program import Arena, NotPlannableError, Plan, Program

log = logging.getLogger(__name__)

Function: TypeAlias = Callable[..., Sequence[Tensor]]


class Runner(Protocol):
    """A function with some inputs that stay the same; not thread-safe. Results are valid until the next run."""

    def bind(self, constants: Sequence[Tensor]) -> None:
        """Set the inputs that stay the same."""

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results for the other inputs."""


class PlainRunner:
    """Calls a function as it is: the last resort, and the reference for comparisons."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._constants: list[Tensor] = []

    def bind(self, constants: Sequence[Tensor]) -> None:
        self._constants = [x.contiguous() for x in constants]

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._function(*self._constants, *[x.contiguous() for x in inputs])


class CudaGraph:
    """`function(*constants, *inputs)` as one CUDA graph: launched as a whole instead of operation by operation.

    Args:
        function: of tensors alone; it must do the same every time, and must not wait for the device.
        constants: its first arguments; here for their shapes, types and device.
        inputs: the other arguments, for the same.
    """

    def __init__(self, function: Function, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        self._constants, self._inputs = (
            [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves] for leaves in (constants, inputs)
        )
        places = [*self._constants, *self._inputs]
        side = torch.cuda.Stream(inputs[0].device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(inputs[0].device))
        # libraries allocate their workspaces in the first runs, which must not be recorded
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(2):
                function(*places)
        torch.cuda.current_stream(inputs[0].device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self.outputs = list(function(*places))

    def bind(self, constants: Sequence[Tensor]) -> None:
        for place, given in zip(self._constants, constants, strict=True):
            place.copy_(given)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        for place, given in zip(self._inputs, inputs, strict=True):
            place.copy_(given)
        self._graph.replay()
        return self.outputs


def make_runner(
    graph: fx.GraphModule, constants: Sequence[Tensor], inputs: Sequence[Tensor], arena: Arena | None = None
) -> Runner:
    """The fastest way to run a traced graph on the device of its inputs; programs share the memory of `arena`."""
    device = inputs[0].device.type
    if device == "cuda":
        return CudaGraph(graph.forward, constants, inputs)
    if device == "cpu":
        try:
            return Program(Plan(graph.graph, len(constants)), arena)
        except NotPlannableError as error:
            log.info("run operation by operation: %s", error)
    return PlainRunner(graph.forward)


def repeat(runner: Runner, carried: Sequence[Tensor], sequences: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Run repeatedly, each time with the carried results of the last run; see `metarl.engine.Engine.repeat`."""
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
