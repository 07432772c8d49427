"""Where on the planes of a layer its labels lie: looked for once, and again only on planes that have changed since."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

LARGEST_INDEX = 2**16  # a list of all labels up to it is short enough to be made for every plane


@dataclass(frozen=True)
class Patch:
    """A label on one plane of an array.

    rows, columns: indices of those that bear it, ascending. fingerprint: a number that changes when its voxels do.
    """

    rows: np.ndarray
    columns: np.ndarray
    fingerprint: int

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the plane."""
        return tuple(slice(int(used[0]), int(used[-1]) + 1) for used in (self.rows, self.columns))


def patch_of(mask: np.ndarray, start: Iterable[int], corner: Iterable[int]) -> Patch:
    """The patch that a (H, W) bool makes, which is not empty.

    start: (row, column) of its first pixel on the plane. corner: indices of the plane's first pixel on the lattice, by
    which the fingerprint counts.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rows, columns = (used + first for used, first in zip((rows, columns), start))
    place = np.array([*(used[0] + first for used, first in zip((rows, columns), corner)), *box.shape], np.int32)
    fingerprint = zlib.crc32(box.tobytes(), zlib.crc32(place.tobytes()))
    return Patch(rows.astype(np.int32), columns.astype(np.int32), fingerprint)


def patches_of_plane(plane: np.ndarray, corner: Iterable[int]) -> dict[int, Patch]:
    """Label -> patch of a (H, W) plane of labels, 0 for none; corner: see `patch_of`."""
    from scipy import ndimage  # takes longer to load than Slicer's start should

    if plane.dtype.kind in "iu" and plane.max() < LARGEST_INDEX:
        labels, numbered = range(int(plane.max()) + 1), plane
    else:
        labels = np.union1d(0, plane)
        numbered = np.searchsorted(labels, plane)
    found = {}
    for number, box in enumerate(ndimage.find_objects(numbered), 1):
        if box is not None:
            mask = numbered[box] == number
            found[int(labels[number])] = patch_of(mask, [part.start for part in box], corner)
    return found


PatchesOfPlanes = Mapping[tuple, Mapping[int, Patch]]  # what a plane is known by -> its patches


def patches_of_layer(values: np.ndarray, first: tuple[int, int, int], before: PatchesOfPlanes) -> PatchesOfPlanes:
    """The patches of each plane k of (K, J, I) labels, which must be contiguous, in their order.

    first: index (k, j, i) of the first voxel on the lattice. before: what this returned earlier; it is taken over for
    the planes that are as they were.
    """
    found = {}
    for k, plane in enumerate(values, first[0]):
        key = (k, *first[1:], *plane.shape, zlib.crc32(plane))
        found[key] = before[key] if key in before else patches_of_plane(plane, first[1:])
    return found
