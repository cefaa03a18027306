"""Side effects of operations: they may write, draw random numbers, share memory or raise an error."""

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def is_pure(node: fx.Node) -> bool:
    """Whether a call neither writes into its arguments nor draws random numbers."""
    if node.target is operator.getitem:
        return True
    schema, tags = getattr(node.target, "_schema", None), getattr(node.target, "tags", ())
    return schema is not None and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in tags


def returns_memory(target: Any) -> bool:
    """Whether an operation declares that its results lie in the memory of its first argument."""
    schema = getattr(target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def is_view(node: fx.Node) -> bool:
    """Whether the results of a call lie in the memory of its first argument.

    Some operations give a view or a copy (`to`): it counts what they gave when they were recorded.
    """
    return returns_memory(node.target) and not node.meta.get("fresh", False)


def is_harmless(node: fx.Node) -> bool:
    """Whether a call may be left out if nobody uses its results: it raises no error for any values."""
    if node.op != "call_function":
        return node.op not in ("placeholder", "output")
    if node.target is operator.getitem or node.meta.get("without_data", False):
        return True
    if not is_pure(node):
        return False
    name = node.target._opname  # type: ignore[union-attr]
    if name in _INTEGER_DIVISIONS:
        first = node.meta["val"]
        return bool(first.is_floating_point())
    return returns_memory(node.target) or torch.Tag.pointwise in node.target.tags or name in _HARMLESS  # type: ignore[union-attr]


_INTEGER_DIVISIONS = {"div", "divide", "floor_divide", "fmod", "remainder", "true_divide"}
"""Operations that raise for integers divided by zero."""

# fmt: off
_HARMLESS = {
    "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "_log_softmax", "_log_softmax_backward_data",
    "_softmax", "_softmax_backward_data", "_to_copy", "to", "_unsafe_view", "addmm", "addmv", "all", "amax", "amin",
    "any", "arange", "argmax", "argmin", "argsort", "avg_pool1d", "avg_pool2d", "avg_pool2d_backward", "baddbmm",
    "bmm", "cat", "clone", "constant_pad_nd", "convolution", "convolution_backward", "copy", "cummax", "cummin",
    "cumprod", "cumsum", "diag_embed", "diagonal_backward", "dot", "empty", "empty_like", "empty_strided", "eye",
    "fill", "flip", "full", "full_like", "lift_fresh", "lift_fresh_copy", "linalg_vector_norm", "logcumsumexp",
    "logsumexp", "max", "max_pool2d_with_indices", "max_pool2d_with_indices_backward", "mean", "median", "min",
    "mm", "mse_loss", "mse_loss_backward", "mv", "native_batch_norm", "native_batch_norm_backward",
    "native_group_norm", "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward",
    "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "norm", "ones", "ones_like", "prod",
    "repeat", "roll", "scalar_tensor", "select_backward", "select_scatter", "slice_backward", "slice_scatter",
    "smooth_l1_loss", "smooth_l1_loss_backward", "sort", "stack", "std", "std_mean", "sum", "topk", "trace", "tril",
    "triu", "unfold_backward", "var", "var_mean", "vdot", "where", "zeros", "zeros_like",
}
# fmt: on
"""Operations that are not elementwise and raise no error for any values."""
