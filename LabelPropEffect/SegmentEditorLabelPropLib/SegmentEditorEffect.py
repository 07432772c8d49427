"""The effect: segments drawn on a few slices are carried through the volume, in the background, for a preview."""

import contextlib
import dataclasses
import importlib.util
import logging
import os

import numpy as np
import qt
import slicer
import vtk
from SegmentEditorEffects.AbstractScriptedSegmentEditorAutoCompleteEffect import (
    AbstractScriptedSegmentEditorAutoCompleteEffect,
    ResultPreviewNodeReferenceRole,
)
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from LabelProp import LabelPropLogic, formatProgress, installPyTorchIfMissing
from LabelPropLib import scene
from LabelPropLib.annotation import AXIS_NAMES, annotate_from_label_volume
from LabelPropLib.errors import InputError, out_of_memory
from LabelPropLib.machine import is_out_of_memory
from LabelPropLib.process import BackgroundPropagation
from LabelPropLib.scene.protection import masks_to_write
from LabelPropLib.scene.slices import expected_quality, mark_propagated, notice_corrections, survey

from .SettingsPanel import SettingsPanel
from .SlicesPanel import SlicesPanel

PREVIEW_INPUT = "LabelProp.Input"  # reference from the preview to the segmentation that it was made of
INPUT_OPACITY = "LabelProp.InputOpacity"  # attribute of the preview: what the user had set for the segmentation
DEFAULT_PREVIEW_OPACITY = 0.6


def explained(error):
    """An exception in words for the user."""
    text = str(error) or type(error).__name__
    return out_of_memory(text) if is_out_of_memory(error) else text


class SegmentEditorEffect(AbstractScriptedSegmentEditorAutoCompleteEffect, VTKObservationMixin):
    """
    Follows the preview workflow of its base class (Initialize, Update, Cancel, Apply; onPreview, onCancel, onApply for
    scripts), but computes in a process of its own: onPreview() returns at once, the preview appears when it is ready,
    and onApply() waits for it.
    """

    def __init__(self, scriptedEffect):
        AbstractScriptedSegmentEditorAutoCompleteEffect.__init__(self, scriptedEffect)
        VTKObservationMixin.__init__(self)
        self.delayedAutoUpdateTimer.disconnect("timeout()", self.onPreview)
        self.delayedAutoUpdateTimer.connect("timeout()", self._previewForUser)
        scriptedEffect.name = "LabelProp"  # no tr (don't translate it because modules find effects by name)
        scriptedEffect.title = _("LabelProp")
        scriptedEffect.showEffectCursorInSliceView = False
        self.settingsPanel = SettingsPanel(scriptedEffect)
        self.slicesPanel = SlicesPanel(scriptedEffect, self.inputSegmentIds, self._onSurveyed)
        self._background = None
        self._running = None  # what was collected for the job that is under way
        self._previewed = None  # what was collected for the preview
        self._previewedSegmentIds = None  # what `selectedSegmentIds` was set to then; else a script has set it
        self._chosenSegmentIds = None
        self._devices = {}  # name -> what it is, for the user, the fastest first; empty until it is known
        self._failure = None  # why there is no preview, or none of the last input
        self._message = None
        self._saidOf = None  # the volume and the segmentation that these two are about
        self._saidOfState = None  # the state of the segmentation, if they are about its segments as they were then
        self._lookedAt = None  # state of the segmentation when corrections were looked for

    def clone(self):
        # It should not be necessary to modify this method
        import qSlicerSegmentationsEditorEffectsPythonQt as effects

        clonedEffect = effects.qSlicerSegmentEditorScriptedEffect(None)
        clonedEffect.setPythonSource(__file__.replace("\\", "/"))
        return clonedEffect

    def icon(self):
        # It should not be necessary to modify this method
        iconPath = os.path.join(os.path.dirname(__file__), "SegmentEditorEffect.png")
        if os.path.exists(iconPath):
            return qt.QIcon(iconPath)
        return qt.QIcon()

    def helpText(self):
        return "<html>" + _("""Carry segments drawn on a few slices through the volume.<br>Instructions:
<p><ul style="margin: 0">
<li>Draw all visible segments completely on a few slices of one direction, using any editor effect.
About every tenth slice is a good start; also draw the first and the last slice of each segment.
<li>Click <dfn>Initialize</dfn>. Slices are registered to each other in the background; you can go on editing.
<li>Browse through the slices. Where the preview is wrong, draw the slice and click <dfn>Update</dfn>.
<li>Click <dfn>Apply</dfn>. What you drew stays as it is, voxel for voxel, and so do hidden segments.
</ul><p>
The strip shows the drawn slices; click on it to go to a slice. The buttons below it tell what the selected segment
on the current slice is: drawn completely, a scribble (a hint only), absent from the slice, or to be ignored.
Editable area, editable intensity range, and the segments that may be overwritten are respected on Apply.
<p>""")

    def setMRMLDefaults(self):
        self.scriptedEffect.setParameterDefault("AutoUpdate", 0)  # computing takes more than a moment
        self.settingsPanel.setMRMLDefaults()

    #
    # Options frame
    #

    def setupOptionsFrame(self):
        self.slicesPanel.addRows()
        self.settingsPanel.addBasicRows()
        AbstractScriptedSegmentEditorAutoCompleteEffect.setupOptionsFrame(self)
        self.previewButton.disconnect("clicked()", self.onPreview)
        self.previewButton.connect("clicked()", self.onPreviewButton)
        self.applyButton.disconnect("clicked()", self.onApply)
        self.applyButton.connect("clicked()", self.onApplyButton)
        self.autoUpdateCheckBox.connect("clicked()", self._updateAutomatically)

        self.progressBar = qt.QProgressBar()
        self.progressBar.objectName = self.__class__.__name__ + "Progress"
        self.progressBar.setRange(0, 100)
        self.messageLabel = qt.QLabel()
        self.messageLabel.objectName = self.__class__.__name__ + "Message"
        self.messageLabel.setWordWrap(True)
        belowPreviewButton = self.scriptedEffect.optionsLayout().rowCount() - 2
        self.scriptedEffect.optionsLayout().insertRow(belowPreviewButton, self.progressBar)
        self.scriptedEffect.optionsLayout().insertRow(belowPreviewButton + 1, self.messageLabel)
        self.progressBar.setVisible(False)
        self.messageLabel.setVisible(False)

        self.settingsPanel.addAdvancedGroup()
        # Not earlier: an effect that only serves to be cloned is deleted without a call of `cleanup`.
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onApplicationQuits)

    def updateGUIFromMRML(self):
        # First: the base class keeps what the box shows when it toggles 'Show 3D', and sets the box only afterwards.
        wasBlocked = self.autoUpdateCheckBox.blockSignals(True)
        self.autoUpdateCheckBox.checked = self.scriptedEffect.integerParameter("AutoUpdate") != 0
        self.autoUpdateCheckBox.blockSignals(wasBlocked)
        AbstractScriptedSegmentEditorAutoCompleteEffect.updateGUIFromMRML(self)
        self.settingsPanel.updateGUIFromMRML()
        if self.scriptedEffect.active():
            fastest = next(iter(self._devices.values()), "")
            self.slicesPanel.updateGUIFromMRML(self._devices.get(self.scriptedEffect.parameter("Device"), fastest))
        self.progressBar.setVisible(self.running)
        if self.running:
            self.previewButton.text = _("Stop")  # another button is named 'Cancel', and takes the preview away
            self.previewButton.setToolTip(_("Stop computing; segments and preview stay as they are"))
            self.applyButton.setEnabled(False)
        else:
            self.previewButton.setToolTip(_("Compute a preview of the segments on all slices"))
        self._showMessage()

    def _showMessage(self):
        texts = [self._failure, self._message]
        updating = self.running and self._running.unchanged and self._running.image_unchanged
        if not self._failure and self.previewOutOfDate and not updating:
            outOfDate = _(
                "Out of date: since this preview was started, segments were edited, the volume was changed or another"
                " one was chosen. Update includes the changes."
            )
            texts = [outOfDate, self._message if self._saidOfState is not None else None]
        self.messageLabel.text = "\n".join(text for text in texts if text)
        self.messageLabel.setVisible(any(texts))

    def _say(self, message=None, failure=None, ofSegments=False):
        """
        Show a message or a failure, or nothing any more, in place of what was said before.

        It is shown until another volume or segmentation is chosen.
        :param ofSegments: it is about the segments as they are now, and outlived when they are edited.
        """
        self._message, self._failure = message, failure
        self._saidOf = _volumeNode, segmentationNode = self.slicesPanel.nodes()
        about = segmentationNode if ofSegments else None
        self._saidOfState = scene.segmentation_state(about) if about is not None else None
        self._showMessage()

    #
    # Being used, or not
    #

    def activate(self):
        self._process().wake()
        self._observeInputs()
        self.slicesPanel.observe()
        if importlib.util.find_spec("torch") is not None:
            self._process().start()

    def deactivate(self):
        self.slicesPanel.stopObserving()
        self._process().rest()

    def sourceVolumeNodeChanged(self):
        self._observeAnewIfActive()

    def referenceGeometryChanged(self):
        self._observeAnewIfActive()

    def layoutChanged(self):
        self._observeAnewIfActive()

    def cleanup(self):
        AbstractScriptedSegmentEditorAutoCompleteEffect.cleanup(self)
        self.delayedAutoUpdateTimer.disconnect("timeout()", self._previewForUser)
        self._removePreview()  # nobody could apply it any more
        self.removeObservers()
        self.slicesPanel.cleanup()
        slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onApplicationQuits)
        self._endProcess()
        self._saidOf = None

    def _observeAnewIfActive(self):
        if self.scriptedEffect.active():
            self.slicesPanel.stopObserving()
            self.slicesPanel.observe()

    def _observeInputs(self):
        """Notice when a node that the job or the preview belongs to is removed, also while another effect is active."""
        self.removeObservers()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self._onNodeAboutToBeRemoved)
        self.addObserver(self.scriptedEffect.parameterSetNode(), vtk.vtkCommand.ModifiedEvent, self._onEditorModified)

    def _onSceneStartClose(self, _caller, _event):
        self._cancelJob()
        self._forget()
        self.reset()
        self.slicesPanel.forgetQuality()
        self._say()
        self._saidOf = None

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAboutToBeRemoved(self, _caller, _event, node):
        """If it is the preview, removed in the Data module for example, there is nothing left to apply."""
        if node.GetAttribute(INPUT_OPACITY) and node is self.getPreviewNode():
            self._letGoOfPreview(node)
            self.slicesPanel.showQuality(None)
            self._say()
            self.reset()

    def _onEditorModified(self, _caller, _event):
        """Give up job and preview if the segmentation or the volume that they are for was exchanged or removed."""
        nodes = self.slicesPanel.nodes()
        if nodes != self._saidOf:
            self._say()
        previewNode = self.getPreviewNode()
        if previewNode is not None and (nodes[1] is None or previewNode.GetNodeReference(PREVIEW_INPUT) != nodes[1]):
            self.reset()
            self.slicesPanel.forgetQuality()
            text = _("The preview was discarded: its segmentation is not the chosen one any more.")
            slicer.util.showStatusMessage(text, 5000)
            self._say(text)
        if self._running is not None and nodes != (self._running.volume_node, self._running.segmentation_node):
            self._cancelJob()
            self._fail(_("Cancelled: the segmentation or the source volume was changed or removed."))

    def _onApplicationQuits(self):
        """Remove all traces of the effect when the first module is about to be unloaded: all others are still there."""
        self._removePreview()
        if self.scriptedEffect.active():
            self.scriptedEffect.selectEffect("")
        self._endProcess()

    def _removePreview(self):
        """Remove the preview, unheard by the editor: while that is deleted, it would ask effects that are gone."""
        parameterSetNode = self.scriptedEffect.parameterSetNode()
        if parameterSetNode is None or self.getPreviewNode() is None:
            return
        wasDisabled = parameterSetNode.GetDisableModifiedEvent()
        parameterSetNode.SetDisableModifiedEvent(1)
        try:
            self.reset()
        finally:
            parameterSetNode.SetDisableModifiedEvent(wasDisabled)

    def _endProcess(self):
        self._running = None
        if self._background is not None:
            self._background.close()
            self._background = None

    def _process(self):
        if self._background is None:
            self._background = BackgroundPropagation(qt.QProcess(), qt.QTimer.singleShot)
            self._background.on_ready = self._onReady
            self._background.on_progress = self._onProgress
            self._background.on_done = self._onDone
            self._background.on_failed = self._onFailed
        return self._background

    #
    # Preview
    #

    @property
    def running(self):
        """Whether a preview is being computed."""
        return self._running is not None

    @property
    def processId(self):
        """ID of the background process, 0 when there is none."""
        return self._background.process_id if self._background else 0

    @property
    def previewOutOfDate(self):
        """Whether segments or volume were changed, or another one was chosen, since what the preview shows was read."""
        read = self._previewed
        if self.getPreviewNode() is None or read is None:
            return False
        sourceVolume = self.scriptedEffect.parameterSetNode().GetSourceVolumeNode()
        return not (sourceVolume == read.volume_node and read.unchanged and read.image_unchanged)

    def inputSegmentIds(self):
        """The segments to propagate: those a script has chosen as `selectedSegmentIds`, else the visible ones."""
        chosen = self._segmentIdsChosenByScript()
        if chosen is not None:
            return [chosen.GetValue(n) for n in range(chosen.GetNumberOfValues())]
        segmentationNode = self.scriptedEffect.parameterSetNode().GetSegmentationNode()
        return scene.visible_segments(segmentationNode) if segmentationNode else []

    def _segmentIdsChosenByScript(self):
        """What a script has set `selectedSegmentIds` to, None if none has; a preview sets it too, to what it shows."""
        previewed = self.selectedSegmentIds is self._previewedSegmentIds
        return self._chosenSegmentIds if previewed else self.selectedSegmentIds

    def onPreviewButton(self):
        """Start a preview, or stop the one that is being computed."""
        if self.running:
            self._cancelJob()
            self.updateGUIFromMRML()
            return
        self._previewForUser()

    def _previewForUser(self):
        """As `onPreview`; what scripts get as an exception, the user reads in the panel."""
        with contextlib.suppress(InputError, RuntimeError):
            self.onPreview()

    def onPreview(self):
        """
        Start computing a preview from the segments as they are now, anew if one is being computed.

        :raises InputError: they cannot be used; the text says why and how to mend it.
        :raises RuntimeError: PyTorch is missing; the text says how to get it.
        """
        self.delayedAutoUpdateTimer.stop()
        self._say()
        try:
            self.preview()
        except Exception as error:
            self._fail(explained(error), ofSegments=isinstance(error, InputError))
            raise

    def preview(self):
        if not installPyTorchIfMissing():
            return
        parameterSetNode = self.scriptedEffect.parameterSetNode()
        arguments = (
            parameterSetNode.GetSourceVolumeNode(),
            parameterSetNode.GetSegmentationNode(),
            self.inputSegmentIds(),
            self.scriptedEffect.parameter("Direction"),
        )
        settings = self.settingsPanel.settings()
        collected = LabelPropLogic().collect(*arguments, self.scriptedEffect.parameter("Missing"))
        self._say("\n".join(collected.messages))  # whatever becomes of the job: it is noticed once
        self._observeInputs()
        self._running = collected
        self._onProgress(0, _("Starting"), None)
        self._process().submit(collected.annotation, settings)
        self.updateGUIFromMRML()

    def waitForPreview(self):
        """
        Block until the preview that is being computed is there.

        :raises RuntimeError: it failed; the text says why.
        """
        if self.running:
            self._process().wait()
            if self._failure is not None:
                raise RuntimeError(self._failure)

    def _cancelJob(self):
        if self.running:
            self._running = None
            self._process().cancel()

    def _forget(self):
        if self._background is not None:
            self._background.forget()

    def _onReady(self, devices):
        self._devices = devices
        self.settingsPanel.setDevices(devices)
        if self.scriptedEffect.active():
            self.updateGUIFromMRML()

    def _onProgress(self, fraction, stage, secondsLeft):
        self.progressBar.value = int(100 * fraction)
        self.progressBar.setFormat(formatProgress(stage, secondsLeft))

    def _onDone(self, propagation):
        collected, self._running = self._running, None
        segmentation = collected.segmentation_node.GetSegmentation()
        if self.scriptedEffect.parameterSetNode().GetSegmentationNode() != collected.segmentation_node:
            self._fail(_("Cancelled: another segmentation was chosen."))
            return
        if not all(segmentation.GetSegment(collected.segment_ids[label]) for label in collected.annotation.labels):
            self._fail(_("Cancelled: a segment was removed."))
            return
        try:
            self._showPreview(collected, propagation)
            self._previewed = collected
            report = collected.report(propagation)
            self._say("\n".join(report["messages"]))
            self.slicesPanel.showQuality(expected_quality(collected, report))
        except Exception as error:
            self._fail(explained(error))
            raise
        self.updateGUIFromMRML()
        self._updateAutomatically()  # nobody listened while there was no preview

    def _onFailed(self, _kind, text):
        self._running = None
        logging.error(f"LabelProp: {text}")
        self._fail(text)

    def _fail(self, text, ofSegments=False):
        self._say(self._message, text, ofSegments)
        slicer.util.showStatusMessage(text, 5000)
        self.updateGUIFromMRML()

    def _showPreview(self, collected, propagation):
        """Put the result into the preview node, made anew unless there is one of the same segments."""
        segmentIds = [collected.segment_ids[label] for label in collected.annotation.labels]
        previewNode = self.getPreviewNode()
        if previewNode is not None and list(previewNode.GetSegmentation().GetSegmentIDs()) == segmentIds:
            target = dataclasses.replace(collected, segmentation_node=previewNode)
            previewNode.SetAndObserveTransformNodeID(collected.segmentation_node.GetTransformNodeID())
            for segmentId in segmentIds:
                segment = collected.segmentation_node.GetSegmentation().GetSegment(segmentId)
                previewNode.GetSegmentation().GetSegment(segmentId).DeepCopyMetadata(segment)
            scene.write_segments(target, propagation.label_maps)
        else:
            opacity = self.getPreviewOpacity()
            show3D = self._shownIn3D(previewNode or collected.segmentation_node)
            self._removePreviewNode()
            self._addPreviewNode(collected, propagation, opacity, show3D)
        self._chosenSegmentIds = self._segmentIdsChosenByScript()
        self.selectedSegmentIds = self._previewedSegmentIds = vtk.vtkStringArray()
        for segmentId in segmentIds:
            self.selectedSegmentIds.InsertNextValue(segmentId)

    def _addPreviewNode(self, collected, propagation, opacity, show3D):
        segmentationNode = collected.segmentation_node
        name = _("{name} preview").format(name=segmentationNode.GetName())
        previewNode = scene.add_segmentation(collected, propagation.label_maps, name)
        previewNode.GetDisplayNode().SetVisibility2DOutline(False)
        previewNode.GetSegmentation().SetConversionParameter(
            slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule.GetSmoothingFactorParameterName(), "-0.5"
        )  # without smoothing, to make it fast
        previewNode.SetNodeReferenceID(PREVIEW_INPUT, segmentationNode.GetID())
        previewNode.SetAttribute(INPUT_OPACITY, str(self._usualOpacity(segmentationNode)))
        self.scriptedEffect.setCommonNodeReference(ResultPreviewNodeReferenceRole, previewNode)
        self.scriptedEffect.setCommonParameter("SegmentationResultPreviewOwnerEffect", self.scriptedEffect.name)
        self.setPreviewOpacity(opacity)
        self.setPreviewShow3D(show3D)

    def _usualOpacity(self, segmentationNode):
        """The segments' opacity without a preview; another editor's may have faded them already."""
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if node.GetNodeReference(PREVIEW_INPUT) == segmentationNode and node.GetAttribute(INPUT_OPACITY):
                return float(node.GetAttribute(INPUT_OPACITY))
        return segmentationNode.GetDisplayNode().GetOpacity()

    def _shownIn3D(self, segmentationNode):
        return segmentationNode.GetSegmentation().ContainsRepresentation(
            slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        )

    def onSegmentationModified(self, caller, event):
        if self.selectedSegmentIds is None:  # as they are of a preview that was loaded with its scene
            return
        super().onSegmentationModified(caller, event)
        # The base class looks at the voxels of the previewed segments, not at roles and scribbles of background.
        self._updateAutomatically()

    def _updateAutomatically(self):
        """Update the preview in a moment, if that is wished and the segments were edited since they were read."""
        read = self._running or self._previewed
        if self.autoUpdateCheckBox.isChecked() and read is not None and not read.unchanged:
            self.delayedAutoUpdateTimer.start()

    def getPreviewNode(self):
        """The preview, None if there is none or another effect made it: the base class cannot tell."""
        previewNode = self.scriptedEffect.nodeReference(ResultPreviewNodeReferenceRole)
        return previewNode if previewNode is not None and previewNode.GetAttribute(INPUT_OPACITY) else None

    def getPreviewOpacity(self):
        return super().getPreviewOpacity() if self.getPreviewNode() is not None else DEFAULT_PREVIEW_OPACITY

    def setPreviewOpacity(self, opacity):
        super().setPreviewOpacity(opacity)
        previewNode = self.getPreviewNode()
        segmentationNode = self.scriptedEffect.parameterSetNode().GetSegmentationNode()
        if previewNode is not None:
            usual = float(previewNode.GetAttribute(INPUT_OPACITY))
            segmentationNode.GetDisplayNode().SetOpacity(usual * (1.0 - opacity))

    #
    # Cancel and Apply
    #

    def onCancel(self):
        """Remove the preview; what was found for it is forgotten, so that the next one is made from nothing."""
        self._cancelJob()
        self._forget()
        self._say()
        self.slicesPanel.showQuality(None)
        self.reset()

    def reset(self):
        """Remove the preview, and show the segments as they were shown before."""
        self.delayedAutoUpdateTimer.stop()
        self.observeSegmentation(False)
        self._removePreviewNode()
        self.selectedSegmentIds = self._previewedSegmentIds = self._chosenSegmentIds = None
        self.selectedSegmentModifiedTimes = {}
        self.updateGUIFromMRML()

    def _removePreviewNode(self):
        """Remove the editor's preview, whichever effect it belongs to: there is one at a time."""
        previewNode = self.scriptedEffect.nodeReference(ResultPreviewNodeReferenceRole)
        self._previewed = None
        if previewNode is not None:
            self._letGoOfPreview(previewNode)
            slicer.mrmlScene.RemoveNode(previewNode)

    def _letGoOfPreview(self, previewNode):
        """Make a node no longer the editor's preview, and show the segments as they were shown before."""
        inputNode = previewNode.GetNodeReference(PREVIEW_INPUT)
        if inputNode is None:
            inputNode = self.scriptedEffect.parameterSetNode().GetSegmentationNode()
        if inputNode is not None and inputNode.GetDisplayNode() is not None:
            inputNode.GetDisplayNode().SetOpacity(float(previewNode.GetAttribute(INPUT_OPACITY) or 1.0))
        self.scriptedEffect.setCommonNodeReference(ResultPreviewNodeReferenceRole, None)
        self.scriptedEffect.setCommonParameter("SegmentationResultPreviewOwnerEffect", "")

    def onApplyButton(self):
        """As `onApply`; what scripts get as an exception, the user reads in the panel."""
        with contextlib.suppress(InputError, RuntimeError):
            self.onApply()

    def onApply(self):
        """
        Write the preview into the segments, as one step for Undo; waits for it if it is being computed.

        :raises RuntimeError: there is no preview.
        :raises InputError: the preview does not fit the segmentation any more, or masking forbids to write any of it.
        """
        try:
            self.waitForPreview()
            previewNode = self.getPreviewNode()
            if previewNode is None:
                raise RuntimeError(_("There is no preview to apply: initialize one first."))
            self.delayedAutoUpdateTimer.stop()
            self.observeSegmentation(False)
            with slicer.util.WaitCursor():
                message = self._apply(previewNode)
        except Exception as error:
            self._fail(explained(error), ofSegments=isinstance(error, InputError))
            raise
        self.reset()
        self.slicesPanel.qualityIsOfSegments()
        self._say(message, ofSegments=True)

    def _apply(self, previewNode):
        """Write the preview, and return what there is to say of it."""
        parameterSetNode = self.scriptedEffect.parameterSetNode()
        segmentationNode = parameterSetNode.GetSegmentationNode()
        if previewNode.GetNodeReference(PREVIEW_INPUT) != segmentationNode:
            raise InputError(_("The preview is of another segmentation: choose that one, or initialize one of this."))
        segmentation = segmentationNode.GetSegmentation()
        segmentIds = [name for name in previewNode.GetSegmentation().GetSegmentIDs() if segmentation.GetSegment(name)]
        axis = self.scriptedEffect.parameter("Direction")
        if self._previewed is not None:
            axis = AXIS_NAMES[self._previewed.annotation.axis]
        overview = survey(parameterSetNode.GetSourceVolumeNode(), segmentationNode, segmentIds, axis)
        sourceImage = None
        if parameterSetNode.GetSourceVolumeIntensityMask():
            sourceImage = self.scriptedEffect.sourceVolumeImageData()
        masks, grid, left = masks_to_write(parameterSetNode, previewNode, overview, sourceImage)
        if not masks:
            self._checkMasking(previewNode, overview, left)
        self.scriptedEffect.saveStateForUndo()
        showIn3D = self.getPreviewShow3D() or self._shownIn3D(segmentationNode)
        with slicer.util.RenderBlocker():
            segmentationNode.RemoveClosedSurfaceRepresentation()  # else made anew for each segment
            scene.write_masks(segmentationNode, masks, grid)
            mark_propagated(segmentationNode, overview)
            for segmentId in segmentIds:  # so Undo takes back this step, not the one before, even if nothing changed
                segmentation.GetSegment(segmentId).Modified()
            if showIn3D:
                segmentationNode.CreateClosedSurfaceRepresentation()
        text = _("Applied. {count} voxels were left to segments that are not in the preview.").format(count=left)
        return text if left else None

    def _checkMasking(self, previewNode, overview, left):
        """Raise InputError if there is something to write of the preview, and masking forbids all of it."""
        parameterSetNode = self.scriptedEffect.parameterSetNode()
        everywhere = slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere
        masking = {
            _("Editable area"): parameterSetNode.GetMaskMode() != everywhere,
            _("Editable intensity range"): parameterSetNode.GetSourceVolumeIntensityMask(),
            _("Modify other segments"): left > 0,
        }
        forbidding = [name for name, restricts in masking.items() if restricts]
        nodes = previewNode, parameterSetNode.GetSegmentationNode()
        if forbidding and any(
            not np.array_equal(*(scene.segment_on_grid(node, name, overview.grid) for node in nodes))
            for name in overview.roles
        ):
            raise InputError(
                _(
                    "Nothing was applied: the Segment Editor's masking forbids it. Change {settings} below, and apply"
                    " again."
                ).format(settings=", ".join(f"'{name}'" for name in forbidding))
            )

    def _onSurveyed(self):
        overview = self.slicesPanel.overview
        if overview is not None:
            self.settingsPanel.setDirections(self.slicesPanel.planes())
            segmentationNode = self.scriptedEffect.parameterSetNode().GetSegmentationNode()
            segmentsState = scene.segmentation_state(segmentationNode)
            if self._saidOfState is not None and self._saidOfState != segmentsState:
                self._say()
            state = (overview.axis, *overview.roles, segmentsState)
            before, self._lookedAt = self._lookedAt, state
            remarks = list(self.slicesPanel.remarks)
            if state != before and notice_corrections(segmentationNode, overview, remarks.append):
                self.slicesPanel.refresh()
            if remarks:
                self._say("\n".join(remarks), self._failure, ofSegments=True)
        self._showMessage()

    #
    # For scripts that call it as they would of Fill between slices
    #

    def computePreviewLabelmap(self, mergedImage, outputLabelmap):
        """
        Propagate a labelmap in this process; returns when it is done.

        :param mergedImage: oriented image of label values, 0 where nothing is drawn.
        :param outputLabelmap: oriented image that takes the result.
        :raises InputError: it cannot be propagated.
        """
        from LabelPropLib.pipeline import propagate

        image = slicer.vtkOrientedImageData()
        scene.Resample.ResampleOrientedImageToReferenceOrientedImage(
            self.scriptedEffect.sourceVolumeImageData(), mergedImage, image, True, False
        )
        direction = self.scriptedEffect.parameter("Direction")
        annotation = annotate_from_label_volume(
            scene.voxels(image),
            scene.voxels(mergedImage),
            mergedImage.GetSpacing()[::-1],
            AXIS_NAMES.index(direction) if direction in AXIS_NAMES else None,
            self.scriptedEffect.parameter("Missing"),
        )
        propagation = propagate(annotation, self.settingsPanel.settings())
        labelMap = propagation.label_maps[0].astype(np.int16)
        outputLabelmap.DeepCopy(scene.image_from_array(labelMap, mergedImage))
