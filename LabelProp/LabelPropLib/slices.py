"""Which slices of the segments are annotated, and how: for showing it, and for keeping it true while the user edits.

Slices are numbered along the axes of the segmentation's reference geometry. Only the voxels of a segment's own, cropped
labelmap are looked at, so that this can be asked for after every brush stroke.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

import numpy as np
import slicer
import vtk

from .annotation import AXIS_NAMES
from .roles import SLICE_ROLES, Roles
from .scene import (
    SceneAnnotation,
    StoredSegment,
    drawn_planes,
    grid_shape,
    grid_start,
    read_roles,
    stored_segments,
    work_grid,
    write_roles,
)

COMPLETE, ABSENT, IGNORED = "complete", "absent", "ignored"
PROPAGATED_TAG = "LabelProp.Propagated"  # "k 3=1234 4=5678": slices that were not drawn, and their fingerprints
MOST_EDITED = 0.8  # share of the propagated slices; what edits more was done to all of the segment, like smoothing
MOST_ERASED = 0.25  # share of them; who erases more, and leaves none as it was, may have begun anew
ANATOMICAL_PLANES = ("sagittal", "coronal", "axial")  # across the R, A and S directions


@dataclass(frozen=True)
class SliceOverview:
    """axis: the array axis across which the annotated slices lie; slices: the indices that there are along it;
    roles: segment ID -> slice -> 'complete', 'scribble', 'absent' or 'ignored'; slices not named are unknown.
    """

    grid: slicer.vtkOrientedImageData
    axis: int
    slices: range
    roles: Mapping[str, Mapping[int, str]]


def survey(volume_node, segmentation_node, segment_ids: Iterable[str], axis: str = "auto") -> SliceOverview:
    """How the slices of the segments are annotated; `axis` is 'k', 'j', 'i' or 'auto', as in `scene.collect`."""
    grid = work_grid(volume_node, segmentation_node)
    segmentation = segmentation_node.GetSegmentation()
    stored = stored_segments(segmentation_node, segment_ids, grid)
    roles = {name: read_roles(segmentation.GetSegment(name)) for name in stored}
    array_axis, drawn = drawn_planes(stored, roles.values(), axis)
    if axis == "auto" and not any(drawn.values()) and not any(given.axes for given in roles.values()):
        array_axis = min(range(3), key=lambda a: grid_shape(grid)[a])  # slices are thick as a rule
    first = grid_start(grid)[array_axis]
    return SliceOverview(
        grid=grid,
        axis=array_axis,
        slices=range(first, first + grid_shape(grid)[array_axis]),
        roles={name: slice_roles(drawn[name], roles[name], array_axis) for name in stored},
    )


def slice_roles(borne: Iterable[int], roles: Roles, axis: int) -> dict[int, str]:
    """Slice -> role, from the slices that bear the segment's voxels and the roles that the user gave."""
    found = dict.fromkeys(borne, "scribble" if roles.background else COMPLETE)
    for role in SLICE_ROLES:
        for index in roles.of(axis, role):
            if role == "ignored" or (index in found) == (role == "scribble"):
                found[index] = role
    return found


def with_role(roles: Roles, axis: int, role: str, slices: Iterable[int]) -> Roles:
    """`roles` with the slices given `role`; 'complete' is what a slice that bears voxels is without any."""
    slices = frozenset(slices)
    given = {name: roles.of(axis, name) - slices for name in SLICE_ROLES}
    if role != COMPLETE:
        given[role] |= slices
    return replace(roles, slices={**roles.slices, AXIS_NAMES[axis]: given})


def set_role(segmentation_node, segment_id: str, axis: int, role: str, slices: Iterable[int]):
    """Give slices of a segment a role, in the segment's tag."""
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    write_roles(segment, with_role(read_roles(segment), axis, role, slices))


def set_background(segmentation_node, segment_id: str, background: bool):
    """Make a segment a scribble of background, or a label of its own again; in the segment's tag."""
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    write_roles(segment, replace(read_roles(segment), background=background))


def background_segments(segmentation_node) -> set[str]:
    """IDs of the segments that are scribbles of background."""
    segmentation = segmentation_node.GetSegmentation()
    return {name for name in segmentation.GetSegmentIDs() if read_roles(segmentation.GetSegment(name)).background}


@dataclass(frozen=True)
class ExpectedQuality:
    """What a run expects of its result, as far as it made an estimate.

    axis: the array axis across which the slices lie. dice: segment ID -> slice -> expected Dice. mean: of the whole
    result, None if unknown. suggested: the slice to draw next, None without a suggestion; suggested_for: IDs of the
    segments that it is to be drawn for, none where that is not said.
    """

    axis: int
    dice: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    mean: float | None = None
    suggested: int | None = None
    suggested_for: tuple[str, ...] = ()


def expected_quality(collected: SceneAnnotation, report: Mapping) -> ExpectedQuality:
    """The expected quality that the report of a run tells, its planes as slices of the segmentation."""
    axis = collected.annotation.axis
    first = grid_start(collected.grid)[axis]
    suggestion = report.get("suggested_slice") or {}
    return ExpectedQuality(
        axis=axis,
        dice={
            collected.segment_ids[int(label)]: {int(plane) + first: float(value) for plane, value in planes.items()}
            for label, planes in report.get("expected_dice", {}).items()
        },
        mean=report.get("expected_mean_dice"),
        suggested=int(suggestion["plane"]) + first if suggestion else None,
        suggested_for=tuple(collected.segment_ids[label] for label in suggestion.get("labels", ())),
    )


def fingerprints(segment: StoredSegment, axis: int) -> dict[int, int]:
    """Slice across the array axis -> a number that changes when the segment's voxels on it do."""
    found = {}
    corner = [first for a, first in enumerate(segment.first) if a != axis]
    planes = np.moveaxis(segment.values, axis, 0)
    for n in segment.filled if axis == 0 else range(len(planes)):
        mask = planes[n] == segment.value
        if not mask.any():
            continue
        rows, columns = (np.flatnonzero(mask.any(axis=a)) for a in (1, 0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        place = np.array([corner[0] + rows[0], corner[1] + columns[0], *box.shape], np.int32)
        found[int(n) + segment.first[axis]] = zlib.crc32(box.tobytes(), zlib.crc32(place.tobytes()))
    return found


def mark_propagated(segmentation_node, overview: SliceOverview):
    """Let the slices that bear the segments now, but were not drawn, be no input of the next run.

    overview: of the slices before they were propagated. It is kept in the segments' tags, so files and Undo know it.
    """
    for name, stored in stored_segments(segmentation_node, overview.roles, overview.grid).items():
        drawn = {index for index, role in overview.roles[name].items() if role != IGNORED}
        found = {index: number for index, number in fingerprints(stored, overview.axis).items() if index not in drawn}
        segment = segmentation_node.GetSegmentation().GetSegment(name)
        empty = _read_propagated(segment, overview.axis).keys() - found.keys() - drawn
        set_role(segmentation_node, name, overview.axis, COMPLETE, empty)  # what is drawn there next is to be read
        set_role(segmentation_node, name, overview.axis, IGNORED, found)
        _write_propagated(segment, overview.axis, found)


def notice_corrections(segmentation_node, overview: SliceOverview) -> bool:
    """Propagated slices that were edited since are the user's own from then on. Returns whether there are some.

    Complete, or absent where all was erased; of a segment that was cleared, nothing is known where it was. What was
    done to a whole segment, like smoothing, corrects nothing. overview: of the slices as they are now.
    """
    segmentation = segmentation_node.GetSegmentation()
    propagated = {name: _read_propagated(segmentation.GetSegment(name), overview.axis) for name in overview.roles}
    propagated = {name: known for name, known in propagated.items() if known}
    corrected = False
    for name, stored in stored_segments(segmentation_node, propagated, overview.grid).items():
        known, found = propagated[name], fingerprints(stored, overview.axis)
        left, erased = known.keys() & found.keys(), known.keys() - found.keys()
        edited = {index for index in left if found[index] != known[index]}
        if not erased and not edited:
            continue
        if was_begun_anew(left, edited, erased):  # nothing is known any more of what was erased
            set_role(segmentation_node, name, overview.axis, COMPLETE, erased | edited)
            left, corrected = set(), True
        elif were_edited_singly(left, edited):
            set_role(segmentation_node, name, overview.axis, COMPLETE, edited)
            set_role(segmentation_node, name, overview.axis, ABSENT, erased)
            corrected = True
        _write_propagated(segmentation.GetSegment(name), overview.axis, {index: found[index] for index in left})
    return corrected


def was_begun_anew(left: Set[int], edited: Set[int], erased: Set[int]) -> bool:
    """Whether the segment was cleared and drawn anew: much is gone, and nothing that is left is as it was.

    So it is where a segment shrank, too; but what is drawn anew is little, or has slices in between that are not drawn.
    """
    most = MOST_ERASED * (len(left) + len(erased))
    with_gaps = any(min(left) < index < max(left) for index in erased) if left else False
    return len(erased) > max(1, most) and edited == left and (len(left) <= most or with_gaps)


def were_edited_singly(left: Set[int], edited: Set[int]) -> bool:
    """Whether slices were corrected; who edits nearly all of them did something to the segment, like smoothing it."""
    return len(edited) <= max(1, MOST_EDITED * len(left))


def _write_propagated(segment, axis: int, found: Mapping[int, int]):
    if found:
        slices = (f"{index}={number}" for index, number in sorted(found.items()))
        segment.SetTag(PROPAGATED_TAG, " ".join([AXIS_NAMES[axis], *slices]))
    else:
        segment.RemoveTag(PROPAGATED_TAG)


def _read_propagated(segment, axis: int) -> dict[int, int]:
    """Slice -> fingerprint, empty where the tag is missing, of another axis, or not one of ours."""
    text = vtk.reference("")
    if not segment.GetTag(PROPAGATED_TAG, text):
        return {}
    name, *slices = text.get().split() or [""]
    try:
        known = dict(map(int, entry.split("=")) for entry in slices)
    except ValueError:
        return {}
    return known if name == AXIS_NAMES[axis] else {}


def anatomical_plane(grid, axis: int) -> str:
    """'axial', 'coronal' or 'sagittal': the orientation nearest to that of the slices across an array axis."""
    image_to_world = vtk.vtkMatrix4x4()
    grid.GetImageToWorldMatrix(image_to_world)
    direction = [abs(image_to_world.GetElement(row, 2 - axis)) for row in range(3)]
    return ANATOMICAL_PLANES[direction.index(max(direction))]
