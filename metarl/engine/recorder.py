"""Record the operations of a function while it runs.

The list is the one that `make_fx` would trace, in a tenth of the time: nothing is simulated, the function runs once on
real tensors.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from metarl.engine.memory import Layout, Memory, NotRecordableError, layout_of

aten = torch.ops.aten

_ASKS_FOR_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_ASKS_FOR_SHAPES = {aten.is_same_size.default}
"""Operations whose result is a number or a bool, but does not depend on values."""

_READS_MEMORY = {aten._pack_padded_sequence.default}
"""Operations whose results other operations read as numbers, which the recorder does not see."""

_READS_LAYOUT = {torch.as_strided, torch.as_strided_copy, torch.as_strided_scatter, torch.as_strided_}
_READS_LAYOUT |= {torch.Tensor.as_strided, torch.Tensor.as_strided_, torch.Tensor.as_strided_scatter}
"""Functions that depend on how their argument lies in memory, which is not the same in a record."""

_LEAVES_TORCH = {
    *(getattr(Tensor, name) for name in ("numpy", "tolist", "data_ptr", "storage", "untyped_storage")),
    *(getattr(Tensor, name) for name in ("__array__", "__dlpack__", "__deepcopy__", "__reduce_ex__")),
}
_READS_SECOND = {torch.tensor_split, torch.Tensor.tensor_split}
"""Functions that take numbers out of their second argument, if that is a tensor."""


def record_operations(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.Graph:
    """The operations that `function(*inputs)` calls, as a graph.

    Every node's `meta["val"]` is like its result, without data. Tensors that no operation has made, such as constants
    of the function, become attributes of the graph's module.

    Raises:
        NotRecordableError: a record would not compute the function.
    """
    recorder = _Recorder()
    for i, leaf in enumerate(inputs):
        node = recorder.graph.placeholder(f"input_{i}")
        node.meta["val"] = layout_of(leaf).empty()
        recorder.results[leaf] = node
        recorder.memory.add(leaf, layout_of(leaf), node)
        recorder.depends.add(node)
    with _StayInTorch(recorder), recorder:
        found = list(function(*inputs))
    recorder.describe()
    recorder.graph.output([recorder.node_of(leaf) for leaf in found])
    return recorder.graph


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds a node to `graph` for every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.graph.owning_module = nn.Module()  # type: ignore[assignment]
        self.depends: set[fx.Node] = set()  # on the inputs, or on random numbers
        # Weak: tensors that the function lets go of should not stay. Living tensors keep their identity.
        self.results: Any = WeakTensorKeyDictionary()
        self.memory = Memory()
        self._constants = 0
        # Descriptions of results. Tensors without data are made from them later, not between the large ones in memory.
        self._layouts: list[tuple[fx.Node, Layout | list[Layout | None]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():
            return self._add(func, args, dict(kwargs or {}))

    def _add(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given, named = tree_map(lambda x: self.node_of(x) if isinstance(x, Tensor) else x, (list(args), kwargs))
        self._refuse_writes(func, args, kwargs)
        # check before the call that it does not depend on values
        node = self.graph.call_function(func, tuple(given), named)
        depends = not self.depends.isdisjoint(node.all_input_nodes)
        if depends or torch.Tag.nondeterministic_seeded in func.tags:
            if _asks_for_values(func, args):
                raise NotRecordableError(f"{func} depends on the values of tensors")
            self.depends.add(node)
        # make the call, and note which node each result comes from
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._keep(result, node, func)
        elif isinstance(result, list | tuple):
            self._layouts.append((node, [layout_of(x) if isinstance(x, Tensor) else None for x in result]))
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    piece = self.graph.call_function(operator.getitem, (node, i))
                    self._keep(part, piece, func)
                    node.meta["fresh"] = piece.meta["fresh"] or node.meta.get("fresh", False)
        elif func._schema.returns:  # a number, frozen into the record
            if depends and func not in _ASKS_FOR_SHAPES:
                raise NotRecordableError(f"{func} depends on the values of tensors")
            self.graph.erase_node(node)
        return result  # a call without a result has an effect, such as an error, and stays

    def describe(self) -> None:
        """Give every node its `meta["val"]`."""
        for node, found in self._layouts:
            if isinstance(found, list):
                node.meta["val"] = [None if x is None else x.empty() for x in found]
            else:
                node.meta["val"] = found.empty()

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that made a tensor; a new constant if no recorded operation did."""
        if (node := self.find(tensor)) is None:
            self._constants += 1
            name = f"_constant_{self._constants}"
            setattr(self.graph.owning_module, name, tensor)
            node = self.graph.create_node("get_attr", name)
            node.meta["val"] = layout_of(tensor).empty()
            self.memory.add(tensor, layout_of(tensor), node)
        self.results[tensor] = node
        return node

    def find(self, tensor: Tensor) -> fx.Node | None:
        """The node that made a tensor, if it was recorded.

        Raises:
            NotRecordableError: it is a part of a known tensor, taken in a way that is not recorded.
        """
        while is_functorch_wrapped_tensor(tensor):
            tensor = get_unwrapped(tensor)
        node: fx.Node | None = self.results.get(tensor)
        if node is None:
            for origin, same in self.memory.find_disguised(tensor):
                if same is None and origin in self.depends:
                    raise NotRecordableError("a part of a tensor was taken in a way that is not recorded")
                node = same
        return node

    def varies(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the inputs or on random numbers."""
        return self.find(tensor) in self.depends

    def _refuse_writes(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A function may only write into tensors that it has made."""
        if not func._schema.is_mutable:
            return
        for argument, x in _arguments(func, args, kwargs):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in tree_leaves(x):
                origin = self.memory.origin(tensor) if isinstance(tensor, Tensor) else None
                if origin is not None and origin.op != "call_function":
                    owner = "an argument" if origin.op == "placeholder" else "a tensor that the function refers to"
                    raise NotRecordableError(f"{func} writes into {owner}")

    def _keep(self, tensor: Tensor, node: fx.Node, func: Any) -> None:
        layout = layout_of(tensor)
        self._layouts.append((node, layout))
        self.results[tensor] = node
        if func is aten.lift_fresh.default:  # a constant that was made just now
            self.memory.forget(tensor)
        node.meta["origin"] = origin = self.memory.add(tensor, layout, node)
        node.meta["fresh"] = origin is node
        node.meta["without_data"] = tensor.is_meta  # torch only looks up its shape where a factor is known to be zero
        if not self.depends.isdisjoint(node.all_input_nodes):
            self.depends.add(node)


def _arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Each argument with its description in the schema."""
    schema = func._schema.arguments
    named = {argument.name: argument for argument in schema}
    return [*zip(schema, args, strict=False), *((named[name], x) for name, x in kwargs.items())]


def _asks_for_values(func: Any, args: Sequence[Any]) -> bool:
    if func is aten.index.Tensor:
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return func in _READS_MEMORY or not _ASKS_FOR_VALUES.isdisjoint(func.tags)


class _StayInTorch(TorchFunctionMode):
    """Refuses to give numbers of tensors to code that is not recorded."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        read = args[:1] if func in _LEAVES_TORCH else args[1:2] if func in _READS_SECOND else ()
        if any(isinstance(x, Tensor) and self._recorder.varies(x) for x in read):
            raise NotRecordableError(f"{getattr(func, '__name__', func)} takes values out of tensors")
        if func in _READS_LAYOUT:
            raise NotRecordableError(f"{func.__name__} depends on how tensors lie in memory")
        return func(*args, **(kwargs or {}))
