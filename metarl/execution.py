"""How a function of one task is computed for all of them: all at once or in chunks, traced or not.

An oracle may carry an `Execution`; `metarl.derivatives` computes with it. Neither choice changes the results beyond
rounding: chunks bound the memory, a trace saves the time that `vmap` and `grad` spend in Python at every call.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from metarl.errors import check_int

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Execution:
    """One of these is kept by whoever makes oracles of the same kind, and given to each: it holds the traces.

    Args:
        chunk_size: tasks computed at a time; `None` takes all of them.
        trace: record the operations once for every shape, and run the record from then on. The function must then be
            pure, whatever oracle it comes from: what it reads besides its arguments is frozen into the record. What
            cannot be traced, or gives something else than without when it is first run, is computed as without, and
            that is logged.
    """

    _: KW_ONLY
    chunk_size: int | None = None
    trace: bool = False
    _traces: dict[Any, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.chunk_size is not None:
            check_int("chunk_size", self.chunk_size)

    def over_tasks(self, name: str, function: Callable[..., Any], *stacked: Any, key: Hashable = None) -> Any:
        """`vmap(function)(*stacked)`; `name` and `key` tell traces of different functions apart."""
        leaves, spec = pytree.tree_flatten(stacked)
        size = self.chunk_size or len(leaves[0])
        if size >= len(leaves[0]):
            return self._run(name, key, function, leaves, spec)
        chunks = zip(*(leaf.split(size) for leaf in leaves), strict=True)
        parts = [pytree.tree_flatten(self._run(name, key, function, list(chunk), spec)) for chunk in chunks]
        joined = [torch.cat(pieces) for pieces in zip(*(part[0] for part in parts), strict=True)]
        return pytree.tree_unflatten(joined, parts[0][1])

    def _run(
        self, name: str, key: Hashable, function: Callable[..., Any], leaves: list[Tensor], spec: pytree.TreeSpec
    ) -> Any:
        if not self.trace:
            return vmap(function)(*pytree.tree_unflatten(leaves, spec))
        key = (name, key, spec, *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
        if key not in self._traces:
            self._traces[key] = _traced(name, function, leaves, spec)
        return self._traces[key](leaves)


def _traced(name: str, function: Callable[..., Any], leaves: list[Tensor], spec: pytree.TreeSpec) -> Callable[..., Any]:
    """`function` over all tasks, from a flat list of leaves; recorded where that can be done."""
    out: list[pytree.TreeSpec] = []

    def flat(inputs: list[Tensor]) -> list[Tensor]:
        results, structure = pytree.tree_flatten(vmap(function)(*pytree.tree_unflatten(inputs, spec)))
        out.append(structure)
        return results

    def plain(inputs: list[Tensor]) -> Any:
        return vmap(function)(*pytree.tree_unflatten(inputs, spec))

    try:
        graph = make_fx(flat, tracing_mode="fake")(leaves)
        drop_identities(graph.graph)
        for node in graph.graph.nodes:  # a view that is one for the strides recorded need not be one for others
            if node.target is torch.ops.aten.view.default:
                node.target = torch.ops.aten.reshape.default
        graph.graph.eliminate_dead_code()
        graph.recompile()
        wanted = pytree.tree_flatten(plain(leaves))[0]
        scale = max(float(x.abs().max()) for x in wanted if x.numel())
        for got, value in zip(graph(leaves), wanted, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-5 * scale)
    except Exception as error:  # whatever a user's loss may do, and operations whose record is not what they compute
        log.warning("%s are computed without a trace, which is slower: %s", name, str(error).strip().split("\n")[0])
        return plain
    return lambda inputs: pytree.tree_unflatten(graph(inputs), out[-1])


_RESHAPES = {torch.ops.aten.view.default, torch.ops.aten.expand.default, torch.ops.aten._unsafe_view.default}


def drop_identities(graph: fx.Graph) -> None:
    """Remove reshapes to the shape a tensor already has, and products with 1."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or "val" not in source.meta or "val" not in node.meta:
            continue  # such as picking one of an operation's several results
        before, after = source.meta["val"], node.meta["val"]
        same = node.target in _RESHAPES or (node.target is torch.ops.aten.mul.Scalar and node.args[1] == 1)
        if same and before.shape == after.shape and before.dtype == after.dtype:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
