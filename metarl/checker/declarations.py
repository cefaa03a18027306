"""Checks of what a distribution says of itself: its spaces, its horizon, and the arguments of its methods."""

import inspect
from collections.abc import Iterator

import numpy as np
from gymnasium import spaces

from metarl.checker.probe import Probe
from metarl.checker.reporting import say


def space_is_a_dict(probe: Probe) -> Iterator[str]:
    """`space` has an entry for every parameter."""
    space = getattr(probe.distribution, "space", None)
    if not isinstance(space, spaces.Dict) or not space.spaces:
        mend = (
            "in the constructor write self.space = gymnasium.spaces.Dict({'goal': gymnasium.spaces.Box(-1, 1, (2,))})"
        )
        yield say("space", "be a gymnasium.spaces.Dict with an entry for every parameter of a task", space, mend)
        return
    for name, entry in space.items():
        if entry.shape is None or entry.dtype is None:
            yield say(f"space[{name!r}]", "be the space of one array", entry, "use a Box, Discrete or MultiDiscrete")


def observation_space_is_supported(probe: Probe) -> Iterator[str]:
    """The policies take a Box or a Discrete."""
    space = getattr(probe.distribution, "observation_space", None)
    if not isinstance(space, spaces.Box) and not _counts_from_zero(space):
        mend = "flatten what is composed into one Box (gymnasium.spaces.flatten_space), and count from 0"
        yield say("observation_space", "be a Box, or a Discrete that starts at 0", space, mend)


def action_space_is_supported(probe: Probe) -> Iterator[str]:
    """The policies act in a Box of one dimension or a Discrete."""
    space = getattr(probe.distribution, "action_space", None)
    if not (isinstance(space, spaces.Box) and len(space.shape) == 1) and not _counts_from_zero(space):
        mend = "flatten what is composed: a MultiDiscrete to a Discrete of all combinations, an array to one dimension"
        yield say("action_space", "be a Box of one dimension, or a Discrete that starts at 0", space, mend)


def _counts_from_zero(space: object) -> bool:
    return isinstance(space, spaces.Discrete) and space.start == 0


def horizon_is_a_positive_integer(probe: Probe) -> Iterator[str]:
    """As it says."""
    horizon = getattr(probe.distribution, "horizon", None)
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        mend = "in the constructor set self.horizon to the most steps an episode can have"
        yield say("horizon", "be a positive integer", repr(horizon), mend)


CALLS = {"sample": ("num_tasks", "rng"), "make": ("task",), "make_vec": ("task", "episodes", "device")}


def methods_take_the_documented_arguments(probe: Probe) -> Iterator[str]:
    """They are there and can be called as metarl calls them."""
    for name, arguments in CALLS.items():
        method = getattr(probe.distribution, name, None)
        wanted = f"be a method {name}({', '.join(arguments)})".replace("device", "device='cpu'")
        if not callable(method):
            yield say(name, wanted, method, f"define {name} as metarl.types.TaskDistribution does")
            continue
        signature = inspect.signature(method)
        try:
            signature.bind(*arguments)
            signature.bind(*arguments[:2])  # the device has a default
        except TypeError as error:
            mend = f"give {name} the arguments of metarl.types.TaskDistribution, the device with default 'cpu'"
            yield say(name, wanted, f"{name}{signature} ({error})", mend)
