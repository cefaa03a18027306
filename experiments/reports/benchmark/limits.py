"""The limit of a workload: its floating-point operations, counted, at the measured rate of matrix products.

A linear layer y = W x takes F operations forward. Backward, W^T dy and dy x^T take F each, and the first layer does not
need W^T dy. With F1 for the first layer, for the whole network:

    forward  F,    gradient  3 F - F1,    Hessian-vector product  8 F - 5 F1

The last one, forward over reverse along v: y and W^T dy again (2 F), the tangents y' = W x' + V x (2 F), then
W^T dy' + V^T dy (2 F) and dy' x^T + dy x'^T (2 F), where x' = 0 and no W^T in the first layer leave 3 F1 of 8. Reverse
over reverse takes the same number. Without a record it also computes the gradient, which is not used: 9 F - 5 F1.

Convolutions are linear layers too. Activations and other elementwise work are not counted, which makes the limit too
low. Two other simplifications make it too high: derivatives on the same batch could share forward passes, and with
ReLUs, which have no curvature, a Hessian-vector product takes one product of the second layer less.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.utils.flop_counter import FlopCounterMode

from metarl.functional_call import call
from metarl.types import Batch, Params, Role, TaskBatch, TaskSource
from metarl.wrappers import Derivative, TaskWrapper


class Flops(NamedTuple):
    """Operations of a network on one input."""

    forward: float
    first: float  # in the first layer

    @property
    def gradient(self) -> float:
        """With respect to the parameters."""
        return 3 * self.forward - self.first

    @property
    def hessian_vector_product(self) -> float:
        """Without the gradient."""
        return 8 * self.forward - 5 * self.first


def network_flops(network: nn.Module, inputs: Tensor) -> Flops:
    """Operations per row of `inputs`; the first layer's are the operations that the gradient of the inputs adds.

    Raises:
        ValueError: for inputs that are not floating point.
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs must be floating point, got {inputs.dtype}")
    params = {name: leaf.detach() for name, leaf in network.named_parameters()}

    def total(params: Params, x: Tensor) -> Tensor:
        outputs = call(network, params, x.clone())  # the counter cannot hook a leaf
        return torch.stack([out.sum() for out in ([outputs] if isinstance(outputs, Tensor) else outputs)]).sum()

    def count(function: Callable[..., object]) -> int:
        with FlopCounterMode(display=False) as counter:
            function(params, inputs)
        return int(counter.get_total_flops())

    first = count(grad(total, argnums=(0, 1))) - count(grad(total))
    return Flops(count(total) / len(inputs), first / len(inputs))


class Tally:
    """The work of one repetition: inputs counted by what was computed from them, and the seconds of draws."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start again from zero."""
        self.inputs: Counter[tuple[str, str]] = Counter()  # by kind, and by the role of their draw
        self.draws = 0
        self.draw_seconds = 0.0

    def of(self, kind: str, role: str | None = None) -> int:
        """Inputs of `kind`: `drawn`, `forward`, `gradients` or `hessian_vector_products`."""
        return sum(number for (k, r), number in self.inputs.items() if k == kind and role in (None, r))

    def flops(self, network: Flops) -> float:
        """Operations needed for all inputs."""
        derivatives = network.gradient * self.of("gradients")
        derivatives += network.hessian_vector_product * self.of("hessian_vector_products")
        return network.forward * self.of("forward") + derivatives


class Tallied(TaskWrapper):
    """Keeps a tally. It assumes that a derivative uses the last batch drawn, or one of the same size."""

    def __init__(self, tasks: TaskBatch, tally: Tally) -> None:
        super().__init__(tasks)
        self._tally = tally
        self._last: tuple[Role, int] = ("inner", 0)

    def draw(self, params: Params, role: Role) -> Batch:
        start = time.perf_counter()
        batch = super().draw(params, role)
        synchronize(next(iter(batch.values())).device)
        self._tally.draw_seconds += time.perf_counter() - start
        self._tally.draws += 1
        cost = self.cost(batch)
        self._last = role, cost.get("env_steps", cost["samples"])
        for kind in ("drawn", "forward") if "env_steps" in cost else ("drawn",):
            self._tally.inputs[kind, role] += self._last[1]
        return batch

    def on_derivative(self, kind: Derivative, result: Params, losses: Tensor | None) -> None:
        role, inputs = self._last
        self._tally.inputs[kind, role] += inputs


class TalliedSource:
    """A task source that keeps a tally."""

    def __init__(self, source: TaskSource, tally: Tally) -> None:
        self.source, self.score_name, self._tally = source, source.score_name, tally

    def initial_params(self) -> Params:
        """The source's."""
        return self.source.initial_params()

    def sample(self, num_tasks: int, rng: np.random.Generator) -> Tallied:
        """The source's tasks, with the tally."""
        return Tallied(self.source.sample(num_tasks, rng), self._tally)


class Product(NamedTuple):
    """The shapes of a batched product: `[tasks, rows, inputs]` with `[tasks, inputs, outputs]`."""

    tasks: int
    rows: int
    inputs: int
    outputs: int

    def rate(self, device: torch.device, seconds: float = 0.02) -> float:
        """Operations a second now: the median of five measurements of about `seconds`."""
        a = torch.randn(self.tasks, self.rows, self.inputs, device=device)
        b = torch.randn(self.tasks, self.inputs, self.outputs, device=device)
        out = torch.empty(self.tasks, self.rows, self.outputs, device=device)

        def once(times: int) -> float:
            synchronize(device)
            start = time.perf_counter()
            for _ in range(times):
                torch.bmm(a, b, out=out)
            synchronize(device)
            return (time.perf_counter() - start) / times

        once(2)
        times = max(1, math.ceil(seconds / once(2)))
        return 2.0 * math.prod(self) / statistics.median(once(times) for _ in range(5))


def synchronize(device: torch.device | str) -> None:
    """Wait for an accelerator to finish, before the clock is read."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
