"""Sums over tasks, in an order that several processes can share."""

import torch
from torch import Tensor


def total(rows: Tensor) -> Tensor:
    """The sum of `rows` `[n, ...]` over the first dimension, as a binary tree.

    With n = 2^m q and q odd, 2^m blocks of q neighbours are added up; then neighbouring blocks, m times. Whoever has
    2^k of the blocks, next to each other, has a whole subtree: if 2^j processes with equal shares each sum their own
    rows, the total of their sums is the total of all rows, bit for bit.

    Example:
        >>> rows = torch.rand(12, 5)
        >>> bool((total(torch.stack([total(rows[:6]), total(rows[6:])])) == total(rows)).all())
        True
    """
    blocks = len(rows) & -len(rows)  # the largest power of two that divides n
    return _pairwise(_pairwise(rows.reshape(blocks, len(rows) // blocks, *rows.shape[1:]).movedim(1, 0)))


def _pairwise(rows: Tensor) -> Tensor:
    """Neighbours are added until one is left. Additions of whole tensors: their rounding does not depend on shapes."""
    while len(rows) > 1:
        even = len(rows) // 2 * 2
        pairs = rows[0:even:2] + rows[1:even:2]
        rows = pairs if even == len(rows) else torch.cat([pairs, rows[even:]])
    return rows[0]
