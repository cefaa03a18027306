"""How tensors lie in memory, and which of them share it."""

from collections.abc import Iterator
from typing import NamedTuple

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
