"""States from `state_dict()`: copied, and compared with what is expected before they are loaded.

An optimizer whose state has another shape writes out of bounds, so a saved state is never trusted to fit.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from metarl.errors import StateError

Where: TypeAlias = tuple[object, ...]
"""The keys and indices that lead to an entry."""


def name_of(where: Where) -> str:
    """An entry as people write it: `outer_step.optimizer.state[0].step`."""
    text = ""
    for key in where:
        text += (f".{key}" if text else key) if isinstance(key, str) and key.isidentifier() else f"[{key!r:.60}]"
    return text or "the state"


def describe(value: object) -> str:
    """A value in a few words, for messages: a tensor by its shape and dtype."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with the keys {list(value)!r:.60}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r:.60}"


def check_like(found: object, wanted: object, where: Where = ()) -> None:
    """Check that `found` has the structure of `wanted`; the values of numbers, texts and tensors may differ.

    An integer is accepted for a float. Dictionaries must have the same keys, lists and tuples the same length.

    Raises:
        StateError: naming the first entry that differs, what was expected and what was found.

    Example:
        >>> check_like({"steps": 3, "rate": 1}, {"steps": 0, "rate": 0.5})
    """
    if isinstance(wanted, Tensor):
        good = isinstance(found, Tensor) and found.shape == wanted.shape and found.dtype == wanted.dtype
        _check(good and found.layout == wanted.layout, found, describe(wanted), where)  # type: ignore[attr-defined]
    elif isinstance(wanted, Mapping):
        for key, entry in check_keys(found, wanted, where).items():
            check_like(entry, wanted[key], (*where, key))
    elif isinstance(wanted, list | tuple):
        good = type(found) is type(wanted) and len(found) == len(wanted)
        _check(good, found, describe(wanted), where)
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):  # type: ignore[call-overload]
            check_like(one, other, (*where, i))
    else:
        good = type(found) is type(wanted) or (type(wanted) is float and type(found) is int)
        if type(found) is int:
            good = good and abs(found) < 2**128  # the numbers of a random generator are the largest
        _check(good, found, type(wanted).__name__, where)


def check_keys(found: object, wanted: Mapping[Any, object], where: Where = ()) -> dict[Any, Any]:
    """`found` as a dictionary with exactly the keys of `wanted`.

    Raises:
        StateError: naming the missing or unexpected keys.
    """
    _check(isinstance(found, Mapping), found, describe(wanted), where)
    entries: dict[Any, Any] = dict(found)  # type: ignore[call-overload]
    if missing := [key for key in wanted if key not in entries]:
        raise StateError(f"{name_of(where)} must have the keys {list(wanted)!r:.300}, but {missing!r:.120} are missing")
    if more := [key for key in entries if key not in wanted]:
        raise StateError(f"{name_of(where)} must have the keys {list(wanted)!r:.300}, found also {more!r:.120}")
    return entries


def check_mapping(found: object, where: Where) -> dict[str, Any]:
    """`found` as a dictionary whose keys are texts.

    Raises:
        StateError: naming the entry.
    """
    good = isinstance(found, Mapping) and all(type(key) is str for key in found)
    _check(good, found, "a dictionary with texts as keys", where)
    return dict(found)  # type: ignore[call-overload,no-any-return]


def check_count(found: object, where: Where) -> int:
    """`found` as an integer that counts something.

    Raises:
        StateError: naming the entry.
    """
    good = type(found) is int and 0 <= found < 2**63
    _check(good, found, "an integer of at least 0", where)
    return int(found)  # type: ignore[call-overload,no-any-return]


def snapshot(value: Any) -> Any:
    """A copy of nested containers; later changes of the original do not reach it."""
    return _map_tensors(Tensor.clone, value)


def skeleton(value: Any) -> Any:
    """`value` with its tensors replaced by ones that take no memory, for `check_like`."""
    return _map_tensors(lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype, device="meta"), value)


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(function, entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(function, entry) for entry in value)
    return value


def _check(good: bool, found: object, wanted: str, where: Where) -> None:
    if not good:
        raise StateError(f"{name_of(where)} must be {wanted}, found {describe(found)}")
