"""Observations normalised by running statistics, which are part of the policy.

    (obs - mean) / sqrt(variance + 1e-8), clipped to [-10, 10]

The statistics change neither during an iteration, so that one policy draws D_in, D_o and D_h, nor in evaluations.
After an iteration they are updated with the observations of all its draws, in all processes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from metarl.types import Params

EPSILON, CLIP = 1e-8, 10.0
"""As Stable-Baselines3's VecNormalize."""

PREFIX = "network."


class Moments:
    """Mean and sum of squared deviations of all observations so far, in float64."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)

    def add(self, count: Tensor, sums: Tensor, squares: Tensor, reference: Tensor) -> None:
        """Update with `count` more observations, given the sums of `x - reference` and of its square."""
        before = self.mean - reference
        total = self.count + count
        after = (self.count * before + sums) / total
        self.squares = (self.squares + self.count * before**2 + squares - total * after**2).clamp(min=0)
        self.count, self.mean = total, reference + after

    @property
    def variance(self) -> Tensor:
        """The variance of the observations so far; 1 before the first."""
        return self.squares / self.count if self.count > 0 else torch.ones_like(self.squares)

    def state_dict(self) -> dict[str, Tensor]:
        """The state for a checkpoint."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            ValueError: when it does not fit.
        """
        for name, own in self.state_dict().items():
            value = state.get(name)
            good = isinstance(value, Tensor) and value.shape == own.shape and value.dtype == own.dtype
            if not good or not bool(torch.isfinite(value).all()):  # type: ignore[arg-type]
                wanted = f"observation statistics must have a finite {name!r} of shape {tuple(own.shape)} in float64"
                raise ValueError(f"{wanted}, got {value!r:.80}")
        self.count, self.mean, self.squares = (state[name].cpu().clone() for name in self.state_dict())


class NormalizedPolicy(nn.Module):
    """A policy whose `network` gets normalised observations; before the first update they do not change.

    Its parameters are the network's, with names that start with `network.`.

    Args:
        network: a module whose `forward(obs [B, ...])` returns the parameters of the action distribution.
        space: the observation space.

    Raises:
        ValueError: unless `space` is a Box of floating-point numbers.

    >>> policy = NormalizedPolicy(nn.Linear(2, 1), spaces.Box(-1.0, 1.0, (2,)))
    >>> policy.observe(torch.tensor([[[[3.0, 5.0], [1.0, 5.0]]]]), torch.ones(1, 1, 2)).shape
    torch.Size([1, 5])
    """

    network: nn.Module
    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, space: spaces.Space[Any]) -> None:
        super().__init__()
        if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
            raise ValueError(f"normalize_observations needs a Box of floating-point numbers, got {space}")
        self.network, self.moments = network, Moments(space.shape)
        self.register_buffer("shift", torch.zeros(space.shape))
        self.register_buffer("scale", torch.ones(space.shape))

    def forward(self, obs: Tensor) -> Any:
        """The network's output for `obs` `[B, ...]`."""
        return self.network(self.normalize(obs))

    def normalize(self, obs: Tensor) -> Tensor:
        """`obs` `[..., *obs_shape]`, normalised, in the same dtype."""
        return ((obs - self.shift.to(obs.dtype)) * self.scale.to(obs.dtype)).clamp(-CLIP, CLIP)

    def own(self, params: Params) -> Params:
        """The network's parameters under its own names."""
        return {name.removeprefix(PREFIX): leaf for name, leaf in params.items()}

    def observe(self, obs: Tensor, mask: Tensor) -> Tensor:
        """A float64 row per task, for `learn`, from observations `[T, E, H, ...]` where `mask` `[T, E, H]` is 1."""

        def row(o: Tensor, m: Tensor) -> Tensor:  # task by task: a sum must not depend on the other tasks
            away = (o.double() - self.shift.double()).flatten(2) * m[..., None].double()
            return torch.cat([m.sum(dtype=torch.float64)[None], away.sum((0, 1)), (away**2).sum((0, 1))])

        return torch.stack([row(o, m) for o, m in zip(obs, mask, strict=True)])

    def learn(self, seen: Tensor) -> None:
        """Update the statistics with a sum of rows of `observe`."""
        count, (sums, squares) = seen[0].cpu(), seen[1:].cpu().view(2, *self.shift.shape)
        self.moments.add(count, sums, squares, self.shift.double().cpu())
        self._update_buffers()

    def load_moments(self, state: Mapping[str, Any]) -> None:
        """Continue from `moments.state_dict()`.

        Raises:
            ValueError: when it does not fit.
        """
        self.moments.load_state_dict(state)
        self._update_buffers()

    def _update_buffers(self) -> None:
        self.shift.copy_(self.moments.mean)
        self.scale.copy_((self.moments.variance + EPSILON).rsqrt() if self.moments.count > 0 else self.moments.variance)
