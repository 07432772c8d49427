"""The Segment Editor effect: its self test, which is written for the Slicer application, and its parts alone."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import segment_editor_stand_ins
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from samples import OBLIQUE

qt_application = segment_editor_stand_ins.install()
sys.path.append(str(Path(__file__).resolve().parents[2] / "LabelPropEffect"))

import qt  # noqa: E402
import slicer  # noqa: E402
from PySide6 import QtTest  # noqa: E402

import SegmentEditorLabelProp  # noqa: E402
from LabelPropLib import scene  # noqa: E402
from LabelPropLib.annotation import find_axis  # noqa: E402
from LabelPropLib.protection import protect  # noqa: E402
from LabelPropLib.roles import Roles  # noqa: E402
from LabelPropLib.slices import anatomical_plane, segment_box, set_role, slice_roles, survey, with_role  # noqa: E402
from SegmentEditorLabelPropLib import SegmentEditorEffect  # noqa: E402
from SegmentEditorLabelPropLib.SliceStrip import Lane, SliceStrip  # noqa: E402
from SegmentEditorLabelPropLib.SliceViews import SliceAxis  # noqa: E402

segment_editor_stand_ins.SegmentEditorWidget.effectClasses.append(SegmentEditorEffect)

PANEL_WIDTH = 362  # pixels that the application leaves to an effect's options by default
IGNORE_QT6_DEPRECATION = pytest.mark.filterwarnings("ignore:.*QMouseEvent.pos")  # the application has Qt 5
SHAPE = (4, 5, 6)
masks = npst.arrays(bool, SHAPE)
planes = st.sets(st.integers(0, 3))


class TestEffect(SegmentEditorLabelProp.SegmentEditorLabelPropTest):
    """The self test, and some more on the same tube."""

    def test_PanelIsNarrowEnough(self):
        self.segmentation.GetSegment("tube").SetName("A segment with a very long name that goes on and on and on")
        self.effect.slicesPanel.refresh()
        self.assertLessEqual(self.scriptedEffect.optionsFrame().minimumSizeHint().width(), PANEL_WIDTH)

    def test_RolesSurviveAFile(self):
        set_role(self.segmentationNode, "tube", 0, "scribble", [6])
        set_role(self.segmentationNode, "tube", 0, "absent", [3, 4])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tube.seg.nrrd"
            scene.save_segmentation(self.segmentationNode, path)
            again = scene.load_segmentation(path)
        self.assertEqual(
            survey(self.volumeNode, again, ["tube"]).roles["tube"],
            {0: "complete", 3: "absent", 4: "absent", 6: "scribble", 12: "complete"},
        )

    def test_PreviewOfAnotherEffectIsReplaced(self):
        other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Of another effect")
        self.scriptedEffect.setCommonNodeReference("SegmentationResultPreview", other)
        self.scriptedEffect.setCommonParameter("SegmentationResultPreviewOwnerEffect", "Grow from seeds")
        self.assertIsNone(self.effect.getPreviewNode())
        self.preview()
        self.assertFalse(slicer.mrmlScene.IsNodePresent(other))

    def test_MergedLabelmapOfAScript(self):
        merged = scene.image_from_array(
            self.drawn.astype(np.int16), scene.work_grid(self.volumeNode, self.segmentationNode)
        )
        output = slicer.vtkOrientedImageData()
        self.effect.computePreviewLabelmap(merged, output)
        self.assertSame(scene.voxels(output) > 0, self.preview())

    @IGNORE_QT6_DEPRECATION
    def test_ClickOnTheStripShowsTheSlice(self):
        axial, sagittal = add_slice_views()
        panel = self.effect.slicesPanel
        strip = panel.strip
        strip.widget.resize(300, strip.widget.height)
        QtTest.QTest.mouseClick(strip.widget, qt.Qt.LeftButton, pos=qt.QPoint(strip._x(6), 10))
        self.assertEqual(panel.currentSlice, 6)
        self.assertEqual(axial.GetSliceToRAS().GetElement(2, 3), 24)  # 4 mm a slice
        self.assertEqual(sagittal.GetSliceToRAS().GetElement(0, 3), 10)

    def test_StripFollowsTheViews(self):
        axial, _ = add_slice_views()
        panel = self.effect.slicesPanel
        panel.stopObserving()
        panel.observe()
        axial.JumpSliceByOffsetting(0, 0, 36)
        self.processEvents(lambda: panel.currentSlice != 9)


def add_slice_views():
    """An axial view, and a sagittal one at R 10."""
    views = []
    for name, normal, transverse, position in (
        ("Red", (0, 0, 1), (-1, 0, 0), (0, 0, 8)),
        ("Yellow", (1, 0, 0), (0, 1, 0), (10, 0, 0)),
    ):
        node = slicer.vtkMRMLSliceNode()
        node.SetLayoutName(name)
        node = slicer.mrmlScene.AddNode(node)  # a view of this name stays when the scene is closed
        node.SetSliceToRASByNTP(*normal, *transverse, *position, 0)
        views.append(node)
    return views


#
# Slices
#


@settings(max_examples=40, deadline=None)
@given(first=masks, second=masks)
def test_survey_agrees_with_what_is_propagated(first, second):
    slicer.mrmlScene.Clear()
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE), OBLIQUE)
    segmentation = scene.add_segmentation_of_labels(np.where(first, 1, 2 * second), volume, "s", {1: "a", 2: "b"})
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    if not ids:
        return
    overview = survey(volume, segmentation, ids)
    drawn = {name: scene.segment_on_grid(segmentation, name, overview.grid) for name in ids}
    assert overview.axis == find_axis(drawn)
    for name, mask in drawn.items():
        others = tuple(a for a in range(3) if a != overview.axis)
        found = {index - overview.slices.start: role for index, role in overview.roles[name].items()}
        assert found == dict.fromkeys(np.flatnonzero(mask.any(axis=others)).tolist(), "complete")


def test_box_of_a_segment_on_another_lattice():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE), np.diag([1.0, 1.0, 3.0, 1.0]))
    coarse = slicer.util.addVolumeFromArray(np.zeros((2, 3, 3)), np.diag([2.0, 2.0, 6.0, 1.0]))
    labels = np.zeros((2, 3, 3), np.uint8)
    labels[1, 1, 1] = 1
    segmentation = scene.add_segmentation_of_labels(labels, coarse, "s", {1: "a"})
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    grid = scene.work_grid(volume, segmentation)
    box = segment_box(segmentation, "a", grid)
    on_grid = scene.segment_on_grid(segmentation, "a", grid)
    first = grid.GetExtent()[4]
    assert box.planes(0) == [first + k for k in np.flatnonzero(on_grid.any(axis=(1, 2)))]


def test_fingerprints_change_with_the_slice_alone():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE))
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 1:3, 2:4] = 1
    segmentation = scene.add_segmentation_of_labels(mask, volume, "s", {1: "a"})
    grid = scene.work_grid(volume, segmentation)
    before = segment_box(segmentation, "a", grid).fingerprints(0)
    mask[2, 4, 5] = 1  # the labelmap's extent grows, too
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, "a", volume)
    after = segment_box(segmentation, "a", grid).fingerprints(0)
    assert set(before) == set(after) == {1, 2}
    assert before[1] == after[1] and before[2] != after[2]


@given(
    slices=st.sets(st.integers(-5, 5)),
    role=st.sampled_from(["complete", "scribble", "absent", "ignored"]),
    earlier=st.sampled_from(["complete", "scribble", "absent", "ignored"]),
)
def test_a_slice_has_one_role(slices, role, earlier):
    roles = with_role(with_role(Roles(), 1, earlier, range(-5, 6)), 1, role, slices)
    assert Roles.parse(str(roles)) == Roles.parse(str(with_role(roles, 1, role, slices)))
    shown = slice_roles([index for index in range(-5, 6) if role != "absent"], roles, 1)
    assert all(shown[index] == role for index in slices)


def test_anatomical_planes():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE), OBLIQUE)
    segmentation = scene.add_segmentation_of_labels(np.ones(SHAPE, np.uint8), volume, "s")
    grid = scene.work_grid(volume, segmentation)
    assert [anatomical_plane(grid, axis) for axis in range(3)] == ["axial", "coronal", "sagittal"]


def test_slices_of_an_oblique_transformed_volume():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE), OBLIQUE)
    segmentation = scene.add_segmentation_of_labels(np.ones(SHAPE, np.uint8), volume, "s")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(transform, np.diag([1.0, 1.0, 2.0, 1.0]) @ np.linalg.inv(OBLIQUE))
    segmentation.SetAndObserveTransformNodeID(transform.GetID())
    add_slice_views()
    axis = SliceAxis(scene.work_grid(volume, segmentation), 0, segmentation)
    for index in (3, 0):
        position = axis.show(index)
        assert axis.current() == index
        assert position[0] == pytest.approx(10)  # where the sagittal view was


#
# Strip
#


@IGNORE_QT6_DEPRECATION
def test_strip_finds_marks_and_slices():
    chosen = []
    strip = SliceStrip(chosen.append)
    strip.widget.resize(416, 40)
    strip.show(range(10, 210), [Lane("a", (1, 0, 0), {20: "complete", 100: "absent", 150: "ignored"})], current=15)
    assert strip.marks() == [20, 100]
    assert strip.sliceAt(strip._x(20) + 4) == 20
    assert strip.sliceAt(strip._x(60)) == 60
    assert (strip.sliceAt(-50), strip.sliceAt(900)) == (10, 209)
    assert strip.describe(100) == "Slice 100\na: absent"
    QtTest.QTest.mouseClick(strip.widget, qt.Qt.LeftButton, pos=qt.QPoint(strip._x(100) + 2, 10))
    assert chosen == [100]


def test_strip_paints_what_there_is():
    strip = SliceStrip(lambda index: None)
    strip.widget.resize(300, 40)
    strip.show(range(0, 10), [Lane("a", (1, 0, 0), {2: "complete"})], current=None)
    image = strip.widget.pixmap.toImage()
    colors = {image.pixelColor(strip._x(index), 15).name() for index in (2, 7)}
    assert "#ff0000" in colors and len(colors) == 2
    strip.show(range(0), [], current=None)
    assert strip.sliceAt(100) is None


#
# Protection
#


@settings(max_examples=60, deadline=None)
@given(preview=masks, current=masks, others=masks, locked=masks, known=planes, scribbled=planes)
def test_what_is_protected_is_not_changed(preview, current, others, locked, known, scribbled):
    scribbled = scribbled - known
    names = ("a", "b")
    result = protect(
        {"a": preview, "b": ~preview},
        {"a": current, "b": others & ~current},
        0,
        known={"a": known, "b": ()},
        scribbled={"a": scribbled, "b": ()},
        occupied=np.roll(others, 1, axis=2),
        locked={name: locked for name in names},
    )
    np.testing.assert_array_equal(result["a"][sorted(known)], current[sorted(known)])
    np.testing.assert_array_equal(result["a"][locked], current[locked])
    np.testing.assert_array_equal(result["b"][locked], (others & ~current)[locked])
    kept = np.isin(np.arange(SHAPE[0]), sorted(known | scribbled))[:, None, None] & current
    assert not (kept & ~locked & ~preview & result["b"]).any()  # drawn since the preview was made
    assert result["a"][kept & ~locked].all()
    new = result["b"] & ~(others & ~current)
    assert not (new & np.roll(others, 1, axis=2)).any()
