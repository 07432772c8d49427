"""Where to compute and with how many threads."""

from __future__ import annotations

import os

import torch

from .errors import InputError

MOST_THREADS = 8  # batches of planes this small gain nothing from more


def choose_device(name: str) -> torch.device:
    """'auto' takes CUDA, then Apple's GPU, then the CPU. Raises InputError if the device asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        present = ", ".join(device for device, there in available.items() if there)
        raise InputError(f"The device '{name}' is not available here: choose auto or one of {present}.")
    return torch.device(name)


def thread_count() -> int:
    """As many threads as processors this process may use, at most MOST_THREADS."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, MOST_THREADS)
