"""What a run leaves to the next one on the same scan, so that a correction takes a fraction of the first run's time.

Registration takes most of the time, and most of it does not depend on what was drawn. When the user adds or corrects a
slice, the velocity fields of the last run are taken over. Only between the annotated slices next to what was changed
they are refined, on the finest level, on which labels have a say; slices that were not in the last run are registered
from the beginning. Nothing is registered again when only roles, scribbles or the rule of fusion were changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from .annotation import SparseAnnotation
from .preprocessing import Stack, crop_box
from .registration import instance
from .registration.consistency import FarEnds
from .registration.fields import resize
from .settings import Settings

KEPT_MARGIN = 0.5  # of the margin around the labels; with less of it left the crop is made anew
REFINING_STEPS = 0.5  # of the steps of the finest level: it begins near its goal

# A gap whose labels on both sides pull its fields: the planes in the volume that bound it, and a digest of the labels.
Pull = tuple[int, int, str]


@dataclass(frozen=True)
class Update:
    """Fields to begin with, and what is left to do.

    velocity: (Z - 1, 2, h, w), those of `added` mean nothing yet. added: pairs that were not registered before.
    pairs: all that are to be refined, `added` among them; ascending.
    """

    velocity: torch.Tensor
    added: tuple[int, ...]
    pairs: tuple[int, ...]

    @property
    def pair_count(self) -> int:
        """Of all pairs of neighbouring planes."""
        return len(self.velocity)

    def register(
        self, stack: Stack, ends: FarEnds | None, schedule: instance.Schedule, on_step: Callable[[float], None]
    ) -> torch.Tensor:
        """The fields brought up to date. `ends`, `schedule`, `on_step`: see `instance.register`."""
        if not self.pairs:
            return self.velocity
        velocity = self.velocity.clone()
        coarse = replace(schedule, levels=schedule.levels[:-1])
        for run in instance.consecutive(self.added):
            fields = instance.register(stack.images[run.start : run.stop + 1], None, coarse)
            velocity[run.start : run.stop] = resize(fields, velocity.shape[-2:])
            on_step(0.0)
        finest = schedule.levels[-1]
        finest = replace(finest, steps=max(1, round(REFINING_STEPS * finest.steps)))
        return instance.refine(
            stack.images, velocity, self.pairs, ends, replace(schedule, levels=(finest,)), on_step=on_step
        )


@dataclass(frozen=True)
class Remembered:
    """A registration. first: the stack's first plane in the volume; box: its crop; velocity: (Z - 1, 2, h, w), CPU."""

    first: int
    box: tuple[slice, slice]
    velocity: torch.Tensor
    pulls: frozenset[Pull]

    def box_around(self, annotation: SparseAnnotation) -> tuple[slice, slice] | None:
        """The crop, if it has some margin around all labels and scribbles still; else None."""
        needed = crop_box(annotation, KEPT_MARGIN)
        fits = all(old.start <= new.start and new.stop <= old.stop for old, new in zip(self.box, needed, strict=True))
        return self.box if fits else None

    def update(self, stack: Stack, ends: FarEnds | None) -> Update:
        """What to do for a stack with the same crop."""
        pair_count = len(stack.images) - 1
        velocity = self.velocity.new_zeros(pair_count, *self.velocity.shape[1:])
        offset = stack.first - self.first
        known = [pair for pair in range(pair_count) if 0 <= pair + offset < len(self.velocity)]
        velocity[known] = self.velocity[[pair + offset for pair in known]]
        added = sorted(set(range(pair_count)) - set(known))
        changed = set(added)
        for lower, upper, _ in pulls(stack, ends) ^ self.pulls:
            changed |= set(range(lower - stack.first, upper - stack.first)) & set(known)
        return Update(velocity.to(stack.images.device), tuple(added), tuple(sorted(changed)))


class Memory:
    """Of one scan at a time; another scan, or another way of registration, takes its place."""

    def __init__(self):
        self._key: tuple | None = None
        self._remembered: Remembered | None = None

    def recall(self, annotation: SparseAnnotation, settings: Settings) -> Remembered | None:
        """What is remembered of the annotation's scan; and be ready to keep what a run on it finds."""
        key = fingerprint(annotation, settings)
        if key != self._key:
            self._key, self._remembered = key, None
        return self._remembered

    def keep(self, stack: Stack, ends: FarEnds | None, velocity: torch.Tensor):
        """Keep the registration of the scan that was recalled last."""
        self._remembered = Remembered(stack.first, stack.box, velocity.cpu(), pulls(stack, ends))


def fingerprint(annotation: SparseAnnotation, settings: Settings) -> tuple:
    """Equal for runs whose fields may be taken over: the same voxels, axis, and way of registration."""
    way = replace(settings, fusion="auto", device="auto", extrapolate=False, directions=False, uncertainty=False)
    image = np.ascontiguousarray(annotation.image)
    digest = hashlib.blake2b(image.data, digest_size=16).hexdigest()
    return digest, image.shape, annotation.spacing, annotation.axis, astuple(way)


def pulls(stack: Stack, ends: FarEnds | None) -> frozenset[Pull]:
    """The gaps of a stack whose labels pull its fields."""
    if ends is None:
        return frozenset()
    found = set()
    for gap, (lower, upper) in enumerate(zip(ends.moving, ends.fixed, strict=True)):
        if lower < upper:  # every gap is there twice, once in each direction
            masks = torch.stack([ends.labels_moving[gap], ends.labels_fixed[gap]])
            masks = masks[:, masks.any(dim=0).any(dim=-1).any(dim=-1)]  # without labels of other gaps
            digest = hashlib.blake2b(masks.cpu().numpy().data, digest_size=16).hexdigest()
            found.add((lower + stack.first, upper + stack.first, digest))
    return frozenset(found)
