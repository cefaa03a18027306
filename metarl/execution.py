"""How a function of one task is computed for all of them: all at once or in chunks, traced or not.

An oracle may carry an `Execution`; `metarl.derivatives` computes with it. Neither choice changes the results beyond
rounding: chunks bound the memory, a trace saves the time that `vmap` and `grad` spend in Python at every call.
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from metarl.errors import check_int

log = logging.getLogger(__name__)

Stacked: TypeAlias = Tensor | Mapping[str, Tensor]
"""What a function of one task takes, stacked over tasks: every tensor is `[T, ...]`."""

Structure: TypeAlias = tuple[tuple[str, ...] | None, ...]
"""The keys of each argument; `None` stands for a tensor."""


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

    def over_tasks(self, name: str, function: Callable[..., Any], *stacked: Stacked, key: Hashable = None) -> Any:
        """`vmap(function)(*stacked)`; `name` and `key` tell traces of different functions apart."""
        leaves, structure = _flatten(stacked)
        size = self.chunk_size or len(leaves[0])
        if size >= len(leaves[0]):
            return self._run(name, key, function, leaves, structure)
        chunks = zip(*(torch.split(leaf, size) for leaf in leaves), strict=True)
        parts = [pytree.tree_flatten(self._run(name, key, function, list(chunk), structure)) for chunk in chunks]
        joined = [torch.cat(pieces) for pieces in zip(*(part[0] for part in parts), strict=True)]
        return pytree.tree_unflatten(joined, parts[0][1])

    def _run(
        self, name: str, key: Hashable, function: Callable[..., Any], leaves: list[Tensor], structure: Structure
    ) -> Any:
        if not self.trace:
            return vmap(function)(*_unflatten(leaves, structure))
        key = (name, key, structure, *[(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves])
        run = self._traces.get(key)
        if run is None:
            run = self._traces[key] = _traced(name, function, leaves, structure)
        return run(leaves)


def _flatten(stacked: tuple[Stacked, ...]) -> tuple[list[Tensor], Structure]:
    leaves: list[Tensor] = []
    for part in stacked:
        leaves += [part] if isinstance(part, Tensor) else part.values()
    return leaves, tuple(None if isinstance(part, Tensor) else tuple(part) for part in stacked)


def _unflatten(leaves: Iterable[Tensor], structure: Structure) -> list[Stacked]:
    rest = iter(leaves)
    return [next(rest) if keys is None else {key: next(rest) for key in keys} for keys in structure]


def _traced(
    name: str, function: Callable[..., Any], leaves: list[Tensor], structure: Structure
) -> Callable[[list[Tensor]], Any]:
    """`function` over all tasks, from a flat list of leaves; recorded where that can be done."""
    out: list[pytree.TreeSpec] = []

    def plain(inputs: Iterable[Tensor]) -> Any:
        return vmap(function)(*_unflatten(inputs, structure))

    def flat(*inputs: Tensor) -> list[Tensor]:
        results, spec = pytree.tree_flatten(plain(inputs))
        out.append(spec)
        return results

    try:
        graph = make_fx(flat, tracing_mode="fake")(*leaves)
        drop_identities(graph.graph)
        for node in graph.graph.nodes:  # a view that is one for the strides recorded need not be one for others
            if node.target is torch.ops.aten.view.default:
                node.target = torch.ops.aten.reshape.default
        graph.graph.eliminate_dead_code()
        graph.recompile()
        wanted = pytree.tree_flatten(plain(leaves))[0]
        scale = max(float(x.abs().max()) for x in wanted if x.numel())
        for got, value in zip(graph(*leaves), wanted, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-5 * scale)
    except Exception as error:  # whatever a user's loss may do, and operations whose record is not what they compute
        log.warning("%s are computed without a trace, which is slower: %s", name, str(error).strip().split("\n")[0])
        return plain
    run = graph.forward  # without the hooks of a module, which there are none of
    return lambda inputs: pytree.tree_unflatten(run(*inputs), out[-1])


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
