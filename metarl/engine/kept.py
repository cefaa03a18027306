"""What was made for a function is kept for as long as the function reads the same things."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

from metarl.engine.frozen import Frozen, States
from metarl.engine.live import RecordWarning
from metarl.engine.program import Arena
from metarl.engine.walk import Identity

Made = TypeVar("Made")

MOST = 32
"""Records that are kept at a time; the one that was not used for the longest time goes first."""

OFTEN = 8
"""Records of one function, each with other values of what it reads, after which a warning is given."""

MOST_NAMES = 64


class _Slot(Generic[Made]):
    """What was made, and when it was used."""

    def __init__(self, made: Made, last_use: int) -> None:
        self.made, self.last_use = made, last_use


class Kept(Generic[Made]):
    """What was made for functions, by what these read. It may be shared by threads; copies of it are empty.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = MOST) -> None:
        self.lock = threading.RLock()
        self._most = most
        self._states = States()
        self._made: dict[tuple[Frozen, Hashable], _Slot[Made]] = {}
        self._uses = 0
        self._frozen: OrderedDict[Hashable, list[Frozen]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._most,)

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Made]:
        return iter([slot.made for slot in self._made.values()])

    def get(self, name: str, reads: tuple[Any, ...], key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gave when `reads` were as they are now, for this name and key.

        Args:
            name: of what is made, for the warning that it is made again and again.
            reads: functions and objects; whatever they read belongs to the key (`metarl.engine.frozen`).
            key: everything else that tells it apart.
            make: called where there is nothing yet.
        """
        with self.lock:
            frozen, key = self._states.see(reads), (name, key)
            self._uses += 1
            if (found := self._made.get((frozen, key))) is not None:
                found.last_use = self._uses
                return found.made
            made = make()
            after = self._states.see(reads)
            if after is not frozen:  # what the function itself writes does not tell it apart
                self._states.ignore(after.differences(frozen))
                frozen = self._states.see(reads)
            self._made[frozen, key] = _Slot(made, self._uses)
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
                f"{name} were recorded {OFTEN} times, because what the function reads differs each time ({places});"
                " give it as data (the batch), or use Execution(trace=False)",
                RecordWarning,
                stacklevel=2,
            )


def _same_code(a: Frozen, b: Frozen) -> bool:
    """Whether two states are of the same functions and classes, with other values."""
    if a is b:
        return False
    values = [(a.tokens.get(place), b.tokens.get(place)) for place in a.differences(b)]
    return not any(isinstance(x, Identity) for pair in values for x in pair)


class Arenas:
    """Memory for programs, lent to one run at a time; the piece that was used last is lent first. Copies are empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Arena] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def take(self) -> Arena:
        """An arena that nobody else has until it is given back."""
        with self._lock:
            return self._free.pop() if self._free else Arena()

    def give_back(self, arena: Arena) -> None:
        """Let others have it."""
        with self._lock:
            self._free.append(arena)
