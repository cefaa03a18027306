"""Action distributions as pure functions of the parameters a policy's forward returns.

Sampling has two parts, so that it can stay outside vmap with an explicit generator: `noise` draws random numbers,
`sample` is a deterministic function of them. Shapes: parameters `[..., A]`, actions `[..., A]` (`[...]` when discrete).
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import logsigmoid

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
        """Actions from noise; zeros give the most likely action (of a squashed Gaussian, that before tanh)."""

    def mode(self, params: DistParams) -> Tensor:
        """The action that an evaluation without noise takes."""

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """Log-probabilities `[...]`, summed over action dimensions."""

    def entropy(self, params: DistParams) -> Tensor:
        """Entropies `[...]` in nats, summed over action dimensions."""

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

    def mode(self, params: DistParams) -> Tensor:
        """The mean."""
        return params[0]

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """The *sum* over action dimensions: the mean is not a log-probability, and gives no likelihood ratios."""
        loc, scale = params
        z = (actions - loc) / scale
        return (-0.5 * z * z - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: DistParams) -> Tensor:
        """`log s + log(2 pi e) / 2`, summed over action dimensions."""
        return (params[1].log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

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

    def mode(self, params: DistParams) -> Tensor:
        """The mean of u. The environment gets its tanh, as in Stable-Baselines3."""
        return params[0]

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """Log-probability of tanh u in (-1, 1)^A: log N(u) - log(1 - tanh(u)^2), summed over action dimensions."""
        return super().log_prob(params, actions) - _log_slope(actions).sum(-1)

    def entropy(self, params: DistParams) -> Tensor:
        """The entropy of u plus the mean of log(1 - tanh(u)^2), by Gauss-Hermite quadrature with 64 nodes."""
        nodes, weights = (params[0].new_tensor(x) for x in np.polynomial.hermite_e.hermegauss(64))
        slopes = _log_slope(params[0][..., None] + params[1][..., None] * nodes) @ weights / math.sqrt(2 * math.pi)
        return super().entropy(params) + slopes.sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """`log(1 - tanh(u)^2)`, exact also where it is tiny."""
    size = u.abs()
    return 2 * (math.log(2) - size - (-2 * size).exp().log1p())


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

    def mode(self, params: DistParams) -> Tensor:
        """The most likely action."""
        return params[0].argmax(-1)

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """The log-softmax at the action."""
        return params[0].log_softmax(-1).gather(-1, actions[..., None])[..., 0]

    def entropy(self, params: DistParams) -> Tensor:
        """`-sum_a p(a) log p(a)`."""
        log_probs = params[0].log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, old: DistParams, new: DistParams) -> Tensor:
        """`sum_a p0(a) (log p0(a) - log p1(a))`."""
        before, after = old[0].log_softmax(-1), new[0].log_softmax(-1)
        return (before.exp() * (before - after)).sum(-1)

    def fisher_product(self, params: DistParams, tangents: DistParams) -> DistParams:
        """`p (t - p^T t)`."""
        probs = params[0].softmax(-1)
        weighted = probs * tangents[0]
        return (weighted - probs * weighted.sum(-1, keepdim=True),)


class MultiCategorical:
    """Independent categorical numbers; parameters `(logits,)`, of all numbers side by side: `[..., sum sizes]`.

    Args:
        sizes: how many values each number has.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(int(size) for size in sizes)
        self.action_shape = (len(self.sizes),)
        self._parts = [Categorical(size) for size in self.sizes]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Standard Gumbel numbers `[*shape, sum sizes]`."""
        return Categorical(sum(self.sizes)).noise(shape, generator, dtype)

    def sample(self, params: DistParams, noise: Tensor) -> Tensor:
        """The largest perturbed logit of each number, `[..., A]`."""
        return self.mode((params[0] + noise,))

    def mode(self, params: DistParams) -> Tensor:
        """The most likely value of each number."""
        return torch.stack([logits.argmax(-1) for logits in self._split(params[0])], -1)

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """The sum of the numbers' log-probabilities."""
        rows = zip(self._parts, self._split(params[0]), actions.unbind(-1), strict=True)
        return torch.stack([part.log_prob((logits,), action) for part, logits, action in rows]).sum(0)

    def entropy(self, params: DistParams) -> Tensor:
        """The sum of the numbers' entropies."""
        rows = zip(self._parts, self._split(params[0]), strict=True)
        return torch.stack([part.entropy((logits,)) for part, logits in rows]).sum(0)

    def kl(self, old: DistParams, new: DistParams) -> Tensor:
        """The sum of the numbers' divergences."""
        rows = zip(self._parts, self._split(old[0]), self._split(new[0]), strict=True)
        return torch.stack([part.kl((a,), (b,)) for part, a, b in rows]).sum(0)

    def fisher_product(self, params: DistParams, tangents: DistParams) -> DistParams:
        """Each number's own."""
        rows = zip(self._parts, self._split(params[0]), self._split(tangents[0]), strict=True)
        return (torch.cat([part.fisher_product((x,), (t,))[0] for part, x, t in rows], -1),)

    def _split(self, logits: Tensor) -> tuple[Tensor, ...]:
        return torch.split(logits, list(self.sizes), -1)


class Bernoulli:
    """Independent bits; parameters `(logits,)`, the logarithms of the odds of 1, `[..., A]`."""

    def __init__(self, num_actions: int) -> None:
        self.action_shape = (num_actions,)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Standard logistic numbers `[*shape, A]`."""
        size = (2, *shape, *self.action_shape)
        numbers = torch.empty(size, device=generator.device, dtype=dtype).exponential_(generator=generator).log()
        return numbers[0] - numbers[1]

    def sample(self, params: DistParams, noise: Tensor) -> Tensor:
        """1 where the perturbed logit is positive."""
        return self.mode((params[0] + noise,))

    def mode(self, params: DistParams) -> Tensor:
        """The most likely bits."""
        return (params[0] > 0).long()

    def log_prob(self, params: DistParams, actions: Tensor) -> Tensor:
        """The sum of the bits' log-probabilities."""
        return _log_sigmoid((2 * actions - 1) * params[0]).sum(-1)

    def entropy(self, params: DistParams) -> Tensor:
        """`-p log p - (1 - p) log(1 - p)`, summed over bits."""
        logits = params[0]
        return -(logits.sigmoid() * _log_sigmoid(logits) + (-logits).sigmoid() * _log_sigmoid(-logits)).sum(-1)

    def kl(self, old: DistParams, new: DistParams) -> Tensor:
        """`p0 log(p0 / p1) + (1 - p0) log((1 - p0) / (1 - p1))`, summed over bits."""
        (a,), (b,) = old, new
        ones, zeros = _log_sigmoid(a) - _log_sigmoid(b), _log_sigmoid(-a) - _log_sigmoid(-b)
        return (a.sigmoid() * ones + (-a).sigmoid() * zeros).sum(-1)

    def fisher_product(self, params: DistParams, tangents: DistParams) -> DistParams:
        """`p (1 - p) t`."""
        return (params[0].sigmoid() * (-params[0]).sigmoid() * tangents[0],)


def _log_sigmoid(x: Tensor) -> Tensor:
    result: Tensor = logsigmoid(x)
    return result


WANTED = "a one-dimensional Box, a Discrete that starts at 0, a MultiDiscrete of one dimension that starts at 0, or a"
WANTED += " MultiBinary of one dimension"


def distribution_for(space: spaces.Space[Any], actions: str = "clip") -> ActionDistribution:
    """The distribution for an action space; `actions` as in `metarl.rl.actions`.

    Raises:
        ValueError: for other spaces than `WANTED`, and unless `actions` fit the space.
    """
    check_actions(actions, space)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return (SquashedGaussian if actions == "squash" else DiagonalGaussian)(space.shape[0])
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Categorical(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        return MultiCategorical(space.nvec.tolist())
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return Bernoulli(space.shape[0])
    raise ValueError(f"action_space must be {WANTED}, got {space}; gymnasium.wrappers.TransformAction can translate")


def has_distribution(space: object) -> bool:
    """Whether `distribution_for` knows the action space."""
    try:
        return isinstance(space, spaces.Space) and bool(distribution_for(space))
    except ValueError:
        return False


def parameter_shapes(space: spaces.Space[Any]) -> dict[str, tuple[int, ...]]:
    """The names of the parameters of an action space's distribution, and their shapes for one observation."""
    distribution = distribution_for(space)
    if isinstance(distribution, Categorical):
        return {"logits": (distribution.num_actions,)}
    if isinstance(distribution, MultiCategorical):
        return {"logits": (sum(distribution.sizes),)}
    if isinstance(distribution, Bernoulli):
        return {"logits": distribution.action_shape}
    return {"loc": distribution.action_shape, "scale": distribution.action_shape}
