"""Discounted sums, generalised advantage estimation and the per-task linear baseline, batched over tasks.

Episodes are rows of `[T, E, H]` arrays; `mask` is 1 for the steps that happened. Rewards after the end are zero.

The end of an episode matters for its value. After a *terminal* state there is no reward, so the value is zero. A *time
limit* can mean two things. By default the horizon is part of the task: the return within it is maximised and reported,
the value at the limit is zero, and values depend on the time. With `bootstrap` the limit only cuts an endless task: the
value of the last observation replaces the rest, and values do not depend on the time.

A baseline that is fitted to the same episodes it is used for biases the policy gradient, because it has seen their
actions. With cross-fitting the baseline of an episode is fitted to the task's other folds of episodes, without bias.
"""

import logging
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metarl.errors import CHECK_ENVIRONMENT, NonFiniteError
from metarl.rl.sums import discounted_sums

log = logging.getLogger(__name__)

FOLDS = 5
"""The number of folds for cross-fitting; with fewer episodes each is a fold."""


class Episodes(NamedTuple):
    """The data for value estimates."""

    obs: Tensor  # [T, E, H, *obs]
    rewards: Tensor  # [T, E, H]
    mask: Tensor  # [T, E, H]
    final_obs: Tensor  # [T, E, *obs], the observation after the last step
    terminated: Tensor  # [T, E] bool: ended in a terminal state, not at the time limit


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


def residual_variances(
    episodes: Episodes, values: Tensor, last_values: Tensor, discount: float
) -> tuple[Tensor, Tensor]:
    """The variances over each task's steps, `[T]`, of returns minus values `[T, E, H]`, and of the returns."""
    rewards, mask = episodes.rewards, episodes.mask
    residuals = generalized_advantages(rewards, values, last_values, mask, discount, 1.0)
    count = mask.sum((1, 2)).clamp(min=1)

    def variance(x: Tensor) -> Tensor:
        x = x * mask
        mean = x.sum((1, 2)) / count
        return ((x - mean[:, None, None]) * mask).square().sum((1, 2)) / count

    return variance(residuals), variance(residuals + values)


def normalize(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[T, E, H]` with mean 0 and standard deviation 1 over the steps of each task, and its divisor `[T]`."""
    count = mask.sum((1, 2), keepdim=True).clamp(min=1)
    centered = (x - (x * mask).sum((1, 2), keepdim=True) / count) * mask
    scale = (centered.square().sum((1, 2), keepdim=True) / count).sqrt()[:, 0, 0] + 1e-8
    return centered / scale[:, None, None], scale


def scale_to_one(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`x` `[T, E, H]` with mean square 1 over the steps of each task, and its divisor `[T]`.

    Nothing is subtracted, so only the length of a task's gradient changes, not its direction.
    """
    count = mask.sum((1, 2)).clamp(min=1)
    scale = ((x * mask).square().sum((1, 2)) / count).sqrt() + 1e-8
    return x * mask / scale[:, None, None], scale


def subtract_other_folds(x: Tensor, mask: Tensor) -> Tensor:
    """`x` `[T, E, H]` minus its mean over the steps of the task's other folds of episodes."""
    total, count = ([part.sum((1, 2)) for part in folds(y, True)] for y in (x * mask, mask))
    means = torch.stack(sum_others(total), 1) / torch.stack(sum_others(count), 1).clamp(min=1)  # [T, K]
    return (x - means[:, fold_numbers(x.shape[1], x.device), None]) * mask


def folds(x: Tensor, cross_fit: bool) -> tuple[Tensor, ...]:
    """`[T, E, ...]` split into K folds along the episodes; a single fold without cross-fitting."""
    return x.tensor_split(min(FOLDS, x.shape[1]) if cross_fit else 1, dim=1)


def fold_numbers(episodes: int, device: torch.device) -> Tensor:
    """The fold of each episode, `[E]`."""
    sizes = [part.shape[1] for part in folds(torch.empty(1, episodes, device=device), True)]
    return torch.repeat_interleave(torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device))


def sum_others(parts: list[Tensor]) -> list[Tensor]:
    """For each of K parts the sum of all others, added up: `total - part` would keep rounding errors of `part`."""
    zero = torch.zeros_like(parts[0])
    return [sum((x for j, x in enumerate(parts) if j != k), zero) for k in range(len(parts))]


class Baseline(Protocol):
    """A value estimate fitted to one draw."""

    def values(
        self, episodes: Episodes, discount: float, bootstrap: bool, cross_fit: bool = False
    ) -> tuple[Tensor, Tensor]:
        """V(s_t) `[T, E, H]` and the value after the last step `[T, E]`."""


class LinearBaseline:
    """Ridge regression of returns on features of observation and time, one fit per task and draw (Duan et al., 2016).

    Features: `o, o^2` (o clipped to +-10; left out when `observations` is false), `t/100, (t/100)^2, (t/100)^3`
    (left out when bootstrapping), 1.

    Args:
        observations: whether to use the observations. Without them the baseline depends on the time alone: better for
            images and wide vectors, because time and memory grow with the square of the number of features.
        ridge: the regulariser. If the system of a task is still singular to rounding, it is multiplied by ten until
            it is not, and that is logged.
    """

    def __init__(self, observations: bool = True, ridge: float = 1e-5) -> None:
        self.observations = observations
        self.ridge = ridge

    def values(
        self, episodes: Episodes, discount: float, bootstrap: bool, cross_fit: bool = False
    ) -> tuple[Tensor, Tensor]:
        """V(s_t) `[T, E, H]` and the value after the last step `[T, E]`.

        When bootstrapping, `V(s_t) = r_t + ... + discount^n V(s_end)` must hold on average for all steps. The end of an
        episode is random, as the return is, so least squares on the difference of the features would be inconsistent.
        Instead, the features of s_t are the instruments (LSTD(1); Bradtke and Barto, 1996).

        With `cross_fit` each of at most `FOLDS` folds gets the fit to the task's other folds. A single episode has no
        others, and its values are zero.
        """
        features = self._features(episodes.obs, bootstrap)  # [T, E, H, F]
        targets = discounted_sums(episodes.rewards, discount).double()
        if not bootstrap:
            weights = self._fit(features, None, targets, episodes.mask, cross_fit)
            return _apply(features, weights, episodes), torch.zeros_like(episodes.rewards[..., 0])
        end = self._features(episodes.final_obs[:, :, None], bootstrap)  # [T, E, 1, F]
        goes_on = (~episodes.terminated).double()[..., None] * episodes.mask
        tail = discounted_sums(last_steps(goes_on), discount) * discount  # discount^(steps to the end)
        weights = self._fit(features, features - tail[..., None] * end, targets, episodes.mask, cross_fit)
        last = _products(end, weights)[..., 0].to(episodes.rewards.dtype)
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

    def _fit(self, z: Tensor, x: Tensor | None, y: Tensor, mask: Tensor, cross_fit: bool) -> Tensor:
        """Weights w `[T, K, F]` of each fold, with mean z (y - x w) = 0 over the others; without `x`, x = z."""
        # sums over the steps of each fold
        rows = folds(z * mask[..., None], cross_fit), folds(y * mask, cross_fit)
        grams, moments, products = [], [], []
        differences = [None] * len(rows[0]) if x is None else folds(x * mask[..., None], cross_fit)
        for own, target, difference in zip(*rows, differences, strict=True):
            own = own.flatten(1, 2)  # [T, e * H, F]
            grams.append(own.mT @ own)
            moments.append(own.mT @ target.flatten(1, 2)[..., None])
            if difference is not None:
                products.append(own.mT @ difference.flatten(1, 2))
        # the fit of a fold uses the sums of the others
        gram, moment = (_combine(sums, cross_fit) for sums in (grams, moments))
        _check_finite(gram, len(z))
        if not products:
            return self._solve(gram, moment).view(len(z), -1, z.shape[-1])
        # two-stage least squares: regress x on z, then y on the result. The system is symmetric, and has the solution
        # of z' (y - x w) = 0 wherever z' x has an inverse.
        product = _combine(products, cross_fit)
        _check_finite(product, len(z))
        projected = self._solve(gram, torch.cat([product, moment], dim=-1))  # [T * K, F, F + 1]
        system = product.mT @ projected
        weights = self._solve(0.5 * (system[..., :-1] + system[..., :-1].mT), system[..., -1:])
        return weights.view(len(z), -1, z.shape[-1])

    def _solve(self, gram: Tensor, right: Tensor) -> Tensor:
        """`(gram + ridge I)^-1 right`, each `[N, F, ...]`."""
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        ridge = torch.full((len(gram), 1, 1), self.ridge, dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * identity)
        # more regularisation for the tasks that are singular to rounding
        while failed.any():
            ridge = torch.where(failed[:, None, None] > 0, 10 * ridge, ridge)
            log.warning("baseline: singular features in %d tasks, ridge now %.0e", int((failed > 0).sum()), ridge.max())
            factor, failed = torch.linalg.cholesky_ex(gram + ridge * identity)
        return torch.cholesky_solve(right, factor)


def _combine(sums: list[Tensor], cross_fit: bool) -> Tensor:
    """For each of K folds, the sum of the others' sums `[T, ...]`: together `[T * K, ...]`."""
    return torch.stack(sum_others(sums), 1).flatten(0, 1) if cross_fit else sums[0]


def _check_finite(gram: Tensor, tasks: int) -> None:
    bad = ~torch.isfinite(gram).flatten(1).all(1)
    if bad.any():
        task = int(bad.nonzero()[0]) * tasks // len(gram)
        raise NonFiniteError("the observations of a rollout", task, advice=CHECK_ENVIRONMENT)


def _products(features: Tensor, weights: Tensor) -> Tensor:
    """Features `[T, E, H, F]` times the weights of each episode's fold, `[T, E, H]`."""
    if weights.shape[1] == 1:
        return torch.einsum("tehf,tf->teh", features, weights[:, 0])
    return torch.einsum("tehf,tef->teh", features, weights[:, fold_numbers(features.shape[1], weights.device)])


def _apply(features: Tensor, weights: Tensor, episodes: Episodes) -> Tensor:
    return _products(features, weights).to(episodes.rewards.dtype) * episodes.mask


class ZeroBaseline:
    """No baseline: the advantage is the return."""

    def values(
        self, episodes: Episodes, discount: float, bootstrap: bool, cross_fit: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return torch.zeros_like(episodes.rewards), torch.zeros_like(episodes.rewards[..., 0])
