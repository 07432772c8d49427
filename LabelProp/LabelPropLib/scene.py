"""MRML <-> arrays: segments become a SparseAnnotation, what was propagated becomes segments again.

The work grid is the segmentation's own: the lattice of its reference geometry, grown to hold all of its segments. The
scan is resampled into it where it differs, segments are read into it whatever layers, extents and lattices they are
kept in, and results are written in it. Coordinates are those of the segmentation node, below its parent transform.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from . import boxes
from .annotation import (
    AXIS_NAMES,
    BACKGROUND,
    SCRIBBLE_FILE_BACKGROUND,
    AtlasVolume,
    SparseAnnotation,
    annotate_from_planes,
    run_length,
)
from .boxes import Box
from .errors import InputError
from .patches import Patch, patches_of_layer
from .roles import ABSENT, IGNORED, PROPAGATED_TAG, ROLES_TAG, SCRIBBLE, Roles, slice_roles

# Only Slicer's core is there when the module is loaded: what its other modules bring is asked for when it is needed.
Resample = slicer.vtkOrientedImageDataResample
Converter = slicer.vtkSegmentationConverter
BINARY_LABELMAP = Converter.GetSegmentationBinaryLabelmapRepresentationName()
REFERENCE_GEOMETRY = Converter.GetReferenceImageGeometryParameterName()


def read_roles(segment: slicer.vtkSegment) -> Roles:
    """The roles in a segment's tag. Raises InputError when it is malformed."""
    return Roles.parse(read_tag(segment, ROLES_TAG))


def write_roles(segment: slicer.vtkSegment, roles: Roles):
    """Keep the roles in the segment's tag, which survives `.seg.nrrd` and `.mrb`."""
    write_tag(segment, ROLES_TAG, str(roles))


def read_tag(segment: slicer.vtkSegment, name: str) -> str:
    """A tag of the segment, empty without it."""
    text = vtk.reference("")
    return text.get() if segment.GetTag(name, text) else ""


def write_tag(segment: slicer.vtkSegment, name: str, text: str):
    """Give the segment a tag, or with an empty text none."""
    if text:
        segment.SetTag(name, text)
    else:
        segment.RemoveTag(name)


def read_propagated(segment, axis: int) -> dict[int, int]:
    """Slice -> fingerprint, empty where the tag is missing, of other axes, or not one of ours."""
    return propagated_by_axis(segment).get(AXIS_NAMES[axis], {})


def propagated_by_axis(segment) -> dict[str, dict[int, int]]:
    """Axis name -> slice -> fingerprint, of the segment's tag; empty where that is not one of ours."""
    known: dict[str, dict[int, int]] = {}
    numbers: dict[int, int] = {}
    try:
        for word in read_tag(segment, PROPAGATED_TAG).split():
            if word in AXIS_NAMES:
                numbers = known.setdefault(word, {})
            else:
                index, number = word.split("=")
                numbers[int(index)] = int(number)
    except ValueError:
        return {}
    return known


def work_grid(volume_node, segmentation_node, scribbles_node=None) -> slicer.vtkOrientedImageData:
    """The grid to work in, an image without voxels.

    As in the Segment Editor: the segmentation's reference geometry (the volume's, if it has none), grown along its
    lattice to hold all segments, and those of scribbles as far as the volume goes. Its extent then need not start at 0.
    """
    segmentation = segmentation_node.GetSegmentation()
    geometry = segmentation.GetConversionParameter(REFERENCE_GEOMETRY)
    grid = slicer.vtkOrientedImageData()
    if geometry:
        Converter.DeserializeImageGeometry(geometry, grid, False)
    else:
        image, _ = volume_image(volume_node, segmentation_node)
        grid.SetExtent(image.GetExtent())
        _copy_lattice(image, grid)
    grid.SetExtent(_extent_with(segmentation, grid))
    if scribbles_node is not None:
        image, _ = volume_image(volume_node, segmentation_node)
        first, last = _bounds(grid.GetExtent())
        first_stroke, last_stroke = _bounds(_extent_with(scribbles_node.GetSegmentation(), grid))
        first_voxel, last_voxel = _bounds(_extent_on(image, grid))
        first = np.minimum(first, np.maximum(first_stroke, first_voxel))
        last = np.maximum(last, np.minimum(last_stroke, last_voxel))
        grid.SetExtent(_extent(first, last))
    return grid


def _bounds(extent: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last index (i, j, k) of an extent as VTK has it."""
    return np.array(extent[::2]), np.array(extent[1::2])


def _extent(first: Iterable[int], last: Iterable[int]) -> tuple[int, ...]:
    """The extent, as VTK has it, from the first to the last index (i, j, k)."""
    return tuple(int(index) for pair in zip(first, last) for index in pair)


def _extent_on(image, grid) -> tuple[int, ...]:
    """The part of the grid's lattice that an image covers, as an extent."""
    extent = image.GetExtent()
    corners = np.array([(*corner, 1) for corner in itertools.product(extent[:2], extent[2:4], extent[4:])])
    points = np.rint(corners @ lattice_to_lattice(image, grid)[:3].T).astype(int)
    return _extent(points.min(axis=0), points.max(axis=0))


def _extent_with(segmentation, grid) -> tuple[int, ...]:
    """The extent of the grid, grown to hold all segments of a segmentation."""
    extent = grid.GetExtent()
    # Where the labelmaps reach no further than the reference geometry, their voxels need not be looked at.
    for only_content in (False, True):
        content = [0, -1, 0, -1, 0, -1]
        segmentation.DetermineCommonLabelmapExtent(content, grid, None, only_content)
        grown = tuple((min, max)[n % 2](extent[n], content[n]) for n in range(6))
        if content[0] > content[1] or grown == extent:
            return extent
    return grown


def content_grid(grid, segmentation_nodes: Iterable, segment_ids: Iterable[str]) -> slicer.vtkOrientedImageData:
    """The part of the grid, an image without voxels, that the segments reach in any of the segmentations."""
    reached = [
        segment.box_on_grid(grid)
        for node in segmentation_nodes
        for segment in stored_segments(node, segment_ids, grid).values()
    ]
    box = boxes.around(reached)
    return part_of_grid(grid, box if boxes.size(box) else boxes.whole(grid_shape(grid)))


def part_of_grid(grid, box: Box) -> slicer.vtkOrientedImageData:
    """The part of a grid, an image without voxels, that a box (k, j, i) of it takes."""
    first, last = ([getattr(part, end) for part in box[::-1]] for end in ("start", "stop"))
    start = grid_start(grid)[::-1]
    part = slicer.vtkOrientedImageData()
    part.SetExtent(_extent(np.add(start, first), np.add(start, last) - 1))
    _copy_lattice(grid, part)
    return part


def volume_image(volume_node, segmentation_node):
    """The volume as an image in the segmentation node's coordinates, and the warp that is left to apply, or None.

    A linear transform between the two nodes goes into the image's geometry, without resampling.
    """
    image = slicer.vtkOrientedImageData()
    image.ShallowCopy(volume_node.GetImageData())
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    transform = _transform_between(volume_node, segmentation_node)
    if not Resample.IsTransformLinear(transform, vtk.vtkTransform()):
        return image, transform
    Resample.TransformOrientedImage(image, transform)
    return image, None


def _transform_between(node, other_node) -> vtk.vtkGeneralTransform:
    """The transform from the coordinates of one node to those of another one, each below its parent transform."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        node.GetParentTransformNode(), other_node.GetParentTransformNode(), transform
    )
    return transform


def _unwarped_image(volume_node, segmentation_node):
    """The volume as an image in the segmentation node's coordinates. Raises InputError if it had to be warped."""
    image, warp = volume_image(volume_node, segmentation_node)
    if warp is not None:
        raise InputError(
            f"Between the volume '{volume_node.GetName()}' and the segmentation '{segmentation_node.GetName()}' is a"
            " transform that is not linear: harden it (Transforms module)."
        )
    return image


def voxels(image) -> np.ndarray:
    """The (K, J, I) array of an image's scalars, not copied."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def image_from_array(array: np.ndarray, grid, first=(0, 0, 0)) -> slicer.vtkOrientedImageData:
    """The (K, J, I) array as an image on the lattice of `grid`, beginning `first` voxels (k, j, i) into its extent."""
    start = np.add(grid_start(grid), first)[::-1]
    image = slicer.vtkOrientedImageData()
    image.SetExtent(_extent(start, start + array.shape[::-1] - 1))
    scalars = numpy_to_vtk(array.ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    _copy_lattice(grid, image)
    return image


def _copy_lattice(source, target):
    """Give an image the origin, spacing and directions of another one; `CopyStructure` leaves out the directions."""
    image_to_world = vtk.vtkMatrix4x4()
    source.GetImageToWorldMatrix(image_to_world)
    target.SetGeometryFromImageToWorldMatrix(image_to_world)


def lattice_to_lattice(image, grid) -> np.ndarray:
    """(4, 4) from voxel indices (i, j, k) of an image to those of the grid."""
    to_world, to_grid = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_world)
    grid.GetWorldToImageMatrix(to_grid)
    return slicer.util.arrayFromVTKMatrix(to_grid) @ slicer.util.arrayFromVTKMatrix(to_world)


def grid_shape(grid) -> tuple[int, int, int]:
    """(K, J, I) of an image."""
    return grid.GetDimensions()[::-1]


def grid_start(grid) -> tuple[int, int, int]:
    """(k, j, i) of the first voxel of an image on its lattice."""
    return grid.GetExtent()[::2][::-1]


@dataclass(frozen=True)
class SceneAnnotation:
    """What was read from the scene, and where its results belong.

    segment_ids: label of the annotation -> ID of the segment it was read from; names: its name then.
    grid: the work grid, an image without voxels; voxel (0, 0, 0) of the annotation lies at the start of its extent.
    slices: segment ID -> slice on the grid's lattice -> its role then, see `roles.slice_roles`.
    state: of the segmentation when it was read, see `segmentation_state`.
    messages: what the user should be told of how it was read.
    """

    annotation: SparseAnnotation
    volume_node: slicer.vtkMRMLScalarVolumeNode
    segmentation_node: slicer.vtkMRMLSegmentationNode
    segment_ids: Mapping[int, str]
    names: Mapping[int, str]
    grid: slicer.vtkOrientedImageData
    slices: Mapping[str, Mapping[int, str]]
    state: tuple
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
        """Whether the segmentation is in the scene still, and as it was when it was read."""
        node = self.segmentation_node
        return bool(slicer.mrmlScene.IsNodePresent(node)) and segmentation_state(node) == self.state


def segmentation_state(segmentation_node) -> tuple:
    """Differs when voxels or roles of a segment, the segments, or the segmentation's geometry have been changed."""
    segmentation = segmentation_node.GetSegmentation()
    labelmaps = {name: _labelmap(segmentation, name) for name in sorted(segmentation.GetSegmentIDs())}
    return (
        segmentation.GetConversionParameter(REFERENCE_GEOMETRY),
        segmentation.GetSourceRepresentationName(),
        segmentation_node.GetTransformNodeID(),
        *(
            (name, labelmap and labelmap.GetMTime(), read_tag(segmentation.GetSegment(name), ROLES_TAG))
            for name, labelmap in labelmaps.items()
        ),
    )


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
    missing: how a label missing on an annotated slice is read, see `annotate_from_masks`.
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
    segmentation = segmentation_node.GetSegmentation()
    segments = stored_segments(segmentation_node, labels.values(), grid)
    stored = {label: segments[name] for label, name in labels.items()}
    roles = {label: read_roles(segmentation.GetSegment(name)) for label, name in labels.items()}

    array_axis, drawn = drawn_planes(stored, roles.values(), axis)
    if not any(drawn.values()):
        raise InputError("No annotated slice: draw at least one segment on at least one slice.")
    first = grid_start(grid)[array_axis]

    def planes(role: str) -> dict[int, set[int]]:
        return {label: {index - first for index in roles[label].of(array_axis, role)} for label in labels}

    def masks(label: int, indices: Iterable[int]) -> dict[int, np.ndarray]:
        return {index: stored[label].mask_on_grid(array_axis, index + first, grid) for index in sorted(indices)}

    borne = {label: {index - first for index in drawn[label]} for label in labels}
    scribbled, ignored = planes(SCRIBBLE), planes(IGNORED)
    found = {
        label: {index - first for index in read_propagated(segmentation.GetSegment(name), array_axis)}
        for label, name in labels.items()
    }
    strokes = {
        label: [_voxels_on_planes(masks(label, borne[label] & scribbled[label]), array_axis)] for label in labels
    }
    strokes[BACKGROUND] = [np.argwhere(segment_on_grid(segmentation_node, name, grid)) for name in background_ids]
    if scribbles_node is not None:
        for label, name in _match_scribbles(scribbles_node, segmentation_node, labels, grid):
            strokes[label].append(np.argwhere(segment_on_grid(scribbles_node, name, grid)))
    scribbles = {label: np.concatenate(parts) for label, parts in strokes.items() if sum(map(len, parts))}

    annotation = annotate_from_planes(
        image,
        {label: masks(label, borne[label] - scribbled[label] - ignored[label]) for label in labels},
        spacing=grid.GetSpacing()[::-1],
        axis=array_axis,
        missing=missing,
        absent=planes(ABSENT),
        ignored={label: scribbled[label] | ignored[label] for label in labels},
        found=found,
        scribbles=scribbles,
        second_image=None if second_volume_node is None else image_on_grid(second_volume_node, segmentation_node, grid),
        atlases=[atlas_of(*nodes, segmentation_node, labels, grid) for nodes in atlases],
    )
    return SceneAnnotation(
        annotation,
        volume_node,
        segmentation_node,
        segment_ids=labels,
        names={label: segmentation.GetSegment(name).GetName() for label, name in labels.items()},
        grid=grid,
        slices={name: slice_roles(drawn[label], roles[label], array_axis) for label, name in labels.items()},
        state=segmentation_state(segmentation_node),
    )


def check_target(volume_node, input_nodes: Iterable):
    """Raise InputError if what is to be written, a volume node or None, is none or is one of those that are read."""
    if volume_node is None:
        return
    if not (hasattr(volume_node, "IsA") and volume_node.IsA("vtkMRMLScalarVolumeNode")):
        raise InputError("The map of uncertainty can be written into a scalar volume node only: choose one for it.")
    if any(volume_node is node for node in input_nodes):
        raise InputError(
            f"The volume '{volume_node.GetName()}' would be replaced by the map of uncertainty: choose another one for"
            " it, or a new one."
        )


def image_on_grid(volume_node, segmentation_node, grid) -> np.ndarray:
    """(K, J, I) of the volume's intensities, as they are if it lies on the grid, else interpolated linearly."""
    image, warp = volume_image(volume_node, segmentation_node)
    if warp is None and image.GetExtent() == grid.GetExtent() and Resample.DoGeometriesMatch(image, grid):
        return voxels(image)
    resampled = slicer.vtkOrientedImageData()
    outside = volume_node.GetImageBackgroundScalarComponentAsDouble(0)
    Resample.ResampleOrientedImageToReferenceOrientedImage(image, grid, resampled, True, False, warp, outside)
    array = voxels(resampled)
    if array.min() == array.max() == outside and len(set(volume_node.GetImageData().GetScalarRange())) > 1:
        raise InputError(
            f"The volume '{volume_node.GetName()}' and the segmentation '{segmentation_node.GetName()}' lie apart in"
            " space: choose the volume that was segmented, or put both under the same transform."
        )
    return array


def atlas_of(volume_node, atlas_node, segmentation_node, segment_ids: Mapping[int, str], grid) -> AtlasVolume:
    """The segments of `atlas_node` drawn on `volume_node`, a scan of another subject.

    segment_ids: label -> ID of the segment of `segmentation_node` to which it belongs. An atlas' segment is that of the
    same name or, if no name agrees, of the same label value; of segments that overlap the last one counts.
    Raises InputError, also where a name is that of several segments.
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
    image = _unwarped_image(volume_node, segmentation_node)
    return AtlasVolume(
        image=voxels(image).astype(np.float32),
        labels=labels_on_volume(atlas_node, matched, volume_node, np.int32),
        matrix=_index_to_grid(image, grid),
    )


def _index_to_grid(image, grid) -> np.ndarray:
    """(4, 4) from voxel indices (k, j, i) of an image to mm along the array axes of the grid."""
    matrix = lattice_to_lattice(image, grid)[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
    matrix[:3] *= np.array(grid.GetSpacing()[::-1])[:, None]
    return matrix


def segment_on_grid(segmentation_node, segment_id: str, grid) -> np.ndarray:
    """(K, J, I) bool of one segment, whatever layer, extent and lattice it is kept in."""
    return stored_segments(segmentation_node, [segment_id], grid)[segment_id].on_grid(grid)


@dataclass(frozen=True)
class StoredSegment:
    """A segment as it is kept, not copied. Indices count on the lattice of the reference geometry.

    values: (K, J, I) label values of its layer, which may hold other segments; value: its own.
    first: index (k, j, i) of the first voxel. patches: k of values[k] -> what that plane bears of the segment.
    """

    values: np.ndarray
    value: int
    first: tuple[int, int, int]
    patches: Mapping[int, Patch]

    @cached_property
    def box(self) -> Box:
        """The part of `values` that bears the segment, of no size where nothing does."""
        return boxes.around([(slice(k, k + 1), *patch.box) for k, patch in self.patches.items()])

    def planes(self, axes: Iterable[int]) -> dict[int, list[int]]:
        """Array axis -> indices of the planes across it that bear the segment, ascending."""
        borne = {axis: np.zeros(self.values.shape[axis], bool) for axis in axes}
        for k, patch in self.patches.items():
            for axis, flags in borne.items():
                flags[(k, patch.rows, patch.columns)[axis]] = True
        return {axis: (np.flatnonzero(flags) + self.first[axis]).tolist() for axis, flags in borne.items()}

    def box_on_grid(self, grid) -> Box:
        """The part of the grid, (k, j, i), that bears the segment; of no size where nothing does."""
        box = boxes.of_whole(self.box, [slice(int(n), None) for n in np.subtract(self.first, grid_start(grid))])
        return boxes.overlap(box, boxes.whole(grid_shape(grid)))

    def in_box(self, box: Box, grid) -> np.ndarray:
        """Bool of a box (k, j, i) of the grid."""
        start = np.subtract(self.first, grid_start(grid)) + [b.start - p.start for b, p in zip(self.box, box)]
        return _paste(self.values[self.box], self.value, start, [part.stop - part.start for part in box])

    def on_grid(self, grid) -> np.ndarray:
        """(K, J, I) bool."""
        return self.in_box(boxes.whole(grid_shape(grid)), grid)

    def mask_on_grid(self, axis: int, index: int, grid) -> np.ndarray:
        """(H, W) bool of a plane within its extent."""
        start, shape = (
            [number for a, number in enumerate(numbers) if a != axis]
            for numbers in (np.subtract(self.first, grid_start(grid)), grid_shape(grid))
        )
        return _paste(self.values.take(index - self.first[axis], axis), self.value, start, shape)


def _paste(values: np.ndarray, value: int, start: Iterable[int], shape: Iterable[int]) -> np.ndarray:
    """Bool of `shape`: where `values`, the first of which comes to lie at `start`, are `value`."""
    array = np.zeros(shape, bool)
    source, target = [], []  # the part of both that they have in common
    for first, length, room in zip(start, values.shape, array.shape):
        low = max(first, 0)
        high = max(low, min(first + length, room))
        source.append(slice(low - first, high - first))
        target.append(slice(low, high))
    np.equal(values[tuple(source)], value, out=array[tuple(target)])
    return array


def stored_segments(segmentation_node, segment_ids: Iterable[str], grid) -> dict[str, StoredSegment]:
    """Segment ID -> the segment as it is kept; resampled to the grid if it is kept on another lattice."""
    layers = {}  # what segments share is looked through once
    found = {}
    for segment_id in segment_ids:
        segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
        layer, value = segment.GetRepresentation(BINARY_LABELMAP), segment.GetLabelValue()
        empty = layer is None or layer.IsEmpty()
        if not empty and not Resample.DoGeometriesMatch(layer, grid):
            layer, value = _resampled(segmentation_node, segment_id, grid), 1
            empty = layer.IsEmpty()
        if empty:
            found[segment_id] = StoredSegment(np.zeros((0, 0, 0), np.uint8), 1, (0, 0, 0), {})
            continue
        if layer not in layers:
            layers[layer] = _patches_by_value(layer)
        found[segment_id] = StoredSegment(voxels(layer), value, grid_start(layer), layers[layer].get(value, {}))
    return found


def _resampled(segmentation_node, segment_id: str, grid) -> slicer.vtkOrientedImageData:
    """The part of the grid that bears a segment, as an image of 1 where it does."""
    labelmap, resampled = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
    segmentation_node.GetBinaryLabelmapRepresentation(segment_id, labelmap)
    Resample.ResampleOrientedImageToReferenceOrientedImage(labelmap, grid, resampled)
    box, first = _crop(voxels(resampled))
    return image_from_array((box > 0).view(np.uint8), grid, first)


def _patches_by_value(layer) -> dict[int, dict[int, Patch]]:
    """Value -> k of the layer's plane -> patch. What was found is kept with the layer for as long as that lives."""
    first = grid_start(layer)
    layer.labelPropPatches = patches_of_layer(voxels(layer), first, getattr(layer, "labelPropPatches", {}))
    found: dict[int, dict[int, Patch]] = {}
    for k, patches in enumerate(layer.labelPropPatches.values()):
        for value, patch in patches.items():
            found.setdefault(value, {})[k] = patch
    return found


def drawn_planes(segments: Mapping, roles: Iterable[Roles], axis: str) -> tuple[int, dict[Any, list[int]]]:
    """The array axis across which slices are drawn, and for each of `segments` the indices of those that bear it.

    segments: any key -> StoredSegment; roles: of the same segments.
    axis: 'k', 'j' or 'i', or 'auto': the one axis that the roles speak of, else that across which drawn slices stand
        alone, see `run_length`. Raises InputError for another one.
    """
    if axis not in (*AXIS_NAMES, "auto"):
        raise InputError(f"Unknown axis '{axis}': choose one of auto, i, j, k.")
    named = set().union(*(segment_roles.axes for segment_roles in roles))
    if axis == "auto" and len(named) == 1:
        axis = named.pop()
    axes = range(3) if axis == "auto" else (AXIS_NAMES.index(axis),)
    borne = {key: segment.planes(axes) for key, segment in segments.items()}
    used = {a: np.array(sorted(set().union(*(planes[a] for planes in borne.values())))) for a in axes}
    chosen = min(axes, key=lambda a: run_length(used[a]))
    return chosen, {key: planes[chosen] for key, planes in borne.items()}


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
    linear = Resample.IsTransformLinear(_transform_between(scribbles_node, segmentation_node), transform)
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


def _voxels_on_planes(masks: Mapping[int, np.ndarray], axis: int) -> np.ndarray:
    """(N, 3) indices of the voxels of plane -> (H, W) bool."""
    return np.concatenate([np.empty((0, 3), int), *(np.insert(np.argwhere(m), axis, p, 1) for p, m in masks.items())])


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


def write_segments(collected: SceneAnnotation, label_maps: Iterable[np.ndarray]):
    """Make the propagated labels the content of the segments they were read from.

    label_maps: (K, J, I) label values on the annotation's grid; each becomes one layer of the segmentation. Names,
    colours, terminology and tags are kept, a segment 'not started' is 'in progress' now, other segments are not
    touched, and closed surfaces are made anew where there were some.
    """
    node = collected.segmentation_node
    with rendering_paused(), slicer.util.NodeModify(node):
        if not node.GetSegmentation().GetConversionParameter(REFERENCE_GEOMETRY):
            node.SetReferenceImageGeometryParameterFromVolumeNode(collected.volume_node)
        _set_labelmaps(node, label_maps, collected.written_ids, collected.grid)
        _set_in_progress(node, collected.written_ids.values())


def write_masks(segmentation_node, masks: Mapping[str, tuple[Box, np.ndarray]], grid):
    """Make the masks the content of the segments, as `write_segments` does, in as few layers as their overlap allows.

    masks: segment ID -> a box (k, j, i) of the grid that holds all of the segment, and bool of the box.
    """
    ids, _ = choose_segments(segmentation_node, masks)
    dtype = np.min_scalar_type(max(ids, default=0))
    label_maps: list[np.ndarray] = []
    for label, segment_id in ids.items():
        box, mask = masks[segment_id]
        free = (label_map for label_map in label_maps if not label_map[box].any(where=mask))
        label_map = next(free, None)
        if label_map is None:
            label_map = np.zeros(grid_shape(grid), dtype)
            label_maps.append(label_map)
        label_map[box][mask] = label
    with rendering_paused(), slicer.util.NodeModify(segmentation_node):
        _set_labelmaps(segmentation_node, label_maps, ids, grid)
        _set_in_progress(segmentation_node, masks)


def _set_in_progress(segmentation_node, segment_ids: Iterable[str]):
    """What has content now is no longer 'not started'."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for segment_id in segment_ids:
        segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
        if logic.GetSegmentStatus(segment) == logic.NotStarted:
            logic.SetSegmentStatus(segment, logic.InProgress)


def add_segmentation(collected: SceneAnnotation, label_maps: Iterable[np.ndarray], name: str):
    """A new segmentation node of the propagated labels, its segments named and coloured as those they came from."""
    source = collected.segmentation_node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    with rendering_paused(), slicer.util.NodeModify(node):
        node.GetSegmentation().CopyConversionParameters(source.GetSegmentation())
        node.GetSegmentation().SetConversionParameter(REFERENCE_GEOMETRY, collected.geometry)
        node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        for label in collected.annotation.labels:
            segment_id = node.GetSegmentation().AddEmptySegment(collected.segment_ids[label])
            segment = node.GetSegmentation().GetSegment(segment_id)
            segment.SetName(collected.names[label])
            if source.GetSegmentation().GetSegment(segment_id) is not None:  # it may have been removed since
                segment.DeepCopyMetadata(source.GetSegmentation().GetSegment(segment_id))
        _set_labelmaps(node, label_maps, collected.written_ids, collected.grid)
        _set_in_progress(node, collected.written_ids.values())
        node.CreateDefaultDisplayNodes()
    return node


def write_volume(collected: SceneAnnotation, array: np.ndarray, volume_node):
    """Make the (K, J, I) array on the annotation's grid the content of a volume node."""
    image = image_from_array(array, collected.grid)
    with rendering_paused(), slicer.util.NodeModify(volume_node):
        slicer.vtkSlicerSegmentationsModuleLogic.CopyOrientedImageDataToVolumeNode(image, volume_node)
        volume_node.SetAndObserveTransformNodeID(collected.segmentation_node.GetTransformNodeID())
        if volume_node.GetDisplayNode() is None:
            volume_node.CreateDefaultDisplayNodes()


def _set_labelmaps(node, label_maps: Iterable[np.ndarray], segment_ids: Mapping[int, str], grid):
    """Replace the labelmaps of segments, label -> ID; the labels of each (K, J, I) map on the grid share a layer."""
    segmentation = node.GetSegmentation()
    written = list(segment_ids.values())
    kept = {_labelmap(segmentation, name) for name in segmentation.GetSegmentIDs() if name not in written}
    empty = dict(segment_ids)
    layers = []
    for label_map in label_maps:
        box, first = _crop(label_map)
        labels = [label for label in empty if any((plane == label).any() for plane in box)]
        if labels:
            layer = image_from_array(box.astype(np.min_scalar_type(max(labels))), grid, first)
            layers.append((layer, {label: empty.pop(label) for label in labels}))
    layers.extend((slicer.vtkOrientedImageData(), {label: segment_id}) for label, segment_id in empty.items())
    for layer, ids in layers:
        for label, segment_id in ids.items():
            if _labelmap(segmentation, segment_id) in kept:
                segmentation.SeparateSegmentLabelmap(segment_id)  # leaves nothing of it in the others' layer
            segment = segmentation.GetSegment(segment_id)
            segment.SetLabelValue(label)
            segment.AddRepresentation(BINARY_LABELMAP, layer)
    slicer.vtkSlicerSegmentationsModuleLogic.ReconvertAllRepresentations(node, written)
    for segment_id in written:
        segmentation.InvokeEvent(slicer.vtkSegmentation.SourceRepresentationModified, segment_id)
        segmentation.InvokeEvent(slicer.vtkSegmentation.RepresentationModified, segment_id)


def _labelmap(segmentation, segment_id: str):
    """The layer that the segment is kept in, maybe with others."""
    return segmentation.GetSegment(segment_id).GetRepresentation(BINARY_LABELMAP)


def _crop(array: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The box of the array that is not zero, and the index of its first voxel."""
    planes = np.flatnonzero([plane.any() for plane in array])
    if not planes.size:
        return array[:0, :0, :0], (0, 0, 0)
    shadow = array[planes[0] : planes[-1] + 1].max(axis=0)
    used = planes, *(np.flatnonzero(shadow.any(axis=axis)) for axis in (1, 0))
    box = array[tuple(slice(indices[0], indices[-1] + 1) for indices in used)]
    return box, tuple(int(indices[0]) for indices in used)


def visible_segments(segmentation_node) -> list[str]:
    """IDs of the segments that are shown; all, where the node has no say in it."""
    display_node = segmentation_node.GetDisplayNode()
    if display_node is None:
        return list(segmentation_node.GetSegmentation().GetSegmentIDs())
    shown = vtk.vtkStringArray()
    display_node.GetVisibleSegmentIDs(shown)
    return [shown.GetValue(index) for index in range(shown.GetNumberOfValues())]


def rendering_paused():
    """Context in which the application does not draw; there is nothing to pause outside it."""
    return slicer.util.RenderBlocker() if hasattr(slicer, "app") else contextlib.nullcontext()


def add_segmentation_of_labels(labels: np.ndarray, volume_node, name: str, ids: Mapping[int, str] | None = None):
    """A segmentation node of a label volume on the volume's grid: for each value but 0 a segment of that label value.

    labels: (K, J, I) non-negative integers; ids: label value -> segment ID, 'Label_<value>' where not given.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    values = sorted({int(value) for plane in labels if plane.any() for value in np.unique(plane)} - {0})
    grid, _ = volume_image(volume_node, node)
    box, first = _crop(labels)
    layer = image_from_array(box.astype(np.min_scalar_type(max(values, default=0))), grid, first)
    for value in values:
        segment = slicer.vtkSegment()
        segment_id = (ids or {}).get(value, f"Label_{value}")
        segment.SetName(segment_id)
        segment.SetLabelValue(value)
        segment.AddRepresentation(BINARY_LABELMAP, layer)
        node.GetSegmentation().AddSegment(segment, segment_id)
    return node


def add_segmentation_of_scribbles(strokes: np.ndarray, volume_node, name: str, segment_ids: Mapping[int, str]):
    """A segmentation node of a volume of strokes, in which 255 is background.

    strokes: (K, J, I) non-negative integers; segment_ids: label value -> ID of the segment that the strokes are of.
    """
    background = "Background"
    ids = {**segment_ids, SCRIBBLE_FILE_BACKGROUND: background}
    node = add_segmentation_of_labels(strokes, volume_node, name, ids)
    segment = node.GetSegmentation().GetSegment(background)
    if segment is not None:
        write_roles(segment, Roles(background=True))
    return node


def labels_on_volume(segmentation_node, segment_ids: Mapping[int, str], volume_node, dtype) -> np.ndarray:
    """(K, J, I) label values on the volume's grid, 0 elsewhere; segment_ids: label value -> segment ID.

    Raises InputError where a transform between them is not linear.
    """
    grid = _unwarped_image(volume_node, segmentation_node)
    array = np.zeros(grid_shape(grid), dtype)
    for value, segment_id in segment_ids.items():
        array[segment_on_grid(segmentation_node, segment_id, grid)] = value
    return array


def ijk_to_ras(volume_node) -> np.ndarray:
    """(4, 4) matrix from the voxel indices of a volume to mm."""
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def load_segmentation(path: Path):
    """The segmentation node of a `.seg.nrrd` file. Raises InputError when Slicer cannot read it."""
    node = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), False)
    if node is None:
        raise InputError(f"Cannot read {path}: not a segmentation that Slicer wrote, or a damaged file.")
    return node


def save_segmentation(segmentation_node, path: Path):
    """Write the segmentation as `.seg.nrrd`. Raises OSError if Slicer notices, see `files.check_whole`."""
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    try:
        storage.SetFileName(str(path))
        if not storage.WriteData(segmentation_node):
            raise OSError(f"{path.name} could not be written: free some space on its disk.")
    finally:
        slicer.mrmlScene.RemoveNode(storage)
