"""Running a traced graph on the CPU in memory of its own.

Fresh memory is what makes eager code slow on large tensors: the system hands out zeroed pages at a tenth of the speed
at which the operations could fill them. Here every intermediate has a place before the first run, places are used again
as soon as their contents are no longer needed (so they stay in the cache), reshapes and transposes are made once, and
what is left of the graph is a list of calls that write into their places.
"""

import operator
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from metarl.engine.calls import Call, Repetition, Script, writing
from metarl.engine.effects import aten, is_pure, is_view
from metarl.engine.memory import storage_id
from metarl.engine.tracing import results, value

_WITHOUT_DATA = {
    aten.lift_fresh_copy.default,
    *(getattr(aten, name).default for name in ("ones", "zeros", "full", "ones_like", "zeros_like", "full_like")),
}
"""What depends on the shapes of its arguments alone, or is a constant of the source."""


Result = TypeVar("Result")


class NotPlannableError(Exception):
    """A graph whose memory cannot be planned: it writes into tensors, draws random numbers, or has hidden views."""


class Plan:
    """Which place every result of a graph gets, without the memory itself.

    Args:
        graph: from `traced`.
        constants: how many of its first inputs stay the same over many runs.

    Raises:
        NotPlannableError: as said there.
    """

    def __init__(self, graph: fx.Graph, constants: int = 0) -> None:
        self.nodes, self.results, self.constants = list(graph.nodes), results(graph), constants
        calls = [node for node in self.nodes if node.op == "call_function"]
        if unfit := [node for node in calls if not is_pure(node)]:
            raise NotPlannableError(f"{unfit[0].target} writes into its arguments or draws random numbers")
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        # without constants all is computed in every run, also what follows from tensors the function refers to
        self.varying = _reached_from(self.inputs[constants:], calls) if constants else set(self.nodes)
        self.place: dict[fx.Node, int | None] = {}  # None: it has memory already
        self.sizes: list[int] = []  # of places, in bytes
        self._give_places(calls)

    @property
    def nbytes(self) -> int:
        """The memory a program of this plan takes."""
        return sum(self.sizes)

    def _give_places(self, calls: Sequence[fx.Node]) -> None:
        owner = self.owner = {node: node for node in self.nodes}  # in whose memory each result lies
        for node in calls:
            if (source := source_of(node)) is not None:
                owner[node] = owner[source]
        last: dict[fx.Node, fx.Node] = {}  # where each owner's memory is needed for the last time
        for node in self.nodes:
            for used in node.all_input_nodes:
                last[owner[used]] = node
        free: dict[int, list[int]] = {}
        for node in self.inputs:
            self.place[node] = self._new(node, free) if node.users else None
        for node in calls:
            if not is_made_once(node) and isinstance(node.meta.get("val"), Tensor):
                inherited = self._inherited(node, owner, last)
                self.place[node] = self._new(node, free) if inherited is None else inherited
            for used in dict.fromkeys(owner[x] for x in node.all_input_nodes):
                place = self.place.get(used)
                if place is not None and place != self.place.get(node) and last[used] is node and used in self.varying:
                    free.setdefault(self.sizes[place], []).append(place)

    def _new(self, node: fx.Node, free: dict[int, list[int]]) -> int:
        size = _span(value(node))
        if node in self.varying and free.get(size):
            return free[size].pop()  # the one used last is the likeliest to be in the cache
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _inherited(self, node: fx.Node, owner: dict[fx.Node, fx.Node], last: dict[fx.Node, fx.Node]) -> int | None:
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
    """Memory that several programs without constants use, one at a time. It is freed with the last of them."""

    def __init__(self) -> None:
        self._memory: dict[int, list[weakref.ref[Tensor]]] = {}

    def take(self, sizes: Sequence[int]) -> list[Tensor]:
        """A piece of memory of each size, in bytes; the same ones for everybody, as long as somebody holds them."""
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


class Program:
    """A plan with memory. Not for two threads at once.

    Its results are valid until its next run; where it shares its memory, until the next run of any program that does.

    Args:
        plan: of the graph.
        arena: memory to share, for a plan without constants; default: its own.

    Raises:
        ValueError: for constants in memory that is shared.
    """

    def __init__(self, plan: Plan, arena: Arena | None = None) -> None:
        if arena is not None and plan.constants:
            raise ValueError("arena must be None for a plan with constants: other programs would overwrite them")
        memory = self._memory = (arena or Arena()).take(plan.sizes)
        values: dict[fx.Node, Any] = {}
        once: list[Call] = []
        always: list[Call] = []
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
                calls.append(writing(node.target, args, kwargs, values[node]))
        inputs = [values[node] for node in plan.inputs]
        self._constants, self._inputs = inputs[: plan.constants], inputs[plan.constants :]
        self.outputs: list[Tensor] = [values[node] for node in plan.results]
        self.once, self.always = once, always
        self._fixed, self._rest = Script(once), Script(always)

    def bind(self, constants: Sequence[Tensor]) -> None:
        """Set the inputs that stay the same, and compute what follows from them alone."""

        def compute(compiled: bool) -> None:
            _fill(self._constants, constants)
            self._fixed.once(compiled)

        _compiled_first(compute)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute the rest."""

        def compute(compiled: bool) -> None:
            _fill(self._inputs, inputs)
            self._rest.once(compiled)

        _compiled_first(compute)
        return self.outputs

    def repeat(self, carried: Sequence[Tensor], sequences: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See `metarl.engine.repeated.repeat`."""
        number, steps = len(carried), sequences[0].shape[0]
        following, kept_results = self.outputs[:number], self.outputs[number:]
        kept = [result.new_empty(steps, *result.shape) for result in kept_results]
        used = [(x, place) for x, place in zip(sequences, self._inputs[number:], strict=True) if place is not None]
        moving = [pair for pair in zip(self._inputs, following, strict=False) if pair[0] is not None]
        # all are read before any is written: a result may lie in the memory of another input
        read = [(torch.empty_like(after), after) for after in following]
        copies = dict(zip(map(id, following), (copy for copy, _ in read), strict=True))
        written = [(before, copies[id(after)]) for before, after in moving]
        places, values = zip(*read, *written, strict=True)

        def compute(compiled: bool) -> int:
            _fill(self._inputs[:number], carried)
            repetition = Repetition(
                [x for x, _ in used],
                [place for _, place in used],
                kept_results,
                kept,
                list(places),
                list(values),
                read[-1][0],
            )
            return self._rest.many(repetition, compiled)

        done = _compiled_first(compute)
        return [copy for copy, _ in read], [x[:done] for x in kept]


def _compiled_first(compute: Callable[[bool], Result]) -> Result:
    """An error in the interpreter has lost its type: then everything is done again, call by call, for the real one."""
    try:
        return compute(True)
    except RuntimeError:
        return compute(False)


def _check_memory(node: fx.Node, made: Any, owner: Tensor) -> None:
    """Whether a view is where the plan takes it to be; else its memory would be overwritten while in use."""
    views = [made] if isinstance(made, Tensor) else made
    if any(storage_id(view) != storage_id(owner) for view in views):
        raise NotPlannableError(f"{node.target} gives other memory than its argument's")


def _fill(places: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> None:
    for place, given in zip(places, inputs, strict=True):
        if place is not None:  # else nothing depends on it
            place.copy_(given)


def peak_bytes(graph: fx.Graph) -> int:
    """The memory that a run of a traced graph takes for its intermediates."""
    try:
        return Plan(graph).nbytes
    except NotPlannableError:
        sizes = (node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), Tensor))
        return sum(map(_span, sizes))  # an upper bound


def source_of(node: fx.Node) -> fx.Node | None:
    """The node in whose memory a call's results lie, each of several as well; `None` where they have their own."""
    if node.target is operator.getitem:
        parent: Any = node.args[0]
        return source_of(parent)
    return node.all_input_nodes[0] if is_view(node) else None


def is_made_once(node: fx.Node) -> bool:
    """Whether a call can be made when the memory is laid out, and holds from then on."""
    return node.target is operator.getitem or node.target in _WITHOUT_DATA or is_view(node)


def _reached_from(sources: Sequence[fx.Node], calls: Sequence[fx.Node]) -> set[fx.Node]:
    reached = set(sources)
    for node in calls:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    return reached


def _span(tensor: Tensor) -> int:
    """From the first to the last byte of a tensor."""
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
