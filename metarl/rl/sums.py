"""Discounted sums along time, in time linear in the number of steps.

A product with a triangular matrix is fastest up to a few hundred steps. Longer sequences are split into blocks: a
product within each block, and the same sum over blocks of the value that each passes on.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

WHOLE = 256
"""The longest sequence with a single product."""

BLOCK = 128
"""Steps in a block of a longer sequence."""


def discounted_sums(x: Tensor, discount: float) -> Tensor:
    """`y_t = sum_{k >= t} discount^(k - t) x_k` along the last dimension.

    >>> discounted_sums(torch.tensor([1.0, 0.0, 4.0]), 0.5)
    tensor([2., 2., 4.])
    """
    length = x.shape[-1]
    if length <= WHOLE:
        return x @ _weights(x, length, discount)
    inside = _blocks(x, after=True) @ _weights(x, BLOCK, discount)  # [..., n, B]
    passed_on = discounted_sums(inside[..., 0], discount**BLOCK)  # [..., n], from the start of each block
    following = pad(passed_on[..., 1:], (0, 1))
    return (inside + following[..., None] * _powers(x, BLOCK, discount).flip(0)).flatten(-2)[..., :length]


def decayed_sums(x: Tensor, decay: float) -> Tensor:
    """`y_t = sum_{k <= t} decay^(t - k) x_k` along the last dimension.

    >>> decayed_sums(torch.tensor([4.0, 0.0, 1.0]), 0.5)
    tensor([4., 2., 2.])
    """
    if decay == 1:
        return x.cumsum(-1)
    length = x.shape[-1]
    if length <= WHOLE:
        return x @ _weights(x, length, decay).mT
    inside = _blocks(x, after=False) @ _weights(x, BLOCK, decay).mT  # [..., n, B]
    passed_on = decayed_sums(inside[..., -1], decay**BLOCK)  # [..., n], at the end of each block
    before = pad(passed_on[..., :-1], (1, 0))
    return (inside + before[..., None] * _powers(x, BLOCK, decay)).flatten(-2)[..., -length:]


def _blocks(x: Tensor, after: bool) -> Tensor:
    """`[..., H]` to `[..., n, B]`, with zeros after the last step or before the first."""
    missing = -x.shape[-1] % BLOCK
    whole = pad(x, (0, missing) if after else (missing, 0))
    return whole.reshape(*x.shape[:-1], -1, BLOCK)


def _powers(x: Tensor, length: int, base: float) -> Tensor:
    """`base^1 ... base^length`."""
    return torch.pow(torch.tensor(base, dtype=x.dtype, device=x.device), torch.arange(1, length + 1, device=x.device))


def _weights(x: Tensor, length: int, base: float) -> Tensor:
    """`base^(k - t)` where k >= t, else zero; `[k, t]`."""
    steps = torch.arange(length, device=x.device)
    distance = steps[:, None] - steps[None, :]
    return torch.where(distance >= 0, torch.pow(torch.tensor(base, dtype=x.dtype, device=x.device), distance), 0.0)
