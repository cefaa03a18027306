"""Random generators: the streams of a seed, torch and global generators, and states as text for checkpoints."""

import json
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum, unique
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metarl.state_dict import check_like

T = TypeVar("T")


@unique
class Stream(IntEnum):
    """The random streams of a seed besides training. A stream keeps its number, so that results can be repeated.

    Training draws from `default_rng(seed)`, which gives the same numbers as `default_rng([seed, 0])`: 0 is taken.
    """

    HELD_OUT_TASKS = 1
    TRAJECTORIES = 2
    STATIONARITY = 3
    SMOOTHNESS = 4
    OUTER_STEP_SIZE = 5
    CONSTANTS = 6
    FILM = 7
    PROBLEM = 8
    PROBLEM_NOISE = 9
    ADAPTATION = 10
    ADAPTED_ACTIONS = 11
    MINIBATCHES = 12
    SIGNAL = 13


def stream_generator(seed: int, stream: Stream) -> np.random.Generator:
    """The generator of one stream of `seed`; no other stream, and no training seed, gives the same numbers.

    Example:
        >>> a, b = (stream_generator(0, stream).random() for stream in (Stream.HELD_OUT_TASKS, Stream.FILM))
        >>> a == b
        False
    """
    return np.random.default_rng([seed, stream])


class DrawingFrom(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which this thread draws from `generator` instead of torch's default generator.

    The numbers are those of the default generator with the same seed, which is neither read nor changed. Other threads
    are not affected, unlike with `torch.manual_seed` and `fork_rng`, which act on all threads.

    Example:
        >>> with DrawingFrom(torch.Generator().manual_seed(3)):
        ...     layer = torch.nn.Linear(2, 2)
        >>> x = torch.manual_seed(3)
        >>> bool((layer.weight == torch.nn.Linear(2, 2).weight).all())
        True
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if "generator" in (argument.name for argument in func._schema.arguments):
            position = [argument.name for argument in func._schema.arguments].index("generator")
            if len(args) <= position and given.get("generator") is None:
                given["generator"] = self.generator
        elif torch.Tag.nondeterministic_seeded in func.tags and "generator" in func.overloadpacket.overloads():
            func, given["generator"] = func.overloadpacket.generator, self.generator  # as torch.rand(3)
        return func(*args, **given)


def torch_generator(rng: np.random.Generator, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator that follows from `rng`."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**63)))


def _global_states() -> dict[str, Any]:
    numpy = np.random.get_state()  # noqa: NPY002
    return {"numpy.random": numpy, "random": random.getstate(), "torch": torch.get_rng_state().numpy()}


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global random generators of Python, numpy and torch, and restore them afterwards."""
    before = _global_states()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before["random"])
        np.random.set_state(before["numpy.random"])  # noqa: NPY002
        torch.set_rng_state(torch.from_numpy(before["torch"]))


def under_two_global_seeds(result: Callable[[], T]) -> tuple[T, T, str]:
    """`result()` under two different global seeds, and the names of the global generators that it used."""
    got, used = [], set()
    for seed in (1, 2):
        with global_seed(seed):
            before = {name: pickle.dumps(state) for name, state in _global_states().items()}
            got.append(result())
            used |= {name for name, state in _global_states().items() if pickle.dumps(state) != before[name]}
    return got[0], got[1], " and ".join(sorted(used))


def generator_state(rng: np.random.Generator) -> str:
    """The state of a numpy generator as JSON."""
    return json.dumps(rng.bit_generator.state)


def restore_generator(rng: np.random.Generator, state: str) -> None:
    """Set a numpy generator to a state from `generator_state`.

    Raises:
        ValueError: when `state` is something else.
    """
    try:
        read = json.loads(state)
        check_like(read, rng.bit_generator.state)  # numpy would convert other types to integers
        rng.bit_generator.state = read
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"the checkpoint's random state must be a numpy generator's, got {state!r:.80}") from error
