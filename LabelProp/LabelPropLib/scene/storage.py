"""Files to nodes and back."""

from __future__ import annotations

from pathlib import Path

import slicer

from ..errors import InputError


def load_segmentation(path: Path):
    """The segmentation node of a `.seg.nrrd` file. Raises InputError when Slicer cannot read it."""
    node = slicer.modules.segmentations.logic().LoadSegmentationFromFile(str(path), False)
    if node is None:
        raise InputError(f"Cannot read {path}: not a segmentation that Slicer wrote, or a damaged file.")
    return node


def save_segmentation(segmentation_node, path: Path):
    """Write the segmentation as `.seg.nrrd`. Raises OSError."""
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    try:
        storage.SetFileName(str(path))
        if not storage.WriteData(segmentation_node):
            raise OSError(f"Cannot write {path}.")
    finally:
        slicer.mrmlScene.RemoveNode(storage)
