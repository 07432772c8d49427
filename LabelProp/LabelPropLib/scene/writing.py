"""Arrays to nodes: what was propagated becomes the content of segments, or of new nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import numpy as np
import slicer
import slicer.util

from ..annotation import SCRIBBLE_FILE_BACKGROUND, placeholder
from ..boxes import Box
from ..errors import InputError
from ..roles import Roles
from .geometry import REFERENCE_GEOMETRY, crop_empty, grid_shape, image_from_array, volume_image
from .reading import SceneAnnotation, choose_segments
from .segments import BINARY_LABELMAP, layer_of, write_roles


def check_target(volume_node, input_nodes: Iterable):
    """Raise InputError unless what is to be written is None, or a scalar volume node that is not among the inputs."""
    if volume_node is None:
        return
    if not (hasattr(volume_node, "IsA") and volume_node.IsA("vtkMRMLScalarVolumeNode")):
        raise InputError("The map of uncertainty can be written into a scalar volume node only: choose one for it.")
    if any(volume_node is node for node in input_nodes):
        raise InputError(
            f"The volume '{volume_node.GetName()}' would be replaced by the map of uncertainty: choose another one for"
            " it, or a new one."
        )


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
            segment.SetName(collected.annotation.names[label])
            if source.GetSegmentation().GetSegment(segment_id) is not None:  # it may have been removed since
                segment.DeepCopyMetadata(source.GetSegmentation().GetSegment(segment_id))
        _set_labelmaps(node, label_maps, collected.written_ids, collected.grid)
        _set_in_progress(node, collected.written_ids.values())
        node.CreateDefaultDisplayNodes()
    return node


def _set_labelmaps(node, label_maps: Iterable[np.ndarray], segment_ids: Mapping[int, str], grid):
    """Replace the labelmaps of segments, label -> ID; the labels of each (K, J, I) map on the grid share a layer."""
    segmentation = node.GetSegmentation()
    written = list(segment_ids.values())
    kept = {layer_of(segmentation, name) for name in segmentation.GetSegmentIDs() if name not in written}
    empty = dict(segment_ids)
    layers = []
    for label_map in label_maps:
        box, first = crop_empty(label_map)
        labels = [label for label in empty if any((plane == label).any() for plane in box)]
        if labels:
            layer = image_from_array(box.astype(np.min_scalar_type(max(labels))), grid, first)
            layers.append((layer, {label: empty.pop(label) for label in labels}))
    layers.extend((slicer.vtkOrientedImageData(), {label: segment_id}) for label, segment_id in empty.items())
    for layer, ids in layers:
        for label, segment_id in ids.items():
            if layer_of(segmentation, segment_id) in kept:
                segmentation.SeparateSegmentLabelmap(segment_id)  # leaves nothing of it in the others' layer
            segment = segmentation.GetSegment(segment_id)
            segment.SetLabelValue(label)
            segment.AddRepresentation(BINARY_LABELMAP, layer)
    slicer.vtkSlicerSegmentationsModuleLogic.ReconvertAllRepresentations(node, written)
    for segment_id in written:
        segmentation.InvokeEvent(slicer.vtkSegmentation.SourceRepresentationModified, segment_id)
        segmentation.InvokeEvent(slicer.vtkSegmentation.RepresentationModified, segment_id)


def _set_in_progress(segmentation_node, segment_ids: Iterable[str]):
    """What has content now is no longer 'not started'."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for segment_id in segment_ids:
        segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
        if logic.GetSegmentStatus(segment) == logic.NotStarted:
            logic.SetSegmentStatus(segment, logic.InProgress)


def write_volume(collected: SceneAnnotation, array: np.ndarray, volume_node):
    """Make the (K, J, I) array on the annotation's grid the content of a volume node."""
    image = image_from_array(array, collected.grid)
    with rendering_paused(), slicer.util.NodeModify(volume_node):
        slicer.vtkSlicerSegmentationsModuleLogic.CopyOrientedImageDataToVolumeNode(image, volume_node)
        volume_node.SetAndObserveTransformNodeID(collected.segmentation_node.GetTransformNodeID())
        if volume_node.GetDisplayNode() is None:
            volume_node.CreateDefaultDisplayNodes()


def add_segmentation_of_labels(labels: np.ndarray, volume_node, name: str, ids: Mapping[int, str] | None = None):
    """A segmentation node of a label volume on the volume's grid: for each value but 0 a segment of that label value.

    labels: (K, J, I) non-negative integers; ids: label value -> segment ID, 'Label_<value>' where not given.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    values = sorted({int(value) for plane in labels if plane.any() for value in np.unique(plane)} - {0})
    grid, _ = volume_image(volume_node, node)
    box, first = crop_empty(labels)
    layer = image_from_array(box.astype(np.min_scalar_type(max(values, default=0))), grid, first)
    for value in values:
        segment = slicer.vtkSegment()
        segment_id = (ids or {}).get(value, placeholder(value))
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


def rendering_paused():
    """Context in which the application does not draw; there is nothing to pause outside it."""
    return slicer.util.RenderBlocker() if hasattr(slicer, "app") else contextlib.nullcontext()
