"""Sinusoid regression (Finn, Abbeel, Levine, 2017, section 5.1): the classic small test of fast adaptation.

    y = A sin(x + phase),    A ~ U[0.1, 5],    phase ~ U[0, pi],    x ~ U[-5, 5]

The loss is the mean squared error of a network from x to y, and the score minus it. The published network has two
hidden layers of 40 ReLUs; a task has K points to adapt on.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from metarl.devices import pick_device
from metarl.errors import check_choice, check_int
from metarl.random import torch_generator
from metarl.supervised.networks import NetworkSource, mlp
from metarl.supervised.oracle import FiniteSumTaskBatch, ResamplingTaskBatch
from metarl.types import Batch, Params, Role

HIDDEN = (40, 40)
"""Units of the published network's hidden layers."""

AMPLITUDES, PHASES, INPUTS = (0.1, 5.0), (0.0, math.pi), (-5.0, 5.0)


@dataclass
class Sinusoids(NetworkSource):
    """A source of sinusoid tasks: new ones at every `sample`.

    Args:
        network: from `[n, 1]` to `[n, 1]`; default: two hidden layers of 40 ReLUs. It is never trained itself.
        shots: K, points of a support set.
        queries: points of a query set.
        setting: `finite_sum` fixes each task's support and query set; `resampling` draws fresh points at every draw.
        seed: of the default network's initial weights.
        device: where parameters and data live.

    Raises:
        ValueError: for bad arguments, naming them.

    Example:
        >>> tasks = Sinusoids(shots=10).sample(3, np.random.default_rng(0))
        >>> tasks.support["x"].shape
        torch.Size([3, 10, 1])
    """

    network: nn.Module = None  # type: ignore[assignment]  # the default network is set below
    _: KW_ONLY
    shots: int = 10
    queries: int = 10
    setting: Literal["finite_sum", "resampling"] = "finite_sum"
    seed: int = 0
    device: torch.device | str = "cpu"
    score_name: ClassVar[str] = "minus_mse"

    def __post_init__(self) -> None:
        check_int("shots", self.shots)
        check_int("queries", self.queries)
        check_choice("setting", self.setting, ("finite_sum", "resampling"))
        network = mlp(1, 1, hidden=HIDDEN, seed=self.seed) if self.network is None else self.network
        shapes_only = str(self.device) == "meta"  # a device for shapes without numbers
        self._set_fixed(device=torch.device("meta") if shapes_only else pick_device(self.device))
        self._set_fixed(network=network.to(self.device))
        self._check_network("points [n, 1]", "two points", [2, 1])

    def sample(self, num_tasks: int, rng: np.random.Generator) -> FiniteSumTaskBatch | ResamplingTaskBatch:
        """`num_tasks` new sinusoids."""
        check_int("num_tasks", num_tasks)
        amplitude, phase = (rng.uniform(*bounds, (num_tasks, 1)) for bounds in (AMPLITUDES, PHASES))
        return self.tasks(amplitude, phase, rng)

    def tasks(
        self, amplitude: npt.ArrayLike, phase: npt.ArrayLike, rng: np.random.Generator
    ) -> FiniteSumTaskBatch | ResamplingTaskBatch:
        """The sinusoids with the given amplitudes and phases, each `[T, 1]`; `rng` draws their points.

        Raises:
            ValueError: for other shapes.
        """
        leaf = self._leaf()
        a, b = (
            torch.as_tensor(np.asarray(values), dtype=leaf.dtype, device=leaf.device) for values in (amplitude, phase)
        )
        if a.shape != b.shape or a.shape[1:] != (1,):
            raise ValueError(f"amplitude and phase must be [T, 1], got {list(a.shape)} and {list(b.shape)}")
        generator = torch_generator(rng, leaf.device)

        def sampler(role: Role, generator: torch.Generator) -> Batch:
            points = self.queries if role == "outer" else self.shots
            uniform = torch.rand(len(a), points, generator=generator, dtype=leaf.dtype, device=leaf.device)
            x = INPUTS[0] + (INPUTS[1] - INPUTS[0]) * uniform  # [T, n]
            return {"x": x[..., None], "y": a * torch.sin(x + b)}

        if self.setting == "resampling":
            return ResamplingTaskBatch(self.loss, len(a), sampler, generator)
        support, query = (sampler(role, generator) for role in ("inner", "outer"))
        return FiniteSumTaskBatch(self.loss, support, query)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The mean squared error of one task."""
        return (self.predict(params, batch) - batch["y"]).square().mean()

    def predict(self, params: Params, batch: Batch) -> Tensor:
        """The predicted values of one task, `[n]`."""
        return self._predict(params, batch["x"]).squeeze(1)

    def score_predictions(self, predictions: Tensor, batch: Batch) -> Tensor:
        """Minus the mean squared error of predictions `[n]` in one task."""
        return -(predictions - batch["y"]).square().mean()

    def _probe(self) -> Tensor:
        leaf = self._leaf()
        return torch.linspace(*INPUTS, 2, dtype=leaf.dtype, device=leaf.device)[:, None]
