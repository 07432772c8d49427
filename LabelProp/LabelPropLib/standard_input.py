"""stdin, for a thread that waits for what comes there while other threads load libraries and compute."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

STDIN = 0  # sys.stdin is another thing in the Slicer application, whose console takes its place
POLL_SECONDS = 0.05
MOST_BYTES = 65536


def lines() -> Iterator[str]:
    """The lines that come, until stdin closes; what comes after the last line end is dropped."""
    rest = b""
    while received := read():
        *whole, rest = (rest + received).split(b"\n")
        yield from (line.decode() for line in whole)


def read() -> bytes:
    """What has come, waiting for it; empty when stdin has closed."""
    if sys.platform == "win32":
        _wait_without_reading()
    return os.read(STDIN, MOST_BYTES)


def _wait_without_reading():
    """Return when a read would not have to wait.

    While a thread waits in a read of a pipe, Windows lets whoever asks what kind of file that is wait, too; SciPy's
    Fortran libraries ask while they are loaded (https://github.com/numpy/numpy/issues/24290).
    """
    import _winapi
    import msvcrt

    try:
        while _winapi.PeekNamedPipe(msvcrt.get_osfhandle(STDIN), 0)[0] == 0:
            time.sleep(POLL_SECONDS)
    except OSError:  # it has closed, or is no pipe: the read tells
        pass
