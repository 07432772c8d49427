"""The slice that the views show, and showing another one."""

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

ALIGNED = 0.75  # cosine of the angle within which a view looks along an axis


def planeTitles():
    """What slices are called by their orientation, see `LabelPropLib.scene.slices.anatomical_plane`."""
    return {"axial": _("Axial"), "coronal": _("Coronal"), "sagittal": _("Sagittal")}


class SliceAxis:
    """The slices across one axis of a segmentation's grid, as planes in the world.

    :param grid: an image without voxels, in the coordinates of the segmentation node.
    :param axis: array axis (0: k, 1: j, 2: i).
    """

    def __init__(self, grid, axis, segmentationNode):
        imageToNode = vtk.vtkMatrix4x4()
        grid.GetImageToWorldMatrix(imageToNode)
        self._indexToNode = slicer.util.arrayFromVTKMatrix(imageToNode)
        self._column = 2 - axis
        extent = grid.GetExtent()
        self._centre = np.array([(extent[2 * n] + extent[2 * n + 1]) / 2 for n in range(3)])
        self._nodeToWorld = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
            segmentationNode.GetParentTransformNode(), None, self._nodeToWorld
        )

    def current(self):
        """The index of the slice shown in the views that look along the axis, None where no view does."""
        sliceNode = self._sliceNode()
        if sliceNode is None:
            return None
        point = self._nodeToWorld.GetInverse().TransformPoint(viewCentre(sliceNode))
        index = np.linalg.solve(self._indexToNode, [*point, 1.0])
        return int(round(index[self._column]))

    def show(self, index):
        """Jump to a slice in the views that look along the axis, and to where it crosses the others' in all views.

        :return: the point jumped to, (R, A, S) mm.
        """
        shown = self._sliceNode()
        nearest = self._world(self._centre) if shown is None else np.array(viewCentre(shown))
        planes = [(self._normal(), self._world(self._onSlice(index)))]
        for sliceNode in sliceNodes():
            if abs(viewNormal(sliceNode) @ self._normal()) < ALIGNED:
                planes.append((viewNormal(sliceNode), np.array(viewCentre(sliceNode))))
        normals = np.array([normal for normal, point in planes])
        offsets = np.array([normal @ (point - nearest) for normal, point in planes])
        position = nearest + np.linalg.lstsq(normals, offsets, rcond=None)[0]
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *position, slicer.vtkMRMLSliceNode.OffsetJumpSlice)
        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is not None:
            crosshair.SetCrosshairRAS(*position)
        return position

    def _sliceNode(self):
        """The view that looks along the axis most nearly, one in the layout if possible."""
        alignment = {node.GetID(): abs(viewNormal(node) @ self._normal()) for node in sliceNodes()}
        return max(
            (node for node in sliceNodes() if alignment[node.GetID()] > ALIGNED),
            key=lambda node: (node.IsMappedInLayout(), alignment[node.GetID()]),
            default=None,
        )

    def _normal(self):
        step = self._world(self._onSlice(1)) - self._world(self._onSlice(0))
        across = [self._world(self._centre + np.eye(3)[n]) - self._world(self._centre) for n in range(3)]
        first, second = (across[n] for n in range(3) if n != self._column)
        normal = np.cross(first, second)
        return normal / np.linalg.norm(normal) * np.sign(normal @ step)

    def _onSlice(self, index):
        point = self._centre.copy()
        point[self._column] = index
        return point

    def _world(self, index):
        return np.array(self._nodeToWorld.TransformPoint((self._indexToNode @ [*index, 1.0])[:3]))


def sliceNodes():
    """All slice views of the scene."""
    return slicer.util.getNodesByClass("vtkMRMLSliceNode")


def viewCentre(sliceNode):
    """(R, A, S) mm of the middle of a slice view."""
    sliceToRAS = sliceNode.GetSliceToRAS()
    return [sliceToRAS.GetElement(row, 3) for row in range(3)]


def viewNormal(sliceNode):
    """Unit vector along which a slice view looks."""
    sliceToRAS = sliceNode.GetSliceToRAS()
    return np.array([sliceToRAS.GetElement(row, 2) for row in range(3)])
