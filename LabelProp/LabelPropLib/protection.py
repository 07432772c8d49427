"""What a preview may change of the segments: everything but what the user drew, locked, or did since."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np


def protect(
    preview: Mapping[str, np.ndarray],
    current: Mapping[str, np.ndarray],
    axis: int,
    known: Mapping[str, Collection[int]],
    scribbled: Mapping[str, Collection[int]],
    occupied: np.ndarray | None = None,
    locked: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The masks to write, by segment, from those of the preview.

    All masks are (K, J, I) bool on one grid; planes are indices along the array axis.

    current: what the segments bear now. known: planes on which a segment is complete or absent and stays as it is.
    scribbled: planes whose voxels the segment keeps. What was drawn on these planes after the preview was made belongs
    to the segment it was drawn for, and is taken from what the preview gives the others.
    occupied: voxels that belong to segments outside the preview, None where overlap is allowed.
    locked: voxels where a segment must stay as it is, e.g. outside the editable area; None where there are none.
    """
    drawn_since = {name: np.zeros_like(mask) for name, mask in preview.items()}
    for name, drawn in drawn_since.items():
        for plane in {*known[name], *scribbled[name]}:
            here = _plane(plane, axis)
            drawn[here] = current[name][here] & ~preview[name][here]
    written = {}
    for name, mask in preview.items():
        result = mask.copy()
        for other, drawn in drawn_since.items():
            if other != name:
                result &= ~drawn
        if occupied is not None:
            result &= ~occupied
        for plane in scribbled[name]:
            here = _plane(plane, axis)
            result[here] |= current[name][here]
        for plane in known[name]:
            here = _plane(plane, axis)
            result[here] = current[name][here]
        if locked is not None:
            result = np.where(locked[name], current[name], result)
        written[name] = result
    return written


def _plane(index: int, axis: int) -> tuple:
    return tuple(index if a == axis else slice(None) for a in range(3))
