"""What this machine offers: processors, memory, matplotlib. Needs no PyTorch: code that only plans need not load it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CONTROL_GROUP_FILES = (  # limit and use of memory, and what the use consists of, as a container sees its own
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
DROPPABLE = ("total_inactive_file", "inactive_file")  # in either version's memory.stat
MOST_THREADS = 8  # batches of planes this small gain nothing from more


def thread_count() -> int:
    """Threads to compute with: the processors this process may use, at most MOST_THREADS; or OMP_NUM_THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else min(processor_count(), MOST_THREADS)


def processor_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def why_no_plots() -> str:
    """Why matplotlib cannot be loaded, as where it is not installed; empty if it can. Slicer does not bundle it."""
    try:
        import matplotlib.figure  # noqa: F401
    except (ImportError, ValueError) as error:  # the latter for settings of its own that it cannot use
        return str(error) or type(error).__name__
    return ""


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine or the GPU ran out of memory; PyTorch's errors of a GPU say so in words, too."""
    if isinstance(error, MemoryError):
        return True
    return any(text in str(error) for text in ("can't allocate memory", "not enough memory", "out of memory"))


def free_memory() -> int | None:
    """Bytes that this process may still take: what the system and its control group have left; None if unknown."""
    found = [value for value in (_available(), _left_in_control_group()) if value is not None]
    return min(found) if found else None


def held_memory() -> int:
    """Bytes of memory that this process holds; where the system does not tell now, the most that it has held.

    On Linux without the files that are mapped, the code of PyTorch and VTK above all: the system shares them between
    processes, and drops them where memory is short.
    """
    try:
        resident, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    except OSError:
        return int((peak_memory_gb() or 0) * 1e9)
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows' sysinfoapi.h."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("memory_load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    ]


def _available_on_windows() -> int | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    succeeded = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.available_physical if succeeded else None


def _available() -> int | None:
    if sys.platform == "win32":
        return _available_on_windows()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        pass
    else:
        kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
        if kilobytes is not None:
            return 1024 * int(kilobytes)
    try:  # macOS, where what other programs hold cannot be asked for without more libraries
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _left_in_control_group() -> int | None:
    """Bytes left of what a container or a batch system allows, by control groups version 2 or 1; None without a limit.

    Files that were read some time ago are counted as used by the group, but given up where memory is short.
    """
    for limit, used, consists_of in CONTROL_GROUP_FILES:
        try:
            left = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
        return max(0, left + _droppable(Path(consists_of)))
    return None


def _droppable(consists_of: Path) -> int:
    """Bytes of files that the system keeps for a control group, and drops before memory runs out."""
    try:
        sizes = dict(line.split() for line in consists_of.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return next((int(sizes[name]) for name in DROPPABLE if name in sizes), 0)


def peak_memory_gb() -> float | None:
    """Most memory that this process has held, GB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)
