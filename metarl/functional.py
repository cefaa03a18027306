"""Calling a module at parameters of one's choice."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.func import functional_call

_names: WeakKeyDictionary[nn.Module, dict[str, list[str]]] = WeakKeyDictionary()


def call(module: nn.Module, params: Mapping[str, Tensor], *args: Tensor) -> Any:
    """`module(*args)` at `params`, by the names of `module.named_parameters()` and `named_buffers()`.

    As `torch.func.functional_call`, tied weights included; but also right where a module holds the same module under
    several names, as Stable-Baselines3's policies hold their features extractor. There torch would put the first of
    `params` back into the module in place of its own: a tensor of a vmap that has ended.
    """
    if module not in _names:
        _names[module] = _places(module)
    places = _names[module]
    everywhere = {place: value for name, value in params.items() for place in places.get(name, [name])}
    return functional_call(module, everywhere, args, tie_weights=False)


def _places(module: nn.Module) -> dict[str, list[str]]:
    """Under each parameter's or buffer's first name, one name for every place that holds it."""
    first_name: dict[int, str] = {}
    found: dict[str, dict[tuple[int, str], str]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for attribute, leaf in (*owner._parameters.items(), *owner._buffers.items()):
            if leaf is not None:
                name = f"{prefix}.{attribute}".removeprefix(".")
                first = first_name.setdefault(id(leaf), name)
                found.setdefault(first, {}).setdefault((id(owner), attribute), name)
    return {name: list(places.values()) for name, places in found.items()}
