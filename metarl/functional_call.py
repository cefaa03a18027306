"""Calling a module at given parameters."""

import os
import threading
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.func import functional_call


class _Lock:
    """A lock that a thread may take again; a forked child gets a free one."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


MODULES_IN_USE = _Lock()
"""Held while a module is called: meanwhile torch puts the given parameters into the module itself, for all threads.

Code that looks at a module's own parameters must hold it, too.
"""

_names: WeakKeyDictionary[nn.Module, tuple[list[Any], dict[str, list[str]]]] = WeakKeyDictionary()


def call(module: nn.Module, params: Mapping[str, Tensor], *args: Tensor) -> Any:
    """`module(*args)` at `params`, by the names of `module.named_parameters()` and `named_buffers()`.

    Like `torch.func.functional_call`, tied weights included. It also works if a module holds the same module under
    several names, as Stable-Baselines3's policies hold their features extractor: torch would leave the first of
    `params`, a tensor of an ended vmap, in such a module. Several threads may call the same module: they wait for each
    other.
    """
    with MODULES_IN_USE:
        places = _known_places(module)
        everywhere = {place: value for name, value in params.items() for place in places.get(name, [name])}
        return functional_call(module, everywhere, args, tie_weights=False)


def _known_places(module: nn.Module) -> dict[str, list[str]]:
    """`_places`, kept until a parameter, a buffer or a module is replaced."""
    held = [x for m in module.modules() for own in (m._parameters, m._buffers, m._modules) for x in own.items()]
    found = _names.get(module)
    if found is None or len(found[0]) != len(held) or any(a is not b for (_, a), b in zip(held, found[0], strict=True)):
        found = _names[module] = [x for _, x in held], _places(module)
    return found[1]


def _places(module: nn.Module) -> dict[str, list[str]]:
    """For the first name of each parameter or buffer, one name for every place that holds it."""
    first_name: dict[int, str] = {}
    found: dict[str, dict[tuple[int, str], str]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for attribute, leaf in (*owner._parameters.items(), *owner._buffers.items()):
            if leaf is not None:
                name = f"{prefix}.{attribute}".removeprefix(".")
                first = first_name.setdefault(id(leaf), name)
                found.setdefault(first, {}).setdefault((id(owner), attribute), name)
    return {name: list(places.values()) for name, places in found.items()}
