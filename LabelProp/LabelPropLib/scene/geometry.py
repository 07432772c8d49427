"""Grids in space: images of Slicer's without or with voxels, their lattices, and the matrices and transforms between.

A grid is an image, with voxels or without, whose extent need not start at 0: voxel (i, j, k) lies on a lattice of
origin, spacing and directions. Coordinates are those of the segmentation node, below its parent transform.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..boxes import Box
from ..errors import InputError

# Only Slicer's core is loaded before this module: classes of its other modules are looked up when they are needed.
Resample = slicer.vtkOrientedImageDataResample
Converter = slicer.vtkSegmentationConverter
UPRIGHT = 1 - 1e-4  # volume of a cell with edges of 1, above which the rest to 1 is taken for rounding
REFERENCE_GEOMETRY = Converter.GetReferenceImageGeometryParameterName()


def work_grid(volume_node, segmentation_node, scribbles_node=None) -> slicer.vtkOrientedImageData:
    """The grid to work in, an image without voxels.

    As in the Segment Editor: the segmentation's reference geometry (the volume's, if it has none), grown along its
    lattice to hold all segments, and those of scribbles as far as the volume goes. Its extent then need not start at 0.
    """
    segmentation = segmentation_node.GetSegmentation()
    if segmentation.GetConversionParameter(REFERENCE_GEOMETRY):
        grid = reference_grid(segmentation)
    else:
        image, _ = volume_image(volume_node, segmentation_node)
        grid = empty_image(image.GetExtent(), image)
    grid.SetExtent(_extent_with(segmentation, grid))
    if scribbles_node is not None:
        image, _ = volume_image(volume_node, segmentation_node)
        first, last = _bounds(grid.GetExtent())
        first_stroke, last_stroke = _bounds(_extent_with(scribbles_node.GetSegmentation(), grid))
        first_voxel, last_voxel = _bounds(_extent_on(image, grid))
        first = np.minimum(first, np.maximum(first_stroke, first_voxel))
        last = np.maximum(last, np.minimum(last_stroke, last_voxel))
        grid.SetExtent(extent_between(first, last))
    return grid


def reference_grid(segmentation) -> slicer.vtkOrientedImageData:
    """A segmentation's reference geometry, which it has, as an image without voxels."""
    grid = slicer.vtkOrientedImageData()
    Converter.DeserializeImageGeometry(segmentation.GetConversionParameter(REFERENCE_GEOMETRY), grid, False)
    return grid


def _bounds(extent: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last index (i, j, k) of an extent as VTK has it."""
    return np.array(extent[::2]), np.array(extent[1::2])


def extent_between(first: Iterable[int], last: Iterable[int]) -> tuple[int, ...]:
    """The extent, as VTK has it, from the first to the last index (i, j, k)."""
    return tuple(int(index) for pair in zip(first, last) for index in pair)


def _extent_on(image, grid) -> tuple[int, ...]:
    """The part of the grid's lattice that an image covers, as an extent."""
    extent = image.GetExtent()
    corners = np.array([(*corner, 1) for corner in itertools.product(extent[:2], extent[2:4], extent[4:])])
    points = np.rint(corners @ lattice_to_lattice(image, grid)[:3].T).astype(int)
    return extent_between(points.min(axis=0), points.max(axis=0))


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


def volume_image(volume_node, segmentation_node):
    """The volume as an image in the segmentation node's coordinates, and the warp that is left to apply, or None.

    A linear transform between the two nodes goes into the image's geometry, without resampling.
    """
    image = slicer.vtkOrientedImageData()
    image.ShallowCopy(volume_node.GetImageData())
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    transform = transform_between(volume_node, segmentation_node)
    if not Resample.IsTransformLinear(transform, vtk.vtkTransform()):
        return image, transform
    Resample.TransformOrientedImage(image, transform)
    return image, None


def unwarped_image(volume_node, segmentation_node):
    """The volume as an image in the segmentation node's coordinates. Raises InputError if it had to be warped."""
    image, warp = volume_image(volume_node, segmentation_node)
    if warp is not None:
        raise InputError(
            f"Between the volume '{volume_node.GetName()}' and the segmentation '{segmentation_node.GetName()}' is a"
            " transform that is not linear: harden it (Transforms module)."
        )
    return image


def transform_between(node, other_node) -> vtk.vtkGeneralTransform:
    """The transform from the coordinates of one node to those of another one, each below its parent transform."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        node.GetParentTransformNode(), other_node.GetParentTransformNode(), transform
    )
    return transform


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
            " space: choose a volume of what was segmented, or put both under the same transform."
        )
    return array


def voxels(image) -> np.ndarray:
    """The (K, J, I) array of an image's scalars, not copied."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def image_from_array(array: np.ndarray, grid, first=(0, 0, 0)) -> slicer.vtkOrientedImageData:
    """The (K, J, I) array as an image on the lattice of `grid`, beginning `first` voxels (k, j, i) into its extent."""
    start = np.add(grid_start(grid), first)[::-1]
    image = empty_image(extent_between(start, start + array.shape[::-1] - 1), grid)
    scalars = numpy_to_vtk(array.ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def crop_empty(array: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The box of the array that is not zero, and the index of its first voxel."""
    planes = np.flatnonzero([plane.any() for plane in array])
    if not planes.size:
        return array[:0, :0, :0], (0, 0, 0)
    shadow = array[planes[0] : planes[-1] + 1].max(axis=0)
    used = planes, *(np.flatnonzero(shadow.any(axis=axis)) for axis in (1, 0))
    box = array[tuple(slice(indices[0], indices[-1] + 1) for indices in used)]
    return box, tuple(int(indices[0]) for indices in used)


def empty_image(extent: tuple[int, ...], lattice) -> slicer.vtkOrientedImageData:
    """An image without voxels, with origin, spacing and directions of another one."""
    image, image_to_world = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    image.SetExtent(extent)
    lattice.GetImageToWorldMatrix(image_to_world)
    image.SetGeometryFromImageToWorldMatrix(image_to_world)  # `CopyStructure` leaves out the directions
    return image


def part_of_grid(grid, box: Box) -> slicer.vtkOrientedImageData:
    """The part of a grid, an image without voxels, that a box (k, j, i) of it takes."""
    first, last = ([getattr(part, end) for part in box[::-1]] for end in ("start", "stop"))
    start = grid_start(grid)[::-1]
    return empty_image(extent_between(np.add(start, first), np.add(start, last) - 1), grid)


def lattice_to_lattice(image, grid) -> np.ndarray:
    """(4, 4) from voxel indices (i, j, k) of an image to those of the grid."""
    to_world, to_grid = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_world)
    grid.GetWorldToImageMatrix(to_grid)
    return slicer.util.arrayFromVTKMatrix(to_grid) @ slicer.util.arrayFromVTKMatrix(to_world)


def array_to_array(image, grid) -> np.ndarray:
    """(4, 4) from voxel indices (k, j, i) of an image to those of the grid."""
    return lattice_to_lattice(image, grid)[[2, 1, 0, 3]][:, [2, 1, 0, 3]]


def index_to_grid(image, grid, axis: int) -> np.ndarray:
    """(4, 4) from voxel indices (k, j, i) of an image to mm along the array axes of the grid, see `grid_spacing`."""
    matrix = array_to_array(image, grid)
    matrix[:3] *= np.array(grid_spacing(grid, axis))[:, None]
    return matrix


def grid_spacing(grid, axis: int) -> tuple[float, float, float]:
    """mm along (K, J, I); across the planes of the array axis from one to the next, also where the grid is sheared.

    In a scan of a tilted gantry the way from voxel to voxel is longer than that from plane to plane.
    """
    directions = vtk.vtkMatrix4x4()
    grid.GetDirectionMatrix(directions)
    upright = abs(directions.Determinant())
    spacing = list(grid.GetSpacing()[::-1])
    if upright < UPRIGHT:
        spacing[axis] *= upright
    return tuple(spacing)


def lines_against_view(grid, axis: int) -> tuple[bool, bool]:
    """Whether the rows, and the columns, of planes across the array axis run against the way in which slices are shown.

    Slices are shown with the patient's back or feet at the bottom, and with the left side or the back at the right.
    """
    directions = vtk.vtkMatrix4x4()
    grid.GetDirectionMatrix(directions)
    across_lines = [slicer.util.arrayFromVTKMatrix(directions)[:3, 2 - other] for other in range(3) if other != axis]
    rows, columns = (bool(way[np.abs(way).argmax()] > 0) for way in across_lines)
    return rows, columns


def grid_shape(grid) -> tuple[int, int, int]:
    """(K, J, I) of an image."""
    return grid.GetDimensions()[::-1]


def grid_start(grid) -> tuple[int, int, int]:
    """(k, j, i) of the first voxel of an image on its lattice."""
    return grid.GetExtent()[::2][::-1]


def ijk_to_ras(volume_node) -> np.ndarray:
    """(4, 4) matrix from the voxel indices of a volume to mm."""
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)
