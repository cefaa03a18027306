"""Encode Python values as plain values and tensors, and decode them to the same types.

Types that can be built from plain values are written as `{"__metarl__": kind, "value": ...}`: numpy's scalars and
arrays, paths, sets, ranges, fractions and a few more. Decoding runs no foreign code, so objects of a user's class
cannot be encoded: they are refused, naming the entry.
"""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarl.state_dict import Where, name_of

TAG = "__metarl__"
DEPTH = 100
"""How deep values may be nested."""

SCALARS = (type(None), bool, int, float, str, bytes)
NATIVE = (torch.Size, torch.dtype, torch.device, complex, bytearray)  # which older files hold directly
ARRAY_KINDS = "biufcSUmM"  # of numpy's dtypes; neither objects nor structures
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
FACTORIES: dict[str | None, type | None] = {f.__name__: f for f in (list, int, float, dict, set, str, bool, tuple)}
FACTORIES[None] = None


def _build_default_dict(parts: Any) -> defaultdict[Any, Any]:
    factory, entries = parts
    return defaultdict(FACTORIES[factory], entries)


def _take_array_apart(x: np.ndarray[Any, Any] | np.generic) -> list[Any]:
    data = torch.tensor(np.frombuffer(x.tobytes(), np.uint8).copy(), dtype=torch.uint8)
    return [x.dtype.str, list(x.shape), data]


def _build_array(parts: Any) -> np.ndarray[Any, Any]:
    name, shape, data = parts
    dtype = np.dtype(name)
    if dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"the dtype must be of numbers or text, found {name!r:.60}")
    if dtype.itemsize == 0 or data.numel() == 0:
        return np.zeros(shape, dtype) if 0 in shape or dtype.itemsize == 0 else np.frombuffer(b"", dtype)
    return np.frombuffer(data.numpy().tobytes(), dtype).reshape(shape).copy()


class Kind(NamedTuple):
    """A type that is written as plainer values: `parts` takes a value apart, `build` makes it again."""

    type: type
    parts: Callable[[Any], Any]
    build: Callable[[Any], Any]


KINDS: dict[str, Kind] = {
    "complex": Kind(complex, lambda x: [x.real, x.imag], lambda parts: complex(*parts)),
    "bytearray": Kind(bytearray, bytes, bytearray),
    "range": Kind(range, lambda x: [x.start, x.stop, x.step], lambda parts: range(*parts)),
    "slice": Kind(slice, lambda x: [x.start, x.stop, x.step], lambda parts: slice(*parts)),
    "set": Kind(set, list, set),
    "frozenset": Kind(frozenset, list, frozenset),
    "deque": Kind(deque, lambda x: [list(x), x.maxlen], lambda parts: deque(*parts)),
    "ordered_dict": Kind(OrderedDict, lambda x: [list(pair) for pair in x.items()], OrderedDict),
    "counter": Kind(Counter, lambda x: [list(pair) for pair in x.items()], lambda parts: Counter(dict(parts))),
    "fraction": Kind(Fraction, lambda x: [x.numerator, x.denominator], lambda parts: Fraction(*parts)),
    "decimal": Kind(Decimal, str, Decimal),
    "path": Kind(type(Path()), str, Path),
    "dtype": Kind(torch.dtype, lambda x: str(x).removeprefix("torch."), DTYPES.__getitem__),
    "device": Kind(torch.device, str, torch.device),
    "size": Kind(torch.Size, list, torch.Size),
    # the type alone does not identify these
    "dict": Kind(dict, lambda x: [list(pair) for pair in x.items()], dict),
    "default_dict": Kind(
        defaultdict, lambda x: [getattr(x.default_factory, "__name__", None), dict(x)], _build_default_dict
    ),
    "array": Kind(np.ndarray, _take_array_apart, _build_array),
    "scalar": Kind(np.generic, _take_array_apart, lambda parts: _build_array(parts)[()]),
    "parameter": Kind(torch.nn.Parameter, lambda x: [x.detach(), x.requires_grad], lambda x: torch.nn.Parameter(*x)),
    "leaf": Kind(Tensor, lambda x: x.detach(), lambda x: x.requires_grad_()),
}


def encode(value: Any, where: Where = ()) -> Any:
    """`value` as plain values, and tensors on the CPU that share no memory.

    Raises:
        ValueError: for a value that cannot be encoded, naming the entry and its type.
    """
    if len(where) > DEPTH:
        raise ValueError(f"{name_of(where[:2])} must be nested at most {DEPTH} deep to be saved; does it hold itself?")
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is Tensor and not value.requires_grad:
        return _copy(value, where)
    if kind is list or kind is tuple:
        return kind(encode(entry, (*where, i)) for i, entry in enumerate(value))
    if kind is dict and TAG not in value and all(type(key) in SCALARS for key in value):
        return {key: encode(entry, (*where, key)) for key, entry in value.items()}
    name = _find_kind(value, where)
    return {TAG: name, "value": encode(KINDS[name].parts(value), (*where, name))}


def decode(value: Any, limit: int = 1 << 40) -> Any:
    """The value that `encode` was given.

    Raises:
        ValueError: for values that `encode` does not return, or over `limit` entries (a small file may claim many).
    """
    entries = 0

    def rebuild(value: Any, where: Where) -> Any:
        nonlocal entries
        entries += 1
        if entries > limit or len(where) > 3 * DEPTH:
            raise ValueError("it has more entries than its size can hold")
        if type(value) in (*SCALARS, *NATIVE, Tensor, torch.nn.Parameter):
            return value
        if type(value) in (list, tuple, set):
            return type(value)(rebuild(entry, (*where, i)) for i, entry in enumerate(value))
        if type(value) is OrderedDict or (isinstance(value, dict) and TAG not in value):
            pairs = ((key, rebuild(entry, (*where, key))) for key, entry in value.items())
            return type(value)(pairs) if type(value) is not Counter else Counter(dict(pairs))
        if type(value) is dict and set(value) == {TAG, "value"}:
            return _build(value[TAG], rebuild(value["value"], (*where, TAG)), where)
        raise ValueError(f"{name_of(where)} must be plain data, found {type(value).__name__}")

    return rebuild(value, ())


def tensors(value: Any, where: Where = ()) -> Iterator[tuple[Where, Tensor]]:
    """Yields every tensor in nested containers, with its place."""
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from tensors(entry, (*where, key))
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from tensors(entry, (*where, i))


def _find_kind(value: Any, where: Where) -> str:
    kind = type(value)
    if isinstance(value, np.generic | np.ndarray):
        if value.dtype.kind in ARRAY_KINDS and (kind is np.ndarray or isinstance(value, np.generic)):
            return "array" if kind is np.ndarray else "scalar"
    elif kind is Tensor:
        return "leaf"
    elif kind is not defaultdict or value.default_factory in FACTORIES.values():
        for name, known in KINDS.items():
            if kind is known.type:
                return name
    dtype = f" of dtype {value.dtype}" if isinstance(value, np.generic | np.ndarray) else ""
    raise ValueError(
        f"{name_of(where)} must be plain data to be saved (numbers, text, tensors, arrays, and containers of them), "
        f"got {kind.__name__}{dtype}{_hint(value)}"
    )


def _hint(value: Any) -> str:
    if isinstance(value, Enum):
        return "; save its name or value"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return "; save tuple(...) or ._asdict() of it"
    if isinstance(value, torch.Generator):
        return "; save its get_state()"
    if isinstance(value, np.random.Generator):
        return "; save metarl.random.generator_state(...) of it"
    if hasattr(value, "__dataclass_fields__"):
        return "; save dataclasses.asdict(...) of it"
    return ""


def _copy(value: Tensor, where: Where) -> Tensor:
    """A copy on the CPU in new memory, so that a view is saved without the rest of its storage."""
    if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.is_meta:
        raise ValueError(f"{name_of(where)} must be a dense tensor to be saved, got {value.layout} on {value.device}")
    plain = value.detach().resolve_conj().resolve_neg().cpu()
    return plain.clone(memory_format=torch.contiguous_format)


def _build(name: Any, parts: Any, where: Where) -> Any:
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{name_of(where)} must be of a kind this version knows, found {name!r:.60}")
    try:
        return KINDS[name].build(parts)
    except Exception as error:  # wrong parts can raise any of them
        raise ValueError(f"{name_of(where)} must hold the parts of a {name}: {error}") from None
