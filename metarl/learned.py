"""What a source of tasks has learned itself, such as statistics of observations (`metarl.types.LearningSource`)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
