"""Segments as they are kept, whatever layer, extent and lattice: their tags, and where they have voxels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import slicer
import vtk

from .. import boxes
from ..annotation import AXIS_NAMES, run_length
from ..boxes import Box
from ..errors import InputError
from ..patches import Patch, patches_of_layer
from ..roles import PROPAGATED_TAG, ROLES_TAG, Roles
from ..settings import AXIS_CHOICES
from .geometry import (
    REFERENCE_GEOMETRY,
    Converter,
    Resample,
    crop_empty,
    grid_shape,
    grid_start,
    image_from_array,
    part_of_grid,
    unwarped_image,
    voxels,
)

BINARY_LABELMAP = Converter.GetSegmentationBinaryLabelmapRepresentationName()


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


@contextlib.contextmanager
def tags_unheard(segment: slicer.vtkSegment) -> Iterator[slicer.vtkSegment]:
    """A segment whose tags are those of `segment`, which takes them over in the end without an event of its own.

    The Segment Editor's history takes an event for an edit: it drops what there is to redo, and where the event comes
    of what Undo has just restored, Undo gets no further.
    """
    noted = slicer.vtkSegment()
    noted.DeepCopyMetadata(segment)
    yield noted
    segment.DeepCopyMetadata(noted)


def read_propagated(segment: slicer.vtkSegment, axis: int) -> dict[int, int]:
    """Slice -> fingerprint, empty where the tag is missing, of other axes, or not one of ours."""
    return propagated_by_axis(segment).get(AXIS_NAMES[axis], {})


def propagated_by_axis(segment: slicer.vtkSegment) -> dict[str, dict[int, int]]:
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


def layer_of(segmentation, segment_id: str):
    """The layer that the segment is kept in, maybe with others."""
    return segmentation.GetSegment(segment_id).GetRepresentation(BINARY_LABELMAP)


def segmentation_state(segmentation_node) -> tuple:
    """What differs once voxels or roles of a segment, the segments, or the segmentation's geometry were changed."""
    segmentation = segmentation_node.GetSegmentation()
    labelmaps = {name: layer_of(segmentation, name) for name in sorted(segmentation.GetSegmentIDs())}
    return (
        segmentation.GetConversionParameter(REFERENCE_GEOMETRY),
        segmentation.GetSourceRepresentationName(),
        segmentation_node.GetTransformNodeID(),
        *(
            (name, labelmap and labelmap.GetMTime(), read_tag(segmentation.GetSegment(name), ROLES_TAG))
            for name, labelmap in labelmaps.items()
        ),
    )


def visible_segments(segmentation_node) -> list[str]:
    """IDs of the segments that are shown; all, where the node has no say in it."""
    display_node = segmentation_node.GetDisplayNode()
    if display_node is None:
        return list(segmentation_node.GetSegmentation().GetSegmentIDs())
    shown = vtk.vtkStringArray()
    display_node.GetVisibleSegmentIDs(shown)
    return [shown.GetValue(index) for index in range(shown.GetNumberOfValues())]


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
    box, first = crop_empty(voxels(resampled))
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


def segment_on_grid(segmentation_node, segment_id: str, grid) -> np.ndarray:
    """(K, J, I) bool of one segment, whatever layer, extent and lattice it is kept in."""
    return stored_segments(segmentation_node, [segment_id], grid)[segment_id].on_grid(grid)


def labels_on_volume(segmentation_node, segment_ids: Mapping[int, str], volume_node, dtype) -> np.ndarray:
    """(K, J, I) label values on the volume's grid, 0 elsewhere; segment_ids: label value -> segment ID.

    Raises InputError where a transform between them is not linear.
    """
    grid = unwarped_image(volume_node, segmentation_node)
    array = np.zeros(grid_shape(grid), dtype)
    for value, segment_id in segment_ids.items():
        array[segment_on_grid(segmentation_node, segment_id, grid)] = value
    return array


def content_grid(grid, segments: Iterable[StoredSegment]) -> slicer.vtkOrientedImageData:
    """The part of the grid, an image without voxels, that the segments reach; all of it where they are empty."""
    box = boxes.around([segment.box_on_grid(grid) for segment in segments])
    return part_of_grid(grid, box if boxes.size(box) else boxes.whole(grid_shape(grid)))


def drawn_planes(segments: Mapping, roles: Iterable[Roles], axis: str) -> tuple[int, dict[Any, list[int]]]:
    """The array axis across which slices are drawn, and for each of `segments` the indices of those that bear it.

    segments: any key -> StoredSegment; roles: of the same segments.
    axis: 'k', 'j' or 'i', or 'auto': the one axis that the roles speak of, else that across which drawn slices stand
        alone, see `run_length`. Raises InputError for another one.
    """
    if axis not in AXIS_CHOICES:
        raise InputError(f"Unknown axis '{axis}': choose one of {', '.join(AXIS_CHOICES)}.")
    named = set().union(*(segment_roles.axes for segment_roles in roles))
    if axis == "auto" and len(named) == 1:
        axis = named.pop()
    axes = range(3) if axis == "auto" else (AXIS_NAMES.index(axis),)
    borne = {key: segment.planes(axes) for key, segment in segments.items()}
    used = {a: np.array(sorted(set().union(*(planes[a] for planes in borne.values())))) for a in axes}
    chosen = min(axes, key=lambda a: run_length(used[a]))
    return chosen, {key: planes[chosen] for key, planes in borne.items()}
