"""Networks of the few-shot literature, as modules that work under `vmap` with a set of weights for each task."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.errors import check_choice, check_int, check_type
from metarl.functional_call import call
from metarl.network_check import check_network, check_second_derivatives
from metarl.random import DrawingFrom
from metarl.settings import FixedSettings
from metarl.tree import detach, float_leaf
from metarl.types import Params

Downsampling: TypeAlias = Literal["pool", "stride"]
"""How a block halves the image: 2 x 2 max-pooling, or a convolution with stride 2."""


class TransductiveBatchNorm(nn.Module):
    """Batch normalisation with the statistics of the current batch, support or query set; it keeps none.

        y = (x - mean(x)) / sqrt(var(x) + 1e-5) * weight + bias,    over the batch and the positions, per channel

    MAML's published few-shot results use it, at test time too. A prediction then depends on the other query images,
    which share their mean and variance: the accuracies are *transductive*, and higher than for images classified one by
    one (about three points on mini-ImageNet; Nichol et al., 2018). Compare like with like.

    Args:
        channels: of the inputs `[n, channels, ...]`, which need more than one value per channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` normalised."""
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


def conv4(
    in_channels: int,
    image_size: int,
    ways: int,
    *,
    filters: int = 32,
    downsampling: Downsampling = "pool",
    seed: int = 0,
) -> nn.Sequential:
    """Four blocks of 3 x 3 convolution, transductive batch normalisation, ReLU and halving, then a linear head.

    Published: 64 filters and strides for Omniglot, 32 filters and pooling for mini-ImageNet (Finn et al., 2017). With
    different weights for each task the convolution becomes a grouped one, which is slow on a CPU: few tasks at a time
    are fastest there and need the least memory. `metarl.engine.Engine` chooses how many.

    Args:
        in_channels: 1 or 3.
        image_size: pixels of a side, at least 16.
        ways: logits.
        filters: channels of every block.
        downsampling: see `Downsampling`.
        seed: of the initial weights; the global generator is not used.

    Returns:
        A module from `[n, in_channels, image_size, image_size]` to `[n, ways]`; its last layer is called `head`.

    Raises:
        ValueError: for sizes that do not fit.

    Example:
        >>> import torch
        >>> conv4(1, 28, ways=5)(torch.rand(10, 1, 28, 28)).shape
        torch.Size([10, 5])
    """
    check_int("image_size", image_size, minimum=16)
    check_choice("downsampling", downsampling, ("pool", "stride"))
    sizes = [check_int("in_channels", in_channels)] + [check_int("filters", filters)] * 4
    check_int("ways", ways)
    pooled = downsampling == "pool"
    side = image_size // 16 if pooled else -(-image_size // 16)  # four halvings, rounded down or up

    def build() -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (before, after) in enumerate(pairwise(sizes), start=1):
            layers[f"conv{i}"] = nn.Conv2d(before, after, 3, stride=1 if pooled else 2, padding=1)
            layers[f"norm{i}"] = TransductiveBatchNorm(after)
            if pooled:
                layers[f"pool{i}"] = nn.MaxPool2d(2)
            layers[f"relu{i}"] = nn.ReLU()  # after pooling: the same function on a quarter of the numbers
        layers["flatten"] = nn.Flatten()
        layers["head"] = nn.Linear(filters * side**2, ways)
        return nn.Sequential(layers)

    return _build(build, seed)


def mlp(in_features: int, ways: int, *, hidden: Sequence[int] = (64, 64), seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them, for images of any shape; without normalisation, so not transductive.

    Args:
        in_features: numbers in one image.
        ways: logits.
        hidden: units of the hidden layers.
        seed: of the initial weights; the global generator is not used.

    Returns:
        A module from `[n, ...]` to `[n, ways]`; its last layer is called `head`.

    Example:
        >>> mlp(128, ways=5)(torch.rand(10, 1, 8, 16)).shape
        torch.Size([10, 5])
    """
    check_type("hidden", hidden, Sequence, "a sequence of numbers of units")
    sizes = [check_int("in_features", in_features), *(check_int("hidden", units) for units in hidden)]
    check_int("ways", ways)

    def build() -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (before, after) in enumerate(pairwise(sizes), start=1):
            layers[f"linear{i}"] = nn.Linear(before, after)
            layers[f"relu{i}"] = nn.ReLU()
        layers["head"] = nn.Linear(sizes[-1], ways)
        return nn.Sequential(layers)

    return _build(build, seed)


def _build(build: Callable[[], nn.Sequential], seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(check_int("seed", seed, minimum=0))
    with DrawingFrom(generator), torch.device("cpu"):
        return build()


class NetworkSource(FixedSettings):
    """The base of `Sinusoids` and `FewShot`; each gives example inputs of the network in `_probe`."""

    network: nn.Module

    def initial_params(self) -> Params:
        """A copy of the network's own parameters."""
        return detach(dict(self.network.named_parameters()))

    def check_second_derivatives(self) -> None:
        """Check that the network can be differentiated twice, as exact Hessian-vector products need.

        Raises:
            ValueError: naming the layer that cannot.
        """
        check_second_derivatives("network", self.network, self._probe())

    @property
    def batch_norm_params(self) -> list[str]:
        """The names of the parameters of batch normalisation."""
        kinds = (TransductiveBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        norms = [(name, module) for name, module in self.network.named_modules() if isinstance(module, kinds)]
        return [f"{name}.{leaf}".lstrip(".") for name, module in norms for leaf, _ in module.named_parameters()]

    def _predict(self, params: Params, x: Tensor) -> Tensor:
        outputs: Tensor = call(self.network, params, x)
        return outputs

    def _check_network(self, takes: str, given: str, wanted: list[int]) -> None:
        """Try the network on `_probe()`: it must return the shape `wanted`; `takes` and `given` are for messages."""
        found = list(check_network("network", self.network, self._probe(), takes).shape)
        if found != wanted:
            raise ValueError(f"network must return {wanted} for {given}, got {found}")

    def _leaf(self) -> Tensor:
        """A parameter: data have its dtype and are on its device."""
        return float_leaf(self.network.parameters())

    def _probe(self) -> Tensor:
        raise NotImplementedError
