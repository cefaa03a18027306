"""A list of calls that write into given tensors, as one TorchScript function.

No interpreter lock is held while that runs, so threads that each run a list do not wait for each other; and a call
takes half the time of one from Python.
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

log = logging.getLogger(__name__)

aten = torch.ops.aten

Results: TypeAlias = Tensor | Sequence[Tensor | None]


class Repetition(NamedTuple):
    """What happens around calls that are made again and again, at time t."""

    sequences: list[Tensor]  # whose element t is copied
    places: list[Tensor]  # to these before the calls;
    results: list[Tensor]  # which are copied after the calls
    kept: list[Tensor]  # to element t of these;
    carried: list[Tensor]  # which get, at last,
    following: list[Tensor]  # the values of these
    runs_on: Tensor  # bool, one of the carried


_ONCE = """
def run(x: List[Tensor]):
    {names}
    if True:
        {lines}
    return None
"""

_MANY = """
def run(
    x: List[Tensor],
    sequences: List[Tensor],
    places: List[Tensor],
    results: List[Tensor],
    kept: List[Tensor],
    carried: List[Tensor],
    following: List[Tensor],
    runs_on: Tensor,
) -> int:
    {names}
    for t in range(kept[0].size(0)):
        for i in range(len(sequences)):
            places[i].copy_(sequences[i][t])
        {lines}
        for i in range(len(kept)):
            kept[i][t].copy_(results[i])
        for i in range(len(carried)):
            carried[i].copy_(following[i])
        if not bool(runs_on.any()):
            return t + 1
    return kept[0].size(0)
"""


def _indented(lines: Sequence[str]) -> str:
    return "\n        ".join(lines or ["pass"])


_COPIES = {"clone", "_to_copy"}
_COPY = str(aten.copy_.default._schema)
_WITH_NUMBERS = {aten.add, aten.sub, aten.mul, aten.div, aten.lt, aten.le, aten.gt, aten.ge, aten.eq, aten.ne}


class Call(NamedTuple):
    """An operation, its arguments, and the tensors that get its results; `None` for one that nobody wants."""

    operation: Any  # an overload in torch.ops.aten
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: str | None  # what it calls the tensor it writes its result into; None: it makes its results itself
    results: Results

    @property
    def name(self) -> str:
        """In torch.ops.aten."""
        return str(self.operation._schema.name).removeprefix("aten::")

    def __call__(self) -> None:
        """From Python."""
        if self.out is not None:
            self.operation(*self.args, **self.kwargs, **{self.out: self.results})
            return
        found = self.args[0] if self.name in _COPIES else self.operation(*self.args, **self.kwargs)
        pairs = (
            [(self.results, found)] if isinstance(self.results, Tensor) else zip(self.results, found or (), strict=True)
        )
        for place, result in pairs:
            if place is not None:
                if result.shape != place.shape and self.name not in _COPIES:
                    raise RuntimeError(
                        f"{self.operation} gave {result.shape} for {place.shape}: that depends on values"
                    )
                place.copy_(result)


def writing(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Results) -> Call:
    """The call that leaves what `target(*args, **kwargs)` gives in `results`, without other memory where it can."""
    target, args, kwargs = _without_numbers(target, args, kwargs)
    found = _out_variant(target)
    return (
        Call(target, args, kwargs, None, results) if found is None else Call(found[0], args, kwargs, found[1], results)
    )


class Script:
    """Calls as one compiled function; one by one where they cannot be compiled."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = list(calls)
        self._tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}
        self._parts: tuple[str, str] | None = None
        self._functions: dict[str, Callable[..., Any]] = {}
        self._operations: Counter[str] = Counter()  # by schema: they are not told apart by name
        try:
            lines = [line for i, call in enumerate(calls) for line in self._lines(i, call)]
            names = [f"x{i} = x[{i}]" for i in range(len(self._tensors))]
            self._parts = "\n    ".join(names), _indented(lines)
        except ValueError as error:
            log.info("operations are called one by one: %s", error)

    def once(self, compiled: bool = True) -> None:
        """Make all calls."""
        if (function := self._function(_ONCE) if compiled else None) is None:
            for call in self._calls:
                call()
        else:
            with _as_it_stands():
                function(self._tensors)

    def many(self, repetition: "Repetition", compiled: bool = True) -> int:
        """Make all calls again and again, until no element of `runs_on` is true; returns how often."""
        if (function := self._function(_MANY) if compiled else None) is not None:
            with _as_it_stands():
                return int(function(self._tensors, *repetition))
        for t in range(len(repetition.kept[0])):
            for place, sequence in zip(repetition.places, repetition.sequences, strict=True):
                place.copy_(sequence[t])
            self.once(compiled)
            for record, result in zip(repetition.kept, repetition.results, strict=True):
                record[t].copy_(result)
            for before, after in zip(repetition.carried, repetition.following, strict=True):
                before.copy_(after)
            if not repetition.runs_on.any():
                return t + 1
        return len(repetition.kept[0])

    def _function(self, template: str) -> Callable[..., Any] | None:
        if template not in self._functions and self._parts is not None:
            try:
                function = _compiled(template, *self._parts)
                if others := self._operations - _schemas(function.graph):  # type: ignore[attr-defined]
                    raise RuntimeError(f"TorchScript takes another operation for {next(iter(others))}")
                self._functions[template] = function
            except RuntimeError as error:
                log.info("operations are called one by one: %s", str(error).strip().split("\n")[0])
                self._parts = None
        return self._functions.get(template)

    def _lines(self, i: int, call: Call) -> list[str]:
        kinds = [str(a.type) for a in call.operation._schema.arguments]
        given = [self._word(x) for x in call.args]
        for k, kind in enumerate(kinds[: len(given)]):
            if kind == "List[Optional[Tensor]]":
                given[k] = f"torch.jit.annotate({kind}, {given[k]})"
        given += [f"{k}={self._word(x)}" for k, x in {**_defaults(call.operation), **call.kwargs}.items()]
        self._operations[_schema_of(call)] += 1
        name = f"torch.ops.{str(call.operation._schema.name).replace('::', '.')}"
        if call.out is not None:
            return [f"{name}({', '.join([*given, f'{call.out}={self._word(call.results)}'])})"]
        if call.name in _COPIES:
            return [f"{self._word(call.results)}.copy_({given[0]})"]
        made = f"{name}({', '.join(given)})"
        if isinstance(call.results, Tensor):
            return [f"r{i} = {made}", *self._copying(f"r{i}", call.results)]
        if not call.operation._schema.returns:
            return [made]
        parts = [(f"r{i}[{k}]", x) for k, x in enumerate(call.results) if x is not None]
        return [f"r{i} = {made}", *[line for part, x in parts for line in self._copying(part, x)]]

    def _copying(self, result: str, place: Tensor) -> list[str]:
        word = self._word(place)
        return [f"assert {result}.size() == {word}.size()", f"{word}.copy_({result})"]

    def _word(self, value: Any) -> str:
        if isinstance(value, Tensor):
            number = self._numbers.setdefault(id(value), len(self._tensors))
            if number == len(self._tensors):
                self._tensors.append(value)
            return f"x{number}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._word, value))}]"
        if isinstance(value, complex):
            return f"complex({self._word(value.real)}, {self._word(value.imag)})"
        if isinstance(value, float):
            plain = math.isfinite(value) and (value != 0 or math.copysign(1, value) > 0)
            return float.__repr__(value) if plain else f"float('{value}')"  # TorchScript takes 0.0 and -0.0 for one
        if isinstance(value, str) and value.isidentifier():
            return f"'{value}'"
        if isinstance(value, torch.device):
            return f"torch.device('{value}')"
        if value is None or isinstance(value, bool | int | torch.dtype | torch.layout | torch.memory_format):
            return str(value)
        raise ValueError(f"{value!r} has no text")


@functools.lru_cache(maxsize=64)
def _compiled(template: str, names: str, lines: str) -> Callable[..., Any]:
    """The TorchScript function; that of another list of the same calls, which may run in another thread, is as good."""
    unit = torch.jit.CompilationUnit(template.format(names=names, lines=lines))
    function: Callable[..., Any] = unit.run
    return function


def _schemas(block: Any) -> Counter[str]:
    """How often each operation is called in a compiled graph."""
    found: Counter[str] = Counter()
    for node in block.nodes():
        found[str(node.schema())] += 1
        for inner in node.blocks():
            found += _schemas(inner)
    return found


def _schema_of(call: Call) -> str:
    return _COPY if call.name in _COPIES else str(call.operation._schema)


@functools.cache
def _defaults(operation: Any) -> dict[str, Any]:
    """What is left out of a call; with all its keywords TorchScript finds the right one of several operations."""
    return {a.name: a.default_value for a in operation._schema.arguments if a.kwarg_only and a.has_default_value()}


def _as_it_stands() -> AbstractContextManager[None]:
    """Without the passes that TorchScript makes in the first runs: they take 0.1 s and find nothing."""
    context: AbstractContextManager[None] = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return context


def _without_numbers(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The same call with a tensor for its number, where that is the same: with a number it would make a copy."""
    if target._opname in _COPIES and type(args[0]) in _NATURAL:
        return target, (torch.tensor(args[0], dtype=_NATURAL[type(args[0])]), *args[1:]), kwargs
    if target.overloadpacket not in _WITH_NUMBERS or target._overloadname not in ("Tensor", "Scalar"):
        return target, args, kwargs
    tensor, number, *alpha = args
    if isinstance(number, Tensor) or not isinstance(tensor, Tensor):
        return target, args, kwargs
    given = {**kwargs, **({"alpha": alpha[0]} if alpha else {})}
    if (same := _as_tensor(number, tensor)) is None:
        return target.overloadpacket.Scalar, (tensor, number), given
    return target.overloadpacket.Tensor, (tensor, same), given


_NATURAL = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}
_HALF = {torch.float16, torch.bfloat16, torch.complex32}  # whose kernels compute with numbers in more digits


def _as_tensor(number: Any, beside: Tensor) -> Tensor | None:
    """A tensor that changes the type of what it is beside just as the number does; `None` if there is none."""
    dtype = torch.result_type(beside, number)
    if type(number) not in _NATURAL or dtype in _HALF:
        return None
    tensor = torch.tensor(number, dtype=_NATURAL[type(number)])
    if (
        dtype.is_floating_point or dtype.is_complex
    ):  # else -1 stays -1 beside a uint8, which a quotient of the two needs
        tensor = tensor.to(dtype)
    return tensor if torch.result_type(beside, tensor) == dtype else None


_RESIZES = {aten.binary_cross_entropy.out, aten.soft_margin_loss.out}
"""Variants that use the tensor they are given for something larger in between."""


@functools.cache
def _out_variant(target: Any) -> tuple[Any, str] | None:
    """The overload of an operation with one result that writes it into a given tensor, and what it calls that."""
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        overload = getattr(target.overloadpacket, name)
        outs = [a.name for a in overload._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out]
        generated = torch.Tag.generated in overload.tags  # which makes a copy
        if (
            rest == wanted
            and len(outs) == len(target._schema.returns) == 1
            and not generated
            and overload not in _RESIZES
        ):
            return overload, outs[0]
    return None
