"""Which slices of the segments are annotated, and how: for showing it, and for keeping it true while the user edits.

Slices are numbered along the axes of the segmentation's reference geometry. Only the voxels of a segment's own, cropped
labelmap are looked at, so that this can be asked for after every brush stroke.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace

import numpy as np
import slicer
import vtk

from ..annotation import AXIS_NAMES
from ..patches import patch_of
from ..roles import ABSENT, COMPLETE, IGNORED, PROPAGATED_TAG, SCRIBBLE, SLICE_ROLES, Roles, slice_roles
from .geometry import REFERENCE_GEOMETRY, Converter, array_to_array, grid_shape, grid_start, reference_grid, work_grid
from .reading import SceneAnnotation
from .segments import (
    StoredSegment,
    drawn_planes,
    propagated_by_axis,
    read_propagated,
    read_roles,
    read_tag,
    stored_segments,
    tags_unheard,
    write_roles,
    write_tag,
)

GEOMETRY_TAG = "LabelProp.Geometry"  # the reference geometry that the slices are numbered by, as Slicer writes it
PARALLEL = 1e-3  # slices by which two lattices may diverge per voxel: matrices are rounded
MOST_EDITED = 0.8  # share of the propagated slices; what edits more was done to all of the segment, like smoothing
MOST_ERASED = 0.25  # share of them; a user who erases more, and leaves none as it was, may have begun anew
ANATOMICAL_PLANES = ("sagittal", "coronal", "axial")  # across the R, A and S directions


@dataclass(frozen=True)
class SliceOverview:
    """axis: the array axis across which the annotated slices lie; roles: segment ID -> slice -> 'complete', 'scribble',
    'absent' or 'ignored'; slices not named are unknown.
    """

    grid: slicer.vtkOrientedImageData
    axis: int
    roles: Mapping[str, Mapping[int, str]]

    @property
    def slices(self) -> range:
        """The indices that there are along the axis."""
        return slice_numbers(self.grid, self.axis)


def slice_numbers(grid, axis: int) -> range:
    """The indices of the grid's slices across an array axis."""
    first = grid_start(grid)[axis]
    return range(first, first + grid_shape(grid)[axis])


def survey(
    volume_node,
    segmentation_node,
    segment_ids: Iterable[str],
    axis: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> SliceOverview:
    """How the slices of the segments are annotated; `axis` is 'k', 'j', 'i' or 'auto', as in `scene.collect`.

    First the marks of the slices follow the geometry, see `follow_geometry`, which calls `say`.
    """
    segment_ids = list(segment_ids)
    follow_geometry(segmentation_node, segment_ids, say)
    grid = work_grid(volume_node, segmentation_node)
    segmentation = segmentation_node.GetSegmentation()
    stored = stored_segments(segmentation_node, segment_ids, grid)
    roles = {name: read_roles(segmentation.GetSegment(name)) for name in stored}
    structures = {name: segment for name, segment in stored.items() if not roles[name].background}
    given = [roles[name] for name in structures]
    array_axis, drawn = drawn_planes(structures, given, axis)
    if axis == "auto" and not any(drawn.values()) and not any(of_segment.axes for of_segment in given):
        array_axis = min(range(3), key=lambda a: grid_shape(grid)[a])  # slices are thick as a rule
    drawn = {name: segment.planes([array_axis])[array_axis] for name, segment in stored.items()}
    return SliceOverview(grid, array_axis, {name: slice_roles(drawn[name], roles[name], array_axis) for name in stored})


def overview_when_read(collected: SceneAnnotation) -> SliceOverview:
    """How the slices of the segments that get a result were annotated when they were read."""
    roles = {name: collected.slices[name] for name in collected.written_ids.values()}
    return SliceOverview(collected.grid, collected.annotation.axis, roles)


def with_role(roles: Roles, axis: int, role: str, slices: Iterable[int]) -> Roles:
    """`roles` with the slices given `role`; 'complete' is what a slice that bears voxels is without any."""
    slices = frozenset(slices)
    given = {name: roles.of(axis, name) - slices for name in SLICE_ROLES}
    if role != COMPLETE:
        given[role] |= slices
    return replace(roles, slices={**roles.slices, AXIS_NAMES[axis]: given})


def set_role(segmentation_node, segment_id: str, axis: int, role: str, slices: Iterable[int]):
    """Give slices of a segment a role, in the segment's tag."""
    follow_geometry(segmentation_node, [segment_id])
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    write_roles(segment, with_role(read_roles(segment), axis, role, slices))
    write_tag(segment, GEOMETRY_TAG, segmentation_node.GetSegmentation().GetConversionParameter(REFERENCE_GEOMETRY))


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
    if axis == 0:
        return {k + segment.first[0]: patch.fingerprint for k, patch in segment.patches.items()}
    box = segment.box
    first, *corner = (segment.first[a] + box[a].start for a in (axis, *(a for a in range(3) if a != axis)))
    planes = np.moveaxis(segment.values[box] == segment.value, axis, 0)
    return {n: patch_of(mask, (0, 0), corner).fingerprint for n, mask in enumerate(planes, first) if mask.any()}


def mark_propagated(segmentation_node, overview: SliceOverview):
    """Mark the slices that bear the segments now but were not drawn, so that they are not an input of the next run.

    overview: of the slices before they were propagated. The marks are in the segments' tags, where files and Undo keep
    them, together with those of slices that were found once and corrected since.
    """
    for name, stored in stored_segments(segmentation_node, overview.roles, overview.grid).items():
        roles, borne = overview.roles[name], fingerprints(stored, overview.axis)
        drawn = {index for index, role in roles.items() if role != IGNORED}
        found = {index: number for index, number in borne.items() if index not in drawn}
        segment = segmentation_node.GetSegmentation().GetSegment(name)
        known = read_propagated(segment, overview.axis).keys()
        set_role(segmentation_node, name, overview.axis, COMPLETE, known - found.keys() - drawn)  # to be read if drawn
        set_role(segmentation_node, name, overview.axis, IGNORED, found)
        corrected = {index: borne[index] for index in known & borne.keys() if roles.get(index) == COMPLETE}
        _write_propagated(segment, overview.axis, found | corrected)


def notice_corrections(
    segmentation_node, overview: SliceOverview, say: Callable[[str], None] = lambda text: None
) -> bool:
    """Propagated slices that were edited since are the user's own from then on. Returns whether there are some.

    They are complete then, or absent if all was erased; where a segment that was cleared has been, nothing is known. A
    change to a whole segment, like smoothing, corrects nothing, and `say` is called with a line about it.
    overview: of the slices as they are now.
    """
    segmentation = segmentation_node.GetSegmentation()
    propagated = {}
    for name, roles in overview.roles.items():
        known = read_propagated(segmentation.GetSegment(name), overview.axis)
        propagated[name] = {index: number for index, number in known.items() if roles.get(index) != SCRIBBLE}
    propagated = {name: known for name, known in propagated.items() if known}
    corrected = False
    for name, stored in stored_segments(segmentation_node, propagated, overview.grid).items():
        known, found = propagated[name], fingerprints(stored, overview.axis)
        left, erased = known.keys() & found.keys(), known.keys() - found.keys()
        edited = {index for index in left if found[index] != known[index]}
        if not erased and not edited:
            continue
        segment = segmentation.GetSegment(name)
        given = read_roles(segment)
        if was_begun_anew(left, edited, erased):  # nothing is known any more of what was erased
            given = with_role(given, overview.axis, COMPLETE, erased | edited)
            left, corrected = set(), True
        elif were_edited_singly(left, edited):
            given = with_role(given, overview.axis, COMPLETE, edited)
            given = with_role(given, overview.axis, ABSENT, erased)
            corrected = True
        elif edited:
            say(
                f"{len(edited)} of {len(left)} slices of '{segment.GetName()}' that were found earlier have changed"
                " since: that was taken for a change to the whole segment, so they are found anew."
            )
        with tags_unheard(segment) as noted:
            write_roles(noted, given)
            _write_propagated(noted, overview.axis, {index: found[index] for index in left})
    return corrected


def was_begun_anew(left: Set[int], edited: Set[int], erased: Set[int]) -> bool:
    """Whether the segment was cleared and drawn anew: much is gone, and nothing that is left is as it was.

    That also holds for a segment that shrank; but one that is drawn anew has few slices, or gaps between them.
    """
    most = MOST_ERASED * (len(left) + len(erased))
    if len(erased) <= max(1, most) or edited != left:
        return False
    return len(left) <= most or any(min(left) < index < max(left) for index in erased)


def were_edited_singly(left: Set[int], edited: Set[int]) -> bool:
    """Whether single slices were corrected; a change to the whole segment, like smoothing, edits nearly all of them."""
    return len(edited) <= max(1, MOST_EDITED * len(left))


def _write_propagated(segment, axis: int, found: Mapping[int, int]):
    """Keep slice -> fingerprint along an axis in the segment's tag, beside those along the other axes."""
    known = {**propagated_by_axis(segment), AXIS_NAMES[axis]: found}
    write_tag(segment, PROPAGATED_TAG, _propagated_text(known))


def _propagated_text(known: Mapping[str, Mapping[int, int]]) -> str:
    """Axis name -> slice -> fingerprint, as `propagated_by_axis` reads it."""
    return " ".join(
        " ".join([name, *(f"{index}={number}" for index, number in sorted(numbers.items()))])
        for name, numbers in known.items()
        if numbers
    )


def follow_geometry(segmentation_node, segment_ids: Iterable[str], say: Callable[[str], None] = lambda text: None):
    """Let what is known of slices follow the reference geometry, by which they are numbered, where that was changed.

    A slice takes over what was known of the one nearest to it. Where slices came to lie askew nothing is known any
    more, so that all that bear a segment count as drawn, and `say` is called with a line about it.
    """
    segmentation = segmentation_node.GetSegmentation()
    geometry = segmentation.GetConversionParameter(REFERENCE_GEOMETRY)
    earlier = slicer.vtkOrientedImageData()
    for segment_id in segment_ids:
        segment = segmentation.GetSegment(segment_id)
        counted_on = read_tag(segment, GEOMETRY_TAG)
        if not (geometry and counted_on) or geometry == counted_on:
            continue
        with tags_unheard(segment) as noted:
            if Converter.DeserializeImageGeometry(counted_on, earlier, False):
                lost = _renumber(segmentation_node, segment_id, noted, earlier)
                if lost:
                    say(
                        f"The grid of the segmentation was turned, so nothing is known any more of the slices of"
                        f" '{segment.GetName()}' across {', '.join(lost)}: all those that bear it count as drawn."
                    )
            write_tag(noted, GEOMETRY_TAG, geometry)


def _renumber(segmentation_node, segment_id: str, noted: slicer.vtkSegment, earlier) -> list[str]:
    """Number what is known of a segment's slices by the work grid instead of an earlier geometry; in tags of `noted`.

    Nothing changes where the geometry was moved together with the voxels, as by a transform that was hardened: it has
    the same extent, and more of what was found lies as it did on the new one. Without anything found that is as it was
    both look alike, and a geometry that is not mirrored counts as moved.
    Returns the names of the axes of whose slices nothing is known any more.
    """
    segmentation = segmentation_node.GetSegmentation()
    grid, now = work_grid(None, segmentation_node), reference_grid(segmentation)
    before, stored = (stored_segments(segmentation_node, [segment_id], g)[segment_id] for g in (earlier, grid))
    propagated = propagated_by_axis(noted)
    unchanged, unchanged_if_moved = (_found_unchanged(s, propagated) for s in (before, stored))
    to_earlier = array_to_array(grid, earlier)
    mirrored = np.linalg.det(to_earlier[:3, :3]) < 0
    moved = len(unchanged_if_moved) > len(unchanged) or not (unchanged_if_moved or unchanged or mirrored)
    if moved and earlier.GetExtent() == now.GetExtent():
        return []
    roles = read_roles(noted)
    numbers, lost = _earlier_numbers(roles.axes | propagated.keys(), to_earlier, grid)
    write_roles(noted, _renumbered_roles(roles, numbers))
    write_tag(noted, PROPAGATED_TAG, _propagated_text(_renumbered_fingerprints(propagated, numbers, unchanged, stored)))
    return lost


# Axis name of the grid -> that of an earlier lattice across the same slices, and slice -> the one nearest to it there
EarlierNumbers = dict[str, tuple[str, dict[int, int]]]


def _found_unchanged(stored: StoredSegment, propagated: Mapping[str, Mapping[int, int]]) -> set[tuple[str, int]]:
    """Axis name and index of the slices that were found, see `propagated_by_axis`, and are as they were."""
    return {
        (name, index)
        for name, numbers in propagated.items()
        for index, _ in fingerprints(stored, AXIS_NAMES.index(name)).items() & numbers.items()
    }


def _earlier_numbers(names: Collection[str], to_earlier: np.ndarray, grid) -> tuple[EarlierNumbers, list[str]]:
    """The slices of the grid across the axes that had these names on an earlier lattice.

    to_earlier: (4, 4) from voxel indices (k, j, i) to those of that lattice. Returns also the names of the axes whose
    slices are not parallel to any of the grid's.
    """
    numbers, lost = {}, []
    for axis, name in enumerate(AXIS_NAMES):
        if name not in names:
            continue
        along = to_earlier[axis]
        across = int(np.argmax(np.abs(along[:3])))
        if np.abs(np.delete(along[:3], across)).max() > PARALLEL:
            lost.append(name)
            continue
        indices = np.array(slice_numbers(grid, across))
        nearest = np.floor(along[across] * indices + along[3] + 0.5 + PARALLEL).astype(int)
        numbers[AXIS_NAMES[across]] = name, dict(zip(indices.tolist(), nearest.tolist(), strict=True))
    return numbers, lost


def _renumbered_roles(roles: Roles, numbers: EarlierNumbers) -> Roles:
    """Roles given to slices by an earlier lattice, by the grid's."""
    slices = {
        name: {
            role: frozenset(now for now, then in nearest.items() if then in roles.of(AXIS_NAMES.index(earlier), role))
            for role in SLICE_ROLES
        }
        for name, (earlier, nearest) in numbers.items()
    }
    return replace(roles, slices=slices)


def _renumbered_fingerprints(
    propagated: Mapping[str, Mapping[int, int]],
    numbers: EarlierNumbers,
    unchanged: Set[tuple[str, int]],
    stored: StoredSegment,
) -> dict[str, dict[int, int]]:
    """Fingerprints by an earlier lattice, by the grid's: new ones of what is unchanged, old ones of what was edited."""
    renumbered: dict[str, dict[int, int]] = {}
    for name, (earlier, nearest) in numbers.items():
        known, fresh = propagated.get(earlier, {}), fingerprints(stored, AXIS_NAMES.index(name))
        renumbered[name] = {
            now: fresh[now] if (earlier, then) in unchanged else known[then]
            for now, then in nearest.items()
            if then in known and not ((earlier, then) in unchanged and now not in fresh)
        }
    return renumbered


@contextlib.contextmanager
def marks_kept_on_failure(segmentation_node) -> Iterator[None]:
    """If what is done inside raises an error, put back what the segments' tags knew of slices."""
    segmentation = segmentation_node.GetSegmentation()
    with contextlib.ExitStack() as restore:
        for segment_id in segmentation.GetSegmentIDs():
            segment, before = segmentation.GetSegment(segment_id), slicer.vtkSegment()
            before.DeepCopyMetadata(segment)
            restore.callback(segment.DeepCopyMetadata, before)
        yield
        restore.pop_all()


def anatomical_plane(grid, axis: int) -> str:
    """'axial', 'coronal' or 'sagittal': the orientation nearest to that of the slices across an array axis."""
    image_to_world = vtk.vtkMatrix4x4()
    grid.GetImageToWorldMatrix(image_to_world)
    direction = [abs(image_to_world.GetElement(row, 2 - axis)) for row in range(3)]
    return ANATOMICAL_PLANES[direction.index(max(direction))]
