"""Problems in words, and exceptions as problems."""

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator

from metarl.checker.probe import Check, Probe
from metarl.types import TaskDistribution

HERE = os.path.dirname(__file__)  # the frames of the checker itself are nobody's fault
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {"<"})


def say(subject: str, wanted: str, found: object, mend: str) -> str:
    """One problem."""
    return f"{subject} must {wanted}; found: {found}. To mend it: {mend}."


def first_found(attempts: Iterable[Iterator[str]]) -> Iterator[str]:
    """The problems of the first attempt that has any."""
    yield from next(filter(None, map(list, attempts)), [])


def problems_of(check: Check, probe: Probe) -> list[str]:
    """What `check` yields; an exception on the way is one problem more."""
    found: list[str] = []
    try:
        found.extend(check(probe))  # one by one: those before an exception stay
    except Exception as error:  # the author's code may raise anything, and the other checks still have something to say
        found.append(_raised(error, probe.distribution))
    return found


def _raised(error: Exception, distribution: TaskDistribution) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.dirname(frame.filename) != HERE]
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    what = f"{type(error).__name__}: {error}"
    if not own:
        return say("what it returns", "be as documented", what, "return what metarl.types.TaskDistribution says")
    home = getattr(sys.modules.get(type(distribution).__module__), "__file__", None)
    place = ([frame for frame in own if frame.filename == home] or own)[-1]  # rather the author's than what it rests on
    found = f"{what}, raised at {place.filename}:{place.lineno} (in {place.name})"
    return say(f"{own[0].name}()", "work", found, f"correct that; {own[0].name} was called as documented")
