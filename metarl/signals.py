"""Signals that end a program: the first lets the current work finish, the second acts as usual."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_signal(request: Callable[[str], None]) -> Iterator[None]:
    """Call `request` with the name of the first SIGINT, SIGTERM or SIGHUP; the next signal of its kind acts as usual.

    SIGHUP stays ignored if it was ignored before, as under `nohup`. Only the main thread may set handlers; in other
    threads all signals act as usual.
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
            if handler is not None:  # a handler that was not set from Python cannot be restored
                signal.signal(number, handler)
