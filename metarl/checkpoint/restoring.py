"""Checks of the entries of a learner's saved state, before any of them is used."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.callbacks import Callback
from metarl.checkpoint.structure import Where, check_count, check_like, described, name_of
from metarl.errors import StateError
from metarl.schedules import from_data
from metarl.types import Params


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """While a part of one's own reads its state: whatever it raises becomes one `StateError` that names the part."""
    try:
        yield
    except StateError:
        raise
    except Exception as error:  # what it makes of a foreign state
        reason = str(error).strip().split("\n")[0]
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise StateError(f"{name} does not fit: {kind}{reason}") from error


def check_mapping(found: object, where: Where) -> dict[str, Any]:
    """`found` as a dictionary whose keys are texts.

    Raises:
        StateError: naming the entry.
    """
    if not isinstance(found, Mapping) or not all(type(key) is str for key in found):
        raise StateError(f"{name_of(where)} must be a dictionary with texts as keys, found {described(found)}")
    return dict(found)


def check_saved_params(found: object, own: Params) -> None:
    """Raise a `StateError` where `found` are not parameters of the same names, shapes and types as `own`."""
    saved = check_mapping(found, ("params",))
    for key, value in saved.items():
        if not isinstance(value, Tensor):
            raise StateError(f"{name_of(('params', key))} must be a tensor, found {described(value)}")
    shapes, others = ({k: tuple(v.shape) for k, v in p.items()} for p in (own, saved))
    if shapes != others:
        raise StateError(f"the checkpoint's parameters must have the shapes {shapes}, found {others}")
    check_like(saved, own, ("params",))


def check_saved_counts(found: object) -> None:
    """Raise a `StateError` where `found` does not say how often things were done."""
    for key, value in check_mapping(found, ("counts",)).items():
        check_count(value, ("counts", key))


def check_saved_callbacks(found: object) -> None:
    """Raise a `StateError` where `found` is not a list of pairs: the name of a callback's class, and its state."""
    if not isinstance(found, list | tuple):
        raise StateError(f"callbacks must be a list, found {described(found)}")
    for i, pair in enumerate(found):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or type(pair[0]) is not str:
            raise StateError(f"callbacks[{i}] must be the name of a class and its state, found {described(pair)}")
        if not isinstance(pair[1], Mapping):
            raise StateError(f"callbacks[{i}] must have a dictionary as its state, found {described(pair[1])}")


def check_complete(state: Mapping[str, Any]) -> None:
    """Raise a `StateError` where entries of a learner's state are missing, or there are others."""
    keys = {"config", "params", "outer_step", "counts", "iterations", "rng", "callbacks"}
    if missing := keys - set(state):
        raise StateError(
            f"the state must be that of a learner (a checkpoint's), but {sorted(missing)} are missing from it"
        )
    if more := set(state) - keys - {"source", "format"}:
        raise StateError(
            f"the state must be that of a learner (a checkpoint's), but it has {sorted(map(str, more))}, too"
        )


def check_config(found: object, own: Mapping[str, Any], changed: Collection[str] = ()) -> None:
    """Raise a `StateError` where `found` are not the settings of the learner, but for what may have been `changed`."""
    saved = check_mapping(found, ("config",))
    free = {*changed, *(["scheduled"] if "schedule" in changed else [])}
    added = {"schedule"} - set(saved)  # which older versions did not write
    for key, value in own.items():
        if key not in free | added and not same(saved.get(key), value):
            raise StateError(f"{key} is {value!r}, but the checkpoint was trained with {saved.get(key)!r}")


def _optimizer(name: object) -> type[torch.optim.Optimizer] | None:
    """The class of that name in `torch.optim`, and nothing else that is there."""
    found = getattr(torch.optim, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) else None


def constructor_arguments(found: object, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """What a checkpoint's configuration says of the constructor's arguments, completed by what was given.

    `known` are the names of all of them.

    Raises:
        StateError: when something a file cannot hold is missing, or the file has settings that no learner has.
    """
    config = check_mapping(found, ("config",))
    arguments = {key: value for key, value in config.items() if key not in ("scheduled", "outer_step")}
    own_step = config.get("outer_step") is not None
    if more := set(arguments) - set(known):
        raise StateError(f"config must hold the settings of a learner, found also {sorted(more)}")
    if not own_step:
        arguments["optimizer"] = _optimizer(config["optimizer"])
        arguments["schedule"] = from_data(config.get("schedule"))
    missing = {
        "outer": config["outer"] is None,
        "optimizer": not own_step and arguments["optimizer"] is None,
        "schedule": not own_step and config["scheduled"] and arguments["schedule"] is None,
        "outer_step": own_step,
    }
    for argument, is_missing in missing.items():
        if is_missing and argument not in given:
            raise StateError(f"{argument} must be given to load this checkpoint: a file cannot hold it")
    return {**arguments, **given}


def same(one: Any, other: Any) -> bool:
    """Whether two settings are equal, arrays and tensors entry by entry, however deep they are."""
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        if type(one) is not type(other) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        return torch.equal(one, other) if isinstance(one, Tensor) else bool((one == other).all())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def restore_callbacks(callbacks: Iterable[Callback], saved: list[tuple[str, dict[str, Any]]]) -> None:
    """Give each callback the state of the first saved one of its kind, which is taken out of `saved`."""
    for callback in callbacks:
        for i, (kind, state) in enumerate(saved):
            if kind == type(callback).__name__:
                with fitting(f"callbacks[{i}], the state of {kind},"):
                    callback.load_state_dict(state)
                del saved[i]
                break
