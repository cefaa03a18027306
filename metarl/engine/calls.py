"""A list of calls that write into given tensors, and two ways to run it: as one TorchScript function, or from Python.

A call from TorchScript takes half the time of one from Python. TorchScript also releases the GIL, so threads that each
run a list do not wait for each other. If TorchScript is missing or cannot compile the calls, they are made from Python,
one by one. Both ways call the same operations on the same memory, so results are the same bit for bit.
"""

import functools
import logging
import math
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

log = logging.getLogger(__name__)

aten = torch.ops.aten

Outputs: TypeAlias = Tensor | Sequence[Tensor | None]

use_torchscript = True
"""Whether lists of calls are compiled; tests set it to False."""


class Repetition(NamedTuple):
    """The copies before and after the calls of every time t."""

    sequences: list[Tensor]  # before the calls, element t of each of these
    places: list[Tensor]  # is copied to these
    results: list[Tensor]  # after the calls, each of these
    kept: list[Tensor]  # is copied to element t of these
    carried: list[Tensor]  # then these are overwritten
    following: list[Tensor]  # with these
    runs_on: Tensor  # bool, one of the carried: the repetition ends when no element is true


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


_COPIES = {"clone", "_to_copy"}
_COPY = str(aten.copy_.default._schema)
_WITH_NUMBERS = {aten.add, aten.sub, aten.mul, aten.div, aten.lt, aten.le, aten.gt, aten.ge, aten.eq, aten.ne}


class OperationCall(NamedTuple):
    """An operation, its arguments, and the tensors that get its results; `None` for a result that nobody needs."""

    operation: Any  # an overload in torch.ops.aten
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: str | None  # its argument for the tensor that it writes into; None: it allocates its results
    results: Outputs

    @property
    def name(self) -> str:
        """In torch.ops.aten."""
        return str(self.operation._schema.name).removeprefix("aten::")

    def bind(self) -> Callable[[], Any]:
        """The call as a function without arguments, for Python."""
        if self.out is not None:
            return functools.partial(self.operation, *self.args, **self.kwargs, **{self.out: self.results})
        if self.name in _COPIES:
            assert isinstance(self.results, Tensor)
            return functools.partial(aten.copy_.default, self.results, self.args[0])
        return self._call_and_copy

    def _call_and_copy(self) -> None:
        found = self.operation(*self.args, **self.kwargs)
        if isinstance(self.results, Tensor):
            pairs: Iterable[tuple[Tensor | None, Tensor]] = [(self.results, found)]
        else:
            pairs = zip(self.results, found or (), strict=True)
        for place, result in pairs:
            if place is None:
                continue
            if result.shape != place.shape:
                raise RuntimeError(f"{self.operation} must return {place.shape}, got {result.shape}: values decide")
            place.copy_(result)


def make_call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Outputs) -> OperationCall:
    """A call that writes the results of `target(*args, **kwargs)` into `results`, if possible without other memory."""
    target, args, kwargs = _replace_numbers(target, args, kwargs)
    if (found := _out_variant(target)) is None:
        return OperationCall(target, args, kwargs, None, results)
    return OperationCall(found[0], args, kwargs, found[1], results)


class CallList:
    """Calls that are made in order: compiled as one TorchScript function, or one by one from Python."""

    def __init__(self, calls: Sequence[OperationCall]) -> None:
        self._calls = [call.bind() for call in calls]
        self._tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}
        self._parts: tuple[str, str] | None = None
        self._functions: dict[str, Callable[..., Any]] = {}
        self._operations: Counter[str] = Counter()  # by schema: operations of the same name differ
        try:
            lines = [line for i, call in enumerate(calls) for line in self._lines(i, call)]
            names = [f"x{i} = x[{i}]" for i in range(len(self._tensors))]
            self._parts = "\n    ".join(names), "\n        ".join(lines or ["pass"])
        except ValueError as error:
            log.info("operations are called one by one: %s", error)

    def run(self, compiled: bool = True) -> None:
        """Make all calls."""
        if (function := self._compile(_ONCE) if compiled else None) is not None:
            function(self._tensors)
        else:
            for call in self._calls:
                call()

    def repeat(self, repetition: Repetition, compiled: bool = True) -> int:
        """Repeat all calls until no element of `runs_on` is true; returns the number of repetitions."""
        if (function := self._compile(_MANY) if compiled else None) is not None:
            return int(function(self._tensors, *repetition))
        for t in range(len(repetition.kept[0])):
            for place, sequence in zip(repetition.places, repetition.sequences, strict=True):
                place.copy_(sequence[t])
            for call in self._calls:
                call()
            for kept, result in zip(repetition.kept, repetition.results, strict=True):
                kept[t].copy_(result)
            for before, after in zip(repetition.carried, repetition.following, strict=True):
                before.copy_(after)
            if not repetition.runs_on.any():
                return t + 1
        return len(repetition.kept[0])

    def _compile(self, template: str) -> Callable[..., Any] | None:
        """The TorchScript function; `None` where the calls must be made from Python."""
        if self._parts is None or not use_torchscript:
            return None
        if template not in self._functions:
            try:
                function, schemas = compile_script(template, *self._parts)
                if others := self._operations - schemas:
                    raise RuntimeError(f"TorchScript takes another operation for {next(iter(others))}")
                self._functions[template] = function
            except Exception as error:  # versions of torch raise different ones, and warnings may be errors
                log.info("operations are called one by one: %s", str(error).strip().split("\n")[0])
                self._parts = None
        return self._functions.get(template)

    def _lines(self, i: int, call: OperationCall) -> list[str]:
        kinds = [str(a.type) for a in call.operation._schema.arguments]
        given = [self._literal(x) for x in call.args]
        for k, kind in enumerate(kinds[: len(given)]):
            if kind == "List[Optional[Tensor]]":
                given[k] = f"torch.jit.annotate({kind}, {given[k]})"
        # all keywords, so that TorchScript picks the same overload
        given += [f"{k}={self._literal(x)}" for k, x in {**_defaults(call.operation), **call.kwargs}.items()]
        self._operations[_COPY if call.name in _COPIES else str(call.operation._schema)] += 1
        name = f"torch.ops.{str(call.operation._schema.name).replace('::', '.')}"
        # write into the place directly if the operation can, else copy its results there
        if call.out is not None:
            return [f"{name}({', '.join([*given, f'{call.out}={self._literal(call.results)}'])})"]
        if call.name in _COPIES:
            return [f"{self._literal(call.results)}.copy_({given[0]})"]
        made = f"{name}({', '.join(given)})"
        if isinstance(call.results, Tensor):
            return [f"r{i} = {made}", *self._copy_lines(f"r{i}", call.results)]
        if not call.operation._schema.returns:
            return [made]
        parts = [(f"r{i}[{k}]", x) for k, x in enumerate(call.results) if x is not None]
        return [f"r{i} = {made}", *[line for part, x in parts for line in self._copy_lines(part, x)]]

    def _copy_lines(self, result: str, place: Tensor) -> list[str]:
        word = self._literal(place)
        return [f"assert {result}.size() == {word}.size()", f"{word}.copy_({result})"]

    def _literal(self, value: Any) -> str:
        if isinstance(value, Tensor):
            number = self._numbers.setdefault(id(value), len(self._tensors))
            if number == len(self._tensors):
                self._tensors.append(value)
            return f"x{number}"
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._literal, value))}]"
        if isinstance(value, complex):
            return f"complex({self._literal(value.real)}, {self._literal(value.imag)})"
        if isinstance(value, float):
            plain = math.isfinite(value) and (value != 0 or math.copysign(1, value) > 0)
            return float.__repr__(value) if plain else f"float('{value}')"  # TorchScript would merge 0.0 and -0.0
        if isinstance(value, str) and value.isidentifier():
            return f"'{value}'"
        if isinstance(value, torch.device):
            return f"torch.device('{value}')"
        if value is None or isinstance(value, bool | int | torch.dtype | torch.layout | torch.memory_format):
            return str(value)
        raise ValueError(f"{value!r} cannot be written in TorchScript")


_COMPILING = threading.Lock()  # filters of warnings are shared by all threads


@functools.lru_cache(maxsize=64)
def compile_script(template: str, names: str, lines: str) -> tuple[Callable[..., Any], Counter[str]]:
    """The TorchScript function of a list of calls, and how often it calls each operation.

    Lists of the same calls share it, also in several threads.
    """
    with _COMPILING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        unit = torch.jit.CompilationUnit(template.format(names=names, lines=lines))
        run, as_it_is = unit.run, torch.jit.optimized_execution  # type: ignore[attr-defined]

    def function(*arguments: Any) -> Any:
        with as_it_is(False):  # its optimisations take 0.1 s in the first runs, and find nothing
            return run(*arguments)

    return function, _count_schemas(run.graph)


def _count_schemas(block: Any) -> Counter[str]:
    """How often each operation is called in a compiled graph."""
    found: Counter[str] = Counter()
    for node in block.nodes():
        found[str(node.schema())] += 1
        for inner in node.blocks():
            found += _count_schemas(inner)
    return found


@functools.cache
def _defaults(operation: Any) -> dict[str, Any]:
    """Keywords with default values: with all of them TorchScript finds the right one of several operations."""
    return {a.name: a.default_value for a in operation._schema.arguments if a.kwarg_only and a.has_default_value()}


def _replace_numbers(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The same call with an equal tensor instead of a number, if possible: with a number torch would make a copy."""
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
_HALF = {torch.float16, torch.bfloat16, torch.complex32}  # their kernels take numbers in higher precision


def _as_tensor(number: Any, beside: Tensor) -> Tensor | None:
    """A tensor that promotes the type of `beside` just as the number does; `None` if no tensor does."""
    dtype = torch.result_type(beside, number)
    if type(number) not in _NATURAL or dtype in _HALF:
        return None
    tensor = torch.tensor(number, dtype=_NATURAL[type(number)])
    if dtype.is_floating_point or dtype.is_complex:  # otherwise unsafe: a uint8 cannot hold the -1 of -1 / uint8
        tensor = tensor.to(dtype)
    return tensor if torch.result_type(beside, tensor) == dtype else None


_RESIZES = {aten.binary_cross_entropy.out, aten.soft_margin_loss.out}
"""Variants that resize the tensor they are given for intermediates."""


@functools.cache
def _out_variant(target: Any) -> tuple[Any, str] | None:
    """The overload that writes its single result into a given tensor, and its argument for that tensor."""
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in target.overloadpacket.overloads():
        overload = getattr(target.overloadpacket, name)
        outs = [a.name for a in overload._schema.arguments if a.is_out]
        rest = [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out]
        generated = torch.Tag.generated in overload.tags  # generated ones make a copy
        if (
            rest == wanted
            and len(outs) == len(target._schema.returns) == 1
            and not generated
            and overload not in _RESIZES
        ):
            return overload, outs[0]
    return None
