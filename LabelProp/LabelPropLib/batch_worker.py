"""One volume of a batch in a process of its own: `python batch_worker.py propagate IMAGE ANNOTATIONS -o OUT ...`.

The command line `labelprop`, with one difference: it is cancelled when stdin closes, so that no volume goes on when the
process that started it has been killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

if __name__ == "__main__":  # run as a file: make the package that the file lies in importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from LabelPropLib import cli, standard_input


def end_with_stdin():
    """Block until stdin closes, then cancel the work as SIGTERM does."""
    while standard_input.read():
        pass
    if sys.platform == "win32":  # where kill would end the process on the spot
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)  # also wakes the main thread where it waits


if __name__ == "__main__":
    if hasattr(sys.stderr, "reconfigure"):  # its reader takes it for UTF-8; Slicer's console takes any text
        sys.stderr.reconfigure(encoding="utf-8")
    threading.Thread(target=end_with_stdin, daemon=True).start()
    sys.exit(cli.main(sys.argv[1:]))
