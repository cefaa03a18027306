"""Discounted sums, generalised advantage estimation and the per-task linear baseline, batched over tasks.

Episodes are rows of `[T, E, H]` arrays; `mask` is 1 for the steps that happened. Rewards after the end are zero.

How an episode ends matters to its value. After a *terminal* state there is no reward, so the value is zero. A *time
limit* can mean two things. The horizon is part of the task: the return within it is what is maximised and reported, its
value at the limit is zero, and values depend on the time (the default). Or it only cuts off an endless task: then the
value of the last observation stands in for the rest (`bootstrap`), and values do not depend on the time.
"""

import logging
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metarl.errors import LOOK_AT_ENVIRONMENT, NonFiniteError

log = logging.getLogger(__name__)


class Episodes(NamedTuple):
    """What value estimates are made from."""

    obs: Tensor  # [T, E, H, *obs]
    rewards: Tensor  # [T, E, H]
    mask: Tensor  # [T, E, H]
    final_obs: Tensor  # [T, E, *obs], the observation after the last step
    terminated: Tensor  # [T, E] bool: ended in a terminal state, not at the time limit


def discounted_sums(x: Tensor, discount: float) -> Tensor:
    """`y_t = sum_{k >= t} discount^(k - t) x_k` along the last dimension, as one product with a triangular matrix."""
    steps = torch.arange(x.shape[-1], device=x.device)
    gap = steps[:, None] - steps[None, :]  # [k, t]
    weights = torch.where(gap >= 0, torch.pow(torch.tensor(discount, dtype=x.dtype, device=x.device), gap), 0.0)
    return x @ weights


def last_steps(mask: Tensor) -> Tensor:
    """1 at the last step of every episode `[..., H]`."""
    return mask - torch.cat([mask[..., 1:], torch.zeros_like(mask[..., :1])], dim=-1)


def generalized_advantages(
    rewards: Tensor, values: Tensor, last_values: Tensor, mask: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """GAE(lambda) (Schulman et al., 2016), `[..., H]`, zero after the end.

    Args:
        rewards: `[..., H]`, zero after the end.
        values: V(s_t), `[..., H]`.
        last_values: the value after the last step, `[...]`: zero after a terminal state.
        mask: `[..., H]`.
        discount: gamma.
        gae_lambda: lambda; at 1 the advantage is the return minus the value.
    """
    values = values * mask
    next_values = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    next_values = next_values + last_steps(mask) * last_values[..., None]
    return discounted_sums((rewards + discount * next_values - values) * mask, discount * gae_lambda)


def centred(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[T, E, H]` less its mean, and its standard deviation `[T]`, over the steps of each task that happened."""
    count = mask.sum((1, 2), keepdim=True).clamp(min=1)
    gap = (x - (x * mask).sum((1, 2), keepdim=True) / count) * mask
    return gap, (gap.square().sum((1, 2), keepdim=True) / count).sqrt()[:, 0, 0]


def normalized(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[T, E, H]` with mean 0 and standard deviation 1 over the steps of each task, and what it was divided by."""
    gap, deviation = centred(x, mask)
    scale = deviation + 1e-8
    return gap / scale[:, None, None], scale


class Baseline(Protocol):
    """A value estimate fitted to one draw."""

    def values(self, episodes: Episodes, discount: float, bootstrap: bool) -> tuple[Tensor, Tensor]:
        """V(s_t) `[T, E, H]` and the value after the last step `[T, E]`."""


class LinearBaseline:
    """Ridge regression of returns on features of observation and time, one fit per task and draw (Duan et al., 2016).

    Features: `o, o^2` (o clipped to +-10; left out when `observations` is false), `t/100, (t/100)^2, (t/100)^3`
    (left out when bootstrapping), 1.

    Args:
        observations: whether to use the observations; without them the baseline depends on the time alone, which is
            what images want.
        ridge: the regulariser. Where a task's system is still singular to rounding, it grows tenfold until it is not,
            and that is logged.
    """

    def __init__(self, observations: bool = True, ridge: float = 1e-5) -> None:
        self.observations = observations
        self.ridge = ridge

    def values(self, episodes: Episodes, discount: float, bootstrap: bool) -> tuple[Tensor, Tensor]:
        """V(s_t) `[T, E, H]` and the value after the last step `[T, E]`.

        When bootstrapping, the fit solves `V(s_t) = r_t + ... + discount^n V(s_end)` for all steps at once by least
        squares on the difference of the features.
        """
        features = self._features(episodes.obs, bootstrap)  # [T, E, H, F]
        targets = discounted_sums(episodes.rewards, discount).double()
        if not bootstrap:
            weights = self._fit(features, targets, episodes.mask)
            return _apply(features, weights, episodes), torch.zeros_like(episodes.rewards[..., 0])
        end = self._features(episodes.final_obs[:, :, None], bootstrap)  # [T, E, 1, F]
        goes_on = (~episodes.terminated).double()[..., None] * episodes.mask
        tail = discounted_sums(last_steps(goes_on), discount) * discount  # discount^(steps to the end)
        weights = self._fit(features - tail[..., None] * end, targets, episodes.mask)
        last = torch.einsum("tehf,tf->te", end, weights).to(episodes.rewards.dtype)
        return _apply(features, weights, episodes), last * ~episodes.terminated

    def _features(self, obs: Tensor, bootstrap: bool) -> Tensor:
        tasks, number, horizon = obs.shape[:3]
        time = torch.arange(horizon, device=obs.device, dtype=torch.float64) / 100
        columns = [torch.ones_like(time)] if bootstrap else [time, time**2, time**3, torch.ones_like(time)]
        parts = [torch.stack(columns, dim=-1).expand(tasks, number, horizon, -1)]
        if self.observations:
            o = obs.double().reshape(tasks, number, horizon, -1).clamp(-10, 10)
            parts = [o, o**2, *parts]
        return torch.cat(parts, dim=-1)

    def _fit(self, features: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        x = (features * mask[..., None]).flatten(1, 2)  # [T, E * H, F]
        y = (targets * mask).flatten(1, 2)[..., None]
        gram, moment = x.mT @ x, x.mT @ y
        bad = ~torch.isfinite(gram).flatten(1).all(1)
        if bad.any():
            task = int(bad.nonzero()[0])
            raise NonFiniteError("the observations of a rollout", task, advice=LOOK_AT_ENVIRONMENT)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        ridge = torch.full((len(x), 1, 1), self.ridge, dtype=x.dtype, device=x.device)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * identity)
        while failed.any():
            ridge = torch.where(failed[:, None, None] > 0, 10 * ridge, ridge)
            log.warning("baseline: singular features in %d tasks, ridge now %.0e", int((failed > 0).sum()), ridge.max())
            factor, failed = torch.linalg.cholesky_ex(gram + ridge * identity)
        return torch.cholesky_solve(moment, factor)[..., 0]


def _apply(features: Tensor, weights: Tensor, episodes: Episodes) -> Tensor:
    values = torch.einsum("tehf,tf->teh", features, weights)
    return values.to(episodes.rewards.dtype) * episodes.mask


class ZeroBaseline:
    """No baseline: the advantage is the return."""

    def values(self, episodes: Episodes, discount: float, bootstrap: bool) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return torch.zeros_like(episodes.rewards), torch.zeros_like(episodes.rewards[..., 0])
