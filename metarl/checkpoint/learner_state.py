"""A learner's saved state: every entry is checked before any is used.

It also holds what the task source has learned, such as statistics of observations (`metarl.types.LearningSource`).
"""

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from metarl import checkpoint
from metarl.callbacks import Callback
from metarl.errors import StateError
from metarl.outer import Method, make_method
from metarl.schedules import from_data
from metarl.state_dict import check_count, check_keys, check_like, check_mapping, describe
from metarl.step import (
    HypergradientStep,
    OptimizerFactory,
    OptimizerStep,
    OuterStep,
    ProximalStep,
    Schedule,
    TrustRegionStep,
)
from metarl.types import LearningSource, Params, TaskSource

RESTORABLE: dict[str, Callable[..., OuterStep]] = {
    step.__name__: step for step in (HypergradientStep, ProximalStep, TrustRegionStep)
}
"""Outer steps that a file can hold, beside optimisers: `make_step` makes them again from their `config()`."""

OF_STEPS = ("learning_rate", "optimizer", "max_grad_norm", "scheduled", "schedule", "inner_lr_rate", "step_options")
"""Settings that only some outer steps have."""


def check_complete(state: Mapping[str, Any]) -> None:
    """Check that the state has the entries of a learner, and no others.

    Raises:
        StateError: naming the missing or unexpected entries.
    """
    wanted = dict.fromkeys(("config", "params", "outer_step", "counts", "iterations", "rng", "callbacks"))
    check_keys({key: value for key, value in state.items() if key not in ("source", "format")}, wanted)


def check_config(found: object, own: Mapping[str, Any], changed: Collection[str] = ()) -> None:
    """Check that `found` equals the learner's own settings, except those in `changed`.

    Raises:
        StateError: naming the setting that differs.
    """
    saved = check_mapping(found, ("config",))
    free = {*changed, *(["scheduled"] if "schedule" in changed else [])}
    added = {"schedule", "inner_lr_rate"} - set(saved)  # older versions did not write it
    if more := set(saved) - set(own) - set(OF_STEPS):
        raise StateError(f"config must hold the settings of a learner, found also {sorted(more)}")
    for key, value in own.items():
        if key not in free | added and not _equal(saved.get(key), value):
            raise StateError(f"{key} is {value!r}, but the checkpoint was trained with {saved.get(key)!r}")


def check_entries(state: Mapping[str, Any], params: Params) -> None:
    """Check the entries that the learner itself reads; `params` are its current parameters.

    Raises:
        StateError: naming the entry.
    """
    check_like(state["params"], params, ("params",))
    check_count(state["iterations"], ("iterations",))
    for key, value in check_mapping(state["counts"], ("counts",)).items():
        check_count(value, ("counts", key))
    check_like(state["rng"], "", ("rng",))
    found = state["callbacks"]
    if not isinstance(found, list | tuple):
        raise StateError(f"callbacks must be a list, found {describe(found)}")
    for i, pair in enumerate(found):
        good = isinstance(pair, list | tuple) and len(pair) == 2
        if not good or type(pair[0]) is not str or not isinstance(pair[1], Mapping):
            wanted = "the name of a class and its state, a dictionary"
            raise StateError(f"callbacks[{i}] must be {wanted}, found {describe(pair)}")


def describe_config(method: Method, outer_step: OuterStep, meta_batch_size: int, seed: int) -> dict[str, Any]:
    """A learner's settings, as a checkpoint holds them; `None` for a method or an outer step without a name."""
    recipe = method.recipe
    return {
        "outer": None if recipe is None else recipe.name,
        "inner_lr": None if recipe is None else recipe.inner_lr,
        "inner_steps": None if recipe is None else method.inner.steps,
        "adapt": None if recipe is None or recipe.adapt is None else list(recipe.adapt),
        "outer_options": {} if recipe is None else dict(recipe.options),
        "meta_batch_size": meta_batch_size,
        **_describe_step(outer_step),
        "seed": seed,
    }


def _describe_step(outer_step: OuterStep) -> dict[str, Any]:
    if isinstance(outer_step, OptimizerStep):
        return {"outer_step": None, **outer_step.config()}
    name = type(outer_step).__name__
    if isinstance(outer_step, HasConfig) and RESTORABLE.get(name) is type(outer_step):  # not a class of your own
        of_optimizer = outer_step.optimizer.config() if isinstance(outer_step, ProximalStep) else {}
        return {"outer_step": name, **of_optimizer, "step_options": outer_step.config()}
    return {"outer_step": name}


@runtime_checkable
class HasConfig(Protocol):
    """An outer step whose settings a file can hold."""

    def config(self) -> dict[str, Any]:
        """The settings that make the same step again."""


def make_step(kind: Callable[..., OuterStep], params: Params, method: Method, options: Mapping[str, Any]) -> OuterStep:
    """`kind(params, **options)`, or `kind(params, method, **options)` for a step that takes the method."""
    if "method" in inspect.signature(kind).parameters:
        return kind(params, method, **options)
    return kind(params, **options)


def restore_method(config: object, method: Method | None) -> Method:
    """The method of a checkpoint's configuration; `method` takes precedence.

    Raises:
        StateError: when `method` must be given, because the checkpoint's method has no name.
        ValueError: for options that the method does not know.
    """
    saved = check_mapping(config, ("config",))
    if method is not None:
        return method
    if saved["outer"] is None:
        raise StateError("method must be given to load this checkpoint: a file cannot hold it")
    adapt = saved.get("adapt")  # older versions did not write it: all parameters
    return make_method(saved["outer"], saved["inner_lr"], saved["inner_steps"], adapt=adapt, **saved["outer_options"])


def restore_outer_step(
    config: object, params: Params, method: Method, optimizer: OptimizerFactory | None, schedule: Schedule | None
) -> OuterStep:
    """The outer step of a checkpoint's configuration; `optimizer` and `schedule` take precedence.

    Raises:
        StateError: naming what must be given, because a file cannot hold it.
        ValueError: for settings that the outer step does not take.
    """
    saved = check_mapping(config, ("config",))
    kind = RESTORABLE.get(str(saved.get("outer_step"))) if "step_options" in saved else None
    options = check_mapping(saved["step_options"], ("config", "step_options")) if kind else {}
    if kind and "optimizer" not in saved:
        for argument, value in (("optimizer", optimizer), ("schedule", schedule)):
            if value is not None:
                raise StateError(f"{argument} does not apply to the checkpoint's outer step, {saved['outer_step']}")
        return make_step(kind, params, method, options)
    optimizer = optimizer or _find_optimizer(saved.get("optimizer"))
    schedule = schedule or from_data(saved.get("schedule"))
    missing = {
        "outer_step": saved.get("outer_step") is not None and not kind,
        "optimizer": optimizer is None,
        "schedule": schedule is None and saved.get("scheduled"),
    }
    for argument, is_missing in missing.items():
        if is_missing:
            raise StateError(f"{argument} must be given to load this checkpoint: a file cannot hold it")
    of_optimizer = {name: saved[name] for name in ("learning_rate", "max_grad_norm")}
    of_optimizer["inner_lr_rate"] = saved.get("inner_lr_rate")  # older versions did not write it
    return make_step(
        kind or OptimizerStep, params, method, {**options, **of_optimizer, "optimizer": optimizer, "schedule": schedule}
    )


def _find_optimizer(name: object) -> type[torch.optim.Optimizer] | None:
    """The optimizer of that name in `torch.optim`; `None` for other names."""
    found = getattr(torch.optim, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) else None


def _equal(one: Any, other: Any) -> bool:
    """Whether two settings are equal, however nested; arrays and tensors are compared entry by entry."""
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        if type(one) is not type(other) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        return torch.equal(one, other) if isinstance(one, Tensor) else bool((one == other).all())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn the errors that wrong settings in a file can raise into one `ValueError` that names the file."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"checkpoint {path} does not fit: {error}{checkpoint.hint(path.parent)}") from error


@contextmanager
def state_errors(name: str) -> Iterator[None]:
    """Turn any error raised while an object reads its state into one `StateError` that names the object."""
    try:
        yield
    except StateError:
        raise
    except Exception as error:  # the state of something else can raise any of them
        reason = str(error).strip().split("\n")[0]
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise StateError(f"{name} does not fit: {kind}{reason}") from error


class CallbackStates:
    """The states of the callbacks in training, and saved states whose callbacks are not in training now."""

    def __init__(self, saved: Iterable[tuple[str, dict[str, Any]]] = ()) -> None:
        self._saved = list(saved)
        self._active: Sequence[Callback] = ()

    def collect(self) -> list[tuple[str, dict[str, Any]]]:
        """The name of the class and the state of every callback."""
        return [(type(callback).__name__, callback.state_dict()) for callback in self._active] + self._saved

    @contextmanager
    def of(self, callbacks: Sequence[Callback]) -> Iterator[None]:
        """Train with `callbacks`: each gets the first saved state of its class.

        If an error is raised inside, their states are kept for a checkpoint, and the callbacks are dropped.
        """
        self._active = callbacks
        try:
            for callback in callbacks:
                self._restore(callback)
            yield
        except BaseException:
            self._active = ()
            for callback in reversed(callbacks):
                name = type(callback).__name__
                try:
                    self._saved.insert(0, (name, callback.state_dict()))
                except Exception as error:
                    warnings.warn(f"the state of {name} is lost, because its state_dict failed: {error}", stacklevel=3)
            raise

    def _restore(self, callback: Callback) -> None:
        for i, (kind, state) in enumerate(self._saved):
            if kind == type(callback).__name__:
                with state_errors(f"callbacks[{i}], the state of {kind},"):
                    callback.load_state_dict(state)
                del self._saved[i]
                break


def source_state(source: TaskSource) -> dict[str, Tensor]:
    """The learned state of the source; empty for most sources."""
    return source.state_dict() if isinstance(source, LearningSource) else {}


def load_source_state(source: TaskSource, state: object) -> None:
    """Continue from `source_state(...)`.

    Raises:
        ValueError: when it does not fit the source.
    """
    found = check_mapping(state, ("source",))
    if isinstance(source, LearningSource):
        source.load_state_dict(found)  # first: the source gives the clearest error
    elif found:
        raise ValueError(f"the source must learn {sorted(found)}, as the checkpoint's source did")
    check_like(found, source_state(source), ("source",))


@contextmanager
def restore_source_on_error(source: TaskSource) -> Iterator[None]:
    """If an error is raised inside, restore the state that the source had before."""
    before = {name: value.clone() for name, value in source_state(source).items()}
    try:
        yield
    except BaseException:
        load_source_state(source, before)
        raise


def check_same_source_state(source: TaskSource, training: TaskSource) -> None:
    """Check that a source of held-out tasks has the same learned state as the training source.

    Raises:
        ValueError: otherwise; says how to make such a source.
    """
    one, other = source_state(source), source_state(training)
    if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
        raise ValueError(
            "source must normalise observations as the training source does: make it with"
            " dataclasses.replace(learner.source, distribution=...)"
        )
