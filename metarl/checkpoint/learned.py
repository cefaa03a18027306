"""What a source of tasks has learned itself, such as statistics of observations (`metarl.types.LearningSource`)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metarl.checkpoint.restoring import check_mapping
from metarl.checkpoint.structure import check_like
from metarl.types import LearningSource, TaskSource


def learned(source: TaskSource) -> dict[str, Tensor]:
    """What the source has learned; nothing, for most of them."""
    return source.state_dict() if isinstance(source, LearningSource) else {}


def load_learned(source: TaskSource, state: Mapping[str, Any]) -> None:
    """Continue from what `learned` returned.

    Raises:
        ValueError: it does not fit the source.
    """
    if isinstance(source, LearningSource):
        source.load_state_dict(state)
    elif state:
        raise ValueError(f"the source must be one that learns {sorted(state)}, as the checkpoint's")


def check_and_load_learned(source: TaskSource, state: object) -> None:
    """Continue from what `learned` returned, which must have the structure of what the source has learned.

    Raises:
        ValueError: it does not fit the source.
    """
    found, own = check_mapping(state, ("source",)), learned(source)
    load_learned(source, found)  # first: it knows best what is wrong
    check_like(found, own, ("source",))


@contextmanager
def restored_at_errors(source: TaskSource) -> Iterator[None]:
    """After an error the source has learned what it had before."""
    before = {name: value.clone() for name, value in learned(source).items()}
    try:
        yield
    except BaseException:
        load_learned(source, before)
        raise


def check_learned_the_same(source: TaskSource, training: TaskSource) -> None:
    """A source of held-out tasks must have learned what the training source has.

    Raises:
        ValueError: with how to make one.
    """
    one, other = learned(source), learned(training)
    if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
        raise ValueError(
            "source must normalise observations as the training source does: make it with"
            " dataclasses.replace(learner.source, distribution=...)"
        )
