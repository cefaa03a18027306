"""Run a traced graph on the CPU in planned memory.

Fresh memory makes eager code slow on large tensors: the system hands out zeroed pages at a tenth of the speed at which
operations could fill them. Here every intermediate gets a place before the first run. A place is used again as soon as
its content is no longer needed, so it stays in the cache. Views are made once. The rest of the graph becomes a list of
calls that write into these places (`metarl.engine.calls`).
"""

import functools
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from metarl.engine.calls import CallList, OperationCall, Repetition, make_call
from metarl.engine.graph import outputs, value
from metarl.engine.memory import aten, is_pure, is_view, storage_id

_WITHOUT_DATA = {
    aten.lift_fresh_copy.default,
    *(getattr(aten, name).default for name in ("ones", "zeros", "full", "ones_like", "zeros_like", "full_like")),
}
"""Operations that give constants, or depend on the shapes of their arguments alone."""


T = TypeVar("T")


class NotPlannableError(Exception):
    """A graph whose memory cannot be planned: it writes into tensors, draws random numbers, or has hidden views."""


class Plan:
    """The place in memory of every result of a graph, without the memory itself.

    Args:
        graph: from `trace`.
        constants: the number of leading inputs that stay the same over many runs.

    Raises:
        NotPlannableError: the memory of the graph cannot be planned.
    """

    def __init__(self, graph: fx.Graph, constants: int = 0) -> None:
        self.nodes, self.outputs, self.constants = list(graph.nodes), outputs(graph), constants
        calls = [node for node in self.nodes if node.op == "call_function"]
        if unfit := [node for node in calls if not is_pure(node)]:
            raise NotPlannableError(f"{unfit[0].target} writes into its arguments or draws random numbers")
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        # Without constants everything is computed in every run, also from tensors that the function refers to.
        self.varying = _reached_from(self.inputs[constants:], calls) if constants else set(self.nodes)
        self.place: dict[fx.Node, int | None] = {}  # None: it has memory already
        self.sizes: list[int] = []  # of places, in bytes
        self._give_places(calls)

    @property
    def nbytes(self) -> int:
        """The memory a program of this plan takes."""
        return sum(self.sizes)

    @property
    def fixed_places(self) -> set[int]:
        """The places of what does not change from run to run."""
        return {place for node, place in self.place.items() if place is not None and node not in self.varying}

    @property
    def fixed_bytes(self) -> int:
        """The memory that a program of this plan does not share with others."""
        return sum(self.sizes[place] for place in self.fixed_places)

    def _give_places(self, calls: Sequence[fx.Node]) -> None:
        # whose memory each result uses: views use that of their source
        owner = self.owner = {node: node for node in self.nodes}
        for node in calls:
            if (source := source_of(node)) is not None:
                owner[node] = owner[source]
        # the last node that needs each owner's memory; what does not change is needed by every run of what does
        last: dict[fx.Node, fx.Node] = {}
        kept: set[fx.Node] = set()
        for node in self.nodes:
            for used in node.all_input_nodes:
                last[owner[used]] = node
                if node in self.varying or node.op == "output":
                    kept.add(owner[used])
        # in the order of the calls: take a place for each result, then free the places that were used for the last time
        pools: dict[bool, dict[int, list[int]]] = {True: {}, False: {}}  # places by size: of varying nodes, of others
        for node in self.inputs:
            self.place[node] = self._new(node, pools) if node.users else None
        for node in calls:
            if not is_made_once(node) and isinstance(node.meta.get("val"), Tensor):
                inherited = self._find_reusable(node, owner, last)
                self.place[node] = self._new(node, pools) if inherited is None else inherited
            for used in dict.fromkeys(owner[x] for x in node.all_input_nodes):
                place = self.place.get(used)
                if place is None or place == self.place.get(node) or last[used] is not node:
                    continue
                if used in self.varying or used not in kept:
                    pools[used in self.varying].setdefault(self.sizes[place], []).append(place)

    def _new(self, node: fx.Node, pools: dict[bool, dict[int, list[int]]]) -> int:
        size, free = _span(value(node)), pools[node in self.varying]
        if free.get(size):
            return free[size].pop()  # the one used last is most likely in the cache
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _find_reusable(self, node: fx.Node, owner: dict[fx.Node, fx.Node], last: dict[fx.Node, fx.Node]) -> int | None:
        """The place of an input that an elementwise operation may overwrite."""
        if torch.Tag.pointwise not in getattr(node.target, "tags", ()) or node not in self.varying:
            return None
        for used in node.all_input_nodes:
            whose = owner[used]
            others = [x for x in node.all_input_nodes if x is not used and owner[x] is whose]
            place = self.place.get(whose)
            if place is None or last[whose] is not node or whose not in self.varying or others:
                continue
            if _same_layout(used, node, self.sizes[place]):
                return place
        return None


class Arena:
    """Memory that several programs without constants share, one at a time. It is freed with the last of them."""

    def __init__(self) -> None:
        self._memory: dict[int, list[weakref.ref[Tensor]]] = {}

    def take(self, sizes: Sequence[int]) -> list[Tensor]:
        """A piece of memory for each size, in bytes; all programs get the same pieces while any of them holds them."""
        taken: Counter[int] = Counter()
        pieces = []
        for size in sizes:
            there = self._memory.setdefault(size, [])
            number = taken[size]
            piece = there[number]() if number < len(there) else None
            if piece is None:
                piece = torch.empty(size, dtype=torch.uint8)
                there[number : number + 1] = [weakref.ref(piece)]
            pieces.append(piece)
            taken[size] += 1
        return pieces


class Arenas:
    """Lends each arena to one run at a time, the most recently used one first."""

    def __init__(self) -> None:
        self._free: list[Arena] = []

    @contextmanager
    def lend(self) -> Iterator[Arena]:
        """An arena for one run; nothing else uses it meanwhile."""
        try:
            arena = self._free.pop()  # several threads may do this at the same time
        except IndexError:
            arena = Arena()
        try:
            yield arena
        finally:
            self._free.append(arena)


class Program:
    """A plan with memory: a `Runner`.

    Its results are valid until its next run; with shared memory, until the next run of any program that shares it.

    Args:
        plan: of the graph.
        arena: memory to share; by default the program has its own. Constants, and what depends on them alone, are never
            in shared memory.
    """

    def __init__(self, plan: Plan, arena: Arena | None = None) -> None:
        fixed = plan.fixed_places
        private = iter(Arena().take([plan.sizes[place] for place in sorted(fixed)]))
        shared = iter((arena or Arena()).take([n for place, n in enumerate(plan.sizes) if place not in fixed]))
        memory = self._memory = [next(private if place in fixed else shared) for place in range(len(plan.sizes))]
        values: dict[fx.Node, Any] = {}
        once: list[OperationCall] = []
        always: list[OperationCall] = []
        # give every node its memory, make the views, and turn the other nodes into calls
        for node in plan.nodes[:-1]:  # the last is the output
            place = plan.place.get(node)
            own = None if place is None else _tensor_in(memory[place], value(node))
            if node.op == "placeholder":
                values[node] = own
            elif node.op == "get_attr":
                values[node] = operator.attrgetter(str(node.target))(node.graph.owning_module)
            else:
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                if is_made_once(node):
                    values[node] = node.target(*args, **kwargs)
                    if source_of(node) is not None:
                        _check_memory(node, values[node], values[plan.owner[node]])
                    continue
                values[node] = own if own is not None else [_empty_like(x) for x in node.meta.get("val", ())]
                calls = always if node in plan.varying else once
                calls.append(make_call(node.target, args, kwargs, values[node]))
        inputs = [values[node] for node in plan.inputs]
        self._constants, self._inputs = inputs[: plan.constants], inputs[plan.constants :]
        self.outputs: list[Tensor] = [values[node] for node in plan.outputs]
        self.once, self.always = once, always
        self._fixed, self._rest = CallList(once), CallList(always)

    def bind(self, constants: Sequence[Tensor]) -> None:
        """Set the inputs that stay the same, and compute everything that depends on them alone."""
        _compute(self._constants, constants, self._fixed.run)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute the rest."""
        _compute(self._inputs, inputs, self._rest.run)
        return self.outputs

    def repeat(self, carried: Sequence[Tensor], sequences: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See `metarl.engine.Engine.repeat`."""
        number, steps = len(carried), sequences[0].shape[0]
        following, kept_results = self.outputs[:number], self.outputs[number:]
        kept = [result.new_empty(steps, *result.shape) for result in kept_results]
        used = [(x, place) for x, place in zip(sequences, self._inputs[number:], strict=True) if place is not None]
        moving = [pair for pair in zip(self._inputs, following, strict=False) if pair[0] is not None]
        # Everything is read before anything is written: a result may lie in the memory of another input.
        read = [(torch.empty_like(after), after) for after in following]
        copies = dict(zip(map(id, following), (copy for copy, _ in read), strict=True))
        written = [(before, copies[id(after)]) for before, after in moving]
        places, values = zip(*read, *written, strict=True)
        sources, targets = [x for x, _ in used], [place for _, place in used]
        repetition = Repetition(sources, targets, kept_results, kept, list(places), list(values), read[-1][0])
        done = _compute(self._inputs[:number], carried, functools.partial(self._rest.repeat, repetition))
        return [copy for copy, _ in read], [x[:done] for x in kept]


def _compute(places: Sequence[Tensor | None], inputs: Sequence[Tensor], run: Callable[[bool], T]) -> T:
    """Copy the inputs to their places and run compiled; after an error again, call by call.

    TorchScript's errors have lost their type.
    """
    for compiled in (True, False):
        for place, given in zip(places, inputs, strict=True):
            if place is not None:  # otherwise nothing depends on it
                place.copy_(given)
        try:
            return run(compiled)
        except RuntimeError:
            if not compiled:
                raise
    raise AssertionError


def _check_memory(node: fx.Node, made: Any, owner: Tensor) -> None:
    """Raise an error if a view is not where the plan expects it: its memory would be overwritten while in use."""
    views = [made] if isinstance(made, Tensor) else made
    if any(storage_id(view) != storage_id(owner) for view in views):
        raise NotPlannableError(f"{node.target} must return its argument's memory, got other memory")


def peak_bytes(graph: fx.Graph) -> int:
    """The bytes that a run of a traced graph takes for its intermediates."""
    try:
        return Plan(graph).nbytes
    except NotPlannableError:
        sizes = (node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), Tensor))
        return sum(map(_span, sizes))  # an upper bound


def source_of(node: fx.Node) -> fx.Node | None:
    """The node whose memory the results of a call use; `None` if they have new memory."""
    if node.target is operator.getitem:
        parent: Any = node.args[0]
        return source_of(parent)
    return node.all_input_nodes[0] if is_view(node) else None


def is_made_once(node: fx.Node) -> bool:
    """Whether a call is made only once, when the program is built, and its result stays valid."""
    return node.target is operator.getitem or node.target in _WITHOUT_DATA or is_view(node)


def _reached_from(sources: Sequence[fx.Node], calls: Sequence[fx.Node]) -> set[fx.Node]:
    reached = set(sources)
    for node in calls:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    return reached


def _span(tensor: Tensor) -> int:
    """The number of bytes from the first to the last of a tensor."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _same_layout(used: fx.Node, node: fx.Node, size: int) -> bool:
    before, after = value(used), value(node)
    alike = before.shape == after.shape and before.stride() == after.stride() and before.dtype == after.dtype
    return alike and before.storage_offset() == 0 and _span(after) == size


def _tensor_in(memory: Tensor, like: Tensor) -> Tensor:
    return torch.empty(0, dtype=like.dtype).set_(memory.untyped_storage(), 0, like.shape, like.stride())


def _empty_like(like: Tensor | None) -> Tensor | None:
    """Memory for one of several results; `None` for one that is not computed."""
    return None if like is None else torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
