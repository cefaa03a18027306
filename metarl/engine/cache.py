"""A cache of recorded functions; the key includes everything that a function reads besides its arguments.

A record holds operations. Numbers, flags and containers that Python read in between are frozen into them.
`States.describe` covers these: closures, defaults and globals of the function and of the functions it calls, attributes
of the objects it belongs to, and training flags, parameters and buffers of modules. A description that is equal to an
earlier one is the same object, so it can be part of a record's key.

Only names that the code mentions are looked at. Values that are found by `getattr` with a computed name, in compiled
extensions or in files are not seen. Looking again takes a few microseconds: `Watch` compares identities, and everything
is described again only if one has changed.
"""

import functools
import threading
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain
from typing import Any, Generic, TypeVar

from metarl.engine.compare import RecordWarning
from metarl.engine.walk import MISSING, PLAIN, Identity, Walk, Watch, is_full, own_attributes
from metarl.functional_call import MODULES_IN_USE

K = TypeVar("K")
T = TypeVar("T")

MOST = 64
"""The number of records to keep; the least recently used one is dropped first."""

OFTEN = 8
"""A warning is given after this number of records of one function, if it read different values each time."""

MOST_NAMES = 64

MOST_STATES = 128


class Recent(OrderedDict[K, T]):
    """A dictionary of the most recently used entries, at most `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, value: T) -> None:
        """Enter a value, or use it again; drops the least recently used entries if there are too many."""
        self[key] = value
        self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)


class Frozen:
    """One state of what a function reads; two of them are equal only if they are the same object."""

    def __init__(self, tokens: dict[str, Any]) -> None:
        self.tokens = tokens

    def is_gone(self) -> bool:
        """Whether it cannot occur again, because an object in it no longer exists."""
        parts = chain.from_iterable(x if isinstance(x, tuple) else (x,) for x in self.tokens.values())
        return any(isinstance(x, Identity) and x.is_gone() for x in parts)

    def differences(self, other: "Frozen") -> list[str]:
        """The places where two states differ."""
        paths = {**self.tokens, **other.tokens}
        return [p for p in paths if self.tokens.get(p, MISSING) != other.tokens.get(p, MISSING)]


class States:
    """Describes what functions read. Not thread-safe.

    Attributes:
        ignored: places that a function itself writes while it runs; they are left out.
    """

    def __init__(self) -> None:
        self.ignored: set[str] = set()
        self._known: Recent[Frozen, None] = Recent(MOST_STATES)
        self._by_anchor: Recent[Any, tuple[Watch, Frozen, list[Any]]] = Recent(MOST_STATES)

    def describe(self, roots: tuple[Any, ...]) -> Frozen:
        """The state of what `roots` read: functions, bound methods, modules or other objects."""
        parts = _Anchor(roots)
        anchor, leaves = tuple(parts.parts), parts.leaves
        with MODULES_IN_USE:  # a module that is being called holds other parameters
            found = self._by_anchor.get(anchor)
            if found is None or not found[0].holds():
                found = self._look(roots, anchor, leaves, parts.through)
            self._by_anchor.keep(anchor, found)
        return found[1]

    def ignore(self, places: Iterable[str]) -> None:
        """Leave these places out from now on."""
        self.ignored.update(places)
        self._by_anchor.clear()

    def _look(
        self, roots: tuple[Any, ...], anchor: Any, leaves: list[Any], through: set[int]
    ) -> tuple[Watch, Frozen, list[Any]]:
        walk = Walk(self.ignored, through)
        walk.run(roots)
        walk.watch.start()
        frozen = next((x for x in self._known if x.tokens == walk.tokens), None)
        if frozen is None:
            frozen = Frozen(walk.tokens)
            for gone in [x for x in self._known if x.is_gone()]:
                del self._known[gone]
        self._known.keep(frozen, None)
        return walk.watch, frozen, self._hold(leaves, anchor)

    def _hold(self, leaves: list[Any], anchor: Any) -> list[Any]:
        """References that notice when an object in `anchor` dies, before another one gets its identity."""
        states = weakref.ref(self)

        def forget(_: Any) -> None:
            if (alive := states()) is not None:
                alive._by_anchor.pop(anchor, None)

        held: list[Any] = []
        for leaf in leaves:
            try:
                held.append(weakref.ref(leaf, forget))
            except TypeError:
                held.append(leaf)
        return held


class _Anchor:
    """The identity of functions, without looking into objects; functions made again from the same parts are equal.

    Attributes:
        parts: to compare with another anchor's.
        leaves: objects that were not looked into; `parts` has their identities.
        through: identities of functions that were looked through: `parts` has what they hold.
    """

    def __init__(self, roots: tuple[Any, ...]) -> None:
        self.parts: list[Any] = [len(roots)]
        self.leaves: list[Any] = []
        self.through: set[int] = set()
        seen: dict[int, tuple[int, Any]] = {}  # with the objects, so that their ids are not reused
        waiting = [*reversed(roots)]
        parts = self.parts
        while waiting:  # a loop, as this is done at every derivative
            x = waiting.pop()
            kind = type(x)
            if kind in PLAIN:
                parts += (kind, repr(x)) if kind in (complex, slice) else (kind, x)
            elif kind is float:
                parts += (kind, repr(x))
            elif (before := seen.get(id(x))) is not None:
                parts += ("again", before[0])
            else:
                seen[id(x)] = len(seen), x
                waiting += self._enter(x, kind)

    def _enter(self, x: Any, kind: type) -> list[Any]:
        """The objects to look at next, the last one first; `parts` must contain their number."""
        if kind is types.FunctionType and x.__closure__:
            self.through.add(id(x))
            self.leaves.append(x.__code__)
            others = (x.__defaults__, *(x.__kwdefaults__ or {}).items(), *own_attributes(x).items())
            self.parts += (id(x.__code__), len(x.__kwdefaults__ or ()), len(others))
            return [*(cell.cell_contents if is_full(cell) else None for cell in x.__closure__), *others]
        if kind is types.MethodType:
            self.parts.append(kind)
            return [x.__self__, x.__func__]
        if kind is tuple:
            self.parts.append(len(x))
            return [*x]
        if kind is functools.partial:
            self.parts += (kind, len(x.keywords))
            return [*x.keywords.items(), x.args, x.func]
        self.leaves.append(x)
        self.parts.append(id(x))
        return []


class Cache(Generic[T]):
    """Records of functions, by everything that the functions read. Threads may share it.

    Args:
        most: records to keep.
    """

    def __init__(self, most: int = MOST) -> None:
        self._lock = threading.RLock()
        self._states = States()
        self._made: Recent[tuple[Frozen, Hashable], T] = Recent(most)
        self._frozen: Recent[Hashable, list[Frozen]] = Recent(MOST_NAMES)

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[T]:
        return iter([*self._made.values()])

    def get(self, name: str, reads: tuple[Any, ...], key: Hashable, make: Callable[[], T]) -> T:
        """The record for this name, this key and the present state of `reads`.

        Args:
            name: of the function, also for the warning about repeated recording.
            reads: functions and objects; everything that they read belongs to the key.
            key: everything else that the record depends on.
            make: makes a missing record.
        """
        with self._lock:
            frozen, key = self._states.describe(reads), (name, key)
            if (frozen, key) in self._made:
                self._made.move_to_end((frozen, key))
                return self._made[frozen, key]
            made = make()
            after = self._states.describe(reads)
            # places that the function itself has written are no part of the key
            if after is not frozen:
                self._states.ignore(after.differences(frozen))
                frozen = self._states.describe(reads)
            for gone in [known for known in self._made if known[0].is_gone()]:  # these cannot be used again
                del self._made[gone]
            self._made.keep((frozen, key), made)
            self._warn_if_often(name, key, frozen)
            return made

    def _warn_if_often(self, name: str, key: Hashable, frozen: Frozen) -> None:
        alike = [other for other in self._frozen.get(key, []) if _same_code(other, frozen)]
        self._frozen.keep(key, [*alike[-OFTEN:], frozen])
        if len(alike) == OFTEN - 1:
            places = ", ".join(alike[-1].differences(frozen)[:3])
            warnings.warn(
                f"{name} were recorded {OFTEN} times, because the function reads other values each time ({places});"
                " pass them as data (in the batch), or use Engine(record=False)",
                RecordWarning,
                stacklevel=2,
            )


def _same_code(a: Frozen, b: Frozen) -> bool:
    """Whether two states are of the same functions and classes, with other values."""
    if a is b:
        return False
    values = [(a.tokens.get(place), b.tokens.get(place)) for place in a.differences(b)]
    return not any(isinstance(x, Identity) for pair in values for x in pair)
