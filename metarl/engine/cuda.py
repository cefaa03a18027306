"""A function of tensors as one CUDA graph: launched at once, instead of operation by operation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class CudaGraph:
    """`function(*constants, *inputs)` recorded on the device; results are valid until the next run.

    Args:
        function: of tensors alone; what it does must be the same every time, and must not wait for the device.
        constants: its first arguments, which stay the same over many runs; here for their shapes, types and device.
        inputs: the others, likewise.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], constants: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> None:
        self._constants, self._inputs = (
            [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves] for leaves in (constants, inputs)
        )
        places = [*self._constants, *self._inputs]
        side = torch.cuda.Stream(inputs[0].device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.no_grad(), torch.cuda.stream(side):  # libraries make their workspaces before they are recorded
            for _ in range(2):
                function(*places)
        torch.cuda.current_stream(inputs[0].device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self.outputs = list(function(*places))

    def bind(self, constants: Sequence[Tensor]) -> None:
        """Set the inputs that stay the same."""
        for place, given in zip(self._constants, constants, strict=True):
            place.copy_(given)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results for other inputs."""
        for place, given in zip(self._inputs, inputs, strict=True):
            place.copy_(given)
        self._graph.replay()
        return self.outputs
