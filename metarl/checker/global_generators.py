"""The global random generators of Python, numpy and torch: seeded for a while, and watched."""

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global random generators, and put them back afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def under_two_global_seeds(result: Callable[[], T]) -> tuple[T, T, list[str]]:
    """The same thing done twice, and which global generators it used."""
    got, used = [], set()
    for seed in (1, 2):
        with global_seed(seed):
            before = _states()
            got.append(result())
            used |= {name for name, state in _states().items() if state != before[name]}
    return got[0], got[1], sorted(used)


def _states() -> dict[str, bytes]:
    numpy = np.random.get_state()  # noqa: NPY002
    states = {"numpy.random": numpy, "random": random.getstate(), "torch": torch.get_rng_state().numpy()}
    return {name: pickle.dumps(state) for name, state in states.items()}


def draws_from(names: Sequence[str]) -> str:
    """The end of a sentence on what is drawn from these, or nothing."""
    return f"; now it draws from the global generator of {' and '.join(names)}" if names else ""
