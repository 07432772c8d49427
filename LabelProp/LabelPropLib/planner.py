"""Where to compute, how thoroughly, and how much at once: what fits into memory, and what to do when it does not.

The registration takes most: its graph, for every pixel that is computed at once. Smaller batches give the same voxels
in more time, so they come first. Only where the planes alone are too much they are made coarser.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from .annotation import SparseAnnotation
from .errors import InputError
from .gaps import shared_gaps
from .machine import free_memory, held_memory, is_out_of_memory
from .registration.instance import Level, Schedule

BYTES_PER_BATCH_PIXEL = 320  # measured: of the graph of a pair's loss, per pixel of a plane
BYTES_PER_STACK_PIXEL = 26  # of all planes: images, what is compared, the fields and their momenta
BYTES_PER_DRAWN_PIXEL = 4  # of each label on each plane on which it is drawn: its distances
BYTES_PER_END_PIXEL = 2  # of each label on each plane at a gap's end: masks on the fields' grid, carried and compared
BATCH_SHARE = 0.5
LEAST_PIXELS = 64


@dataclass(frozen=True)
class Effort:
    """What a preset stands for: most pixels along the longer side of a plane, and the registration's levels.

    side: pixels along it up to which the finest level takes all its steps.
    """

    pixels: int
    side: int
    levels: tuple[Level, ...]

    def levels_for(self, size: tuple[int, int]) -> tuple[Level, ...]:
        """The levels for planes of `size`: the more pixels, the fewer steps on the finest one, at the same cost.

        Measured: finer planes gain more than the steps for which there is no time then.
        """
        *coarse, finest = self.levels
        share = min(1.0, self.side / max(size)) ** 2
        return *coarse, finest.shortened(share)


EFFORTS = {
    "fast": Effort(pixels=160, side=128, levels=(Level(4, 40), Level(2, 20), Level(1, 6, rate=0.15))),
    "balanced": Effort(pixels=256, side=180, levels=(Level(4, 48), Level(2, 20), Level(1, 12, rate=0.12))),
    "best": Effort(pixels=320, side=320, levels=(Level(4, 80), Level(2, 60), Level(1, 50, rate=0.06))),
}


def choose_device(name: str) -> torch.device:
    """'auto' takes CUDA, then Apple's GPU, then the CPU. Raises InputError if the device asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": can_use_mps(), "cpu": True}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        present = ", ".join(device for device, there in available.items() if there)
        raise InputError(f"The device '{name}' is not available here: choose auto or one of {present}.")
    return torch.device(name)


@cache
def can_use_mps() -> bool:
    """Whether there is an Apple GPU on which PyTorch can warp images and differentiate that, as from 2.13 on."""
    if not torch.backends.mps.is_available():
        return False
    try:
        image = torch.zeros(1, 1, 2, 2, device="mps")
        points = torch.zeros(1, 2, 2, 2, device="mps", requires_grad=True)
        F.grid_sample(image, points, padding_mode="border", align_corners=True).sum().backward()
    except (NotImplementedError, RuntimeError):
        return False
    return True


@dataclass(frozen=True)
class Plan:
    """share: of the free memory that a batch may fill. why: for the user, why it is not the first plan; else empty."""

    device: torch.device
    share: float = BATCH_SHARE
    why: str = ""


UNSUPPORTED = Plan(torch.device("cpu"), why="This PyTorch cannot do all of it on this GPU: computed on the CPU.")


def is_unsupported(error: Exception, device: torch.device) -> bool:
    """Whether PyTorch lacks something on Apple's GPU: how much of it there is depends on the version."""
    if device.type != "mps" or is_out_of_memory(error):
        return False
    return isinstance(error, NotImplementedError) or "MPS" in str(error)


def plans(device: torch.device) -> Iterator[Plan]:
    """What to try, one after the other, each if memory ran out with the one before: smaller batches, then the CPU."""
    name = {"cuda": "The GPU's memory", "mps": "The GPU's memory"}.get(device.type, "Memory")
    yield Plan(device)
    yield Plan(device, BATCH_SHARE / 8, f"{name} ran out: computed in smaller batches.")
    if device.type != "cpu":
        yield Plan(torch.device("cpu"), BATCH_SHARE, f"{name} ran out: computed on the CPU.")
        yield Plan(torch.device("cpu"), BATCH_SHARE / 8, f"{name} and the CPU's ran out: computed in smaller batches.")


def memory_to_use(device: torch.device, limit_gb: float | None) -> float:
    """Bytes that are free on the device, and on the CPU within the limit for the whole process; inf if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = free_memory()
    left = math.inf if limit_gb is None else max(0.0, limit_gb * 1e9 - held_memory())
    return min(left, math.inf if free is None else free)


def batch_pixels(plan: Plan, free: float) -> int:
    """Pixels of all pairs of planes to register at once, with `free` bytes."""
    return int(min(max(plan.share * free / BYTES_PER_BATCH_PIXEL, 1), Schedule.batch_pixels))


def fitting_pixels(pixels: int, annotation: SparseAnnotation, free: float) -> int:
    """The most pixels along a plane's side, up to `pixels`, with which square planes fit into `free` bytes.

    All planes of the volume, and what is drawn on them.
    """
    drawn = sum(len(planes) for planes in annotation.complete.values())
    ends = 2 * len(shared_gaps(annotation)) * len(annotation.labels)
    held = BYTES_PER_STACK_PIXEL * annotation.plane_count + BYTES_PER_DRAWN_PIXEL * drawn + BYTES_PER_END_PIXEL * ends
    fitting = math.sqrt(free / held) if free < math.inf else pixels
    return max(LEAST_PIXELS, min(pixels, int(fitting)))


def messages(plan: Plan, size: tuple[int, int], pixels: int, effort: Effort) -> list[str]:
    """Sentences for the user about what was done for want of memory.

    size: of the working planes; pixels: the most along a side for which there was memory.
    """
    said = [plan.why] if plan.why else []
    if pixels < effort.pixels and max(size) >= pixels:
        said.append(f"Little memory is free: slices were registered at {pixels} pixels along their longer side.")
    return said


def release_memory(device: torch.device):
    """Give back the memory that PyTorch keeps for later, so that it is free for the next plan."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe_device(device: torch.device) -> str:
    """The device's name, with that of the graphics card, for the user."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
