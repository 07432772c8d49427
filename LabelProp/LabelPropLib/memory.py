"""What a run leaves to the next one on the same scan, so that a correction takes a fraction of the first run's time.

Registration takes most of the time, and most of it does not depend on what was drawn. When the user adds or corrects a
slice, the velocity fields of the last run are taken over. Only between the annotated slices next to what was changed
they are refined, on the finest level, on which labels have a say; slices that were not in the last run are registered
from the beginning. Nothing is registered again when only roles, scribbles or the rule of fusion were changed; nothing
is fused again, either, when only scribbles were, or how far a scribble's correction goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from . import boxes
from .annotation import SparseAnnotation
from .clock import portion
from .gap_fusion import Fusion
from .gaps import gaps_to_scribbles, shared_gaps
from .preprocessing import Stack, crop_box
from .provenance import identify_weights
from .registration import instance
from .registration.consistency import FarEnds
from .registration.fields import resize, sample
from .settings import Settings

KEPT_MARGIN = 0.5  # of the margin around the labels; with less of it left the crop is made anew
LEAST_OVERLAP = 0.5  # of a new crop with the one that was registered
REFINING_STEPS = 0.5  # of the steps of the finest level: it begins near its goal

# Settings that change nothing about the fields, and about what is fused from them before scribbles correct it.
NOT_OF_REGISTRATION = (
    "fusion",
    "device",
    "extrapolate",
    "graph_cut",
    "directions",
    "uncertainty",
    "suggestions",
    "memory_gb",
)
NOT_OF_FUSION = ("graph_cut", "suggestions")

# A gap whose labels on both sides pull its fields: the planes in the volume that bound it, and a digest of the labels.
Pull = tuple[int, int, str]


@dataclass(frozen=True)
class Update:
    """Fields to begin with, and what is left to do.

    velocity: (Z - 1, 2, h, w), zero where nothing is known. pairs: those to refine, ascending. coarse: those of them
    that go through the coarse levels first.
    """

    velocity: torch.Tensor
    pairs: tuple[int, ...]
    coarse: tuple[int, ...]

    @property
    def pair_count(self) -> int:
        """The number of all pairs of neighbouring planes."""
        return len(self.velocity)

    def register(
        self, stack: Stack, ends: FarEnds | None, schedule: instance.Schedule, on_step: Callable[[float], None]
    ) -> torch.Tensor:
        """The fields with all `pairs` refined, of which there is one at least.

        ends, schedule, on_step: see `instance.register`.
        """
        *coarse, finest = schedule.levels
        velocity = self.velocity.clone()
        share, done = len(self.coarse) / (len(self.coarse) + len(self.pairs)), 0
        for run in instance.consecutive(self.coarse):
            report = portion(lambda fraction: on_step(share * fraction), done, len(run), len(self.coarse))
            images, start = stack.images[run.start : run.stop + 1], velocity[run.start : run.stop]
            fields = instance.register(images, None, replace(schedule, levels=tuple(coarse)), start, report)
            velocity[run.start : run.stop] = resize(fields, velocity.shape[-2:])
            done += len(run)
        return instance.refine(
            stack.images,
            velocity,
            self.pairs,
            ends,
            replace(schedule, levels=(finest.shortened(REFINING_STEPS),)),
            lambda fraction: on_step(share + (1 - share) * fraction),
        )


@dataclass(frozen=True)
class Remembered:
    """A registration. first: the stack's first plane in the volume; box: its crop; velocity: (Z - 1, 2, h, w), CPU."""

    first: int
    box: tuple[slice, slice]
    velocity: torch.Tensor
    pulls: frozenset[Pull]

    def box_around(self, annotation: SparseAnnotation) -> tuple[slice, slice]:
        """The crop for the annotation: the same, as long as it has some margin around all drawn labels."""
        needed = crop_box(annotation, KEPT_MARGIN)
        fits = all(old.start <= new.start and new.stop <= old.stop for old, new in zip(self.box, needed, strict=True))
        return self.box if fits else crop_box(annotation)

    def update(self, annotation: SparseAnnotation, stack: Stack) -> Update | None:
        """What to do for a stack, None if too little is known of it to save time."""
        if boxes.size(boxes.overlap(stack.box, self.box)) < LEAST_OVERLAP * boxes.size(stack.box):
            return None
        pair_count = len(stack.images) - 1
        fields = resample(self.velocity, self.box, stack.box, instance.field_size(stack.images))
        velocity = fields.new_zeros(pair_count, *fields.shape[1:])
        offset = stack.first - self.first
        known = [pair for pair in range(pair_count) if 0 <= pair + offset < len(fields)]
        velocity[known] = fields[[pair + offset for pair in known]]
        added = set(range(pair_count)) - set(known)
        changed = set()
        for lower, upper, _ in pulls(annotation) ^ self.pulls:
            changed |= set(range(lower - stack.first, upper - stack.first)) & set(known)
        # In a new crop nothing is known of what the changed labels reach for: it was outside the old one.
        coarse = added if stack.box == self.box else added | changed
        if len(coarse) == pair_count:
            return None
        return Update(velocity.to(stack.images.device), tuple(sorted(added | changed)), tuple(sorted(coarse)))


class Memory:
    """What is remembered of one scan at a time; another scan or another way of registration replaces it."""

    def __init__(self):
        self._key: tuple | None = None
        self._remembered: Remembered | None = None
        self._fusion: tuple[tuple, Fusion] | None = None
        self.taken_over: Update | None = None  # by a run's first plan; later plans start from what that found

    def recall(self, annotation: SparseAnnotation, settings: Settings) -> Remembered | None:
        """What is remembered of the annotation's scan; what is kept next belongs to it."""
        key = fingerprint(annotation, settings)
        if key != self._key:
            self._key, self._remembered, self._fusion = key, None, None
        return self._remembered

    def keep(self, annotation: SparseAnnotation, stack: Stack, velocity: torch.Tensor):
        """Keep the registration of the scan that was recalled last."""
        self._remembered = Remembered(stack.first, stack.box, velocity.cpu(), pulls(annotation))

    def recall_fusion(
        self, annotation: SparseAnnotation, settings: Settings, stack: Stack, update: Update | None
    ) -> Fusion | None:
        """What was fused in the last run, if only what scribbles do is to be done anew. It is not to be changed."""
        if update is None or update.pairs or annotation.atlases or self._fusion is None:
            return None
        key, fusion = self._fusion
        return fusion if key == fusion_fingerprint(annotation, settings, stack) else None

    def keep_fusion(self, annotation: SparseAnnotation, settings: Settings, stack: Stack, fusion: Fusion):
        """Keep what was fused, before scribbles had their say; not with atlases, which no fingerprint tells of."""
        self._fusion = None if annotation.atlases else (fusion_fingerprint(annotation, settings, stack), fusion)


def fingerprint(annotation: SparseAnnotation, settings: Settings) -> tuple:
    """Equal for runs whose fields may be taken over: the same voxels, axis, and way of registration."""
    images = [image for image in (annotation.image, annotation.second_image) if image is not None]
    return digest(*images), annotation.spacing, annotation.axis, chosen(settings, NOT_OF_REGISTRATION)


def fusion_fingerprint(annotation: SparseAnnotation, settings: Settings, stack: Stack) -> tuple:
    """Equal for runs on the same fields, without atlases, that fuse the same."""
    drawn = [
        digest(label, plane, mask.shape, np.packbits(mask))
        for label in annotation.labels
        for plane, mask in sorted(annotation.complete[label].items())
    ]
    absent = {label: sorted(planes) for label, planes in annotation.absent.items()}
    leading = sorted(gaps_to_scribbles(annotation, stack).items(), key=repr)
    strokes = {}
    if settings.extrapolate:  # then it depends on the strokes, too, whether the label is carried to them
        strokes = {label: digest(annotation.scribbles[label]) for _, labels in leading for label in labels}
    return (
        digest(drawn, absent, leading, sorted(strokes.items())),
        chosen(settings, NOT_OF_FUSION),
        stack.crop,
        stack.size,
    )


def digest(*parts: object) -> str:
    """A digest of arrays, and of values that are equal if their texts are."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.shape} {part.dtype}".encode())
            found.update(np.ascontiguousarray(part).data)
        else:
            found.update(f"{part!r};".encode())
    return found.hexdigest()


def chosen(settings: Settings, unimportant: Collection[str]) -> tuple:
    """The settings but for the unimportant ones, and what is known of the file of weights."""
    values = {name: value for name, value in asdict(settings).items() if name not in unimportant}
    return tuple(values.items()), repr(identify_weights(settings))


def resample(
    fields: torch.Tensor, box: tuple[slice, slice], new_box: tuple[slice, slice], size: tuple[int, int]
) -> torch.Tensor:
    """`fields` (N, 2, h, w) over the crop `box` on a grid of `size` over `new_box`; beyond `box` as on its border."""
    if box == new_box:
        return resize(fields, size)
    coordinates, scales = [], []
    for old, new, length, new_length in zip(box, new_box, fields.shape[-2:], size, strict=True):
        pitch = (old.stop - old.start - 1) / (length - 1)  # voxels; the corners of crop and grid coincide
        new_pitch = (new.stop - new.start - 1) / (new_length - 1)
        coordinates.append((new.start - old.start + torch.arange(new_length) * new_pitch) / pitch)
        scales.append(pitch / new_pitch)
    points = torch.stack(torch.meshgrid(*coordinates, indexing="ij"))[None].expand(len(fields), -1, -1, -1)
    return sample(fields, points.to(fields)) * fields.new_tensor(scales).view(1, 2, 1, 1)


def pulls(annotation: SparseAnnotation) -> frozenset[Pull]:
    """The gaps whose labels pull their fields."""
    found = set()
    for bounds, shared in shared_gaps(annotation).items():
        drawn = (np.packbits([annotation.complete[label][plane] for plane in bounds]) for label in shared)
        found.add((*bounds, digest(*drawn)))
    return frozenset(found)
