"""Writing down which operations a function makes, while it makes them.

The list is what `make_fx` would trace, in a tenth of the time: nothing is simulated, the function runs once on real
tensors.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten

_ASKS_FOR_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_LEAVES_TORCH = {torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist, torch.Tensor.__dlpack__}


class NotRecordableError(Exception):
    """What a function does depends on the values of its arguments, not only on their shapes."""


def record(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.Graph:
    """The operations that `function(*inputs)` makes.

    Every node's `meta["val"]` is like its result, without data. Tensors that are not made by the operations, such as
    those the function refers to, become attributes of the graph's module.

    Raises:
        NotRecordableError: as said there.
    """
    recorder = _Recorder()
    for i, leaf in enumerate(inputs):
        recorder.results[leaf] = node = recorder.graph.placeholder(f"input_{i}")
        node.meta["val"] = _empty(_layout(leaf))
        recorder.depends.add(node)
    with _StayInTorch(recorder), recorder:
        found = list(function(*inputs))
    recorder.describe()
    recorder.graph.output([recorder.node_of(leaf) for leaf in found])
    return recorder.graph


class _Layout(NamedTuple):
    """What there is to say of a tensor but its data."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


def _layout(tensor: Tensor) -> _Layout:
    return _Layout(tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype)


def _empty(layout: _Layout) -> Tensor:
    """A tensor like that, without data."""
    shape, stride, offset, dtype = layout
    if not offset:
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return torch.empty(offset + last + 1, dtype=dtype, device="meta").as_strided(shape, stride, offset)


def constant(graph: fx.Graph, name: str, tensor: Tensor) -> fx.Node:
    """A node for a tensor that is there already, which the graph's module gets as an attribute."""
    setattr(graph.owning_module, name, tensor)
    node = graph.create_node("get_attr", name)
    node.meta["val"] = _empty(_layout(tensor))
    return node


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds a node to `graph` for every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.graph.owning_module = nn.Module()  # type: ignore[assignment]
        self.depends: set[fx.Node] = set()  # on the inputs, or on chance
        # Weak: what the function lets go of should not stay. A tensor keeps its identity for as long as it is alive.
        self.results: Any = WeakTensorKeyDictionary()
        self._constants = 0
        # Descriptions of results; tensors without data are made of them later, not between the large ones in memory.
        self._layouts: list[tuple[fx.Node, _Layout | list[_Layout | None]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given, named = tree_map(self._as_node, (list(args), kwargs))
        node = self.graph.call_function(func, tuple(given), named)
        if torch.Tag.nondeterministic_seeded in func.tags or not self.depends.isdisjoint(node.all_input_nodes):
            if _asks_for_values(func, args):
                raise NotRecordableError(f"{func} depends on the values of tensors")
            self.depends.add(node)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._keep(result, node)
        elif isinstance(result, list | tuple):
            self._layouts.append((node, [_layout(x) if isinstance(x, Tensor) else None for x in result]))
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._keep(part, self.graph.call_function(operator.getitem, (node, i)))
        elif not node.users:
            self.graph.erase_node(node)  # a number, known from here on
        return result

    def describe(self) -> None:
        """Give every node its `meta["val"]`."""
        for node, found in self._layouts:
            if isinstance(found, list):
                node.meta["val"] = [None if x is None else _empty(x) for x in found]
            else:
                node.meta["val"] = _empty(found)

    def node_of(self, tensor: Tensor) -> fx.Node:
        """What made a tensor."""
        if tensor not in self.results:
            self._constants += 1
            self.results[tensor] = constant(self.graph, f"_constant_{self._constants}", tensor)
        node: fx.Node = self.results[tensor]
        return node

    def varies(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the inputs or on chance."""
        return self.results.get(tensor) in self.depends

    def _as_node(self, x: Any) -> Any:
        return self.node_of(x) if isinstance(x, Tensor) else x

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        self._layouts.append((node, _layout(tensor)))
        self.results[tensor] = node
        if not self.depends.isdisjoint(node.all_input_nodes):
            self.depends.add(node)


def _asks_for_values(func: Any, args: Sequence[Any]) -> bool:
    if func is aten.index.Tensor:
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return not _ASKS_FOR_VALUES.isdisjoint(func.tags)


class _StayInTorch(TorchFunctionMode):
    """Refuses to give values to what is not recorded."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _LEAVES_TORCH and self._recorder.varies(args[0]):
            raise NotRecordableError(f"{getattr(func, '__name__', func)} takes values out of tensors")
        return func(*args, **(kwargs or {}))
