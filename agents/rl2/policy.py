"""A policy with a gated recurrent unit (Cho et al., 2014), in the variant of `torch.nn.GRUCell`, in plain products.

    x_t = (s_t, a_{t-1}, r_{t-1}, d_{t-1})
    r, z = sigmoid(W_r x + b_r + U_r h + c_r),  sigmoid(W_z x + b_z + U_z h + c_z)
    n    = tanh(W_n x + b_n + r (U_n h + c_n))
    h'   = (1 - z) n + z h,        pi(. | h'),  V(h')

d_{t-1} is 1 in the first step of every later episode of a trial: an episode has just ended. `nn.GRU` itself fails under
`torch.func.vmap`; these products can be vectorised over tasks, differentiated twice and recorded.
"""

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from metarl.errors import check_int, check_real
from metarl.rl.distributions import ActionDistribution, DistParams, distribution_for

GATES = 3
"""r, z and n: their weights are one matrix, in this order."""


class Outputs(NamedTuple):
    """What the heads make of hidden states `[..., U]`."""

    action: DistParams  # of the action distribution, `[..., A]` each
    value: Tensor  # [...], in the units of the value's targets


class RecurrentPolicy(nn.Module):
    """The unit, with linear heads for the action distribution and the value.

    Args:
        observation_space: a Box, flattened (an image is divided by 255), or a Discrete, as a one-hot vector.
        action_space: a one-dimensional Box or a Discrete.
        units: U, the size of the hidden state.
        log_std_init: logarithm of the initial standard deviation of continuous actions, the same in all states.
        actions: how actions are sent to a Box (`metarl.rl.actions`).
        seed: of the initial weights.

    Raises:
        ValueError: for other spaces, or numbers that cannot work.

    Example:
        >>> from metarl.envs import Navigation
        >>> tasks = Navigation()
        >>> policy = RecurrentPolicy(tasks.observation_space, tasks.action_space, units=8)
        >>> x = policy.inputs(torch.zeros(5, 2), policy.begin(5))
        >>> hidden, (loc, scale), value = policy(x, torch.zeros(5, 8))
        >>> x.shape, hidden.shape, loc.shape, value.shape
        (torch.Size([5, 6]), torch.Size([5, 8]), torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        units: int = 64,
        log_std_init: float = -0.5,
        actions: str = "clip",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space
        self.units, self.actions = check_int("units", units), actions
        check_real("log_std_init", log_std_init, -20.0, 2.0)
        self.distribution: ActionDistribution = distribution_for(action_space, actions)
        self._divisor = 255.0 if is_image_space(observation_space) else 1.0
        self.seen = _size("observation_space", observation_space)
        self.acted = _size("action_space", action_space)
        inputs = self.seen + self.acted + 2
        generator = torch.Generator().manual_seed(check_int("seed", seed, minimum=0))
        bound = 1 / math.sqrt(units)  # as in GRUCell
        self.weight_ih = nn.Parameter(_uniform((GATES * units, inputs), bound, generator))
        self.weight_hh = nn.Parameter(_uniform((GATES * units, units), bound, generator))
        self.bias_ih = nn.Parameter(_uniform((GATES * units,), bound, generator))
        self.bias_hh = nn.Parameter(_uniform((GATES * units,), bound, generator))
        # small first actions and values, as in Stable-Baselines3
        self.action_weight = nn.Parameter(_uniform((self.acted, units), 0.01 * bound, generator))
        self.action_bias = nn.Parameter(torch.zeros(self.acted))
        self.value_weight = nn.Parameter(_uniform((1, units), bound, generator))
        self.value_bias = nn.Parameter(torch.zeros(1))
        if isinstance(action_space, Box):
            self.log_std = nn.Parameter(torch.full((self.acted,), float(log_std_init)))

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, DistParams, Tensor]:
        """One step of n trials: the next hidden state `[n, U]`, the action distribution's parameters, the value `[n]`.

        Args:
            x: inputs `[n, I]`, from `inputs`.
            hidden: `[n, U]`; zeros in the first step of a trial.
        """
        after = self.advance(x @ self.weight_ih.mT + self.bias_ih, hidden)
        return after, *self.heads(after)

    def unroll(self, x: Tensor, truncate: int | None = None) -> Outputs:
        """All steps of n trials from their start: `x` `[n, L, I]` to outputs `[n, L, ...]`.

        Args:
            x: inputs.
            truncate: gradients go back at most to the last step whose number is a multiple of this; `None`: to the
                start of the trial.
        """
        projected = (x @ self.weight_ih.mT + self.bias_ih).unbind(-2)
        hidden = x.new_zeros(*x.shape[:-2], self.units)
        states = []
        for t, step in enumerate(projected):
            if truncate is not None and t % truncate == 0:
                hidden = hidden.detach()
            hidden = self.advance(step, hidden)
            states.append(hidden)
        return self.heads(torch.stack(states, -2))

    def advance(self, projected: Tensor, hidden: Tensor) -> Tensor:
        """The next hidden state from W x + b `[n, 3 U]` and the hidden state `[n, U]`."""
        recurrent, cut = hidden @ self.weight_hh.mT + self.bias_hh, 2 * self.units
        gates = torch.sigmoid(projected[..., :cut] + recurrent[..., :cut])
        reset, keep = gates[..., : self.units], gates[..., self.units :]
        new = torch.tanh(projected[..., cut:] + reset * recurrent[..., cut:])
        return new + keep * (hidden - new)

    def heads(self, hidden: Tensor) -> Outputs:
        """The action distribution's parameters and the value at hidden states `[..., U]`."""
        mean = hidden @ self.action_weight.mT + self.action_bias
        value = (hidden @ self.value_weight.mT + self.value_bias)[..., 0]
        if isinstance(self.action_space, Discrete):
            return Outputs((mean,), value)
        return Outputs((mean, self.log_std.exp().expand_as(mean)), value)

    # What the policy sees.

    def begin(self, number: int) -> Tensor:
        """(a, r, d) before the first step of n trials, `[n, A + 2]`: nothing has happened yet."""
        return self.bias_ih.new_zeros(number, self.acted + 2)

    def inputs(self, obs: Tensor, last: Tensor) -> Tensor:
        """x `[n, I]` from observations `[n, ...]` and `last` `[n, A + 2]`."""
        return torch.cat([self._flatten(self.observation_space, obs) / self._divisor, last], -1)

    def remember(self, sent: Tensor, reward: Tensor, ended: bool) -> Tensor:
        """(a, r, d) `[n, A + 2]` from the actions as the environment got them, and their rewards `[n]`."""
        flag = torch.full_like(reward, float(ended))
        return torch.cat([self._flatten(self.action_space, sent), reward[:, None], flag[:, None]], -1)

    def _flatten(self, space: gymnasium.Space[Any], x: Tensor) -> Tensor:
        """Values of a space `[n, ...]` as vectors `[n, k]`; a Discrete gives one-hot vectors."""
        dtype = self.bias_ih.dtype
        if isinstance(space, Discrete):
            numbers = torch.arange(int(space.start), int(space.start + space.n), device=x.device)
            return (x.reshape(len(x), 1) == numbers).to(dtype)
        return x.reshape(len(x), -1).to(dtype)


def entropy(params: DistParams) -> Tensor:
    """The entropy `[...]` in nats of a categorical distribution (logits) or a normal one (loc, scale).

    For squashed actions it is the entropy before tanh.

    >>> entropy((torch.zeros(1, 4),)).exp()
    tensor([4.])
    """
    if len(params) == 1:
        log_probs = params[0].log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)
    return (params[1].log() + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)


def _size(name: str, space: gymnasium.Space[Any]) -> int:
    """The numbers of a space's value as a vector."""
    if isinstance(space, Discrete):
        return int(space.n)
    if not isinstance(space, Box) or 0 in space.shape:
        raise ValueError(f"{name} must be a Box or a Discrete, got {space}")
    return int(np.prod(space.shape))


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
