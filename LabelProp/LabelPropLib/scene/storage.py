"""Files to nodes, with a check of what would make them unusable, and back. All raise InputError or OSError."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slicer
import slicer.util

from .. import files
from ..errors import InputError
from .geometry import ijk_to_ras
from .reading import choose_segments
from .segments import labels_on_volume
from .writing import add_segmentation_of_labels, add_segmentation_of_scribbles


@dataclass(frozen=True)
class LoadedVolume:
    """A volume node, and the file and the grid that it was read from."""

    node: slicer.vtkMRMLScalarVolumeNode
    path: Path
    grid: files.Grid


@dataclass(frozen=True)
class LoadedAnnotations:
    """A segmentation node that was read from a file, and the type that holds its label values."""

    node: slicer.vtkMRMLSegmentationNode
    label_type: np.dtype


def load_volume(path: Path) -> LoadedVolume:
    """A scan."""
    image = files.read_volume(path)
    voxels = files.voxels(image)
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize == 8:  # Slicer has no volumes of these
        voxels = voxels.astype(np.float64)
    node = slicer.util.addVolumeFromArray(voxels, files.ijk_to_ras(image), path.name)
    return LoadedVolume(node, path, files.Grid.of(image))


def load_annotations(path: Path, volume: LoadedVolume) -> LoadedAnnotations:
    """A `.seg.nrrd`, or a label volume on the volume's grid."""
    files.check_not_the_same(path, volume.path)
    if files.is_segmentation(path):
        node = load_segmentation(path)
        segment_ids, _ = choose_segments(node)
        return LoadedAnnotations(node, np.promote_types(np.uint16, np.min_scalar_type(max(segment_ids, default=0))))
    labels = files.read_labels_on(volume.grid, volume.path, path)
    files.check_not_swapped(labels, path, slicer.util.arrayFromVolume(volume.node), volume.path)
    return LoadedAnnotations(add_segmentation_of_labels(labels, volume.node, path.name), labels.dtype)


def load_scribbles(path: Path, volume: LoadedVolume, segmentation_node):
    """A segmentation node of strokes: a `.seg.nrrd`, or a label volume on the volume's grid with 255 for background."""
    if files.is_segmentation(path):
        return load_segmentation(path)
    segment_ids, _ = choose_segments(segmentation_node)
    strokes = files.read_labels_on(volume.grid, volume.path, path)
    return add_segmentation_of_scribbles(strokes, volume.node, path.name, segment_ids)


def load_atlas(image_path: Path, labels_path: Path):
    """Volume node and segmentation node of a finished volume."""
    volume = load_volume(image_path)
    return volume.node, load_annotations(labels_path, volume).node


def load_segmentation(path: Path):
    """The segmentation node of a `.seg.nrrd`."""
    files.check_readable(path)
    node = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), False)
    if node is None:
        raise InputError(f"Cannot read {path}: not a segmentation that Slicer wrote, or a damaged file.")
    return node


def save_segments(segmentation_node, segment_ids: Mapping[int, str], volume_node, label_type: np.dtype, path: Path):
    """Write a `.seg.nrrd`, or a label volume on the volume's grid, as the name says.

    segment_ids: label value -> segment ID, of the segments in a label volume.
    """
    if files.is_segmentation(path):
        save_segmentation(segmentation_node, path)
    else:
        labels = labels_on_volume(segmentation_node, segment_ids, volume_node, label_type)
        files.write_volume(labels, ijk_to_ras(volume_node), path)


def save_volume(volume_node, path: Path):
    """Write a scalar volume."""
    files.write_volume(slicer.util.arrayFromVolume(volume_node), ijk_to_ras(volume_node), path)


def save_segmentation(segmentation_node, path: Path):
    """Write a segmentation as `.seg.nrrd`. Raises OSError if Slicer notices, see `files.check_whole`."""
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    try:
        storage.SetFileName(str(path))
        if not storage.WriteData(segmentation_node):
            raise files.not_written(path)
    finally:
        slicer.mrmlScene.RemoveNode(storage)
