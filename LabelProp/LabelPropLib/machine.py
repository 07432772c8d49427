"""What this machine offers: processors and memory. Needs no PyTorch, so that who only plans need not load it."""

from __future__ import annotations

import os
import sys

MOST_THREADS = 8  # batches of planes this small gain nothing from more


def thread_count() -> int:
    """Threads to compute with: the processors this process may use, at most MOST_THREADS; or OMP_NUM_THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else min(processor_count(), MOST_THREADS)


def processor_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_gb() -> float | None:
    """Most memory that this process has held, GB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)
