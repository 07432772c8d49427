"""What a preview may change of the segments: everything but what the user drew, locked, or did since.

What is locked, and which other segments may be written over, is the Segment Editor's masking: editable area, editable
intensity range, overwrite mode.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import slicer

from ..errors import InputError
from ..roles import ABSENT, COMPLETE, SCRIBBLE
from .geometry import Resample, grid_shape, grid_start, voxels
from .segments import BINARY_LABELMAP, content_grid, stored_segments, visible_segments
from .slices import SliceOverview


def masks_to_write(
    editor_node, preview_node, overview: SliceOverview, source_image=None
) -> tuple[dict[str, np.ndarray], slicer.vtkOrientedImageData, int]:
    """What to write of a preview into the segmentation of a segment editor node.

    preview_node: its segments have the IDs of those that they are the preview of, and lie on the overview's grid.
    overview: of the slices of these segments as they are now.
    source_image: the source volume aligned with the segmentation, for the editable intensity range; None without one.

    Returns segment ID -> (K, J, I) bool, the grid of these masks, which is a part of the overview's, and the number of
    voxels that were left to segments outside the preview. Raises InputError when the preview does not fit any more.
    """
    node, names = editor_node.GetSegmentationNode(), list(overview.roles)
    _check_geometry(preview_node, names, overview.grid)
    grid = content_grid(overview.grid, (node, preview_node), names)
    first = grid_start(grid)[overview.axis]
    there = range(first, first + grid_shape(grid)[overview.axis])

    def planes(*roles: str) -> dict[str, list[int]]:
        given = {name: overview.roles[name].items() for name in names}
        return {n: [index - first for index, role in given[n] if role in roles and index in there] for n in names}

    preview, current = (
        {name: segment.on_grid(grid) for name, segment in stored_segments(source, names, grid).items()}
        for source in (preview_node, node)
    )
    occupied = occupied_voxels(editor_node, names, grid)
    locked = locked_voxels(editor_node, names, grid, source_image)
    known, scribbled = planes(COMPLETE, ABSENT), planes(SCRIBBLE)
    written = protect(preview, current, overview.axis, known, scribbled, occupied, locked)
    left = 0 if occupied is None else sum(int((preview[n] & occupied & ~written[n]).sum()) for n in names)
    return {name: mask for name, mask in written.items() if (mask != current[name]).any()}, grid, left


def _check_geometry(preview_node, names: Iterable[str], grid):
    for name in names:
        labelmap = preview_node.GetSegmentation().GetSegment(name).GetRepresentation(BINARY_LABELMAP)
        if not labelmap.IsEmpty() and not Resample.DoGeometriesMatch(labelmap, grid):
            raise InputError(
                "The geometry of the segmentation was changed since the preview was made: update the preview."
            )


def occupied_voxels(editor_node, names: Collection[str], grid) -> np.ndarray | None:
    """(K, J, I) bool: voxels of segments other than `names`, which are not taken; None where they may overlap."""
    node, mode = editor_node.GetSegmentationNode(), editor_node.GetOverwriteMode()
    if mode == slicer.vtkMRMLSegmentEditorNode.OverwriteNone:
        return None
    others = set(node.GetSegmentation().GetSegmentIDs()) - set(names)
    if mode == slicer.vtkMRMLSegmentEditorNode.OverwriteVisibleSegments:
        others &= set(visible_segments(node))
    occupied = np.zeros(grid_shape(grid), bool)
    for segment in stored_segments(node, others, grid).values():
        occupied |= segment.on_grid(grid)
    return occupied


def locked_voxels(editor_node, names: Iterable[str], grid, source_image) -> dict[str, np.ndarray] | None:
    """Segment ID -> (K, J, I) bool: where it may not be edited; None where all may be edited everywhere."""
    by_intensity = bool(editor_node.GetSourceVolumeIntensityMask())
    if editor_node.GetMaskMode() == slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere and not by_intensity:
        return None
    locked = {}
    for name in names:
        mask = slicer.vtkOrientedImageData()
        editor_node.GetSegmentationNode().GenerateEditMask(
            mask,
            editor_node.GetMaskMode(),
            grid,
            name,
            editor_node.GetMaskSegmentID() or "",
            source_image if by_intensity else None,
            editor_node.GetSourceVolumeIntensityMaskRange() if by_intensity else None,
        )
        locked[name] = voxels(mask) > 0
    return locked


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
    written = {name: mask.copy() if occupied is None else mask & ~occupied for name, mask in preview.items()}
    kept = {name: {*known[name], *scribbled[name]} for name in preview}
    for plane in set().union(*kept.values()):
        here = tuple(plane if a == axis else slice(None) for a in range(3))
        for name, planes in kept.items():
            if plane in planes:
                drawn_since = current[name][here] & ~preview[name][here]
                for other in written.keys() - {name}:
                    written[other][here] &= ~drawn_since
        for name, mask in written.items():
            if plane in scribbled[name]:
                mask[here] |= current[name][here]
            if plane in known[name]:
                mask[here] = current[name][here]
    for name, mask in (locked or {}).items():
        np.copyto(written[name], current[name], where=mask)
    return written
