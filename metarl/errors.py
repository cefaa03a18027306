"""Errors that say how to fix their cause, and the checks that raise them early."""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real

import torch

SMALLER_STEPS = "usually fixed by a smaller inner or outer step size"
CHECK_DATA = "it came from the data or from a function of them: check them, and scale large values"
CHECK_ENVIRONMENT = "check the environment for a division, a logarithm, a root, or a state without bounds"


class NonFiniteError(ArithmeticError):
    """A NaN or an infinity: names the quantity and where it appeared.

    Args:
        quantity: the name of the quantity.
        task: the number of the task in the batch.
        iteration: in training, counted from 1.
        episode: of the task, in reinforcement learning.
        step: of the episode, counted from 1; step 0 is the observation of `reset`.
        advice: how to fix it.
    """

    def __init__(
        self,
        quantity: str,
        task: int | None = None,
        iteration: int | None = None,
        *,
        episode: int | None = None,
        step: int | None = None,
        advice: str = SMALLER_STEPS,
    ) -> None:
        self.quantity, self.task, self.iteration = quantity, task, iteration
        self.episode, self.step, self.advice = episode, step, advice
        where = "" if iteration is None else f" in iteration {iteration}"
        for name in ("task", "episode", "step"):
            where += "" if getattr(self, name) is None else f", {name} {getattr(self, name)}"
        super().__init__(f"NaN or infinity in {quantity}{where}; {advice}")

    def at(self, *, iteration: int | None = None, first_task: int = 0) -> "NonFiniteError":
        """The same error in this iteration, or with task numbers that start at `first_task`."""
        task = None if self.task is None else self.task + first_task
        iteration = self.iteration if iteration is None else iteration
        return NonFiniteError(self.quantity, task, iteration, episode=self.episode, step=self.step, advice=self.advice)


class StateError(ValueError):
    """A saved state that does not fit; names the entry, what was expected and what was found."""


class HessianWarning(UserWarning):
    """An outer update uses second derivatives that are not the objective's."""


class MoreStepsWarning(UserWarning):
    """More inner steps than in training make the score worse."""


LARGEST = 2**63 - 1  # the largest 64-bit integer, for seeds and sizes of tensors


def check_int(name: str, value: object, minimum: int = 1) -> int:
    """`value` as an integer of at least `minimum` that fits into 64 bits.

    Raises:
        ValueError: otherwise, naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    if int(value) > LARGEST:
        raise ValueError(f"{name} must be an integer of at most 2**63 - 1, got {value!r}")
    return int(value)


def check_real(name: str, value: object, low: float = 0.0, high: float = math.inf, *, open_low: bool = True) -> float:
    """`value` as a finite number above `low` (or equal to it, unless `open_low`) and at most `high`.

    Raises:
        ValueError: otherwise, naming the argument.
    """
    good = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not (low < value if open_low else low <= value) or value > high:  # type: ignore[operator]
        wanted = f"{'above' if open_low else 'at least'} {low:g}"
        wanted += f" and at most {high:g}" if high < math.inf else ""
        raise ValueError(f"{name} must be a finite number {wanted}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def check_bool(name: str, value: object) -> None:
    """Raise a `ValueError` that names the argument unless `value` is `True` or `False`."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """`value` if it is one of `choices`.

    Raises:
        ValueError: otherwise, naming the argument, the choices and the nearest one.
    """
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"{name} must be one of {sorted(choices)}, got {value!r}{did_you_mean(value, choices)}")


def check_has(name: str, value: object, methods: Iterable[str], wanted: str) -> None:
    """Raise a `ValueError` that names the argument if `value` is a class or lacks one of `methods`.

    `wanted` describes the right value, such as `a task source such as metarl.rl.ReinforcementLearning`.
    """
    missing = [method for method in methods if not hasattr(value, method)]
    if missing or isinstance(value, type):
        lacks = f" without {', '.join(missing)}" if missing else ", a class"
        raise ValueError(f"{name} must be {wanted}, got {shorten(value)}{lacks}")


def check_type(name: str, value: object, types: type | tuple[type, ...], wanted: str) -> None:
    """Raise a `ValueError` that names the argument if `value` has another type; `wanted` as in `check_has`."""
    if not isinstance(value, types):
        raise ValueError(f"{name} must be {wanted}, got {shorten(value)}")


def check_source(source: object) -> None:
    """Raise a `ValueError` unless `source` is a task source."""
    methods = ("sample", "initial_params", "score_name")
    check_has("source", source, methods, "a task source, such as metarl.rl.ReinforcementLearning")


def check_at_least(name: str, value: int, minimum: int, needed_by: str) -> None:
    """Raise a `ValueError` that names the argument if `value` is too small for `needed_by`."""
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum} for {needed_by}, got {value}")


def check_callable(name: str, value: object, wanted: str) -> None:
    """Raise a `ValueError` that names the argument if `value` cannot be called."""
    if not callable(value):
        raise ValueError(f"{name} must be {wanted}, got {shorten(value)}")


def check_tensors(name: str, value: object, minimum: int = 1) -> None:
    """Raise a `ValueError` that names the argument if `value` is not a dictionary of at least `minimum` tensors."""
    tensors = isinstance(value, Mapping) and all(isinstance(leaf, torch.Tensor) for leaf in value.values())
    if not tensors or len(value) < minimum:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a dictionary of tensors, got {shorten(value)}")


def check_step_sizes(step_sizes: object) -> list[float | None]:
    """The step sizes as a list; `None` means as in training.

    Raises:
        ValueError: unless it is a sequence of positive numbers and `None`.
    """
    if isinstance(step_sizes, str) or not isinstance(step_sizes, Sequence):
        raise ValueError(f"step_sizes must be a list with a number or None for each step, got {shorten(step_sizes)}")
    return [None if size is None else check_real("step_sizes", size) for size in step_sizes]


def shorten(value: object) -> str:
    """`value` for a message, on one line of at most 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:70]}... ({type(value).__name__})"


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """The end of a message, with the nearest valid choice; empty if none is near."""
    near = difflib.get_close_matches(str(value), list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
