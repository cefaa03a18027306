"""Policies with few parameters, for which the problems of this folder have exact answers.

Each is a module like any other policy: `forward` returns the parameters of the action distribution.
"""

import torch
from torch import Tensor, nn

from metarl.errors import check_int, check_real


class GaussianMean(nn.Module):
    """Actions a ~ N(mean, I) for every observation; for `metarl.envs.GaussianBandit`.

    >>> [tuple(x.shape) for x in GaussianMean(2)(torch.ones(5, 1))]
    [(5, 2), (5, 2)]
    """

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(check_int("dimension", dimension)))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """`(loc, scale)`, each `[B, k]`."""
        loc = self.mean.expand(len(obs), -1)
        return loc, torch.ones_like(loc)


class TabularSoftmax(nn.Module):
    """pi(a | s) = softmax(logits[s])_a; for `metarl.envs.TabularMDP`.

    >>> TabularSoftmax(3, 2)(torch.tensor([0, 2]))[0].shape
    torch.Size([2, 2])
    """

    def __init__(self, num_states: int, num_actions: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(
            torch.zeros(check_int("num_states", num_states), check_int("num_actions", num_actions))
        )

    def forward(self, obs: Tensor) -> tuple[Tensor]:
        """`(logits [B, A],)` of the states' numbers `[B]`."""
        states = torch.arange(len(self.logits), device=obs.device)
        return ((obs[:, None] == states).to(self.logits.dtype) @ self.logits,)


class Logits(nn.Module):
    """The same logits for every observation; for `metarl.envs.exact.pair_bandit.PairBandit`.

    >>> Logits(5)(torch.ones(3, 1))[0].shape
    torch.Size([3, 5])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(check_int("size", size)))

    def forward(self, obs: Tensor) -> tuple[Tensor]:
        """`(logits [B, size],)`."""
        return (self.logits.expand(len(obs), -1),)


class LinearPolicy(nn.Module):
    """u ~ N(gain x + offset, exp(log_std)^2) of one observed number; for `metarl.envs.LinearGaussian`.

    >>> LinearPolicy(gain=-0.5)(torch.tensor([[2.0]]))[0].item()
    -1.0
    """

    def __init__(self, gain: float = 0.0, offset: float = 0.0, log_std: float = -1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(check_real("gain", gain, -torch.inf)))
        self.offset = nn.Parameter(torch.tensor(check_real("offset", offset, -torch.inf)))
        self.log_std = nn.Parameter(torch.tensor(check_real("log_std", log_std, -torch.inf)))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """`(loc, scale)`, each `[B, 1]`, of `obs` `[B, 1]`."""
        return self.gain * obs + self.offset, self.log_std.exp().expand_as(obs)
