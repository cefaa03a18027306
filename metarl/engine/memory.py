"""How tensors lie in memory, and which operations write, draw random numbers, share memory or raise an error."""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef


class NotRecordableError(Exception):
    """A record would not compute the function, for example because its operations depend on values of arguments."""


class Layout(NamedTuple):
    """Everything about a tensor except its data."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    lazy: tuple[bool, bool]  # whether the data must still be conjugated, negated

    def empty(self) -> Tensor:
        """A tensor of this layout without data."""
        if not self.offset:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        memory = torch.empty(max(0, self.offset + last + 1), dtype=self.dtype, device="meta")
        return memory.as_strided(self.shape, self.stride, self.offset)


def layout_of(tensor: Tensor) -> Layout:
    """How a tensor lies in its memory.

    Raises:
        NotRecordableError: the tensor is not strided, for example sparse.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise NotRecordableError(f"tensors of {tensor.layout} and {tensor.dtype} are not recorded")
    lazy = tensor.is_conj(), tensor.is_neg()
    return Layout(tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype, lazy)


def storage_id(tensor: Tensor) -> int:
    """Equal for tensors that share memory, also of size zero; valid as long as one of them is alive."""
    return int(tensor.untyped_storage()._cdata)


class _Block(NamedTuple):
    """One piece of memory."""

    alive: StorageWeakRef  # while it exists, its id is not reused
    pointer: int
    origin: fx.Node  # the first node with a result there
    tensors: dict[Layout, fx.Node]  # all results there


class Memory:
    """Knows which results of nodes share memory, without keeping that memory alive."""

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}

    def add(self, tensor: Tensor, layout: Layout, node: fx.Node) -> fx.Node:
        """Note that a tensor is the result of a node; returns the first node with a result in its memory."""
        storage = tensor.untyped_storage()
        block = self._blocks.get(storage._cdata)
        if block is None:
            block = _Block(StorageWeakRef(storage), _pointer(tensor), node, {})  # type: ignore[no-untyped-call]
            self._blocks[storage._cdata] = block
        block.tensors[layout] = node
        return block.origin

    def forget(self, tensor: Tensor) -> None:
        """Forget the tensor's memory, so that the next tensor there becomes its origin."""
        self._blocks.pop(storage_id(tensor), None)

    def origin(self, tensor: Tensor) -> fx.Node | None:
        """The first node with a result in the tensor's memory."""
        block = self._blocks.get(storage_id(tensor))
        return None if block is None else block.origin

    def find_disguised(self, tensor: Tensor) -> Iterator[tuple[fx.Node, fx.Node | None]]:
        """For a tensor that no operation made: the origins of its memory, and the node whose result it is, if any.

        Such a tensor is another Python object for the same result (`x.data`), or came through another library.
        """
        storage = tensor.untyped_storage()
        pointer = _pointer(tensor)
        for name, block in self._blocks.items():
            there = name == storage._cdata or (pointer and block.pointer == pointer)
            if there and not block.alive.expired():  # type: ignore[no-untyped-call]
                yield block.origin, block.tensors.get(layout_of(tensor))


def _pointer(tensor: Tensor) -> int:
    return 0 if tensor._is_zerotensor() else tensor.untyped_storage().data_ptr()


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
