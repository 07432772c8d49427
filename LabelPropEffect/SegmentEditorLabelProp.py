"""Registers the Segment Editor effect LabelProp; its self test drives the effect through the Segment Editor widget."""

import importlib.util
import os
import time
import unittest

import numpy as np
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest


class SegmentEditorLabelProp(ScriptedLoadableModule):
    """Uses ScriptedLoadableModule base class, available at:
    https://github.com/Slicer/Slicer/blob/main/Base/Python/slicer/ScriptedLoadableModule.py
    """

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "SegmentEditorLabelProp"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "LabelProp"]
        self.parent.contributors = ["SlicerLabelProp maintainers"]
        self.parent.hidden = True
        self.parent.helpText = _("This hidden module registers the segment editor effect")
        slicer.app.connect("startupCompleted()", self.registerEditorEffect)

    def registerEditorEffect(self):
        import qSlicerSegmentationsEditorEffectsPythonQt as qSlicerSegmentationsEditorEffects

        import SegmentEditorLabelPropLib  # so that the effect's file is part of a package, and finds the others

        instance = qSlicerSegmentationsEditorEffects.qSlicerSegmentEditorScriptedEffect(None)
        effectFilename = os.path.join(os.path.dirname(SegmentEditorLabelPropLib.__file__), "SegmentEditorEffect.py")
        instance.setPythonSource(effectFilename.replace("\\", "/"))
        instance.self().register()


class SegmentEditorLabelPropTest(ScriptedLoadableModuleTest):
    """
    From Initialize to Undo through the Segment Editor widget, on a small tube that is drawn on slices 0, 6 and 12.
    What may not be changed is compared voxel by voxel.
    """

    PATIENCE_S = 300

    @classmethod
    def setUpClass(cls):
        if importlib.util.find_spec("torch") is None:
            raise unittest.SkipTest("PyTorch is not installed")
        cls.editor = slicer.qMRMLSegmentEditorWidget()
        cls.editor.setMRMLScene(slicer.mrmlScene)

    @classmethod
    def tearDownClass(cls):
        # A widget that still has an active effect and a scene crashes the application at exit.
        cls.editor.setActiveEffect(None)
        cls.editor.setMRMLScene(None)
        cls.editor.deleteLater()
        del cls.editor

    def setUp(self):
        from LabelProp import addTaperedTube

        slicer.mrmlScene.Clear()
        self.volumeNode, self.segmentationNode, self.truth = addTaperedTube()
        self.segmentation = self.segmentationNode.GetSegmentation()
        self.drawn = self.voxels("tube")
        self.editorNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.editor.setMRMLSegmentEditorNode(self.editorNode)
        self.editor.setSegmentationNode(self.segmentationNode)
        self.editor.setSourceVolumeNode(self.volumeNode)
        self.editor.setCurrentSegmentID("tube")
        self.editor.setActiveEffectByName("LabelProp")
        self.scriptedEffect = self.editor.activeEffect()
        self.scriptedEffect.setParameter("Preset", "fast")
        self.scriptedEffect.setParameter("Device", "cpu")
        self.scriptedEffect.setParameter("Direction", "auto")
        self.effect = self.scriptedEffect.self()

    def tearDown(self):
        self.effect.onCancel()
        self.editor.setActiveEffect(None)

    #
    # Aids
    #

    def voxels(self, segmentId, node=None):
        """(K, J, I) bool of a segment on the volume's grid."""
        node = node or self.segmentationNode
        return slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, self.volumeNode) > 0

    def setVoxels(self, segmentId, mask):
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            mask.astype(np.uint8), self.segmentationNode, segmentId, self.volumeNode
        )

    def addSegment(self, name, mask, visible=True):
        self.segmentation.AddEmptySegment(name, name)
        self.setVoxels(name, mask)
        self.segmentationNode.GetDisplayNode().SetSegmentVisibility(name, visible)
        return mask

    def neighbour(self):
        """A mask across the tube, between the slices it is drawn on."""
        mask = np.zeros(self.drawn.shape, bool)
        mask[2:5, 15:32, 14:26] = True
        return mask

    def processEvents(self, while_):
        """Run the event loop while a condition holds."""
        start = time.monotonic()
        while while_():
            self.assertLess(time.monotonic() - start, self.PATIENCE_S)
            slicer.app.processEvents()
            time.sleep(0.005)  # leave the processor to the background process

    def preview(self):
        """Initialize, or update, and wait; returns the previewed tube."""
        self.effect.onPreview()
        self.processEvents(lambda: self.effect.running)
        self.assertIsNotNone(self.effect.getPreviewNode(), self.effect.messageLabel.text)
        return self.voxels("tube", self.effect.getPreviewNode())

    def assertSame(self, found, expected):
        np.testing.assert_array_equal(found, expected)

    def assertSceneAsItWas(self):
        self.assertIsNone(self.effect.getPreviewNode())
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 1)
        self.assertSame(self.voxels("tube"), self.drawn)
        self.assertEqual(self.segmentationNode.GetDisplayNode().GetOpacity(), 1.0)

    #
    # From Initialize to Undo
    #

    def test_PreviewApplyUndo(self):
        from LabelProp import LabelPropLogic

        self.segmentationNode.GetDisplayNode().SetOpacity(0.4)
        segment = self.segmentation.GetSegment("tube")
        segment.SetName("My tube")
        segment.SetColor(0.1, 0.2, 0.3)
        watch = EventLoopWatch()
        self.effect.onPreview()
        self.assertIsNone(self.effect.getPreviewNode())  # it does not wait
        self.processEvents(lambda: self.effect.running)
        print(f"The event loop was blocked for {watch.stop():.0f} ms at most")
        preview = self.voxels("tube", self.effect.getPreviewNode())
        self.assertSame(self.voxels("tube"), self.drawn)
        self.assertSame(preview[[0, 6, 12]], self.drawn[[0, 6, 12]])
        self.assertTrue(preview.any(axis=(1, 2)).all())

        self.effect.onApply()
        self.assertSame(self.voxels("tube"), preview)
        self.assertIsNone(self.effect.getPreviewNode())
        self.assertEqual(self.segmentationNode.GetDisplayNode().GetOpacity(), 0.4)
        self.assertEqual((segment.GetName(), segment.GetColor()), ("My tube", (0.1, 0.2, 0.3)))
        self.editor.undo()
        self.assertSame(self.voxels("tube"), self.drawn)

        LabelPropLogic().propagate(self.volumeNode, self.segmentationNode, preset="fast", device="cpu")
        self.assertSame(self.voxels("tube"), preview)

    def test_ApplyWaitsForScripts(self):
        self.effect.onPreview()
        self.effect.onApply()
        self.assertTrue(self.voxels("tube").any(axis=(1, 2)).all())

    def test_CancelPreview(self):
        self.segmentationNode.GetDisplayNode().SetOpacity(1.0)
        self.preview()
        self.assertLess(self.segmentationNode.GetDisplayNode().GetOpacity(), 1.0)
        self.effect.onCancel()
        self.assertSceneAsItWas()

    def test_UpdateAfterApplyReadsTheDrawnSlicesOnly(self):
        first = self.preview()
        self.effect.onApply()
        self.assertSame(self.preview(), first)

    def test_CorrectedSliceBecomesDrawn(self):
        self.preview()
        self.effect.onApply()
        corrected = self.voxels("tube")
        corrected[3] = np.roll(self.drawn[0], 4, axis=1)
        self.setVoxels("tube", corrected)
        self.effect.slicesPanel.refresh()
        self.assertEqual(self.effect.slicesPanel.overview.roles["tube"][3], "complete")
        self.assertSame(self.preview()[3], corrected[3])

    def test_UpdateStartsFromTheFirstPreview(self):
        first = self.preview()
        corrected = self.drawn.copy()
        corrected[3] = self.truth[3]
        self.setVoxels("tube", corrected)
        second = self.preview()
        self.assertIn("reused", self.effect.messageLabel.text)
        self.assertSame(second[[0, 3, 6, 12]], self.truth[[0, 3, 6, 12]])
        self.setVoxels("tube", self.drawn)
        self.effect.onCancel()
        self.assertSame(self.preview(), first)  # made from nothing again
        self.assertNotIn("reused", self.effect.messageLabel.text)

    def test_AutoUpdate(self):
        self.preview()
        self.effect.autoUpdateCheckBox.checked = True
        edited = self.drawn.copy()
        edited[3] = np.roll(self.drawn[0], 4, axis=1)
        self.setVoxels("tube", edited)
        self.processEvents(lambda: not self.effect.running)
        self.processEvents(lambda: self.effect.running)
        self.assertSame(self.voxels("tube", self.effect.getPreviewNode())[3], edited[3])

    def test_TransformedAndOversampled(self):
        matrix = np.array([[0.8, -0.6, 0, 10], [0.6, 0.8, 0, -20], [0, 0, 1, 5], [0, 0, 0, 1]])
        transformNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        slicer.util.updateTransformMatrixFromArray(transformNode, matrix)
        for node in (self.volumeNode, self.segmentationNode):
            node.SetAndObserveTransformNodeID(transformNode.GetID())
        self.segmentation.SetConversionParameter(
            slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName(),
            "0.5;0;0;-0.25;0;0.5;0;-0.25;0;0;4;0;0;0;0;1;0;95;0;79;0;12;",
        )  # twice as fine as the volume, in the plane
        preview = self.preview()
        self.effect.onApply()
        self.assertSame(self.voxels("tube"), preview)
        self.assertSame(self.voxels("tube")[[0, 6, 12]], self.drawn[[0, 6, 12]])

    #
    # What may not be changed
    #

    def test_HiddenSegmentIsKept(self):
        finished = self.addSegment("finished", self.neighbour(), visible=False)
        preview = self.preview()
        self.assertTrue((preview & finished).any())
        self.effect.onApply()
        self.assertSame(self.voxels("finished"), finished)
        self.assertSame(self.voxels("tube"), preview & ~finished)

    def test_OverwriteModes(self):
        hidden = self.addSegment("hidden", self.neighbour(), visible=False)
        other = self.addSegment("other", np.roll(self.neighbour(), 5, axis=0))
        self.effect.selectedSegmentIds = vtkStringArray(["tube"])
        preview = self.preview()
        self.assertTrue((preview & hidden).any() and (preview & other).any())
        for mode, expected in (
            (slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments, preview & ~hidden & ~other),
            (slicer.vtkMRMLSegmentEditorNode.OverwriteVisibleSegments, preview & ~other),
            (slicer.vtkMRMLSegmentEditorNode.OverwriteNone, preview),
        ):
            with self.subTest(mode=mode):
                self.editorNode.SetOverwriteMode(mode)
                self.effect.selectedSegmentIds = vtkStringArray(["tube"])
                self.preview()
                self.effect.onApply()
                self.assertSame(self.voxels("tube"), expected)
                self.assertSame(self.voxels("hidden"), hidden)
                self.assertSame(self.voxels("other"), other)
                self.editor.undo()

    def test_OverlappingSegmentsStayOverlapping(self):
        core = self.drawn & np.roll(self.drawn, 3, axis=2) & np.roll(self.drawn, -3, axis=2)
        self.addSegment("core", core)
        previews = {"tube": self.preview()}
        previews["core"] = self.voxels("core", self.effect.getPreviewNode())
        self.effect.onApply()
        for name, drawn in (("tube", self.drawn), ("core", core)):
            self.assertSame(self.voxels(name), previews[name])
            self.assertSame(self.voxels(name)[[0, 6, 12]], drawn[[0, 6, 12]])
        self.assertTrue((previews["tube"] & previews["core"])[3].any())

    def test_EditableAreaInsideASegment(self):
        area = self.addSegment("area", self.neighbour(), visible=False)
        self.editorNode.SetMaskSegmentID("area")  # first: without it the editor takes the mode back
        self.editorNode.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
        self.editorNode.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
        preview = self.preview()
        self.effect.onApply()
        self.assertSame(self.voxels("tube"), np.where(area, preview, self.drawn))
        self.assertSame(self.voxels("area"), area)

    def test_EditableAreaOutsideTheOtherSegments(self):
        other = self.addSegment("other", self.neighbour(), visible=False)
        self.editorNode.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
        self.editorNode.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
        preview = self.preview()
        self.effect.onApply()
        self.assertSame(self.voxels("tube"), np.where(other, self.drawn, preview))

    def test_EditableIntensityRange(self):
        intensities = slicer.util.arrayFromVolume(self.volumeNode)
        self.editorNode.SetSourceVolumeIntensityMask(True)
        self.editorNode.SetSourceVolumeIntensityMaskRange(205, 220)
        preview = self.preview()
        self.effect.onApply()
        editable = (intensities >= 205) & (intensities <= 220)
        self.assertSame(self.voxels("tube"), np.where(editable, preview, self.drawn))

    #
    # While it runs
    #

    def test_CancelWhileItRuns(self):
        self.effect.onPreview()
        self.assertTrue(self.effect.running)
        self.effect.onPreviewButton()
        self.assertFalse(self.effect.running)
        self.assertSceneAsItWas()
        self.assertTrue(self.preview().any(axis=(1, 2)).all())

    def test_ProcessKilledFromOutside(self):
        self.preview()
        self.effect.onCancel()
        self.effect.onPreview()
        os.kill(self.effect.processId, 9)
        self.processEvents(lambda: self.effect.running)
        self.assertIn("ended unexpectedly", self.effect.messageLabel.text)
        self.assertSceneAsItWas()
        self.assertTrue(self.preview().any(axis=(1, 2)).all())

    def test_EditingWhileItRuns(self):
        self.effect.onPreview()
        edited = self.drawn.copy()
        edited[3] = np.roll(self.drawn[0], 4, axis=1)
        self.setVoxels("tube", edited)
        self.processEvents(lambda: self.effect.running)
        self.assertTrue(self.effect.previewOutOfDate)
        self.assertIn("Out of date", self.effect.messageLabel.text)
        self.effect.onApply()
        self.assertSame(self.voxels("tube")[[0, 3, 6, 12]], edited[[0, 3, 6, 12]])

    def test_ChangedGeometryIsNotWrittenTo(self):
        from LabelPropLib.errors import InputError

        self.preview()
        coarse = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6)), np.diag([8.0, 8.0, 8.0, 1.0]), "Coarse")
        self.segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(coarse)
        with self.assertRaisesRegex(InputError, "geometry"):
            self.effect.onApply()
        self.assertIn("geometry", self.effect.messageLabel.text)
        self.assertSame(self.voxels("tube"), self.drawn)

    def test_SegmentRemovedWhileItRuns(self):
        self.effect.onPreview()
        self.segmentation.RemoveSegment("tube")
        self.processEvents(lambda: self.effect.running)
        self.assertIsNone(self.effect.getPreviewNode())
        self.assertIn("removed", self.effect.messageLabel.text)

    def test_SegmentationRemovedWhileItRuns(self):
        self.effect.onPreview()
        slicer.mrmlScene.RemoveNode(self.segmentationNode)
        self.processEvents(lambda: self.effect.running)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)

    def test_SegmentationRemovedWhilePreviewed(self):
        self.preview()
        slicer.mrmlScene.RemoveNode(self.segmentationNode)
        slicer.app.processEvents()
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)

    def test_SceneClosedWhilePreviewed(self):
        self.preview()
        slicer.mrmlScene.Clear()
        slicer.app.processEvents()
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)

    def test_SceneClosedWhileItRuns(self):
        self.effect.onPreview()
        slicer.mrmlScene.Clear()
        self.processEvents(lambda: self.effect.running)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)

    #
    # Roles of slices
    #

    def test_AbsentSliceStaysEmpty(self):
        self.effect.slicesPanel.showSlice(9)
        self.effect.slicesPanel.setRole("absent")
        preview = self.preview()
        self.assertFalse(preview[9].any())
        self.effect.onApply()
        self.assertFalse(self.voxels("tube")[9].any())

    def test_BackgroundScribblesKeepTheSegmentsOut(self):
        stroke = np.zeros(self.drawn.shape, bool)
        stroke[9, 18:22, 24:30] = True
        self.assertTrue((self.preview() & stroke).any())
        self.effect.onCancel()
        self.addSegment("ground", stroke)
        self.editor.setCurrentSegmentID("ground")
        panel = self.effect.slicesPanel
        panel.refresh()
        panel.backgroundCheckBox.click()
        self.assertEqual(panel.overview.roles["ground"], {9: "scribble"})
        self.assertFalse((self.preview() & stroke).any())
        self.assertIsNone(self.effect.getPreviewNode().GetSegmentation().GetSegment("ground"))
        self.effect.onApply()
        self.assertSame(self.voxels("ground"), stroke)
        panel.refresh()
        panel.backgroundCheckBox.click()
        self.assertEqual(panel.overview.roles["ground"], {9: "complete"})

    def test_ChangedRoleIsSaid(self):
        self.preview()
        self.assertFalse(self.effect.previewOutOfDate)
        self.effect.slicesPanel.showSlice(9)
        self.effect.slicesPanel.setRole("absent")
        self.assertTrue(self.effect.previewOutOfDate)
        self.assertIn("Out of date", self.effect.messageLabel.text)

    def test_ExpectedQualityAndSuggestedSlice(self):
        from LabelPropLib.scene.slices import ExpectedQuality

        panel = self.effect.slicesPanel
        self.assertEqual((panel.qualityLabel.text, panel.strip.suggested), ("", None))
        self.assertTrue(panel.suggestedButton.isHidden())
        expected = {k: 0.9 for k in range(13) if k not in (0, 6, 12)}
        panel.showQuality(ExpectedQuality(axis=0, dice={"tube": expected}, mean=0.9, suggested=9))
        self.assertIn("0.90", panel.qualityLabel.text)
        self.assertIn("expected Dice 0.90", panel.strip.describe(3))
        self.assertIn("9", panel.suggestedButton.text)
        panel.suggestedButton.click()
        self.assertEqual(panel.currentSlice, 9)
        drawn = self.drawn.copy()
        drawn[9] = self.truth[9]
        self.setVoxels("tube", drawn)
        panel.refresh()
        self.assertTrue(panel.suggestedButton.isHidden())  # it was followed
        self.effect.onCancel()
        self.assertEqual(panel.qualityLabel.text, "")

    def test_DirectionIsFoundAndCanBeChanged(self):
        panel = self.effect.slicesPanel
        self.assertIn("Axial slices (k)", panel.statusLabel.text)
        box = self.effect.settingsPanel.boxes["Direction"]
        box.setCurrentIndex(box.findData("j"))
        self.processEvents(lambda: "Coronal slices (j)" not in panel.statusLabel.text)
        self.assertEqual(self.scriptedEffect.parameter("Direction"), "j")

    def test_RoleButtons(self):
        panel = self.effect.slicesPanel
        panel.showSlice(6)
        self.assertTrue(panel.roleButtons["complete"].checked)
        panel.roleButtons["scribble"].click()
        self.assertEqual(panel.overview.roles["tube"], {0: "complete", 6: "scribble", 12: "complete"})
        panel.roleButtons["scribble"].click()
        self.assertEqual(panel.overview.roles["tube"], {0: "complete", 6: "complete", 12: "complete"})
        self.assertFalse(panel.roleButtons["absent"].enabled)

    def test_BadInputIsShown(self):
        from LabelPropLib.errors import InputError

        self.setVoxels("tube", np.zeros_like(self.drawn))
        with self.assertRaisesRegex(InputError, "No annotated slice"):
            self.effect.onPreview()
        self.assertFalse(self.effect.running)
        self.assertIn("No annotated slice", self.effect.messageLabel.text)
        self.effect.onPreviewButton()
        self.assertFalse(self.effect.running)


class EventLoopWatch:
    """A timer that ticks every few milliseconds, and so tells how long the event loop was blocked."""

    INTERVAL_MS = 5

    def __init__(self):
        import qt

        self._last, self._longest = time.monotonic(), 0
        self._timer = qt.QTimer()
        self._timer.setInterval(self.INTERVAL_MS)
        self._timer.connect("timeout()", self._tick)
        self._timer.start()

    def _tick(self):
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now

    def stop(self):
        """End watching; returns the longest time between two ticks, in milliseconds."""
        self._tick()
        self._timer.stop()
        self._timer.disconnect("timeout()", self._tick)
        return 1000 * self._longest


def vtkStringArray(texts):
    """A vtkStringArray, as the effect takes the IDs of segments that a script has chosen."""
    import vtk

    array = vtk.vtkStringArray()
    for text in texts:
        array.InsertNextValue(text)
    return array
