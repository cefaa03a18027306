"""What functions read besides their arguments, which their records freeze.

A record holds operations. Numbers, flags and containers that Python read in between are frozen into them.
`States.describe` covers these: closures, defaults and globals of the function and of the functions it calls, attributes
of the objects it belongs to, and training flags, parameters and buffers of modules. A description that is equal to an
earlier one is the same object, so it can be part of a record's key.

Only names that the code mentions are looked at. Values that are found by `getattr` with a computed name, in compiled
extensions or in files are not seen. Looking again takes a few microseconds: `Watch` compares identities, and everything
is described again only if one has changed.
"""

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from itertools import chain
from typing import Any

from metarl.engine.walk import MISSING, PLAIN, Identity, Walk, Watch, is_full, own_attributes
from metarl.functional_call import MODULES_IN_USE

MOST_STATES = 128


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
        self._known: OrderedDict[Frozen, None] = OrderedDict()
        self._by_anchor: OrderedDict[Any, tuple[Watch, Frozen, list[Any]]] = OrderedDict()

    def describe(self, roots: tuple[Any, ...]) -> Frozen:
        """The state of what `roots` read: functions, bound methods, modules or other objects."""
        parts = _Anchor(roots)
        anchor, leaves = tuple(parts.parts), parts.leaves
        with MODULES_IN_USE:  # a module that is being called holds other parameters
            found = self._by_anchor.get(anchor)
            if found is None or not found[0].holds():
                found = self._by_anchor[anchor] = self._look(roots, anchor, leaves, parts.through)
        self._by_anchor.move_to_end(anchor)
        while len(self._by_anchor) > MOST_STATES:
            self._by_anchor.popitem(last=False)
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
        self._known[frozen] = None
        self._known.move_to_end(frozen)
        while len(self._known) > MOST_STATES:
            self._known.popitem(last=False)
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
