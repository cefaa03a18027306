"""Action distributions as pure functions of the parameters a policy's forward returns.

Sampling has two parts, so that it can stay outside vmap with an explicit generator: `noise` draws random numbers,
`sample` is a deterministic function of them. Shapes: parameters `[..., A]`, actions `[..., A]` (`[...]` when discrete).
"""

import math
from typing import Any, Protocol, TypeAlias

import torch
from gymnasium import spaces
from torch import Tensor

from metarl.rl.actions import check_actions

DistParams: TypeAlias = tuple[Tensor, ...]


class ActionDistribution(Protocol):
    """The interface of an action distribution."""

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of one action."""

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """The random numbers for actions of the batch shape `shape`, on the generator's device."""

    def sample(self, params: DistParams, noise: Tensor) -> Tensor:
        """Actions from noise."""

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """Log-probabilities `[...]`, summed over action dimensions."""

    def kl(self, old: DistParams, new: DistParams) -> Tensor:
        """The Kullback-Leibler divergences KL(old || new), `[...]`, in nats."""

    def fisher_product(self, params: DistParams, tangents: DistParams) -> DistParams:
        """The Fisher matrix of the distribution's own parameters times `tangents`, in the shapes of both.

        It is the second derivative of `kl(params, new)` at `new = params`.
        """


class DiagonalGaussian:
    """Independent normal action dimensions; parameters `(loc, scale)`."""

    def __init__(self, num_actions: int) -> None:
        self.action_shape = (num_actions,)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers `[*shape, A]`."""
        return torch.randn(*shape, *self.action_shape, generator=generator, device=generator.device, dtype=dtype)

    def sample(self, params: DistParams, noise: Tensor) -> Tensor:
        """`loc + scale * noise`."""
        loc, scale = params
        return torch.addcmul(loc, scale, noise)

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """The *sum* over action dimensions: the mean is not a log-probability, and gives no likelihood ratios."""
        loc, scale = params
        z = (actions - loc) / scale
        return (-0.5 * z * z - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def kl(self, old: DistParams, new: DistParams) -> Tensor:
        """`log(s1/s0) + (s0^2 + (m0 - m1)^2) / (2 s1^2) - 1/2`, summed over action dimensions."""
        (loc, scale), (new_loc, new_scale) = old, new
        z, shrunk = (loc - new_loc) / new_scale, scale / new_scale
        return (0.5 * (z * z + shrunk * shrunk - 1) - shrunk.log()).sum(-1)

    def fisher_product(self, params: DistParams, tangents: DistParams) -> DistParams:
        """`(dm / s^2, 2 ds / s^2)`."""
        precision = params[1] ** -2
        return tangents[0] * precision, 2 * tangents[1] * precision


class SquashedGaussian(DiagonalGaussian):
    """The hyperbolic tangents of independent normal numbers u; the parameters `(loc, scale)` are those of u.

    Actions are stored as u, so that nothing is lost when tanh u is rounded to 1. Environments get tanh u, moved to
    their bounds (see `metarl.rl.actions`). Divergences of tanh u are those of u, because tanh is one to one.
    """

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """Log-probability of tanh u in (-1, 1)^A: log N(u) - log(1 - tanh(u)^2), summed over action dimensions."""
        size = actions.abs()
        slope = 2 * (math.log(2) - size - (-2 * size).exp().log1p())  # log(1 - tanh^2), exact also where it is tiny
        return super().log_prob(params, actions) - slope.sum(-1)


class Categorical:
    """One of `num_actions` actions; parameters `(logits,)`, sampled by the Gumbel-max trick."""

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions
        self.action_shape = ()

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Standard Gumbel numbers `[*shape, num_actions]`."""
        size = (*shape, self.num_actions)
        exponential = torch.empty(size, device=generator.device, dtype=dtype).exponential_(generator=generator)
        return -exponential.log()

    def sample(self, params: DistParams, noise: Tensor) -> Tensor:
        """The largest perturbed logit."""
        return (params[0] + noise).argmax(-1)

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """The log-softmax at the action."""
        return params[0].log_softmax(-1).gather(-1, actions[..., None])[..., 0]

    def kl(self, old: DistParams, new: DistParams) -> Tensor:
        """`sum_a p0(a) (log p0(a) - log p1(a))`."""
        before, after = old[0].log_softmax(-1), new[0].log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1)

    def fisher_product(self, params: DistParams, tangents: DistParams) -> DistParams:
        """`p (t - p^T t)`."""
        probs = params[0].softmax(-1)
        weighted = probs * tangents[0]
        return (weighted - probs * weighted.sum(-1, keepdim=True),)


def distribution_for(space: spaces.Space[Any], actions: str = "clip") -> ActionDistribution:
    """The distribution for an action space; `actions` as in `metarl.rl.actions`.

    Raises:
        ValueError: unless the space is a one-dimensional Box, or a Discrete that starts at 0, and `actions` fit it.
    """
    check_actions(actions, space)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return (SquashedGaussian if actions == "squash" else DiagonalGaussian)(space.shape[0])
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Categorical(int(space.n))
    raise ValueError(
        f"action_space must be a one-dimensional Box or a Discrete that starts at 0, got {space}; "
        "gymnasium.wrappers.TransformAction can translate"
    )
