"""The Segment Editor effect: its self test, which is written for the Slicer application, and its parts alone."""

import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import segment_editor_stand_ins
import vtk
from samples import OBLIQUE, propagate_nearest, set_geometry

qt_application = segment_editor_stand_ins.install()
sys.path.append(str(Path(__file__).resolve().parents[2] / "LabelPropEffect"))

import qt  # noqa: E402
import slicer  # noqa: E402
from PySide6 import QtTest, QtWidgets  # noqa: E402

import SegmentEditorLabelProp  # noqa: E402
from LabelProp import LabelPropLogic  # noqa: E402
from LabelPropLib import scene  # noqa: E402
from LabelPropLib.errors import InputError  # noqa: E402
from LabelPropLib.scene import storage  # noqa: E402
from LabelPropLib.scene.slices import ExpectedQuality, set_role, survey  # noqa: E402
from SegmentEditorLabelPropLib import SegmentEditorEffect  # noqa: E402
from SegmentEditorLabelPropLib.SliceStrip import Lane, SliceStrip, qualityColor, roleIcon  # noqa: E402
from SegmentEditorLabelPropLib.SliceViews import SliceAxis  # noqa: E402

segment_editor_stand_ins.SegmentEditorWidget.effectClasses.append(SegmentEditorEffect)

PANEL_WIDTH = 362  # pixels that the application leaves to an effect's options by default
IGNORE_QT6_DEPRECATION = pytest.mark.filterwarnings("ignore:.*QMouseEvent.pos")  # the application has Qt 5
SHAPE = (4, 5, 6)


@pytest.fixture(scope="module", autouse=True)
def application():
    with segment_editor_stand_ins.application_running():
        yield
        assert slicer.app.moduleManager().connected == []  # the application would call, and keep alive, what is gone


@pytest.fixture(autouse=True)
def no_exception_in_a_slot(monkeypatch):
    """Nobody catches those; in the application they make a self test fail whose assertions all hold."""
    raised = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: raised.append(error))
    yield
    for error in raised:
        raise error


class TestEffect(SegmentEditorLabelProp.SegmentEditorLabelPropTest):
    """The self test, and some more on the same tube."""

    def test_panel_is_narrow_enough(self):
        self.segmentation.GetSegment("tube").SetName("A segment with a very long name that goes on and on and on")
        self.effect.slicesPanel.refresh()
        self.assertLessEqual(self.scriptedEffect.optionsFrame().minimumSizeHint().width(), PANEL_WIDTH)

    def test_buttons_have_names_for_those_who_hear_them(self):
        buttons = self.scriptedEffect.optionsFrame().findChildren(QtWidgets.QAbstractButton)
        self.assertIn(self.effect.slicesPanel.nextButton, buttons)
        self.assertEqual([button for button in buttons if not (button.text or button.accessibleName)], [])

    def test_roles_survive_a_file(self):
        set_role(self.segmentationNode, "tube", 0, "scribble", [6])
        set_role(self.segmentationNode, "tube", 0, "absent", [3, 4])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tube.seg.nrrd"
            storage.save_segmentation(self.segmentationNode, path)
            again = storage.load_segmentation(path)
        self.assertEqual(
            survey(self.volumeNode, again, ["tube"]).roles["tube"],
            {0: "complete", 3: "absent", 4: "absent", 6: "scribble", 12: "complete"},
        )

    def test_preview_of_another_effect_is_replaced(self):
        other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Of another effect")
        self.scriptedEffect.setCommonNodeReference("SegmentationResultPreview", other)
        self.scriptedEffect.setCommonParameter("SegmentationResultPreviewOwnerEffect", "Grow from seeds")
        self.assertIsNone(self.effect.getPreviewNode())
        self.editor.setActiveEffect(None)
        self.editorNode.Modified()
        self.assertTrue(slicer.mrmlScene.IsNodePresent(other))  # not ours to remove, before there is another one
        self.editor.setActiveEffectByName("LabelProp")
        self.preview()
        self.assertFalse(slicer.mrmlScene.IsNodePresent(other))

    def test_correction_after_a_file(self):
        """What was applied and corrected is known the next day."""
        self.preview()
        self.effect.onApply()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tube.seg.nrrd"
            storage.save_segmentation(self.segmentationNode, path)
            again = storage.load_segmentation(path)
        corrected = self.voxels("tube", again)
        corrected[3] = np.roll(self.drawn[0], 4, axis=1)
        corrected[9] = False
        slicer.util.updateSegmentBinaryLabelmapFromArray(corrected.astype(np.uint8), again, "tube", self.volumeNode)
        self.editor.setSegmentationNode(again)
        self.editor.setSourceVolumeNode(self.volumeNode)
        self.editor.setActiveEffectByName("LabelProp")
        roles = self.effect.slicesPanel.overview.roles["tube"]
        self.assertEqual(
            {index: role for index, role in roles.items() if role != "ignored"},
            {0: "complete", 3: "complete", 6: "complete", 9: "absent", 12: "complete"},
        )

    def test_undo_takes_back_what_is_known_of_slices(self):
        self.preview()
        self.effect.onApply()
        self.editor.undo()
        self.effect.slicesPanel.refresh()
        drawn = {0: "complete", 6: "complete", 12: "complete"}
        self.assertEqual(self.effect.slicesPanel.overview.roles["tube"], drawn)

    def test_undo_and_redo_go_past_corrections(self):
        """Undo brings back a slice that was drawn while another effect was in use, and that nobody had looked at."""
        self.nearest()
        self.effect.onApply()
        self.editor.setActiveEffect(None)
        states = [self.voxels("tube")]
        for index in (3, 9):
            self.editor._logic.SaveStateForUndo()
            states.append(self.voxels("tube"))
            states[-1][index] = np.roll(states[-1][index], 4, axis=0)
            self.setVoxels("tube", states[-1])
        self.editor.setActiveEffectByName("LabelProp")
        for step, expected in ((self.editor.undo, states[1::-1]), (self.editor._logic.Redo, states[1:])):
            for state in expected:
                step()
                self.effect.slicesPanel.refresh()
                self.assertSame(self.voxels("tube"), state)

    def test_undo_of_an_apply_that_changes_nothing(self):
        """It takes back nothing of what was applied before."""
        for _ in range(2):
            self.nearest()
            self.effect.onApply()
        applied = self.voxels("tube")
        for expected in (applied, self.drawn):
            self.editor.undo()
            self.effect.slicesPanel.refresh()
            self.assertSame(self.voxels("tube"), expected)

    def test_undo_of_a_role(self):
        """It takes back the role, and nothing of what was drawn before."""
        panel = self.effect.slicesPanel
        self.editor._logic.SaveStateForUndo()
        drawn = np.where(np.arange(len(self.drawn))[:, None, None] == 3, self.truth, self.drawn)
        self.setVoxels("tube", drawn)
        panel.refresh()
        panel.showSlice(6)
        for button in (panel.roleButtons["scribble"], panel.backgroundCheckBox):
            before = dict(panel.overview.roles["tube"])
            button.click()
            self.assertNotEqual(panel.overview.roles["tube"], before)
            self.editor.undo()
            panel.refresh()
            self.assertEqual(panel.overview.roles["tube"], before)
            self.assertSame(self.voxels("tube"), drawn)

    def test_application_quits_while_previewed_and_running(self):
        self.preview()
        self.effect.onPreview()
        process, folder = self.effect.processId, self.effect._background._folder
        slicer.app.moduleManager().emit("moduleAboutToBeUnloaded(QString)")
        self.assertIsNone(self.effect.getPreviewNode())
        self.assertIsNone(self.editor.activeEffect())
        self.assertFalse(folder.exists())
        with self.assertRaises(ProcessLookupError):
            os.kill(process, 0)

    def test_what_is_there_to_be_cloned_hears_of_nothing(self):
        """The application deletes it without a call of cleanup()."""
        before = list(slicer.app.moduleManager().connected)
        SegmentEditorEffect(self.scriptedEffect)
        self.assertEqual(slicer.app.moduleManager().connected, before)

    def test_editor_is_deleted_while_previewed(self):
        editor = slicer.qMRMLSegmentEditorWidget()
        editor.setMRMLScene(slicer.mrmlScene)
        self.editor.setActiveEffect(None)
        editor.setMRMLSegmentEditorNode(self.editorNode)
        editor.setActiveEffectByName("LabelProp")
        effect = editor.activeEffect().self()
        effect.onPreview()
        effect.waitForPreview()
        effect.autoUpdateCheckBox.checked = True
        editor.deleteLater()
        self.assertSceneAsItWas()
        self.assertIsNone(effect.observedSegmentation)

    def test_bad_input_of_an_automatic_update_is_shown(self):
        self.preview()
        self.effect.autoUpdateCheckBox.checked = True
        self.setVoxels("tube", np.zeros_like(self.drawn))
        self.processEvents(lambda: not self.effect.messageLabel.text.startswith("No annotated slice"))
        self.assertFalse(self.effect.delayedAutoUpdateTimer.isActive())  # it would come to the same, again and again

    def test_corrections_that_nobody_has_looked_at_are_read(self):
        """Of a segment that was hidden when the effect looked, and of a script that goes on at once."""
        self.preview()
        self.effect.onApply()
        corrected = self.voxels("tube")
        corrected[3] = np.roll(corrected[3], 4, axis=0)
        self.editor.setActiveEffect(None)
        self.segmentationNode.GetDisplayNode().SetSegmentVisibility("tube", False)
        self.setVoxels("tube", corrected)
        self.editor.setActiveEffectByName("LabelProp")
        self.effect.slicesPanel.refresh()
        self.segmentationNode.GetDisplayNode().SetSegmentVisibility("tube", True)
        corrected[9] = np.roll(corrected[9], 4, axis=0)
        self.setVoxels("tube", corrected)
        self.preview()
        self.effect.onApply()
        self.assertSame(self.voxels("tube")[[3, 9]], corrected[[3, 9]])

    def test_preview_follows_the_segmentation(self):
        self.preview()
        transformNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        for node in (self.volumeNode, self.segmentationNode):
            node.SetAndObserveTransformNodeID(transformNode.GetID())
        self.segmentation.GetSegment("tube").SetName("Renamed")
        self.preview()
        previewNode = self.effect.getPreviewNode()
        self.assertEqual(previewNode.GetTransformNodeID(), transformNode.GetID())
        self.assertEqual(previewNode.GetSegmentation().GetSegment("tube").GetName(), "Renamed")

    def test_preview_of_another_volume_is_out_of_date(self):
        self.preview()
        self.assertNotIn("Out of date", self.effect.messageLabel.text)
        self.editor.setSourceVolumeNode(slicer.util.addVolumeFromArray(np.zeros((13, 40, 48))))
        self.effect.updateGUIFromMRML()
        self.assertIn("Out of date", self.effect.messageLabel.text)

    def test_what_goes_wrong_is_read_in_the_panel(self):
        """Whatever it is: the application shows nobody the exceptions of a slot."""
        with mock.patch.object(LabelPropLogic, "collect", side_effect=MemoryError("9 GB")):
            with self.assertRaises(MemoryError):
                self.effect.onPreview()
        self.assertIn("There was not enough memory (9 GB)", self.effect.messageLabel.text)
        self.preview()
        with mock.patch.object(self.effect, "_apply", side_effect=OSError("no such luck")):
            with self.assertRaises(OSError):
                self.effect.onApply()
        self.assertEqual(self.effect.messageLabel.text, "no such luck")
        self.assertSame(self.voxels("tube"), self.drawn)

    def test_preview_is_not_applied_to_another_segmentation(self):
        self.preview()
        other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Other")
        other.GetSegmentation().DeepCopy(self.segmentationNode.GetSegmentation())
        self.effect.removeObservers()  # it does not hear of it
        self.editorNode.SetAndObserveSegmentationNode(other)
        with self.assertRaisesRegex(InputError, "The preview is of another segmentation"):
            self.effect.onApply()
        self.assertSame(self.voxels("tube", other), self.drawn)

    def test_preview_that_was_loaded_with_its_scene(self):
        """It belongs to no run of this effect, which knows of no segments of it."""
        self.preview()
        self.scriptedEffect.setParameter("AutoUpdate", 1)
        self.effect.selectedSegmentIds = None
        self.effect.onSegmentationModified(None, None)
        self.assertFalse(self.effect.delayedAutoUpdateTimer.isActive())

    def test_preview_in_3D_that_an_editor_comes_upon(self):
        """Its controls show the preview, not the preview what they showed before."""
        preview = self.nearest()
        self.effect.setPreviewShow3D(True)
        self.effect.setPreviewOpacity(0.3)
        self.editor.setActiveEffect(None)
        editor = slicer.qMRMLSegmentEditorWidget()
        editor.setMRMLScene(slicer.mrmlScene)
        editor.setMRMLSegmentEditorNode(self.editorNode)
        editor.setActiveEffectByName("LabelProp")
        effect = editor.activeEffect().self()
        self.assertTrue(effect.getPreviewShow3D() and effect.previewShow3DButton.checked)
        self.assertAlmostEqual(preview.GetDisplayNode().GetOpacity(), 0.3)
        self.assertEqual(self.scriptedEffect.parameter("AutoUpdate"), "0")
        self.assertFalse(effect.autoUpdateCheckBox.checked)
        editor.deleteLater()

    def test_merged_labelmap_of_a_script(self):
        merged = scene.image_from_array(
            self.drawn.astype(np.int16), scene.geometry.work_grid(self.volumeNode, self.segmentationNode)
        )
        output = slicer.vtkOrientedImageData()
        self.effect.computePreviewLabelmap(merged, output)
        self.assertSame(scene.voxels(output) > 0, self.preview())

    def test_device_is_told(self):
        self.processEvents(lambda: "CPU" not in self.effect.slicesPanel.statusLabel.text)
        self.effect._onReady({"cuda": "A graphics card", "cpu": "CPU"})
        self.scriptedEffect.setParameter("Device", "auto")
        self.processEvents(lambda: "A graphics card" not in self.effect.slicesPanel.statusLabel.text)

    def test_switches_are_parameters(self):
        panel = self.effect.settingsPanel
        for name, field, default in (("Extrapolate", "extrapolate", False), ("GraphCut", "graph_cut", True)):
            box = panel.checkBoxes[name]
            self.assertIs(box.checked, default)
            self.assertIs(getattr(panel.settings(), field), default)
            box.checked = not default
            self.assertEqual(self.scriptedEffect.integerParameter(name), int(not default))
            self.assertIs(getattr(panel.settings(), field), not default)
            self.scriptedEffect.setParameter(name, int(default))
            self.processEvents(lambda box=box, shown=not default: box.checked is shown)
            self.assertIs(getattr(panel.settings(), field), default)

    #
    # What is shown belongs to what is chosen
    #

    def nearest(self, effect=None):
        """Have a preview that takes no time, see `samples.propagate_nearest`."""
        effect = effect or self.effect
        with mock.patch.object(effect, "_process") as process:
            effect.onPreview()
        self.addCleanup(effect.onCancel)
        effect._onDone(propagate_nearest(*process.return_value.submit.call_args.args))
        return effect.getPreviewNode()

    def other(self, volumeNode=None):
        """Choose another segmentation of the same content."""
        node = scene.add_segmentation_of_labels(
            np.uint8(self.drawn), volumeNode or self.volumeNode, "Other", {1: "tube"}
        )
        self.editor.setSegmentationNode(node)
        self.editor.setActiveEffectByName("LabelProp")
        return node

    def otherVolume(self):
        return slicer.util.addVolumeFromArray(np.zeros((13, 40, 48)), np.diag([1.0, 1.0, 4.0, 1.0]), "Other volume")

    def expect(self, **suggestion):
        self.effect.slicesPanel.showQuality(ExpectedQuality(axis=0, dice={"tube": {3: 0.7}}, mean=0.7, **suggestion))

    def assertExpected(self, expected):
        panel = self.effect.slicesPanel
        panel.refresh()
        self.assertEqual(panel.qualityLabel.text, "Expected Dice: 0.70" if expected else "")
        self.assertEqual("0.70" in panel.strip.describe(3), expected)

    def test_quality_is_of_the_chosen_nodes(self):
        self.expect()
        self.editor.setSourceVolumeNode(self.otherVolume())
        self.assertExpected(False)
        self.editor.setSourceVolumeNode(self.volumeNode)
        self.assertExpected(True)
        self.other()
        self.assertExpected(False)

    def test_quality_ends_with_what_was_applied(self):
        for end in (self.editor.undo, lambda: self.setVoxels("tube", np.zeros_like(self.drawn))):
            with self.subTest(end=end):
                self.nearest()
                self.expect()
                self.effect.onApply()
                self.assertExpected(True)
                end()
                self.assertExpected(False)
                self.setVoxels("tube", self.drawn)

    def test_quality_of_a_second_result_ends_with_it(self):
        self.nearest()
        self.effect.onApply()
        corrected = self.voxels("tube")
        corrected[3] = np.roll(self.drawn[0], 4, axis=1)
        self.setVoxels("tube", corrected)
        self.nearest()
        self.expect()
        self.effect.onApply()
        self.assertExpected(True)
        self.editor.undo()
        self.assertExpected(False)

    def test_edits_that_do_not_count_are_told(self):
        self.nearest()
        self.effect.onApply()
        drawn = self.drawn.any(axis=(1, 2))[:, None, None]
        self.setVoxels("tube", np.where(drawn, self.drawn, np.roll(self.voxels("tube"), 1, axis=1)))
        self.effect.slicesPanel.refresh()
        self.assertIn("have changed since", self.effect.messageLabel.text)

    def test_edits_that_do_not_count_are_told_beside_a_preview(self):
        self.test_edits_that_do_not_count_are_told()
        self.nearest()
        self.assertNotIn("have changed since", self.effect.messageLabel.text)
        drawn = self.drawn.any(axis=(1, 2))[:, None, None]
        self.setVoxels("tube", np.where(drawn, self.drawn, np.roll(self.voxels("tube"), 1, axis=2)))
        self.effect.slicesPanel.refresh()
        self.assertIn("have changed since", self.effect.messageLabel.text)
        self.assertIn("Out of date", self.effect.messageLabel.text)

    def test_a_grid_that_was_turned_is_told(self):
        self.nearest()
        self.effect.onApply()
        turned = np.eye(4)
        turned[:3:2, :3:2] = [[0.8, -0.6], [0.6, 0.8]]
        set_geometry(self.segmentationNode, slicer.util.addVolumeFromArray(np.zeros(self.drawn.shape), turned))
        self.effect.slicesPanel.refresh()
        self.assertIn("grid of the segmentation was turned", self.effect.messageLabel.text)

    def test_suggestion_of_a_slice_that_other_segments_bear(self):
        self.addSegment("other", self.neighbour())
        panel = self.effect.slicesPanel
        for slices, shown in (({"suggested": 3}, True), ({"suggested": 6}, False), ({"suggested": 8}, False)):
            set_role(self.segmentationNode, "tube", 0, "absent", [8])
            panel.refresh()
            self.expect(suggested_for=("tube",), **slices)
            self.assertEqual(not panel.suggestedButton.isHidden(), shown)

    def test_messages_are_of_the_chosen_nodes(self):
        self.setVoxels("tube", np.zeros_like(self.drawn))
        self.effect.onPreviewButton()
        self.assertIn("No annotated slice", self.effect.messageLabel.text)
        self.other()
        self.assertEqual(self.effect.messageLabel.text, "")
        with mock.patch.object(self.effect, "_process"):
            self.effect.onPreview()
            self.editor.setSegmentationNode(None)
        self.assertIn("Cancelled", self.effect.messageLabel.text)
        self.other()
        self.assertEqual(self.effect.messageLabel.text, "")
        self.effect._fail("no such luck")
        slicer.mrmlScene.Clear()
        self.assertEqual(self.effect.messageLabel.text, "")

    def test_messages_of_segments_end_when_these_are_edited(self):
        self.setVoxels("tube", np.zeros_like(self.drawn))
        self.effect.onPreviewButton()
        self.setVoxels("tube", self.drawn)
        self.effect.slicesPanel.refresh()
        self.assertEqual(self.effect.messageLabel.text, "")
        self.addSegment("hidden", self.neighbour(), visible=False)
        self.nearest()
        self.effect.onApply()
        self.effect.slicesPanel.refresh()
        self.assertIn("Applied", self.effect.messageLabel.text)
        self.editor.undo()
        self.effect.slicesPanel.refresh()
        self.assertEqual(self.effect.messageLabel.text, "")

    def test_preview_is_discarded_with_a_word(self):
        self.nearest()
        self.other()
        self.assertIn("discarded", self.effect.messageLabel.text)

    def test_preview_is_deleted_by_the_user(self):
        """In the Data module, for example."""
        slicer.mrmlScene.RemoveNode(self.nearest())
        self.assertSceneAsItWas()
        self.assertFalse(self.effect.applyButton.enabled)
        self.assertEqual(self.effect.previewButton.text, "Initialize")
        self.effect.onApplyButton()
        self.assertIn("no preview", self.effect.messageLabel.text)

    def test_two_editors_preview_one_segmentation(self):
        editor = slicer.qMRMLSegmentEditorWidget()
        self.addCleanup(editor.deleteLater)
        editor.setMRMLScene(slicer.mrmlScene)
        editor.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
        editor.setSegmentationNode(self.segmentationNode)
        editor.setActiveEffectByName("LabelProp")
        self.nearest()
        self.nearest(editor.activeEffect().self())
        self.effect.onCancel()
        editor.activeEffect().self().onCancel()
        self.assertSceneAsItWas()

    def test_auto_update_follows_roles(self):
        """Each of them, and those of segments that are not previewed."""
        self.addSegment("ground", self.neighbour())
        panel, timer = self.effect.slicesPanel, self.effect.delayedAutoUpdateTimer
        panel.refresh()
        panel.setBackground(False)
        self.nearest()
        self.effect.autoUpdateCheckBox.checked = True
        for index in (3, 4):
            panel.showSlice(index)
            panel.setRole("absent")
            self.assertTrue(timer.isActive(), index)
            self.nearest()
            self.assertFalse(timer.isActive())
        self.segmentation.GetSegment("tube").SetColor(1, 0, 0)
        self.assertFalse(timer.isActive())
        self.editor.setCurrentSegmentID("ground")
        panel.setBackground(True)
        self.assertTrue(timer.isActive())

    def test_auto_update_follows_edits_while_the_first_preview_is_computed(self):
        self.scriptedEffect.setParameter("AutoUpdate", 1)
        with mock.patch.object(self.effect, "_process") as process:
            self.effect.onPreview()
        self.addCleanup(self.effect.onCancel)
        self.setVoxels("tube", np.where(np.arange(len(self.drawn))[:, None, None] == 3, self.truth, self.drawn))
        self.effect._onDone(propagate_nearest(*process.return_value.submit.call_args.args))
        self.assertTrue(self.effect.delayedAutoUpdateTimer.isActive())
        self.nearest()
        self.assertFalse(self.effect.delayedAutoUpdateTimer.isActive())

    def test_auto_update_follows_edits_before_it_was_ticked(self):
        self.nearest()
        self.setVoxels("tube", np.where(np.arange(len(self.drawn))[:, None, None] == 3, self.truth, self.drawn))
        self.effect.autoUpdateCheckBox.click()
        self.assertTrue(self.effect.delayedAutoUpdateTimer.isActive())

    def test_editors_node_is_gone_with_its_scene(self):
        with mock.patch.object(self.scriptedEffect, "parameterSetNode", return_value=None):
            self.effect.slicesPanel.refresh()
        self.assertIsNone(self.effect.slicesPanel.overview)

    def test_another_time_of_a_sequence(self):
        """Its browser exchanges all segments at once, and the voxels of the volume."""
        panel = self.effect.slicesPanel
        later = slicer.vtkMRMLSegmentationNode()
        later.GetSegmentation().DeepCopy(self.segmentation)
        self.segmentationNode.CopyContent(later, False)
        self.segmentation = self.segmentationNode.GetSegmentation()
        self.setVoxels("tube", np.where(np.arange(len(self.drawn))[:, None, None] == 3, self.truth, self.drawn))
        self.processEvents(lambda: 3 not in panel.overview.roles["tube"])
        self.nearest()
        self.assertNotIn("Out of date", self.effect.messageLabel.text)
        later = slicer.vtkMRMLScalarVolumeNode()
        later.SetAndObserveImageData(slicer.vtkOrientedImageData())
        later.GetImageData().DeepCopy(self.volumeNode.GetImageData())
        self.volumeNode.CopyContent(later, False)
        self.processEvents(lambda: "Out of date" not in self.effect.messageLabel.text)

    def test_masking_that_forbids_everything(self):
        """It is said, the preview is kept, and there is nothing to undo."""
        self.addSegment("elsewhere", np.roll(self.neighbour(), 20, axis=2), visible=False)
        preview = self.nearest()
        self.editorNode.SetSourceVolumeIntensityMaskRange(9000, 9001)
        self.editorNode.SetMaskSegmentID("elsewhere")
        everywhere = slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere
        inside = slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment
        for mode, byIntensity, named in (
            (inside, False, "'Editable area'"),
            (everywhere, True, "'Editable intensity range'"),
        ):
            self.editorNode.SetMaskMode(mode)
            self.editorNode.SetSourceVolumeIntensityMask(byIntensity)
            with self.assertRaisesRegex(InputError, f"forbids it. Change {named} below"):
                self.effect.onApply()
            self.assertIn(named, self.effect.messageLabel.text)
        self.assertIs(self.effect.getPreviewNode(), preview)
        self.assertFalse(self.editor._logic.CanUndo())
        self.editorNode.SetSourceVolumeIntensityMask(False)
        self.effect.onApply()
        self.assertEqual(self.effect.messageLabel.text, "")
        self.editorNode.SetSourceVolumeIntensityMask(True)
        self.nearest()
        self.effect.onApply()  # which changes nothing without masking, either

    def test_role_buttons_of_an_empty_slice_that_is_ignored(self):
        panel = self.effect.slicesPanel
        for index, drawn in ((3, False), (6, True)):
            panel.showSlice(index)
            panel.roleButtons["ignored"].click()
            for role, enabled in (("complete", drawn), ("scribble", drawn), ("absent", not drawn), ("ignored", True)):
                self.assertEqual(panel.roleButtons[role].enabled, enabled, (index, role))

    def test_texts_while_an_update_runs(self):
        self.nearest()
        edited = self.drawn.copy()
        for index in (3, 9):
            edited[index] = self.truth[index]
            self.setVoxels("tube", edited)
            self.effect.slicesPanel.refresh()
            self.assertIn("Out of date", self.effect.messageLabel.text)
            if index == 3:
                with mock.patch.object(self.effect, "_process"):
                    self.effect.onPreview()
                self.assertEqual(self.effect.previewButton.text, "Stop")
                self.assertEqual(self.effect.messageLabel.text, "")

    def test_why_a_segment_has_no_role(self):
        self.addSegment("hidden", self.neighbour(), visible=False)
        panel = self.effect.slicesPanel
        panel.refresh()
        self.assertIn("1 segment", panel.statusLabel.text)
        self.assertNotIn("1 segments", panel.statusLabel.text)
        self.editor.setCurrentSegmentID("hidden")
        panel.refresh()
        self.assertEqual(panel.roleLabel.text, "Hidden, not propagated: hidden")

    def test_segmentation_of_surfaces_is_chosen(self):
        """With another volume, of which the effect hears before it is left."""
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Surfaces")
        node.GetSegmentation().SetSourceRepresentationName("Closed surface")
        sphere = vtk.vtkSphereSource()
        sphere.Update()
        segment = slicer.vtkSegment()
        segment.SetName("sphere")
        segment.AddRepresentation("Closed surface", sphere.GetOutput())
        node.GetSegmentation().AddSegment(segment, "sphere")
        node.SetReferenceImageGeometryParameterFromVolumeNode(self.otherVolume())
        self.editor.setSegmentationNode(node)
        self.assertIsNone(self.editor.activeEffect())

    @IGNORE_QT6_DEPRECATION
    def test_click_on_the_strip_shows_the_slice(self):
        axial, sagittal = add_slice_views()
        panel = self.effect.slicesPanel
        strip = panel.strip
        strip.widget.resize(300, strip.widget.height)
        QtTest.QTest.mouseClick(strip.widget, qt.Qt.LeftButton, pos=qt.QPoint(strip._x(6), 10))
        self.assertEqual(panel.currentSlice, 6)
        self.assertEqual(axial.GetSliceToRAS().GetElement(2, 3), 24)  # 4 mm a slice
        self.assertEqual(sagittal.GetSliceToRAS().GetElement(0, 3), 10)

    def test_strip_follows_the_views(self):
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


def test_slices_of_an_oblique_transformed_volume():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE), OBLIQUE)
    segmentation = scene.add_segmentation_of_labels(np.ones(SHAPE, np.uint8), volume, "s")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(transform, np.diag([1.0, 1.0, 2.0, 1.0]) @ np.linalg.inv(OBLIQUE))
    segmentation.SetAndObserveTransformNodeID(transform.GetID())
    add_slice_views()
    axis = SliceAxis(scene.geometry.work_grid(volume, segmentation), 0, segmentation)
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
    assert strip.describe(100) == "Slice 100\na: Absent"
    QtTest.QTest.mouseClick(strip.widget, qt.Qt.LeftButton, pos=qt.QPoint(strip._x(100) + 2, 10))
    assert chosen == [100]


def test_strip_paints_the_expected_quality():
    strip = SliceStrip(lambda index: None)
    strip.widget.resize(300, 40)
    lane = Lane("a", (0, 0, 1), {2: "complete"}, quality={2: 0.3, 5: 0.3, 8: 0.99})
    strip.show(range(0, 10), [lane], current=None, suggested=5)
    image = strip.widget.pixmap.toImage()
    assert [image.pixelColor(strip._x(index), 14).name() for index in (2, 5, 8)] == ["#0000ff", "#d55e00", "#009e73"]
    assert image.pixelColor(strip._x(5), 1).alpha() > 0
    assert strip.describe(5) == "Slice 5\nBest slice to draw next\na: expected Dice 0.30"
    strip.show(range(0, 10), [lane], current=4)
    assert strip.widget.pixmap.toImage().pixelColor(strip._x(5), 1).alpha() == 0


@pytest.mark.parametrize("value, color", [(0.1, "#d55e00"), (0.8, "#f0e442"), (0.875, "#78c15a"), (1.0, "#009e73")])
def test_colors_of_quality(value, color):
    assert qualityColor(value).name() == color


def test_strip_of_many_segments():
    """The selected one is among those that there is room for, as high as a single one; its lane goes all the way."""
    strip = SliceStrip(lambda index: None)
    strip.widget.resize(300, 40)
    lanes = [Lane(str(n), (1, 0, 0), {0: "complete"}, selected=n == 30) for n in range(40)]
    strip.show(range(0, 10), lanes, current=None)
    assert strip.widget.height < 150
    (top,) = (top for lane, top, _ in strip._rows if lane.selected)
    image = strip.widget.pixmap.toImage()
    assert len({image.pixelColor(x, top + 2).name() for x in (60, 290)}) == 1
    assert image.pixelColor(290, top + 2) != image.pixelColor(290, top - 3)


def test_icons_of_roles_are_sharp_on_screens_of_many_pixels():
    black = qt.QColor(0, 0, 0)
    pixmap = roleIcon("absent", black, black, 2.0).pixmap(qt.QSize(16, 16), 2.0)
    assert (pixmap.width(), pixmap.devicePixelRatio()) == (32, 2.0)


def test_strip_has_room_for_numbers_of_a_large_font():
    strip = SliceStrip(lambda index: None)
    font = qt.QFont()
    font.setPixelSize(40)
    strip.widget.setFont(font)
    strip.widget.resize(300, 40)
    strip.show(range(0, 10), [Lane("a", (1, 0, 0), {2: "complete"})], current=None)
    image = strip.widget.pixmap.toImage()
    inked = [y for y in range(image.height()) if any(image.pixelColor(x, y).alpha() for x in range(image.width()))]
    assert strip._bottom() + 20 < inked[-1] < image.height() - 1


def test_strip_paints_what_there_is():
    strip = SliceStrip(lambda index: None)
    strip.widget.resize(300, 40)
    strip.show(range(0, 10), [Lane("a", (1, 0, 0), {2: "complete"})], current=None)
    image = strip.widget.pixmap.toImage()
    colors = {image.pixelColor(strip._x(index), 15).name() for index in (2, 7)}
    assert "#ff0000" in colors and len(colors) == 2
    strip.show(range(0), [], current=None)
    assert strip.sliceAt(100) is None
