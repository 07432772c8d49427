"""What a preview may change of the segments: everything but what the user drew, locked, or did since.

What is locked, and which other segments may be written over, is the Segment Editor's masking: editable area, editable
intensity range, overwrite mode.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import slicer

from .. import boxes
from ..boxes import Box
from ..errors import InputError
from ..roles import ABSENT, COMPLETE, SCRIBBLE
from .geometry import Resample, grid_shape, grid_start, part_of_grid, voxels
from .segments import BINARY_LABELMAP, StoredSegment, content_grid, stored_segments, visible_segments
from .slices import SliceOverview


def masks_to_write(
    editor_node, preview_node, overview: SliceOverview, source_image=None
) -> tuple[dict[str, tuple[Box, np.ndarray]], slicer.vtkOrientedImageData, int]:
    """What to write of a preview into the segmentation of a segment editor node.

    preview_node: its segments have the IDs of those that they are the preview of, and lie on the overview's grid.
    overview: of the slices of these segments as they are now.
    source_image: the source volume aligned with the segmentation, for the editable intensity range; None without one.

    Returns segment ID -> the box (k, j, i) that holds all of it and its mask there, the grid of these boxes, which is a
    part of the overview's, and the number of voxels that were left to segments outside the preview. Raises InputError
    when the preview does not fit any more.
    """
    node, names, axis = editor_node.GetSegmentationNode(), list(overview.roles), overview.axis
    _check_geometry(preview_node, names, overview.grid)
    preview, current = (stored_segments(source, names, overview.grid) for source in (preview_node, node))
    grid = content_grid(overview.grid, [*preview.values(), *current.values()])
    first = grid_start(grid)[axis]

    def planes(name: str, *roles: str) -> list[int]:
        given = (index - first for index, role in overview.roles[name].items() if role in roles)
        return [plane for plane in given if 0 <= plane < grid_shape(grid)[axis]]

    kept = {name: planes(name, COMPLETE, ABSENT, SCRIBBLE) for name in names}
    drawn = {name: drawn_since(preview[name], current[name], axis, kept[name], grid) for name in names}
    occupied = occupied_voxels(editor_node, names, grid)
    written, left = {}, 0
    for name in names:  # one by one: all of them, each on the whole grid, may be more than memory holds
        box = boxes.around([stored[name].box_on_grid(grid) for stored in (preview, current)])
        found, borne = (stored[name].in_box(box, grid) for stored in (preview, current))
        known, scribbled = (
            {plane - box[axis].start for plane in planes(name, *roles) if box[axis].start <= plane < box[axis].stop}
            for roles in ((COMPLETE, ABSENT), (SCRIBBLE,))
        )
        taken = None if occupied is None else occupied[box]
        locked = locked_voxels(editor_node, name, part_of_grid(grid, box), source_image) if found.size else None
        mask = protect(found, borne, axis, known, scribbled, drawn_of_others(name, drawn, axis, box), taken, locked)
        left += 0 if taken is None else np.count_nonzero(found & taken & ~mask)
        if (mask != borne).any():
            written[name] = box, mask
    return written, grid, left


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
        box = segment.box_on_grid(grid)
        occupied[box] |= segment.in_box(box, grid)
    return occupied


def locked_voxels(editor_node, name: str, grid, source_image) -> np.ndarray | None:
    """(K, J, I) bool: where a segment may not be edited; None where it may be everywhere."""
    by_intensity = bool(editor_node.GetSourceVolumeIntensityMask())
    if editor_node.GetMaskMode() == slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere and not by_intensity:
        return None
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
    return voxels(mask) > 0


def drawn_since(
    preview: StoredSegment, current: StoredSegment, axis: int, kept: Iterable[int], grid
) -> dict[int, np.ndarray]:
    """Plane of the grid, of those that keep a segment's voxels -> (H, W) bool, drawn after the preview was made."""
    found = {}
    for plane in kept:
        box = tuple(slice(plane, plane + 1) if a == axis else slice(0, n) for a, n in enumerate(grid_shape(grid)))
        drawn = current.in_box(box, grid) & ~preview.in_box(box, grid)
        if drawn.any():
            found[plane] = drawn.squeeze(axis)
    return found


def drawn_of_others(
    name: str, drawn: Mapping[str, Mapping[int, np.ndarray]], axis: int, box: Box
) -> dict[int, np.ndarray]:
    """Plane of the box -> (H, W) bool, what was drawn there of segments other than `name`; drawn: see `drawn_since`."""
    found: dict[int, np.ndarray] = {}
    across, within = box[axis], tuple(part for a, part in enumerate(box) if a != axis)
    for other in drawn.keys() - {name}:
        for plane, mask in drawn[other].items():
            if across.start <= plane < across.stop:
                here = plane - across.start
                found[here] = found.get(here, False) | mask[within]
    return found


def protect(
    preview: np.ndarray,
    current: np.ndarray,
    axis: int,
    known: Collection[int],
    scribbled: Collection[int],
    drawn: Mapping[int, np.ndarray],
    occupied: np.ndarray | None = None,
    locked: np.ndarray | None = None,
) -> np.ndarray:
    """The mask to write of a segment, from that of the preview.

    All masks are (K, J, I) bool of one box; planes are indices along the array axis.

    current: what the segment bears now. known: planes on which it is complete or absent and stays as it is.
    scribbled: planes whose voxels it keeps. drawn: plane -> (H, W) bool, what was drawn there of other segments after
    the preview was made, which is theirs.
    occupied: voxels that belong to segments outside the preview, None where overlap is allowed.
    locked: voxels where it must stay as it is, e.g. outside the editable area; None where there are none.
    """
    written = preview.copy() if occupied is None else preview & ~occupied
    for plane in {*known, *scribbled, *drawn}:
        here = tuple(plane if a == axis else slice(None) for a in range(3))
        if plane in drawn:
            written[here] &= ~drawn[plane]
        if plane in scribbled:
            written[here] |= current[here]
        if plane in known:
            written[here] = current[here]
    if locked is not None:
        np.copyto(written, current, where=locked)
    return written
