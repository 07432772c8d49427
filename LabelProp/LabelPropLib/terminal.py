"""How `labelprop` behaves in a terminal: progress, and one line about what is wrong."""

from __future__ import annotations

import atexit
import contextlib
import gc
import locale
import os
import sys

DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130  # exit status, see cli.py
COMPLAINT = "labelprop: "  # how the line begins that says why a command failed
ALLOCATIONS = 50_000  # of objects between two searches for garbage


def allow_letters_of_any_script():
    """Let them be printed, and be in names of files that ITK opens; on Windows both know few of them by default."""
    if hasattr(sys.stdout, "reconfigure"):  # Slicer's console has no such method
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.platform == "win32":
        with contextlib.suppress(locale.Error):  # Windows 10 before 2018
            locale.setlocale(locale.LC_CTYPE, ".utf8")  # of the C library, by which ITK opens files


def open_closed_streams():
    """Where stdout or stderr is closed, let it lead nowhere, so that no other file takes its descriptor."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


def draw_into_files():
    """Have matplotlib draw without windows: the backend that a notebook asks for may not be installed here."""
    os.environ["MPLBACKEND"] = "agg"


@contextlib.contextmanager
def shown_progress():
    """The callback progress(fraction, message): a bar on a terminal, elsewhere a line for each new message."""
    if not sys.stderr.isatty():
        yield StageLines()
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # Slicer does not bundle it
        yield StageLines()
        return
    look = "{desc} {percentage:3.0f}% |{bar}| {remaining}"
    with tqdm(total=1.0, file=sys.stderr, leave=False, bar_format=look) as bar:

        def progress(fraction: float, message: str):
            bar.set_description_str(message, refresh=False)
            bar.update(fraction - bar.n)

        yield progress


class StageLines:
    """Progress where there is no terminal: names each stage once."""

    def __init__(self):
        self._message = None

    def __call__(self, fraction: float, message: str):
        if message != self._message:
            print(message, file=sys.stderr)
        self._message = message


@contextlib.contextmanager
def seldom_collecting():
    """Let Python look for garbage less often inside, and not at all when the process ends.

    PyTorch and Slicer load 330 000 objects that stay; looking through them time and again takes 0.6 s.
    """
    before = gc.get_threshold()
    gc.set_threshold(ALLOCATIONS, *before[1:])
    atexit.register(gc.freeze)  # what is frozen is not looked through
    try:
        yield
    finally:
        gc.set_threshold(*before)


def complain(text: str):
    """One line on stderr."""
    print(f"{COMPLAINT}{text}", file=sys.stderr)
