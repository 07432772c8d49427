"""What a user of 3D Slicer has without LabelProp: copy the nearest drawn slice, or the effect Fill between slices.

Both look at the drawn outlines alone, never at the image. They are what every figure of LabelProp is held against.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

EFFECT_MARGIN = 0.1  # Segment Editor auto-complete effects grow the labels' box by this fraction on each side ...
EFFECT_LEAST_MARGIN = 3  # ... and by these voxels at least


def copy_nearest(annotations: np.ndarray, axis: int) -> np.ndarray:
    """Every slice between the outermost drawn ones as a copy of the nearest drawn one; of two equally near, the lower.

    annotations: (K, J, I) label volume, 0 is "not annotated"; axis: array axis of the stack. Returns the same dtype.
    """
    planes = np.moveaxis(annotations, axis, 0)
    drawn = np.flatnonzero(planes.any(axis=(1, 2)))
    between = np.arange(drawn[0], drawn[-1] + 1)
    filled = np.zeros_like(planes)
    filled[between] = planes[drawn[np.abs(between[:, None] - drawn).argmin(axis=1)]]
    return np.moveaxis(filled, 0, axis)


def fill_between_slices(annotations: np.ndarray) -> np.ndarray:
    """What Slicer's effect Fill between slices makes of a (K, J, I) label volume; returns the same dtype.

    The filter runs in a short-lived process of its own. Its C++ keeps intermediate ITK objects for each thread it ran
    in. Those of ITK's pool threads are destroyed at process exit only, after the ITK library's own globals, and that
    ends the process by a segmentation fault, whatever its work was. Without pool threads the fault cannot occur, but
    their number has to be set before ITK starts up, which only a fresh process guarantees.

    Raises subprocess.CalledProcessError if that process fails.
    """
    package_folder = str(Path(__file__).resolve().parent.parent)
    search_path = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "PYTHONPATH": search_path}
    with tempfile.TemporaryDirectory() as folder:
        drawn, filled = Path(folder, "drawn.npy"), Path(folder, "filled.npy")
        np.save(drawn, annotations)
        subprocess.run([sys.executable, "-m", __name__, drawn, filled], env=environment, check=True)
        return np.load(filled)


def interpolate_contours(annotations: np.ndarray) -> np.ndarray:
    """Fill between slices in this process, which may then end by a segmentation fault: see `fill_between_slices`.

    As in `SegmentEditorFillBetweenSlicesEffect.computePreviewLabelmap`: the filter's defaults (all labels, all axes,
    heuristic alignment, repeated dilations with a cross) on the labels' box with the effect's margin, in which the n-th
    segment has the value n.

    Albu, Beugeling, Laurendeau. A morphology-based approach for interslice interpolation of anatomical slices from
    volumetric images. IEEE Trans Biomed Eng 2008; Zukić et al. ND morphological contour interpolation. Insight
    Journal 2016.
    """
    from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData

    try:
        from vtkITK import vtkITKMorphologicalContourInterpolator  # Slicer
    except ImportError:
        from slicer import vtkITKMorphologicalContourInterpolator  # PyPI's slicer-core

    labels = np.unique(annotations[annotations != 0])
    box = effect_box(annotations)
    segments = np.where(annotations[box], np.searchsorted(labels, annotations[box]) + 1, 0).astype(np.int16)
    image = vtkImageData()
    image.SetDimensions(segments.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(segments.ravel()))
    interpolator = vtkITKMorphologicalContourInterpolator()
    interpolator.SetInputData(image)
    interpolator.Update()
    interpolated = vtk_to_numpy(interpolator.GetOutput().GetPointData().GetScalars()).reshape(segments.shape)
    filled = np.zeros_like(annotations)
    filled[box] = np.concatenate([[0], labels])[interpolated]
    return filled


def effect_box(annotations: np.ndarray) -> tuple[slice, ...]:
    """The part of the volume that a Segment Editor auto-complete effect works on."""
    (tight,) = ndimage.find_objects((annotations != 0).astype(np.uint8))
    margins = [int(max(EFFECT_LEAST_MARGIN, EFFECT_MARGIN * (extent.stop - extent.start - 1))) for extent in tight]
    return tuple(slice(max(0, extent.start - margin), extent.stop + margin) for extent, margin in zip(tight, margins))


if __name__ == "__main__":
    np.save(sys.argv[2], interpolate_contours(np.load(sys.argv[1])))
