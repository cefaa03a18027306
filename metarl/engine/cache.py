"""A cache of recorded functions; the key includes everything that a function reads."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

from metarl.engine.compare import RecordWarning
from metarl.engine.reads import Frozen, States
from metarl.engine.walk import Identity

T = TypeVar("T")

MOST = 64
"""The number of records to keep; the least recently used one is dropped first."""

OFTEN = 8
"""A warning is given after this number of records of one function, if it read different values each time."""

MOST_NAMES = 64


class _Slot(Generic[T]):
    """A record, and when it was used."""

    def __init__(self, made: T, last_use: int) -> None:
        self.made, self.last_use = made, last_use


class Cache(Generic[T]):
    """Records of functions, by everything that the functions read. Threads may share it; copies are empty.

    Args:
        most: records to keep.
    """

    def __init__(self, most: int = MOST) -> None:
        self._lock = threading.RLock()
        self._most = most
        self._states = States()
        self._made: dict[tuple[Frozen, Hashable], _Slot[T]] = {}
        self._uses = 0
        self._frozen: OrderedDict[Hashable, list[Frozen]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._most,)

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[T]:
        return iter([slot.made for slot in self._made.values()])

    def get(self, name: str, reads: tuple[Any, ...], key: Hashable, make: Callable[[], T]) -> T:
        """The record for this name, this key and the present state of `reads`.

        Args:
            name: of the function, also for the warning about repeated recording.
            reads: functions and objects; everything that they read belongs to the key (`metarl.engine.reads`).
            key: everything else that the record depends on.
            make: makes a missing record.
        """
        with self._lock:
            frozen, key = self._states.describe(reads), (name, key)
            self._uses += 1
            if (found := self._made.get((frozen, key))) is not None:
                found.last_use = self._uses
                return found.made
            made = make()
            after = self._states.describe(reads)
            # places that the function itself has written are no part of the key
            if after is not frozen:
                self._states.ignore(after.differences(frozen))
                frozen = self._states.describe(reads)
            self._made[frozen, key] = _Slot(made, self._uses)
            # drop records that cannot be used again, then the least recently used ones
            for gone in [known for known in self._made if known[0].is_gone()]:
                del self._made[gone]
            while len(self._made) > self._most:
                del self._made[min(self._made, key=lambda known: self._made[known].last_use)]
            self._warn_if_often(name, key, frozen)
            return made

    def _warn_if_often(self, name: str, key: Hashable, frozen: Frozen) -> None:
        seen = self._frozen.setdefault(key, [])
        self._frozen.move_to_end(key)
        while len(self._frozen) > MOST_NAMES:
            self._frozen.popitem(last=False)
        alike = [other for other in seen if _same_code(other, frozen)]
        self._frozen[key] = [*alike[-OFTEN:], frozen]
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
