"""Signals that end the work: by an exception, so that what is half written is removed, and not at the wrong moment."""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
from collections.abc import Callable


@contextlib.contextmanager
def interruptible(interrupted: list[int]):
    """SIGTERM and SIGHUP end the work as Ctrl+C does, by KeyboardInterrupt, so that what is half written is removed.

    interrupted: takes the signals that came. Not an Event: a handler that interrupts itself would wait for its lock.
    """

    def interrupt(number, frame):
        interrupted.append(number)
        raise KeyboardInterrupt

    try:
        with on_interruption(interrupt):
            yield
    finally:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # Ctrl+C once more ends it without a traceback


@contextlib.contextmanager
def uninterrupted():
    """Hold interruptions back until the end, so that files that belong together take their places together.

    Slicer's libraries would also crash if they were interrupted while they load.
    """
    came = []
    with on_interruption(lambda number, frame: came.append(number)):
        yield
    for number in came:
        signal.raise_signal(number)


@contextlib.contextmanager
def on_interruption(handler: Callable):
    """SIGINT, SIGTERM and, unless nohup is in use, SIGHUP call a handler inside, and do as before outside."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not on Windows
        numbers.append(signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # no signal is handled there
    # A handler that was not set from Python could not be put back.
    handled = [number for number in numbers if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
