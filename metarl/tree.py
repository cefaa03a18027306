"""Arithmetic on parameters as values, and on stacked batches of them."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Params: TypeAlias = dict[str, Tensor]
"""Parameters as a value: never changed in place."""


def tree_map(function: Callable[..., Tensor], *trees: Mapping[str, Tensor]) -> Params:
    """`function` applied leaf by leaf to trees with the same keys."""
    return {key: function(*(tree[key] for tree in trees)) for key in trees[0]}


def add(a: Params, b: Params) -> Params:
    """`a + b`."""
    return tree_map(torch.add, a, b)


def add_scaled(a: Params, scale: Tensor | float, b: Params) -> Params:
    """`a + scale * b`; a tensor `scale` must be a scalar: write for one task, batch at the call."""
    return {key: a[key] + scale * b[key] for key in a}


def subtract(a: Params, b: Params) -> Params:
    """`a - b`."""
    return tree_map(torch.sub, a, b)


def dot(a: Params, b: Params) -> Tensor:
    """The inner product of two trees, a scalar."""
    return torch.stack([(a[key] * b[key]).sum() for key in a]).sum()


def norm(a: Params) -> Tensor:
    """The Euclidean norm of a tree, a scalar; its gradient at zero is not defined."""
    return dot(a, a).sqrt()


def broadcast(params: Params, num_tasks: int) -> Params:
    """The same parameters for every task, `[T, ...]`, as a view without copies."""
    return tree_map(lambda leaf: leaf.expand(num_tasks, *leaf.shape), params)


def take(stacked: Mapping[str, Tensor], index: int) -> Params:
    """One task's tree out of a stacked one."""
    return tree_map(lambda leaf: leaf[index], stacked)


def total(rows: Tensor) -> Tensor:
    """The sum of `rows` `[n, ...]` over the first dimension, in an order that several processes can share.

    The order is a binary tree. With n = 2^m q and q odd, 2^m blocks of q neighbours are summed first, then pairs of
    neighbouring blocks, m times. Any 2^k neighbouring blocks are a whole subtree: if 2^j processes with equal shares
    each sum their own rows, the total of their sums is the total of all rows, bit for bit.

    Example:
        >>> rows = torch.rand(12, 5)
        >>> bool((total(torch.stack([total(rows[:6]), total(rows[6:])])) == total(rows)).all())
        True
    """
    number = rows.shape[0]
    blocks = number & -number  # the largest power of two that divides n
    return _add_pairs(_add_pairs(rows.reshape(blocks, number // blocks, *rows.shape[1:]).movedim(1, 0)))


def _add_pairs(rows: Tensor) -> Tensor:
    """Add neighbours until one row is left. These are additions of whole tensors: shapes do not change the rounding."""
    while (number := rows.shape[0]) > 1:
        even = number // 2 * 2
        pairs = rows[0:even:2] + rows[1:even:2]
        rows = pairs if even == number else torch.cat([pairs, rows[even:]])
    return rows[0]


def mean_rows(rows: Tensor) -> Tensor:
    """The mean of `rows` `[n, ...]` over the first dimension, summed as `total` does."""
    return total(rows) / len(rows)


def mean(stacked: Params, mean_rows: Callable[[Tensor], Tensor] = mean_rows) -> Params:
    """The mean over tasks. `mean_rows` takes `[T, P]` to `[P]`; leaves of the same dtype are passed to it together."""
    means: Params = {}
    for part in split_by_dtype(stacked):
        means |= unflatten_row(mean_rows(flatten(part)), part)
    return {key: means[key] for key in stacked}


def split_by_dtype(params: Params) -> list[Params]:
    """The leaves of each dtype; dtypes come in the order of their first leaves."""
    parts: dict[torch.dtype, Params] = {}
    for key, leaf in params.items():
        parts.setdefault(leaf.dtype, {})[key] = leaf
    return list(parts.values())


def detach(params: Mapping[str, Tensor]) -> Params:
    """The same values in new memory, free of any graph."""
    return tree_map(lambda leaf: leaf.detach().clone(), params)


def flatten(stacked: Mapping[str, Tensor]) -> Tensor:
    """All leaves of a stacked tree in one matrix `[T, P]`."""
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in stacked.values()], dim=1)


def unflatten(rows: Tensor, like: Mapping[str, Tensor]) -> Params:
    """The inverse of `flatten`: rows `[T, P]` with the leaves of the stacked tree `like`."""
    pieces = torch.split(rows, [leaf.shape[1:].numel() for leaf in like.values()], dim=1)
    return {key: piece.reshape(leaf.shape) for (key, leaf), piece in zip(like.items(), pieces, strict=True)}


def unflatten_row(row: Tensor, like: Mapping[str, Tensor]) -> Params:
    """One task's tree from its row `[P]`, with the leaves of the stacked tree `like`."""
    pieces = torch.split(row, [leaf.shape[1:].numel() for leaf in like.values()])
    return {key: piece.reshape(leaf.shape[1:]) for (key, leaf), piece in zip(like.items(), pieces, strict=True)}


def float_leaf(leaves: Mapping[str, Tensor] | Iterable[Tensor]) -> Tensor:
    """The first floating-point leaf, for the dtype and device of all; there may be integer leaves before it.

    Raises:
        ValueError: if no leaf is floating-point.
    """
    every = leaves.values() if isinstance(leaves, Mapping) else leaves
    for leaf in every:
        if leaf.is_floating_point():
            return leaf
    raise ValueError("parameters must have a floating-point leaf, got none")
