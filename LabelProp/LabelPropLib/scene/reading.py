"""Nodes to arrays: what was drawn of the segments, as a `SparseAnnotation`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import slicer
import slicer.util
import vtk

from ..annotation import BACKGROUND, NOTHING_DRAWN, AtlasVolume, SparseAnnotation, annotate_from_planes, intensities
from ..errors import InputError
from ..propagation import Propagation
from ..roles import ABSENT, IGNORED, SCRIBBLE, Roles, slice_roles
from .geometry import (
    Resample,
    grid_spacing,
    grid_start,
    image_on_grid,
    index_to_grid,
    transform_between,
    unwarped_image,
    voxels,
    work_grid,
)
from .segments import (
    BINARY_LABELMAP,
    StoredSegment,
    drawn_planes,
    labels_on_volume,
    read_propagated,
    read_roles,
    segment_on_grid,
    segmentation_state,
    stored_segments,
)


@dataclass(frozen=True)
class SceneAnnotation:
    """What was read from the scene, and where its results belong.

    segment_ids: label of the annotation -> ID of the segment it was read from.
    grid: the work grid, an image without voxels; voxel (0, 0, 0) of the annotation lies at the start of its extent.
    slices: segment ID -> slice on the grid's lattice -> its role then, see `roles.slice_roles`.
    state: of the segmentation when it was read, see `segmentation_state`. image_time: VTK's time of the voxels then.
    messages: what the user should be told of how it was read.
    """

    annotation: SparseAnnotation
    volume_node: slicer.vtkMRMLScalarVolumeNode
    segmentation_node: slicer.vtkMRMLSegmentationNode
    segment_ids: Mapping[int, str]
    grid: slicer.vtkOrientedImageData
    slices: Mapping[str, Mapping[int, str]]
    state: tuple
    image_time: int
    messages: tuple[str, ...] = ()

    @property
    def written_ids(self) -> dict[int, str]:
        """Label -> ID of the segments that something was drawn of, which are those that get a result."""
        return {label: self.segment_ids[label] for label in self.annotation.labels}

    @property
    def geometry(self) -> str:
        """The segmentation's reference geometry when it was read, as Slicer writes it; empty if it had none."""
        return self.state[0]

    @property
    def unchanged(self) -> bool:
        """Whether the segmentation is still in the scene, and as it was when it was read."""
        node = self.segmentation_node
        return bool(slicer.mrmlScene.IsNodePresent(node)) and segmentation_state(node) == self.state

    @property
    def image_unchanged(self) -> bool:
        """Whether the volume has the voxels that were read."""
        image = self.volume_node.GetImageData()
        return image is not None and image.GetMTime() == self.image_time

    def report(self, propagation: Propagation) -> dict:
        """The report of a propagation, with what was noticed when its input was read, and label -> segment's name."""
        return {
            **propagation.report,
            "messages": [*self.messages, *propagation.report["messages"]],
            "segments": {str(label): self.annotation.names[label] for label in self.annotation.labels},
        }


def collect(
    volume_node,
    segmentation_node,
    segment_ids: Iterable[str] | None = None,
    axis: str = "auto",
    missing: str = "auto",
    scribbles_node=None,
    second_volume_node=None,
    atlases: Iterable[tuple] = (),
) -> SceneAnnotation:
    """Read the annotation that the segments hold of the volume.

    segment_ids: the segments to read, None for all. Segments with the role 'background' are read as such in any case.
    axis: 'k', 'j' or 'i' of the segmentation's reference geometry, or 'auto': the axis that the roles of the segments
        speak of, else the one whose planes bear the annotations.
    missing: how a label missing on an annotated slice is read, see `annotation.annotate_from_planes`.
    scribbles_node: a segmentation of strokes, its segments named as those of `segmentation_node` are, or by their IDs,
        or with the role 'background'. Several may be of the same segment.
    second_volume_node: another contrast of the same anatomy, resampled where it lies on another grid.
    atlases: (volume node, segmentation node) of other subjects, finished; see `atlas_of`.

    Raises InputError.
    """
    labels, background_ids = check_inputs(volume_node, segmentation_node, segment_ids)
    if second_volume_node is not None:
        _check_volume(second_volume_node)
    if scribbles_node is not None:
        _check_scribbles(scribbles_node, segmentation_node)
    grid = work_grid(volume_node, segmentation_node, scribbles_node)
    image = image_on_grid(volume_node, segmentation_node, grid)
    segments = DrawnSegments.read(segmentation_node, labels, grid, axis)
    scribbled, ignored = segments.given(SCRIBBLE), segments.given(IGNORED)
    strokes = segments.strokes()
    strokes[BACKGROUND] = [np.argwhere(segment_on_grid(segmentation_node, name, grid)) for name in background_ids]
    if scribbles_node is not None:
        for label, name in _match_scribbles(scribbles_node, segmentation_node, labels, grid):
            strokes[label].append(np.argwhere(segment_on_grid(scribbles_node, name, grid)))
    segmentation = segmentation_node.GetSegmentation()
    annotation = annotate_from_planes(
        image,
        {label: segments.masks(label, segments.borne(label) - scribbled[label] - ignored[label]) for label in labels},
        spacing=grid_spacing(grid, segments.axis),
        axis=segments.axis,
        missing=missing,
        absent=segments.given(ABSENT),
        ignored={label: scribbled[label] | ignored[label] for label in labels},
        found=segments.found(),
        scribbles={label: np.concatenate(parts) for label, parts in strokes.items() if sum(map(len, parts))},
        second_image=None if second_volume_node is None else image_on_grid(second_volume_node, segmentation_node, grid),
        atlases=[atlas_of(*nodes, segmentation_node, labels, grid, segments.axis) for nodes in atlases],
        names={label: segmentation.GetSegment(name).GetName() for label, name in labels.items()},
    )
    return SceneAnnotation(
        annotation,
        volume_node,
        segmentation_node,
        segment_ids=labels,
        grid=grid,
        slices={
            name: slice_roles(segments.drawn[label], segments.roles[label], segments.axis)
            for label, name in labels.items()
        },
        state=segmentation_state(segmentation_node),
        image_time=volume_node.GetImageData().GetMTime(),
    )


@dataclass(frozen=True)
class DrawnSegments:
    """Segments by label, and the slices that bear them; planes count from the start of the grid's extent.

    axis: the array axis across which they are drawn. drawn: label -> indices of the slices that bear it, on the grid's
    lattice. roles: those of its slices. propagated: indices of those that an earlier run found.
    """

    grid: slicer.vtkOrientedImageData
    axis: int
    stored: Mapping[int, StoredSegment]
    drawn: Mapping[int, list[int]]
    roles: Mapping[int, Roles]
    propagated: Mapping[int, Collection[int]]

    @classmethod
    def read(cls, segmentation_node, labels: Mapping[int, str], grid, axis: str) -> DrawnSegments:
        """labels: label -> segment ID; axis: as in `drawn_planes`. Raises InputError, also where nothing is drawn."""
        segmentation = segmentation_node.GetSegmentation()
        segments = stored_segments(segmentation_node, labels.values(), grid)
        stored = {label: segments[name] for label, name in labels.items()}
        roles = {label: read_roles(segmentation.GetSegment(name)) for label, name in labels.items()}
        array_axis, drawn = drawn_planes(stored, roles.values(), axis)
        if not any(drawn.values()):
            raise InputError(NOTHING_DRAWN)
        propagated = {
            label: read_propagated(segmentation.GetSegment(name), array_axis).keys() for label, name in labels.items()
        }
        return cls(grid, array_axis, stored, drawn, roles, propagated)

    @property
    def first(self) -> int:
        """Index of the grid's first plane on its lattice."""
        return grid_start(self.grid)[self.axis]

    def borne(self, label: int) -> set[int]:
        """The planes that bear a label."""
        return {index - self.first for index in self.drawn[label]}

    def found(self) -> dict[int, set[int]]:
        """Label -> the planes that an earlier run found."""
        return {label: {index - self.first for index in indices} for label, indices in self.propagated.items()}

    def given(self, role: str) -> dict[int, set[int]]:
        """Label -> the planes to which the role was given."""
        return {
            label: {index - self.first for index in roles.of(self.axis, role)} for label, roles in self.roles.items()
        }

    def masks(self, label: int, planes: Iterable[int]) -> dict[int, np.ndarray]:
        """Plane -> (H, W) bool."""
        stored = self.stored[label]
        return {plane: stored.mask_on_grid(self.axis, plane + self.first, self.grid) for plane in sorted(planes)}

    def strokes(self) -> dict[int, list[np.ndarray]]:
        """Label -> [(N, 3) voxels of the planes that are scribbles]."""
        return {
            label: [_voxels_on_planes(self.masks(label, self.borne(label) & scribbled), self.axis)]
            for label, scribbled in self.given(SCRIBBLE).items()
        }


def atlas_of(
    volume_node, atlas_node, segmentation_node, segment_ids: Mapping[int, str], grid, axis: int
) -> AtlasVolume:
    """The segments of `atlas_node` drawn on `volume_node`, a scan of another subject.

    segment_ids: label -> ID of the segment of `segmentation_node` to which it belongs. An atlas' segment is that of the
    same name or, if no name agrees, of the same label value; of segments that overlap the last one counts.
    axis: of the grid, across its slices. Raises InputError, also where a name is that of several segments.
    """
    _check_volume(volume_node)
    _check_segmentation(atlas_node)
    segmentation, theirs = segmentation_node.GetSegmentation(), atlas_node.GetSegmentation()
    by_name = {theirs.GetSegment(name).GetName(): name for name in theirs.GetSegmentIDs()}
    by_value = {theirs.GetSegment(name).GetLabelValue(): name for name in theirs.GetSegmentIDs()}
    names = {label: segmentation.GetSegment(name).GetName() for label, name in segment_ids.items()}
    matched = {label: by_name[name] for label, name in names.items() if name in by_name}
    for label in matched:
        _check_distinct(segmentation_node, segment_ids.values(), names[label])
        _check_distinct(atlas_node, theirs.GetSegmentIDs(), names[label])
    matched = matched or {label: by_value[label] for label in segment_ids if label in by_value}
    if not matched:
        raise InputError(
            f"The atlas '{atlas_node.GetName()}' shares no segment with '{segmentation_node.GetName()}': give it"
            f" segments of the same names ({', '.join(names.values())}), or leave it out."
        )
    image = unwarped_image(volume_node, segmentation_node)
    return AtlasVolume(
        image=intensities(voxels(image)).astype(np.float32),
        labels=labels_on_volume(atlas_node, matched, volume_node, np.int32),
        matrix=index_to_grid(image, grid, axis),
    )


def _match_scribbles(scribbles_node, segmentation_node, labels: Mapping[int, str], grid) -> Iterator[tuple[int, str]]:
    """(Label or BACKGROUND, ID of a segment of strokes), of all of them that are not empty.

    The IDs of named strokes do not count: Slicer numbers them in each segmentation anew. Raises InputError.
    """
    segmentation = segmentation_node.GetSegmentation()
    by_id = {segment_id: label for label, segment_id in labels.items()}
    by_name = {segmentation.GetSegment(segment_id).GetName(): label for label, segment_id in labels.items()}
    strokes = scribbles_node.GetSegmentation()
    for segment_id, stored in stored_segments(scribbles_node, strokes.GetSegmentIDs(), grid).items():
        if not stored.patches:
            continue
        segment = strokes.GetSegment(segment_id)
        name = segment.GetName()
        label = (by_name | by_id if name == segment_id else by_id | by_name).get(name)
        if read_roles(segment).background:
            label = BACKGROUND
        elif name != segment_id or name not in by_id:
            _check_distinct(segmentation_node, labels.values(), name)
        if label is None:
            present = segmentation.GetSegmentIDs()
            if any(name in (present_id, segmentation.GetSegment(present_id).GetName()) for present_id in present):
                raise InputError(
                    f"Scribbles of '{name}', which is not among the segments to propagate: propagate it, too, or remove"
                    " its scribbles."
                )
            raise InputError(
                f"Scribbles of '{name}', which no slice bears: draw a segment of that name on at least one slice, or"
                " rename or remove its scribbles."
            )
        yield label, segment_id


def _voxels_on_planes(masks: Mapping[int, np.ndarray], axis: int) -> np.ndarray:
    """(N, 3) indices of the voxels of plane -> (H, W) bool."""
    return np.concatenate([np.empty((0, 3), int), *(np.insert(np.argwhere(m), axis, p, 1) for p, m in masks.items())])


def check_inputs(
    volume_node, segmentation_node, segment_ids: Iterable[str] | None = None
) -> tuple[dict[int, str], list[str]]:
    """Raise InputError unless the nodes can be read; returns what `choose_segments` does."""
    _check_volume(volume_node)
    _check_segmentation(segmentation_node)
    return choose_segments(segmentation_node, segment_ids)


def choose_segments(segmentation_node, segment_ids: Iterable[str] | None = None) -> tuple[dict[int, str], list[str]]:
    """Label -> ID of the segments to propagate, and the IDs of the background scribbles. Raises InputError.

    A segment's label is its label value, where these tell the segments apart, else 1, 2, ... in their order.
    """
    segmentation = segmentation_node.GetSegmentation()
    segment_ids = None if segment_ids is None else list(segment_ids)
    unknown = set(segment_ids or ()) - set(segmentation.GetSegmentIDs())
    if unknown:
        raise InputError(
            f"No segment {', '.join(sorted(unknown))} in the segmentation '{segmentation_node.GetName()}':"
            f" it has {', '.join(segmentation.GetSegmentIDs()) or 'none'}."
        )
    background = [name for name in segmentation.GetSegmentIDs() if read_roles(segmentation.GetSegment(name)).background]
    chosen = [
        name
        for name in segmentation.GetSegmentIDs()
        if name not in background and (segment_ids is None or name in segment_ids)
    ]
    values = [segmentation.GetSegment(name).GetLabelValue() for name in chosen]
    if len(set(values)) < len(values) or min(values, default=1) < 1:  # they tell apart the segments of one layer only
        values = range(1, len(chosen) + 1)
    return dict(zip(values, chosen)), background


def _check_volume(volume_node):
    if volume_node is None or volume_node.GetImageData() is None:
        raise InputError("There is no scan: choose a volume that has voxels.")
    components = volume_node.GetImageData().GetNumberOfScalarComponents()
    if components != 1:
        raise InputError(
            f"The volume '{volume_node.GetName()}' has {components} components a voxel (colour or vectors):"
            " choose a scalar volume, or convert it to one."
        )


def _check_segmentation(segmentation_node):
    if segmentation_node is None:
        raise InputError("There is no segmentation: choose the one that was drawn on some slices.")
    source = segmentation_node.GetSegmentation().GetSourceRepresentationName()
    if source != BINARY_LABELMAP:
        raise InputError(
            f"The segmentation '{segmentation_node.GetName()}' has the source representation '{source}':"
            " make the binary labelmap its source representation (Segmentations module, Representations)."
        )


def _check_scribbles(scribbles_node, segmentation_node):
    """Raise InputError unless strokes can be read, and lie in the coordinates of the segmentation node."""
    _check_segmentation(scribbles_node)
    transform = vtk.vtkTransform()
    linear = Resample.IsTransformLinear(transform_between(scribbles_node, segmentation_node), transform)
    if not linear or not np.allclose(slicer.util.arrayFromVTKMatrix(transform.GetMatrix()), np.eye(4)):
        raise InputError(
            f"The scribbles '{scribbles_node.GetName()}' and the segmentation '{segmentation_node.GetName()}' are under"
            " different transforms: put both under the same one."
        )


def _check_distinct(segmentation_node, segment_ids: Iterable[str], name: str):
    """Raise InputError if several of the segments have the name, so that it does not tell which is meant."""
    segmentation = segmentation_node.GetSegmentation()
    bearers = [segment_id for segment_id in segment_ids if segmentation.GetSegment(segment_id).GetName() == name]
    if len(bearers) > 1:
        raise InputError(
            f"The segments {', '.join(bearers)} of '{segmentation_node.GetName()}' are all named '{name}', which leaves"
            " open what belongs to which of them: give each a name of its own."
        )
