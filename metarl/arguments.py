"""What is wanted of the arguments of `MetaLearner`: sources, batches of tasks, callbacks and step sizes."""

from collections.abc import Iterable

from metarl.callbacks import Callback
from metarl.errors import check_has, check_type, shorten


def check_source(name: str, source: object) -> None:
    """Raise a `ValueError` where `source` is not a task source."""
    check_has(name, source, ("sample", "initial_params", "score_name"), "a source of tasks, as ReinforcementLearning")


def check_tasks(name: str, tasks: object) -> None:
    """Raise a `ValueError` where `tasks` is not a batch of tasks."""
    check_has(name, tasks, ("draw", "loss", "num_tasks"), "a batch of tasks, as source.sample(5, rng) gives")


def check_callbacks(callbacks: object) -> list[Callback]:
    """The callbacks as a list.

    Raises:
        ValueError: for one callback without a list, or what is not a `Callback`.
    """
    if isinstance(callbacks, Callback):
        raise ValueError(f"callbacks must be a list, got one callback: write [{type(callbacks).__name__}(...)]")
    if not isinstance(callbacks, Iterable):
        raise ValueError(f"callbacks must be a list of callbacks, got {shorten(callbacks)}")
    given = list(callbacks)
    for callback in given:
        check_type("callbacks", callback, Callback, "objects of subclasses of metarl.callbacks.Callback")
    return given


def check_at_least(name: str, value: int | None, minimum: int, needed_by: str) -> None:
    """Raise a `ValueError` where `value` is too small for what `needed_by` says."""
    if value is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum} for {needed_by}, got {value}")
