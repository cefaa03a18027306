"""Describe what functions and objects read: every place that the code mentions, and its value.

`metarl.engine.cache` says what this is for.
"""

import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from operator import attrgetter, call, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST_OBJECTS = 4000
"""The number of objects that one description looks into; all others are described by their identity."""

LONG = 256
"""Containers with more entries than this are described by their ends and their length."""

SMALL_ARRAY = 4096
"""Arrays of up to this many bytes are compared entirely at every look, larger ones by a sample."""

_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "gymnasium", "stable_baselines3", "scipy", "mujoco"} - {
    "__main__"
}
PLAIN = {
    *(type(None), bool, int, str, bytes, complex, range, slice, type(Ellipsis)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
}
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_OPAQUE = (torch.Generator, np.random.Generator, np.random.BitGenerator, torch.optim.Optimizer, type(weakref.ref(set)))
_LIKE_USERS = ("metarl.envs", "metarl.agents", "metarl.experiments")
MISSING = object()


class Identity:
    """A weak reference to an object, if possible; equal to others of the same object, and to none once it is gone."""

    __slots__ = ("get",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, x: Any) -> None:
        try:
            self.get: Callable[[], Any] = weakref.ref(x)  # None once it is gone
        except TypeError:
            self.get = lambda: x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and not self.is_gone() and self.get() is other.get()

    def is_gone(self) -> bool:
        """Whether the object no longer exists."""
        return self.get() is None


class Watch:
    """The places that a description was read from, and the objects that were there."""

    def __init__(self) -> None:
        self.mappings: list[dict[Any, Any]] = []
        self.sequences: list[Any] = []
        self.empty: list[Any] = []
        self.named: list[tuple[Mapping[str, Any], list[str]]] = []
        self.cells: list[types.CellType] = []
        self.functions: list[types.FunctionType] = []
        self.objects: list[Identity] = []  # whose class may be set
        self.tensors: list[Tensor] = []
        self.arrays: list[Any] = []

    def start(self) -> None:
        """Note what is there now."""
        self._calls = [x.get for x in self.objects]
        self._values, self._states = list(self._now()), self._state()

    def holds(self) -> bool:
        """Whether every place still holds the same object as at the start."""
        try:
            if any(self.empty) or self._state() != self._states:
                return False
            return all(map(is_, self._now(), self._values))
        except (RuntimeError, ValueError):  # another thread is changing it; a cell was emptied
            return False

    def _now(self) -> Iterator[Any]:
        return chain(  # in C alone: this is done at every derivative
            chain.from_iterable(map(dict.values, self.mappings)),
            chain.from_iterable(self.sequences),
            map(attrgetter("cell_contents"), self.cells),
            [places.get(name, MISSING) for places, names in self.named for name in names],
            chain.from_iterable(map(attrgetter("__code__", "__defaults__", "__kwdefaults__"), self.functions)),
            map(type, map(call, self._calls)),
        )

    def _state(self) -> list[Any]:
        return [
            *map(len, self.mappings),
            *map(len, self.sequences),
            *map(Tensor.data_ptr, self.tensors),
            *map(attrgetter("requires_grad"), self.tensors),
            *map(_content, self.arrays),
        ]


def is_full(cell: types.CellType) -> bool:
    """Whether the cell of a closure holds something."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def own_attributes(x: types.FunctionType) -> dict[str, Any]:
    """Attributes that were set on a function, except the wrapped function that `functools.wraps` notes."""
    return {name: part for name, part in x.__dict__.items() if name != "__wrapped__"}


def _root(x: Any) -> str:
    """The first name of a module; `envs`, `agents` and `experiments` are described like a user's code."""
    module = str(getattr(x, "__module__", "") or "")
    return module if module.startswith(_LIKE_USERS) else module.partition(".")[0]


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> frozenset[str]:
    """The names that a function and the functions inside it mention."""
    inner = [_names(x) for x in code.co_consts if isinstance(x, types.CodeType)]
    return frozenset(code.co_names).union(*inner)


def _content(array: Any) -> bytes:
    if array.nbytes <= SMALL_ARRAY:
        return bytes(array.tobytes())
    return bytes(array.reshape(-1)[:: max(1, array.size // 256)].tobytes())


class Walk:
    """Makes one description: `tokens` by place, and the places to `watch`."""

    def __init__(self, ignored: set[str], through: set[int]) -> None:
        self._through = through
        self.tokens: dict[str, Any] = {}
        self.watch = Watch()
        self._ignored = ignored
        self._seen: dict[int, tuple[str, Any]] = {}
        self._mentioned: set[str] = set()
        self._waiting: dict[str, list[Callable[[], None]]] = {}  # until the name is mentioned
        self._ready: deque[Callable[[], None]] = deque()
        self._places: list[tuple[Mapping[str, Any], set[str]]] = []

    def run(self, roots: tuple[Any, ...]) -> None:
        """Describe `roots` and everything they lead to."""
        for i, root in enumerate(roots):
            self._visit(getattr(root, "__name__", None) or f"{type(root).__name__}.{i}", root)
        while self._ready:
            self._ready.popleft()()
        for place, names in self._places:
            if mentioned := sorted(names & self._mentioned):
                self.watch.named.append((place, mentioned))
        self._waiting.clear()  # a reference cycle: all objects seen would live until the garbage collector runs
        self._seen.clear()
        self._places.clear()

    def _visit(self, path: str, x: Any) -> None:
        kind = type(x)
        if path in self._ignored:
            return
        if kind in PLAIN:
            self.tokens[path] = (kind.__name__, repr(x) if kind in (complex, slice) else x)
        elif kind is float:
            self.tokens[path] = ("float", x.hex())
        elif isinstance(x, np.ndarray | np.generic) and not x.dtype.hasobject:
            self.tokens[path] = (str(x.dtype), x.shape, _content(x), x.nbytes <= SMALL_ARRAY or Identity(x))
            self.watch.arrays.append(x)
        elif id(x) in self._seen:
            self.tokens[path] = ("as", self._seen[id(x)][0])
        else:
            self._seen[id(x)] = path, x
            if len(self._seen) > MOST_OBJECTS or isinstance(x, _OPAQUE):
                self.tokens[path] = Identity(x)
            else:
                self._enter(path, x)

    def _enter(self, path: str, x: Any) -> None:
        # each kind of object has its parts in other places
        if isinstance(x, Tensor):
            self._tensor(path, x)
        elif isinstance(x, types.FunctionType):
            self._function(path, x)
        elif isinstance(x, types.MethodType):
            self._visit(path + "()", x.__func__)
            self._visit(f"{path}.self", x.__self__)
        elif isinstance(x, functools.partial):
            for name in ("func", "args", "keywords"):
                self._visit(f"{path}.{name}", getattr(x, name))
        elif isinstance(x, property | classmethod | staticmethod | functools.cached_property):
            for name in ("fget", "__func__", "func"):
                if isinstance(function := getattr(x, name, None), types.FunctionType):
                    self._visit(f"{path}.{name}", function)
        elif isinstance(x, _CONTAINERS):
            self._container(path, x)
        elif isinstance(x, types.ModuleType):
            self._attributes(path, vars(x), () if _is_library(x.__name__) else vars(x))
        elif isinstance(x, type):
            self.tokens[path] = Identity(x)
            self._class(path, x)
        elif isinstance(x, nn.Module):
            self._module(path, x)
        else:
            self._instance(path, x)

    def _tensor(self, path: str, x: Tensor) -> None:
        if x.layout != torch.strided or torch._C._functorch.is_functorch_wrapped_tensor(x):
            self.tokens[path] = Identity(x)
            return
        self.tokens[path] = (Identity(x), x.requires_grad, x.dtype, x.shape, x.device, x.data_ptr())
        self.watch.tensors.append(x)

    def _function(self, path: str, x: types.FunctionType) -> None:
        self.tokens[path] = Identity(x.__code__)
        watched = id(x) not in self._through  # otherwise their closures, and the tasks in these, would be kept
        if watched:
            self.watch.functions.append(x)
        # closure and defaults
        for name, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
            if is_full(cell):
                if watched:
                    self.watch.cells.append(cell)
                self._visit(f"{path}.{name}", cell.cell_contents)
        for part in (x.__defaults__, x.__kwdefaults__):
            if part:
                self._visit(f"{path}.{'defaults' if isinstance(part, tuple) else 'kwdefaults'}", part)
        if _is_library(x.__module__):
            return
        # globals that the code mentions; those of metarl itself do not change
        names = _names(x.__code__)
        self._mention(names)
        if _root(x) != "metarl":
            places = x.__globals__
            if found := sorted(name for name in names if name in places):
                self.watch.named.append((places, found))
            for name in found:
                self._visit(f"{path}:{name}", places[name])
        # attributes that were set on the function
        if watched and x.__dict__:
            self.watch.mappings.append(x.__dict__)
        for name, part in own_attributes(x).items():
            self._visit(f"{path}.{name}", part)

    def _mention(self, names: Iterable[str]) -> None:
        for name in set(names) - self._mentioned:
            self._mentioned.add(name)
            self._ready.extend(self._waiting.pop(name, ()))

    def _container(self, path: str, x: Any) -> None:
        self.tokens[path] = (type(x).__name__, len(x))
        if not x and not isinstance(x, tuple | frozenset):
            self.watch.empty.append(x)
            return
        (self.watch.mappings if isinstance(x, dict) else self.watch.sequences).append(x)
        entries = list(x.items()) if isinstance(x, dict) else list(enumerate(x))
        for key, part in entries if len(x) <= LONG else entries[:16] + entries[-16:]:
            self._visit(f"{path}[{key!r}]" if type(key) in PLAIN else f"{path}[{type(key).__name__}]", part)

    def _attributes(self, path: str, places: Mapping[str, Any], names: Iterable[str]) -> None:
        """Describe the attributes whose names are mentioned, now or later."""
        self.tokens.setdefault(path, None)
        self._places.append((places, set(names)))

        def visit(name: str) -> None:
            if name in places:
                self._visit(f"{path}.{name}", places[name])

        for name in list(names):
            if name in self._mentioned:
                visit(name)
            else:
                self._waiting.setdefault(name, []).append(functools.partial(visit, name))

    def _class(self, path: str, cls: type) -> set[str]:
        """Describe a class and its bases, except a library's; returns the names of their attributes."""
        names: set[str] = set()
        for base in cls.__mro__:
            if not _is_library(base.__module__) and base is not object:
                own = [name for name in vars(base) if not name.startswith("__") or name == "__call__"]
                names.update(own)
                self._attributes(f"{path}<{base.__qualname__}>", vars(base), own)
        return names

    def _instance(self, path: str, x: Any) -> None:
        self.tokens[path] = Identity(type(x))
        if id(x) not in self._through:
            self.watch.objects.append(Identity(x))
        own = getattr(x, "__dict__", {})
        if isinstance(x, types.SimpleNamespace):
            self._visit(f"{path}.__dict__", own)
        elif _is_library(type(x).__module__):
            self.tokens[path] = Identity(x)
            self._simple(path, own)
        else:
            self._mention(["__call__"])
            names = self._class(path, type(x))
            self._attributes(path, own, {*own, *names})
            self._slots(path, x)

    def _slots(self, path: str, x: Any) -> None:
        values = {n: getattr(x, n) for cls in type(x).__mro__ for n in _slot_names(cls) if hasattr(x, n)}
        for name, part in values.items():
            self._visit(f"{path}.{name}", part)

    def _simple(self, path: str, own: dict[str, Any]) -> None:
        """Describe the attributes of a library's object that are values."""
        if own:
            self.watch.mappings.append(own)
        for name, part in own.items():
            if type(part) in PLAIN or isinstance(part, float | tuple | Tensor | np.ndarray | np.generic):
                self._visit(f"{path}.{name}", part)

    def _module(self, path: str, x: nn.Module) -> None:
        self.tokens[path] = Identity(type(x))
        self.watch.objects.append(Identity(x))
        self._mention(["forward"])
        # parameters, buffers and submodules
        own = vars(x)
        registries = [own["_parameters"], own["_buffers"], own["_modules"]]
        self.watch.mappings += registries
        for name, part in chain.from_iterable(registry.items() for registry in registries):
            self._visit(f"{path}.{name}", part)
        # hooks: a new one must be noticed, so empty dictionaries are watched
        for name, part in own.items():
            if name.startswith("_") and "hooks" in name and isinstance(part, dict):
                if part:
                    self._visit(f"{path}.{name}", part)
                else:
                    self.watch.empty.append(part)
        if _is_library(type(x).__module__):
            self._simple(path, own)
            return
        # a user's class: all attributes that its code mentions
        names = self._class(path, type(x))
        self._attributes(path, own, {*own, *names} - {"_parameters", "_buffers", "_modules"})
        self._visit(f"{path}.training", x.training)
        self._places.append((own, {"training"}))
        self._mention(["training"])


def _is_library(module: str | None) -> bool:
    return str(module or "").partition(".")[0] in _LIBRARIES


def _slot_names(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
