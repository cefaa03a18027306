"""Signals that ask a program to end: the first lets what is running finish, a second one acts as usual."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_signal(request: Callable[[str], None]) -> Iterator[None]:
    """Call `request` with the name of the first SIGINT, SIGTERM or SIGHUP; the next one of its kind acts as before.

    SIGHUP stays ignored where it is, as under `nohup`. Threads other than the main one may not set handlers, so there
    everything acts as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Windows has none
        previous[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)

    def handle(number: int, frame: FrameType | None) -> None:
        request(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)] or signal.SIG_DFL)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # installed by something other than Python, which cannot restore it
                signal.signal(number, handler)
