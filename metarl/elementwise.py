"""Sigmoid and softplus that give the same bits wherever a number is in memory.

PyTorch's CPU kernels compute most of an array in vectors and the rest number by number. For `exp`, `log1p`, `tanh` and
arithmetic both give the same bits. For `sigmoid`, `softplus`, `silu`, `gelu`, `mish`, `elu`, `pow`, `exp2`, `cosh`,
`logaddexp` and some others they do not, so the numbers of a task would depend on the number of
tasks beside it. The functions here use `exp`, `log1p` and arithmetic only. With e = exp(-|x|) <= 1,

    sigmoid(x)  = (1 if x > 0 else e) / (1 + e)
    softplus(x) = max(x, 0) + log(1 + e)

The result and its derivatives are accurate to a few roundings for every x.
"""

import torch
from torch import Tensor


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`, elementwise, in the shape of `x`.

    Example:
        >>> sigmoid(torch.tensor([-80.0, 0.0, 80.0]))
        tensor([1.8049e-35, 5.0000e-01, 1.0000e+00])
    """
    e = _exp_minus_abs(x)
    return torch.where(x > 0, 1.0, e) / (1 + e)


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, elementwise, in the shape of `x`.

    Example:
        >>> softplus(torch.tensor([-80.0, 0.0, 80.0]))
        tensor([1.8049e-35, 6.9315e-01, 8.0000e+01])
    """
    return torch.where(x > 0, x, 0.0) + torch.log1p(_exp_minus_abs(x))


def _exp_minus_abs(x: Tensor) -> Tensor:
    """`exp(-|x|)`; at 0, where `abs` has the derivative 0, it has those of `exp(x)`, as the callers need."""
    return torch.where(x > 0, -x, x).exp()
