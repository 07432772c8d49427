"""Small volumes and segmentations for the tests, in files or in the scene, and an engine that takes no time."""

import numpy as np
import slicer
import torch
import vtk
from scipy.spatial.transform import Rotation

from LabelPropLib import files
from LabelPropLib.annotation import annotate_from_planes, find_axis
from LabelPropLib.candidates import Chains, arrivals
from LabelPropLib.errors import Cancelled
from LabelPropLib.gaps import Gap
from LabelPropLib.label_planes import LabelPlanes
from LabelPropLib.preprocessing import prepare
from LabelPropLib.propagation import Propagation

SHAPE = (12, 20, 24)
STRAIGHT = np.diag([0.7, 0.8, 3.0, 1.0])
OBLIQUE = np.eye(4)
OBLIQUE[:3] = np.c_[Rotation.from_euler("xyz", [25, 20, 10], degrees=True).as_matrix() * [0.7, 0.8, 3.0], [-30, 12, 40]]


def noise(shape=SHAPE):
    """Intensities, the same each time."""
    return np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)


def drawn_masks(shape=SHAPE, planes=(2, 9), axis=0):
    """'left' and 'right' -> (K, J, I) bool: two structures drawn on some planes, a little different on each."""
    masks = {name: np.zeros(shape, bool) for name in ("left", "right")}
    for n, plane in enumerate(planes):
        for offset, mask in zip((2, 8), masks.values()):
            np.moveaxis(mask, axis, 0)[plane, 1 + n : 6 + n, offset : offset + 4 + n] = True
    return masks


def annotate_from_masks(image, masks, spacing, axis=None, missing="auto", ignored=None, **given):
    """Annotation from label -> (K, J, I) bool, masks that may overlap; the rest as in `annotate_from_planes`."""
    if axis is None:
        axis = find_axis(np.any(list(masks.values()), axis=0))
    complete = {
        label: {
            index: plane.copy()
            for index, plane in enumerate(np.moveaxis(mask, axis, 0))
            if plane.any() and index not in (ignored or {}).get(label, ())
        }
        for label, mask in masks.items()
    }
    return annotate_from_planes(image, complete, spacing, axis, missing, ignored=ignored, **given)


def standing_arrivals(annotation, lower, upper):
    """What reaches of label 1 the planes between two drawn ones, as if nothing moved."""
    stack = prepare(annotation, 200)
    chains = Chains(torch.zeros(len(stack.images) - 1, 2, 24, 24), stack.images)
    return arrivals(1, chains.cross(Gap(lower, upper, lower + 1, upper - 1)), LabelPlanes(annotation, stack))


def label_volume(masks, labels):
    """(K, J, I) of the masks' labels."""
    volume = np.zeros(next(iter(masks.values())).shape, np.int32)
    for mask, label in zip(masks.values(), labels):
        volume[mask] = label
    return volume


def add_scan(array=None, ijk_to_ras=STRAIGHT, name="Scan"):
    """A volume node."""
    return slicer.util.addVolumeFromArray(noise() if array is None else array, ijk_to_ras, name)


def add_segmentation(volume_node, masks, one_layer=False):
    """A segmentation node with a segment for each ID -> (K, J, I) mask on the volume's grid."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    for segment_id, mask in masks.items():
        node.GetSegmentation().AddEmptySegment(segment_id, segment_id)
        draw(node, segment_id, mask, volume_node)
    if one_layer:
        node.GetSegmentation().CollapseBinaryLabelmaps(False)
    return node


def draw(node, segment_id, mask, volume_node):
    """Make the mask on the volume's grid the content of the segment, by Slicer's own function."""
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, segment_id, volume_node)


def set_geometry(node, volume_node):
    """Make a volume's geometry that of the segmentation, and its voxels lie on it, as "Specify geometry" does."""
    geometry = slicer.vtkSlicerSegmentationGeometryLogic()
    geometry.SetInputSegmentationNode(node)
    geometry.SetSourceGeometryNode(volume_node)
    geometry.CalculateOutputGeometry()
    assert geometry.SetReferenceImageGeometryInSegmentationNode()
    assert geometry.ResampleLabelmapsInSegmentationNode()


def segment_array(node, segment_id, volume_node):
    """(K, J, I) bool of a segment on the volume's grid, read by Slicer's own function."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, volume_node) > 0


def write_case(folder, image, drawn, ijk_to_ras=STRAIGHT):
    """image.nii.gz and annotations.nii.gz in a folder."""
    files.write_volume(image, ijk_to_ras, folder / "image.nii.gz")
    files.write_volume(drawn, ijk_to_ras, folder / "annotations.nii.gz")


def add_transform(matrix):
    """A linear transform node."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(node, matrix)
    return node


def tag(segment, name):
    """The value of a segment's tag, None without it."""
    value = vtk.reference("")
    return value.get() if segment.GetTag(name, value) else None


def propagate_nearest(annotation, settings, progress=None, is_cancelled=None):
    """Each label's nearest complete plane on every plane between its outermost ones; with the pipeline's contract."""
    if is_cancelled is not None and is_cancelled():
        raise Cancelled
    shape = annotation.image.shape
    overlapping = {label for pair in annotation.overlapping() for label in pair}
    exclusive = np.zeros(shape, np.int32)
    label_maps = [exclusive]
    for label in annotation.labels:
        given = annotation.complete[label]
        label_map = np.zeros(shape, np.int32) if label in overlapping else exclusive
        for index, plane in enumerate(np.moveaxis(label_map, annotation.axis, 0)):
            if min(given) <= index <= max(given):
                plane[given[min(given, key=lambda other: abs(other - index))]] = label
        if label in overlapping:
            label_maps.append(label_map)
    label_maps = [label_map for label_map in label_maps if label_map.any()]
    if progress is not None:
        progress(1.0, "Copying")
    return Propagation(
        label_maps,
        directions={"up": label_maps, "down": label_maps} if settings.directions else {},
        uncertainty=np.full(shape, 0.25, np.float32) if settings.uncertainty else None,
        report={
            "axis": "kji"[annotation.axis],
            "annotated_slices": annotation.planes,
            "labels": list(annotation.labels),
            "missing": annotation.missing,
            "device": "cpu",
            "seconds": {"copying": 0.0},
            "messages": [],
            "peak_memory_gb": 0.5,
            "expected_dice": {},
            "expected_mean_dice": None,
            "suggested_slices": [],
        },
    )
