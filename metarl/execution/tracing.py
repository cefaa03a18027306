"""A function as a flat list of tensor operations, tidied up."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize

from metarl.execution.recording import aten, constant, record

THIN = 8
"""Matrix products with fewer columns than this are computed transposed: the kernels are two to five times as fast."""

_SAME = {
    getattr(aten, name).default
    for name in ("view", "_unsafe_view", "expand", "detach", "alias", "lift_fresh", "lift_fresh_copy")
}
"""What does nothing but for the shape, or a promise to autograd."""


def traced(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """`function(*inputs)` for tensors of these shapes, types and devices, as a graph of ATen operations.

    The graph takes contiguous inputs. What the function reads besides its arguments is frozen into it, except for the
    values of tensors, which it refers to.

    Raises:
        NotRecordableError: when what the function does depends on values.
    """
    contiguous = [leaf.contiguous() for leaf in inputs]
    graph = record(function, contiguous)
    if not all(map(is_pure, _calls(graph))):  # what it writes into its intermediates becomes new ones
        graph = record(functionalize(function), contiguous)
    for node in graph.find_nodes(op="call_function", target=aten._unsafe_view.default):
        node.target = aten.view.default  # the same but for a promise to autograd
    drop_identities(graph)
    merge_duplicates(graph)
    delay_expansions(graph)
    fuse_biases(graph)
    turn_thin_products(graph)
    if inputs[0].device.type == "cpu":
        hasten_tanh(graph)
    graph.eliminate_dead_code()
    return fx.GraphModule(graph.owning_module or {}, graph)


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def value(node: fx.Node) -> Tensor:
    """What a node of a traced graph is like: a tensor without data."""
    found: Tensor = node.meta["val"]
    return found


def results(graph: fx.Graph) -> list[fx.Node]:
    """The nodes a graph returns."""
    found: Any = graph.output_node().args[0]
    return list(found)


def drop_identities(graph: fx.Graph) -> None:
    """Remove reshapes to the shape a tensor already has, what matters to autograd alone, and products with 1."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or "val" not in source.meta or "val" not in node.meta:
            continue  # such as picking one of an operation's several results
        before, after = source.meta["val"], node.meta["val"]
        same = node.target in _SAME or (node.target is aten.mul.Scalar and node.args[1] == 1)
        if same and before.shape == after.shape and before.dtype == after.dtype:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def merge_duplicates(graph: fx.Graph) -> None:
    """Compute once what is computed twice from the same inputs."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_pure(node):
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def is_pure(node: fx.Node) -> bool:
    """Whether a call neither writes into its arguments nor draws random numbers."""
    if node.target is operator.getitem:
        return True
    schema, tags = getattr(node.target, "_schema", None), getattr(node.target, "tags", ())
    return schema is not None and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in tags


def _hashable(arguments: Any) -> Any:
    if isinstance(arguments, list | tuple):
        return (type(arguments).__name__, *map(_hashable, arguments))
    if isinstance(arguments, dict):
        return tuple((key, _hashable(argument)) for key, argument in sorted(arguments.items()))
    return (type(arguments).__name__, arguments)  # 1, 1.0 and True are equal but not the same


def delay_expansions(graph: fx.Graph) -> None:
    """Elementwise operations on what was expanded happen before, on the fewer elements."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        _expand_after_view(graph, node)
    for node in list(graph.nodes):
        tensors = node.all_input_nodes
        if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()) or not tensors:
            continue
        if any(x.target is not aten.expand.default for x in tensors):
            continue
        shapes = {(value(x.args[0]).shape, value(x).shape) for x in tensors}
        if len(shapes) == 1 and value(tensors[0].args[0]).numel() < value(node).numel():
            with graph.inserting_before(node):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: x.args[0])
                result = _call(
                    graph, aten.expand.default, _call(graph, node.target, *args, **kwargs), tensors[0].args[1]
                )
            node.replace_all_uses_with(result)
            graph.erase_node(node)


def _expand_after_view(graph: fx.Graph, node: fx.Node) -> None:
    """`[c, 1, a] -> [c, n, a] -> [c, m, k, a]` as `[c, 1, a] -> [c, 1, 1, a] -> [c, m, k, a]`."""
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
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def turn_thin_products(graph: fx.Graph) -> None:
    """`a b` for a few columns as `(b^T a^T)^T`."""
    for node in graph.find_nodes(op="call_function", target=aten.bmm.default):
        _, rows, columns = value(node).shape
        if not columns < THIN < rows:
            continue
        with graph.inserting_before(node):
            left, right = (_call(graph, aten.transpose.int, node.args[i], 1, 2) for i in (1, 0))
            product = _call(graph, aten.bmm.default, left, right)
            turned = _call(graph, aten.transpose.int, product, 1, 2)
            result = _call(graph, aten.clone.default, turned, memory_format=torch.contiguous_format)
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def hasten_tanh(graph: fx.Graph) -> None:
    """`tanh x = 2 sigmoid(2 x) - 1`: within 2e-7; the CPU's float32 sigmoid takes a quarter of the time."""
    for node in list(graph.nodes):
        if node.target is not aten.tanh.default or value(node).dtype != torch.float32:
            continue
        with graph.inserting_before(node):
            sigmoid = _call(graph, aten.sigmoid.default, _twice(graph, node.args[0]))
            result = _call(graph, aten.add.Tensor, _constant(graph, -1.0, sigmoid), sigmoid, alpha=2)
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def fuse_biases(graph: fx.Graph) -> None:
    """`c + a b` as one operation, also where the product was reshaped in between."""
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
                node.replace_all_uses_with(result)
                graph.erase_node(node)
                break


_FUSED = {aten.bmm.default: aten.baddbmm.default, aten.mm.default: aten.addmm.default}


def _is_layer(bias: fx.Node, product: fx.Node, term: fx.Node, total: fx.Node) -> bool:
    if product.target not in _FUSED or len(product.users) > 1 or len(term.users) > 1 or value(bias).ndim == 0:
        return False
    same = value(term).shape == value(total).shape and value(bias).dtype == value(total).dtype
    columns = value(product).shape[-1]
    return same and value(bias).shape[-1] in (1, columns) and columns >= THIN


def _twice(graph: fx.Graph, node: Any) -> fx.Node:
    """`2 x`, by doubling weights and bias where x is a layer's output that nothing else wants: they are smaller."""
    if len(node.users) == 1 and node.target is aten.view.default:
        return _call(graph, node.target, _twice(graph, node.args[0]), node.args[1])
    if len(node.users) == 1 and node.target in (aten.baddbmm.default, aten.addmm.default) and not node.kwargs:
        bias, left, right = node.args
        return _call(graph, node.target, _twice(graph, bias), left, _twice(graph, right))
    return _call(graph, aten.mul.Tensor, node, 2.0)


def _constant(graph: fx.Graph, number: float, like: fx.Node) -> fx.Node:
    """A tensor that holds one number."""
    name = f"_number_{str(number).translate(str.maketrans('-.', 'm_'))}"
    tensor = getattr(graph.owning_module, name, None)
    return constant(graph, name, torch.tensor(number, dtype=value(like).dtype) if tensor is None else tensor)


def _call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new call, with the metadata of its result."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*fx.map_arg(args, value), **kwargs)
    return node
