"""A function as a graph of tensor operations, recorded and then simplified."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize

from metarl.engine.memory import NotRecordableError, is_harmless, is_pure, is_view, layout_of, returns_memory
from metarl.engine.recorder import aten, record_operations

NARROW = 8
"""Matrix products with fewer columns than this are computed transposed, where the kernels are 2 to 5 times as fast."""

_SAFE = {
    aten._unsafe_view.default: aten.view.default,
    aten.unsafe_split.Tensor: aten.split.Tensor,
    aten.unsafe_split_with_sizes.default: aten.split_with_sizes.default,
}
"""Operations with a promise to autograd, and the same ones without it."""

_LIKE: dict[Any, int] = {aten.ones_like.default: 1, aten.zeros_like.default: 0}
"""Operations that read only the shape of a tensor, and the number that they fill it with."""

_SAME = {getattr(aten, name).default for name in ("view", "expand", "detach", "alias", "lift_fresh", "lift_fresh_copy")}
"""Operations that only change the shape, or matter to autograd alone."""


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """`function(*inputs)` for tensors of these shapes, types and devices, as a graph of ATen operations.

    The graph takes contiguous inputs. Everything that the function reads besides its arguments is frozen into the
    graph, except tensors: the graph refers to them, so their values may change.

    Raises:
        NotRecordableError: what the function does depends on values.
    """
    # Copies: the same tensor may be given twice now, and two different ones the next time.
    fresh = [leaf.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format) for leaf in inputs]
    graph = record_operations(function, fresh)
    if not all(map(is_pure, _calls(graph))):  # writes into intermediates become new intermediates
        _refuse_hidden_views(graph)
        graph = record_operations(functionalize(function), fresh)
    for node in _calls(graph):
        target: Any = node.target
        node.target = _SAFE.get(target, target)
        if target is aten.relu.default:
            node.target, node.args = aten.clamp_min.default, (*node.args, 0)  # it can write into given memory
    # the order matters: each pass works on the result of the previous one
    detach_constants(graph, inputs[0].device)
    drop_identities(graph)
    merge_duplicates(graph)
    delay_expansions(graph)
    fuse_biases(graph)
    transpose_narrow_matmuls(graph)
    graph.eliminate_dead_code(lambda node: not is_harmless(node))
    return fx.GraphModule(graph.owning_module or {}, graph)


def _refuse_hidden_views(graph: fx.Graph) -> None:
    """Refuse undeclared views if the function writes into a tensor: they would not see the new values."""
    for node in _calls(graph):
        made_by: Any = node.args[0] if node.target is operator.getitem else node
        if returns_memory(made_by.target) or node.meta.get("origin", node) is node:
            continue
        source: Any = made_by
        while source is not node.meta["origin"] and source.args:
            source = source.args[0]
            if len(source.users) > 1:
                raise NotRecordableError(f"{made_by.target} returns its argument's memory, and a tensor is changed")


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def value(node: fx.Node) -> Tensor:
    """A tensor without data, otherwise like the result of a node."""
    found: Tensor = node.meta["val"]
    return found


def outputs(graph: fx.Graph) -> list[fx.Node]:
    """The nodes a graph returns."""
    found: Any = graph.output_node().args[0]
    return list(found)


def detach_constants(graph: fx.Graph, device: torch.device) -> None:
    """Make tensors of one number from their shapes, so that no tensor is computed only because they are like it."""
    for node in _calls(graph):
        target: Any = node.target
        if target in _LIKE and value(node).is_contiguous() and not node.all_input_nodes[0].meta.get("without_data"):
            arguments = list(value(node).shape), _LIKE[target]
            with graph.inserting_before(node):
                made = graph.call_function(aten.full.default, arguments, {"dtype": value(node).dtype, "device": device})
            made.meta["val"] = value(node)
            _replace(node, made)


def drop_identities(graph: fx.Graph) -> None:
    """Remove reshapes to the same shape, operations that matter to autograd alone, products with 1 and powers of 1."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not all(isinstance(x.meta.get("val"), Tensor) for x in (source, node)):
            continue  # such as picking one of several results
        before, after = value(source), value(node)
        if not (node.target in _SAME or _changes_nothing(node)) or before.dtype != after.dtype:
            continue
        if layout_of(before) == layout_of(after):  # later operations may depend on it
            _replace(node, source)


def _changes_nothing(node: fx.Node) -> bool:
    """Whether a call multiplies by 1, also by a power of 0, or takes the power of 1."""
    if value(node).is_complex():
        return False  # infinity times 1 + 0i is not infinity
    if node.target is aten.mul.Tensor and isinstance(factor := node.args[1], fx.Node):
        return bool(factor.target is aten.pow.Tensor_Scalar and factor.args[1] == 0)
    if node.target not in (aten.mul.Scalar, aten.pow.Tensor_Scalar):
        return False
    return isinstance(node.args[1], bool | int | float) and node.args[1] == 1


def merge_duplicates(graph: fx.Graph) -> None:
    """Compute the same operation on the same inputs only once."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_pure(node):
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            _replace(node, first)


def _hashable(arguments: Any) -> Any:
    if isinstance(arguments, list | tuple):
        return (type(arguments).__name__, *map(_hashable, arguments))
    if isinstance(arguments, dict):
        return tuple((key, _hashable(argument)) for key, argument in sorted(arguments.items()))
    if isinstance(arguments, float):
        return ("float", float(arguments).hex())  # 0.0 and -0.0 are equal, but not the same
    if isinstance(arguments, complex):
        return ("complex", _hashable((arguments.real, arguments.imag)))
    return (type(arguments).__name__, arguments)  # 1, 1.0 and True are equal, too


def delay_expansions(graph: fx.Graph) -> None:
    """Move elementwise operations on expanded tensors before the expansion, where there are fewer elements."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        _expand_after_view(graph, node)
    # elementwise operations whose tensors are all expanded from one smaller shape to one larger shape
    for node in list(graph.nodes):
        tensors = node.all_input_nodes
        if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()) or not tensors:
            continue
        if any(x.target is not aten.expand.default for x in tensors):
            continue
        shapes = {(value(x.args[0]).shape, value(x).shape) for x in tensors}
        if len(shapes) != 1 or value(tensors[0].args[0]).numel() >= value(node).numel():
            continue
        if _views_hold(node, value(tensors[0])):
            with graph.inserting_before(node):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: x.args[0])
                result = _call(
                    graph, aten.expand.default, _call(graph, node.target, *args, **kwargs), tensors[0].args[1]
                )
            _replace(node, result)


def _views_hold(node: fx.Node, other: Tensor) -> bool:
    """Whether the views of a node are also possible for `other`, which has another layout in memory."""
    for user in filter(is_view, node.users):
        if user.target is aten.as_strided.default:
            return False
        try:
            view = user.target(other, *user.args[1:], **user.kwargs)  # type: ignore[operator]
        except RuntimeError:
            return False
        if isinstance(view, Tensor) and not _views_hold(user, view):
            return False
    return True


def _expand_after_view(graph: fx.Graph, node: fx.Node) -> None:
    """Compute `[c, 1, a] -> [c, n, a] -> [c, m, k, a]` as `[c, 1, a] -> [c, 1, 1, a] -> [c, m, k, a]`."""
    expanded: Any = node.args[0]
    if expanded.target is not aten.expand.default:
        return
    source, shape = expanded.args[0], value(node).shape
    before = value(source).shape
    if len(before) < 2 or before[1:-1].numel() != 1 or (before[0], before[-1]) != (shape[0], shape[-1]):
        return
    with graph.inserting_before(node):
        small = _call(graph, aten.view.default, source, [shape[0], *[1] * (len(shape) - 2), shape[-1]])
        result = _call(graph, aten.expand.default, small, list(shape))
    _replace(node, result)


def transpose_narrow_matmuls(graph: fx.Graph) -> None:
    """Compute `a b` with few columns as `(b^T a^T)^T`."""
    for node in graph.find_nodes(op="call_function", target=aten.bmm.default):
        _, rows, columns = value(node).shape
        if not columns < NARROW < rows:
            continue
        with graph.inserting_before(node):
            left, right = (_call(graph, aten.transpose.int, node.args[i], 1, 2) for i in (1, 0))
            product = _call(graph, aten.bmm.default, left, right)
            if columns == 1:  # the same numbers in the same order
                result = _call(graph, aten.view.default, product, list(value(node).shape))
            else:
                transposed = _call(graph, aten.transpose.int, product, 1, 2)
                result = _call(graph, aten.clone.default, transposed, memory_format=torch.contiguous_format)
        _replace(node, result)


def fuse_biases(graph: fx.Graph) -> None:
    """Compute `c + a b` as one operation, also where the product is reshaped in between."""
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs or not all(isinstance(x, fx.Node) for x in node.args):
            continue
        for bias, term in (node.args, node.args[::-1]):
            product = term.args[0] if term.target is aten.view.default and value(bias).ndim == 1 else term
            if _is_layer(bias, product, term, node):
                with graph.inserting_before(node):
                    result = _call(graph, _FUSED[product.target], bias, *product.args)
                    if product is not term:
                        result = _call(graph, aten.view.default, result, list(value(node).shape))
                _replace(node, result)
                break


_FUSED = {aten.bmm.default: aten.baddbmm.default, aten.mm.default: aten.addmm.default}


def _is_layer(bias: fx.Node, product: fx.Node, term: fx.Node, total: fx.Node) -> bool:
    if product.target not in _FUSED or len(product.users) > 1 or len(term.users) > 1 or value(bias).ndim == 0:
        return False
    same = value(term).shape == value(total).shape and value(bias).dtype == value(total).dtype
    columns = value(product).shape[-1]
    return same and value(bias).shape[-1] in (1, columns) and columns >= NARROW


def _replace(node: fx.Node, result: fx.Node) -> None:
    """Use another result instead of a node's."""
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new call, with the metadata of its result."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*fx.map_arg(args, value), **kwargs)
    return node
