"""Boxes of an array: a slice for each axis, all of them with a start and a stop."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[slice, slice, slice]


def whole(shape: Sequence[int]) -> tuple[slice, ...]:
    """The box that an array of this shape fills."""
    return tuple(slice(0, length) for length in shape)


def overlap(first: Sequence[slice], second: Sequence[slice]) -> tuple[slice, ...]:
    """The part that two boxes share, of no size where there is none."""
    starts = [max(a.start, b.start) for a, b in zip(first, second, strict=True)]
    stops = [min(a.stop, b.stop) for a, b in zip(first, second, strict=True)]
    return tuple(slice(start, max(start, stop)) for start, stop in zip(starts, stops, strict=True))


def within(part: Sequence[slice], box: Sequence[slice]) -> tuple[slice, ...]:
    """`part`, a box of the whole array, as an index of what `box` cuts out of it."""
    return tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))


def of_whole(part: Sequence[slice], box: Sequence[slice]) -> tuple[slice, ...]:
    """The inverse of `within`."""
    return tuple(slice(p.start + b.start, p.stop + b.start) for p, b in zip(part, box, strict=True))


def around(parts: Sequence[Sequence[slice]]) -> tuple[slice, ...]:
    """The smallest box that holds all of these; those of no size do not count."""
    parts = [part for part in parts if size(part)] or [(slice(0, 0),) * 3]
    return tuple(slice(min(p.start for p in along), max(p.stop for p in along)) for along in zip(*parts, strict=True))


def size(box: Sequence[slice]) -> int:
    """The number of voxels in a box."""
    return math.prod(part.stop - part.start for part in box)
