"""Where to compute, and how thoroughly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .errors import InputError
from .registration.instance import Level


@dataclass(frozen=True)
class Effort:
    """What a preset stands for: most pixels along the longer side of a plane, and the registration's levels."""

    pixels: int
    levels: tuple[Level, ...]


EFFORTS = {
    "fast": Effort(pixels=128, levels=(Level(4, 40), Level(2, 20), Level(1, 6, rate=0.15))),
    "balanced": Effort(pixels=200, levels=(Level(4, 60), Level(2, 30), Level(1, 20, rate=0.1))),
    "best": Effort(pixels=320, levels=(Level(4, 80), Level(2, 60), Level(1, 50, rate=0.06))),
}


def choose_device(name: str) -> torch.device:
    """'auto' takes CUDA, then Apple's GPU, then the CPU. Raises InputError if the device asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        present = ", ".join(device for device, there in available.items() if there)
        raise InputError(f"The device '{name}' is not available here: choose auto or one of {present}.")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """For the user: the device's name, and the graphics card's."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
