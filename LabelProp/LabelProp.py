"""The module LabelProp: segments outlined on a few slices are carried through the volume."""

import importlib.util
import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.util import VTKObservationMixin

try:
    from slicer.i18n import tr as _
    from slicer.i18n import translate
    from slicer.parameterNodeWrapper import Choice, parameterNodeWrapper
    from slicer.ScriptedLoadableModule import (
        ScriptedLoadableModule,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
        ScriptedLoadableModuleWidget,
    )
except ModuleNotFoundError:  # plain Python with slicer-core
    from LabelPropLib.plain_slicer import (
        Choice,
        ScriptedLoadableModule,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
        ScriptedLoadableModuleWidget,
        bootstrap,
        parameterNodeWrapper,
        translate,
    )
    from LabelPropLib.plain_slicer import tr as _

    bootstrap()

from LabelPropLib import scene
from LabelPropLib.annotation import AXIS_NAMES
from LabelPropLib.errors import Cancelled, InputError
from LabelPropLib.process import BackgroundPropagation
from LabelPropLib.report_text import format_stages, found_dice
from LabelPropLib.scene import slices
from LabelPropLib.settings import DEVICES, FUSIONS, MISSING_CHOICES, PRESETS, REGISTRATIONS, Settings, weights_of

AXES = ("auto", *AXIS_NAMES)
SEGMENTS = ("visible", "all")

#
# LabelProp
#


class LabelProp(ScriptedLoadableModule):
    """Uses ScriptedLoadableModule base class, available at:
    https://github.com/Slicer/Slicer/blob/main/Base/Python/slicer/ScriptedLoadableModule.py
    """

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("LabelProp")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations"]
        self.parent.contributors = ["SlicerLabelProp maintainers"]
        self.parent.helpText = _(
            "Outline structures on a few slices, and have them carried through the volume: neighbouring slices are"
            " registered to each other, and the outlines follow the image from both sides. The Segment Editor"
            " offers the same as its effect LabelProp."
        )
        self.parent.acknowledgementText = _(
            "Carrying labels through a volume by registration between its slices is the idea of N. Decaux et al.,"
            " Semi-automatic muscle segmentation in MR images using deep registration-based label propagation, Pattern"
            " Recognition 140, 2023."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


#
# Sample data
#


def registerSampleData():
    """Add the sample to the Sample Data module. It is made on the spot, nothing is downloaded."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="LabelProp",
        sampleName="LabelPropThigh",
        thumbnailFileName=os.path.join(os.path.dirname(__file__), "Resources/Icons/LabelProp.png"),
        uris=[],
        fileNames=[],
        customDownloader=showSampleThigh,
    )


def showSampleThigh(_source):
    """Add the sample, and show it in the slice views, as the Sample Data module does with what it downloads."""
    volumeNode, segmentationNode = addSampleThigh()
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    return volumeNode, segmentationNode


def addSampleThigh():
    """A synthetic MR-like volume of a thigh, and a segmentation of its muscles on three slices; returns both nodes."""
    from LabelPropLib.phantom import DRAWN, make_phantom

    phantom = make_phantom()
    drawn = phantom.drawn_on(DRAWN)
    volumeNode = slicer.util.addVolumeFromArray(phantom.image, phantom.ijk_to_ras, _("Thigh"))
    segmentationNode = scene.add_segmentation_of_labels(drawn, volumeNode, _("Thigh muscles"), phantom.names)
    return volumeNode, segmentationNode


#
# LabelPropParameterNode
#


def choiceTitles():
    """Parameter -> its values and what they are called in panels."""
    return {
        "segments": {"visible": _("Visible"), "all": _("All")},
        "axis": {"auto": _("Automatic"), "k": _("Axis k"), "j": _("Axis j"), "i": _("Axis i")},
        "missing": {"auto": _("Automatic"), "absent": _("Segment ends there"), "unknown": _("Not drawn there")},
        "preset": {"fast": _("Fast"), "balanced": _("Balanced"), "best": _("Best")},
        "device": {"auto": _("Automatic"), "cpu": _("CPU"), "cuda": _("GPU (CUDA)"), "mps": _("GPU (Apple)")},
        "registration": {
            "auto": _("Automatic"),
            "instance": _("Optimised for this scan"),
            "network": _("Network trained on this scan"),
            "pretrained": _("Network as it comes, not trained on this scan"),
        },
        "fusion": {
            "auto": _("Automatic"),
            "majority": _("All slices alike"),
            "distance": _("By distance"),
            "similarity": _("By similarity of the slices"),
            "appearance": _("By similarity and intensity"),
            "joint": _("Joint label fusion"),
            "deep": _("Network"),
        },
    }


@parameterNodeWrapper
class LabelPropParameterNode:
    """
    The parameters of the panel.

    inputVolume - The scan.
    segmentation - Its segments drawn on some slices; the result is written into them.
    segments - Which of them: those that are visible, or all.
    axis - The axis of the segmentation's grid across which the drawn slices lie, or auto.
    missing - How a segment that is missing on a drawn slice is read: absent, unknown, or auto.
    extrapolate - Carry on beyond the outermost drawn slices.
    graphCut - Let what a scribble corrects end along edges of the image.
    preset - How much time to spend.
    device - What to compute on.
    registration - How slices are registered to each other.
    fusion - How what arrives at a slice is combined.
    uncertaintyVolume - Takes the map of uncertainty; none: it is not computed.
    secondVolume - Another contrast of the same anatomy, if there is one.
    checkpoint - Weights of networks: auto for those that come with LabelProp, none, or a file.
    batchTable - A table of volumes and their annotations in files.
    batchFolder - Takes the results of the table's volumes.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    segments: Annotated[str, Choice(SEGMENTS)] = "visible"
    axis: Annotated[str, Choice(AXES)] = "auto"
    missing: Annotated[str, Choice(MISSING_CHOICES)] = "auto"
    extrapolate: bool = False
    graphCut: bool = True
    preset: Annotated[str, Choice(PRESETS)] = "balanced"
    device: Annotated[str, Choice(DEVICES)] = "auto"
    registration: Annotated[str, Choice(REGISTRATIONS)] = "auto"
    fusion: Annotated[str, Choice(FUSIONS)] = "auto"
    uncertaintyVolume: vtkMRMLScalarVolumeNode
    secondVolume: vtkMRMLScalarVolumeNode
    checkpoint: str = "auto"
    batchTable: str
    batchFolder: str


#
# LabelPropWidget
#


class LabelPropWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Uses ScriptedLoadableModuleWidget base class, available at:
    https://github.com/Slicer/Slicer/blob/main/Base/Python/slicer/ScriptedLoadableModule.py
    """

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)  # needed for parameter node observation
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._job = None
        self._collected = None  # what the running job was given
        self._uncertaintyVolume = None  # where it is to write
        self._checkpoint = None  # where weights are saved that it trains
        self._batch = None

    @property
    def isRunning(self):
        """Whether a job is under way."""
        return self._job.running

    def setup(self):
        """Called when the user opens the module the first time and the widget is initialized."""
        ScriptedLoadableModuleWidget.setup(self)
        import qt

        from LabelPropLib.command_process import BackgroundCommand

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/LabelProp.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = LabelPropLogic()
        self._job = BackgroundPropagation(qt.QProcess(), qt.QTimer.singleShot)
        self._job.on_progress = self._onProgress
        self._job.on_done = self._onDone
        self._job.on_failed = self._onFailed
        self._batch = BackgroundCommand(qt.QProcess())
        self._batch.on_line = self.ui.resultText.appendPlainText
        self._batch.on_ended = self._onBatchEnded

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.ui.checkpointButton.connect("clicked(bool)", self.onCheckpointButton)
        self.ui.trainButton.connect("clicked(bool)", self.onTrainButton)
        self.ui.batchTableButton.connect("clicked(bool)", self.onBatchTableButton)
        self.ui.batchFolderButton.connect("clicked(bool)", self.onBatchFolderButton)
        self.ui.batchButton.connect("clicked(bool)", self.onBatchButton)
        self._showRunning(False)
        self.initializeParameterNode()

    def cleanup(self):
        """Called when the application closes and the module widget is destroyed."""
        self._job.close()
        self._batch.close()
        self.removeObservers()

    def enter(self):
        """Called each time the user opens this module."""
        self._job.wake()
        self.initializeParameterNode()

    def exit(self):
        """Called each time the user opens a different module; a job goes on."""
        self._job.rest()
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event):
        """Called just before the scene is closed."""
        self._cancel()
        self._job.forget()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        """Called just after the scene is closed."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    @property
    def _parameters(self):
        """The parameters, also after another module was opened, as can happen while PyTorch is installed."""
        return self._parameterNode or self.logic.getParameterNode()

    def initializeParameterNode(self):
        """Ensure parameter node exists and observed; select the first nodes there are, to save a few clicks."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")  # label maps, too, which cannot be chosen
            scans = (node for node in volumes if node.GetClassName() == "vtkMRMLScalarVolumeNode")
            self._parameterNode.inputVolume = next(scans, None)
        if not self._parameterNode.segmentation:
            self._parameterNode.segmentation = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode")

    def setParameterNode(self, inputParameterNode):
        """Set and observe parameter node, so that a change of it is seen in the panel at once."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanApply)
        self._parameterNode = inputParameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self._nameChoices()
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanApply)
            self._checkCanApply()

    def _nameChoices(self):
        """The combo boxes list the values of the parameters; give them names."""
        for name, titles in choiceTitles().items():
            box = getattr(self.ui, f"{name}ComboBox")
            for index in range(box.count):
                box.setItemText(index, titles.get(box.itemText(index), box.itemText(index)))

    def onApplyButton(self):
        """Run the job in the background, or cancel the one that runs."""
        if self._job.running:
            self._cancel()
            return
        with slicer.util.tryWithErrorDisplay(_("The segments could not be propagated."), waitCursor=True):
            if not installPyTorchIfMissing():
                return
            parameters = self._parameters
            scene.check_target(parameters.uncertaintyVolume, (parameters.inputVolume, parameters.secondVolume))
            self._collected = self._collect()
            settings = replace(self._settings(), uncertainty=parameters.uncertaintyVolume is not None)
            self._uncertaintyVolume = parameters.uncertaintyVolume
            self._submit(settings)

    def onTrainButton(self):
        """Choose a file, and train the registration network in the background, for its weights."""
        import qt

        fileName = qt.QFileDialog.getSaveFileName(self.parent, _("Weights of networks"), "", _("Weights (*.pt)"))
        if fileName:
            self.train(fileName)

    def train(self, fileName):
        """Train the registration network in the background, and save its weights."""
        with slicer.util.tryWithErrorDisplay(_("The network could not be trained."), waitCursor=True):
            if not installPyTorchIfMissing():
                return
            self._collected = self._collect()
            self._submit(self._settings(), fileName if fileName.endswith(".pt") else fileName + ".pt")

    def _collect(self):
        """What the chosen segments hold. Raises InputError."""
        parameters = self._parameters
        return self.logic.collect(
            parameters.inputVolume,
            parameters.segmentation,
            scene.visible_segments(parameters.segmentation) if parameters.segments == "visible" else None,
            parameters.axis,
            parameters.missing,
            secondVolumeNode=parameters.secondVolume,
        )

    def _submit(self, settings, checkpoint=None):
        self._clearText()
        self._checkpoint = checkpoint
        self._job.submit(self._collected.annotation, settings, checkpoint)
        self._showRunning(self._job.running)

    def _settings(self):
        """The parameters as the pipeline takes them. Raises InputError."""
        parameters = self._parameters
        return Settings(
            registration=parameters.registration,
            fusion=parameters.fusion,
            preset=parameters.preset,
            device=parameters.device,
            extrapolate=parameters.extrapolate,
            graph_cut=parameters.graphCut,
            checkpoint=parameters.checkpoint.strip() or "auto",
        )

    def onBatchButton(self):
        """Run all volumes of a table in the background, with the settings of the panel; or stop."""
        if self._batch.running:
            self.ui.batchButton.enabled = False  # until those that run have removed what they have half written
            self._batch.cancel()
            return
        with slicer.util.tryWithErrorDisplay(_("The table could not be run.")):
            if not installPyTorchIfMissing():
                return
            parameters = self._parameters
            table, folder = parameters.batchTable.strip(), parameters.batchFolder.strip()
            if not table or not folder:
                raise InputError(_("Choose a table and a folder for the results."))
            options = self._settings().arguments()
            self._clearText()
            self.ui.batchButton.text = _("Cancel")
            self._batch.start(["batch", table, "-o", folder, "--missing", parameters.missing, *options])

    def _onBatchEnded(self, status):
        self.ui.batchButton.enabled = True
        self.ui.batchButton.text = _("Run table")
        if status != 0:
            self.ui.resultText.appendPlainText(_("Not all volumes were done; the lines above say why."))

    def onBatchTableButton(self):
        """Choose a table of volumes."""
        import qt

        fileName = qt.QFileDialog.getOpenFileName(self.parent, _("Table of volumes"), "", _("Tables (*.csv)"))
        if fileName:
            self._parameterNode.batchTable = fileName

    def onBatchFolderButton(self):
        """Choose the folder for the results."""
        import qt

        folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Folder for the results"))
        if folder:
            self._parameterNode.batchFolder = folder

    def onCheckpointButton(self):
        """Choose a file of weights."""
        import qt

        fileName = qt.QFileDialog.getOpenFileName(self.parent, _("Weights of networks"), "", _("Weights (*.pt)"))
        if fileName:
            self._parameterNode.checkpoint = fileName

    def _cancel(self):
        if self._job.running:
            self._job.cancel()
            self._tellOfInput()
            self._showRunning(False)
            self.ui.resultText.appendPlainText(_("Cancelled. The segments are as they were."))

    def _clearText(self):
        """Clear the text below the buttons, unless something that runs is reporting there."""
        if not (self._job.running or self._batch.running):
            self.ui.resultText.plainText = ""

    def _onProgress(self, fraction, stage, secondsLeft):
        self.ui.progressBar.value = int(round(100 * fraction))
        self.ui.progressBar.format = formatProgress(stage, secondsLeft)

    def _onDone(self, propagation):
        self._showRunning(False)
        if propagation is None:
            self._tellOfInput()
            self._parameters.checkpoint = self._checkpoint
            self.ui.resultText.appendPlainText(
                _(
                    "The weights are in {path}, and chosen above. The registrations by a network start from them."
                ).format(path=self._checkpoint)
            )
            return
        with slicer.util.tryWithErrorDisplay(_("The result could not be written."), waitCursor=True):
            try:
                report = self.logic.write(self._collected, propagation, self._uncertaintyVolume)
            except Exception:
                self._tellOfInput()
                raise
            self._collected = None
            self.ui.resultText.appendPlainText(formatReport(report))

    def _onFailed(self, kind, text):
        self._tellOfInput()
        self._showRunning(False)
        self.ui.resultText.appendPlainText(text)
        slicer.util.errorDisplay(text)

    def _tellOfInput(self):
        """Say what was noticed when the input was read: it is noticed only once, and there is no report to say it."""
        collected, self._collected = self._collected, None
        for message in collected.messages if collected is not None else ():
            self.ui.resultText.appendPlainText(message)

    def _showRunning(self, running):
        self.ui.progressBar.visible = running
        self.ui.progressBar.value = 0
        self.ui.progressBar.format = _("Starting")
        self.ui.applyButton.text = _("Cancel") if running else _("Apply")
        self._checkCanApply()

    def _checkCanApply(self, caller=None, event=None):
        parameters = self._parameterNode
        chosen = bool(parameters and parameters.inputVolume and parameters.segmentation)
        self.ui.trainButton.enabled = chosen and not self._job.running
        if self._job.running:
            self.ui.applyButton.toolTip = _("Stop; the segments stay as they are")
            self.ui.applyButton.enabled = True
        elif chosen:
            self.ui.applyButton.toolTip = _("Carry the segments through the volume")
            self.ui.applyButton.enabled = True
        else:
            self.ui.applyButton.toolTip = _("Select a volume and a segmentation that is drawn on some of its slices")
            self.ui.applyButton.enabled = False


def formatProgress(stage, secondsLeft):
    """The stage and, where that is known, how much longer it will take, for the user."""
    if secondsLeft is None:
        return stage
    if secondsLeft < 60:
        return f"{stage} · " + _("{seconds} s left").format(seconds=round(secondsLeft))
    return f"{stage} · " + _("{minutes} min left").format(minutes=round(secondsLeft / 60))


def formatReport(report):
    """What is worth reading of the report, for the user."""
    lines = list(report["messages"])
    if report.get("expected_mean_dice") is not None:
        names = report["segments"]
        lines.append(_("Expected Dice: {mean:.2f}").format(mean=report["expected_mean_dice"]))
        for label, planes in found_dice(report).items():
            worst = min(planes, key=planes.get)
            lines.append(
                _("  {segment}: {mean:.2f}, least on slice {slice}: {least:.2f}").format(
                    segment=names[label],
                    mean=sum(planes.values()) / len(planes),
                    slice=worst,
                    least=planes[worst],
                )
            )
    suggestion = report.get("suggested_slice")
    if suggestion is not None:
        lines.append(_("Best slice to draw next: {slice}").format(slice=suggestion["plane"]))
    seconds = report["seconds"]
    lines.append(
        _("{total:.1f} s on {device} ({stages})").format(
            total=sum(seconds.values()), device=report["device"], stages=format_stages(seconds)
        )
    )
    if report.get("peak_memory_gb") is not None:
        lines.append(_("{memory:.1f} GB of memory at most").format(memory=report["peak_memory_gb"]))
    return "\n".join(lines)


_installing = threading.Lock()


def installPyTorchIfMissing():
    """Whether PyTorch is there; if it is not, the user is asked to install it first. Raises RuntimeError."""
    if _installing.locked():  # pip's output is shown between events, so buttons work meanwhile
        raise RuntimeError(_("PyTorch is being installed, which takes some minutes: try again then."))
    if importlib.util.find_spec("torch") is not None:
        return True
    try:
        import PyTorchUtils
    except ModuleNotFoundError as error:
        raise RuntimeError(
            _("LabelProp needs the PyTorch extension: install it in the Extensions Manager, and restart Slicer.")
        ) from error
    logic = PyTorchUtils.PyTorchUtilsLogic()
    with _installing:
        try:
            return logic.installTorch(askConfirmation=True, torchVersionRequirement=">=2.1") is not None
        except Exception as error:  # whatever pip raises, or what it installed when it is loaded
            raise RuntimeError(_("PyTorch could not be installed: {reason}").format(reason=error)) from error


#
# LabelPropLogic
#


class LabelPropLogic(ScriptedLoadableModuleLogic):
    """Propagation of segments, without any window: for the panel, the effect, the console, and the command line."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)

    def getParameterNode(self):
        return LabelPropParameterNode(super().getParameterNode())

    def propagate(
        self,
        volumeNode,
        segmentationNode,
        segmentIds=None,
        axis="auto",
        missing="auto",
        scribbles=None,
        registration="auto",
        fusion="auto",
        preset="balanced",
        device="auto",
        seed=0,
        extrapolate=False,
        directions=False,
        uncertaintyVolumeNode=None,
        progress=None,
        isCancelled=None,
        secondVolumeNode=None,
        atlases=(),
        checkpoint="auto",
        graphCut=True,
    ):
        """
        Carry the segments drawn on some slices through the volume, in this process; returns when it is done. Slices
        that an earlier run has found are found anew, except those that were edited since.

        :param volumeNode: the scan.
        :param segmentationNode: the segmentation; the result is written into its segments.
        :param segmentIds: the segments to propagate, None for all.
        :param axis: "i", "j" or "k" of the segmentation's grid, or "auto": across which the drawn slices lie.
        :param missing: how a segment that is missing on a drawn slice is read: "absent", "unknown" or "auto".
        :param scribbles: a segmentation node of strokes, its segments named as those of `segmentationNode`.
        :param registration, fusion, preset, device, seed, extrapolate: see `LabelPropLib.settings.Settings`.
        :param directions: also add two segmentation nodes, of what was carried upwards and downwards alone.
        :param uncertaintyVolumeNode: a scalar volume node that takes the map of uncertainty, 0 sure to 1 a toss-up.
        :param progress: called as progress(fraction, message).
        :param isCancelled: called now and then; the work stops when it returns True.
        :param secondVolumeNode: another contrast of the same anatomy, for instance the fat image of a Dixon scan; on a
            grid of its own, if need be. Registration and fusion look at both.
        :param atlases: (volumeNode, segmentationNode) of other subjects, finished, their segments named as those of
            `segmentationNode`. They are used for the segments that they help to find.
        :param checkpoint: weights of networks: "auto" for those that come with LabelProp, "none", or a file.
        :param graphCut: let what a scribble corrects end along edges of the image.
        :return: dict of plain values: axis, annotated_slices, labels, segments, device, seconds by stage, messages, ...
        :raises InputError: the input cannot be used; the text says why, and how to mend it. Nothing was written.
        :raises Cancelled: `isCancelled` said so. Nothing was written.
        """
        settings = Settings(
            registration=registration,
            fusion=fusion,
            preset=preset,
            device=device,
            seed=seed,
            extrapolate=extrapolate,
            graph_cut=graphCut,
            directions=directions,
            uncertainty=uncertaintyVolumeNode is not None,
            checkpoint=str(checkpoint),
        )
        atlases = list(atlases)
        scene.check_target(uncertaintyVolumeNode, (volumeNode, secondVolumeNode, *(volume for volume, _ in atlases)))
        collected = self.collect(
            volumeNode, segmentationNode, segmentIds, axis, missing, scribbles, secondVolumeNode, atlases
        )
        try:
            propagation = self.compute(collected, settings, progress, isCancelled)
        except Exception:
            self._logInputMessages(collected)
            raise
        self.addDirections(collected, propagation)
        return self.write(collected, propagation, uncertaintyVolumeNode)

    def collect(
        self,
        volumeNode,
        segmentationNode,
        segmentIds=None,
        axis="auto",
        missing="auto",
        scribbles=None,
        secondVolumeNode=None,
        atlases=(),
    ):
        """
        Read the annotation that the segments hold of the volume; the parameters are those of `propagate`. Slices that
        were found by an earlier run are no part of it, until they are edited, see `noticeCorrections`.

        :return: LabelPropLib.scene.SceneAnnotation
        :raises InputError: as `propagate` does; nothing was changed.
        """
        segmentIds = None if segmentIds is None else list(segmentIds)
        scene.check_inputs(volumeNode, segmentationNode, segmentIds)
        messages = []
        with slices.marks_kept_on_failure(segmentationNode):
            self.noticeCorrections(volumeNode, segmentationNode, segmentIds, axis, messages.append)
            collected = scene.collect(
                volumeNode, segmentationNode, segmentIds, axis, missing, scribbles, secondVolumeNode, atlases
            )
        return replace(collected, messages=tuple(messages))

    def noticeCorrections(self, volumeNode, segmentationNode, segmentIds=None, axis="auto", say=lambda text: None):
        """
        Let slices that were found by an earlier run, and edited since, be the user's own, which `collect` does, too.
        The parameters are those of `propagate`; `say` is called with a line about what was edited and does not count.

        :raises InputError: as `propagate` does; nothing was changed.
        """
        labels, _backgroundIds = scene.check_inputs(volumeNode, segmentationNode, segmentIds)
        with slices.marks_kept_on_failure(segmentationNode):
            overview = slices.survey(volumeNode, segmentationNode, labels.values(), axis, say)
            slices.notice_corrections(segmentationNode, overview, say)

    def compute(self, collected, settings, progress=None, isCancelled=None):
        """
        Propagate what was collected, in this process. Nothing in the scene changes.

        :return: LabelPropLib.propagation.Propagation
        :raises InputError, Cancelled: as `propagate` does.
        :raises ImportError: PyTorch cannot be loaded; the text says what to do.
        """
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise ImportError(
                _(
                    "LabelProp needs PyTorch, which cannot be loaded ({reason}): install it, in Slicer with the PyTorch"
                    " extension."
                ).format(reason=error)
            ) from error
        from LabelPropLib.pipeline import propagate

        return propagate(collected.annotation, settings, progress, isCancelled)

    def write(self, collected, propagation, uncertaintyVolumeNode=None):
        """
        Write the result into the scene: into the segments it was read from or, if they have been changed since, into a
        new segmentation. The slices that were found are marked so: they are no input of the next run.

        :return: the report, see `propagate`.
        """
        node = collected.segmentation_node
        report = collected.report(propagation)
        if collected.unchanged:
            scene.write_segments(collected, propagation.label_maps)
            slices.mark_propagated(node, slices.overview_when_read(collected))
        else:
            added = self._addSegmentation(collected, propagation.label_maps, "propagated")
            text = _("The segments were changed meanwhile: the result is in the new segmentation '{name}'.")
            if not slicer.mrmlScene.IsNodePresent(node):
                text = _("The segmentation was removed meanwhile: the result is in the new segmentation '{name}'.")
            report["messages"].append(text.format(name=added.GetName()))
        if uncertaintyVolumeNode is not None:
            scene.write_volume(collected, propagation.uncertainty, uncertaintyVolumeNode)
        return report

    def _logInputMessages(self, collected):
        """Say what was noticed when the input was read: it is noticed only once, and there is no report to say it."""
        for message in collected.messages:
            logging.warning(f"LabelProp: {message}")

    def _addSegmentation(self, collected, labelMaps, what):
        """A new segmentation node of what was propagated, its found slices marked so."""
        name = f"{collected.segmentation_node.GetName()} ({what})"
        node = scene.add_segmentation(collected, labelMaps, name)
        slices.mark_propagated(node, slices.overview_when_read(collected))
        return node

    def train(self, volumeNode, segmentationNode, checkpointPath, licence="not stated", progress=None, **settings):
        """
        Train the registration network on a scan and save its weights, for `propagate(checkpoint=...)`.

        :param volumeNode, segmentationNode: see `propagate`; the segments drawn on some slices take part.
        :param checkpointPath: the .pt file to write; a log of the training goes beside it.
        :param licence: kept with the weights.
        :param progress: called as progress(fraction, message).
        :param settings: preset, device, seed, checkpoint (to begin with), see `LabelPropLib.settings.Settings`.
        :raises InputError: the input cannot be used, or the file not be written. Nothing was written.
        """
        from LabelPropLib.training_run import RunFiles, train

        settings = Settings(**settings)
        run = RunFiles(Path(checkpointPath))
        run.check(weights_of(settings.checkpoint))
        collected = self.collect(volumeNode, segmentationNode)
        self._logInputMessages(collected)
        train(collected.annotation, run, settings, licence, progress or (lambda fraction, message: None))

    def batch(self, tablePath, outputFolder, missing="auto", jobs=None, scheduler=None, say=print, **settings):
        """
        Propagate on the volumes of a table, each in a process of its own; returns when all have ended.

        :param tablePath: a CSV file with the columns image, annotations and, if need be, second_image, scribbles, axis,
            name; paths are relative to its folder.
        :param outputFolder: takes the results, overview.csv and overview.html. What is there already is kept.
        :param missing: see `propagate`.
        :param jobs: how many at once, None for as many as there are processors for.
        :param scheduler: the address of a dask scheduler whose workers are to run them.
        :param say: called with a line of text about each volume.
        :param settings: see `LabelPropLib.settings.Settings`.
        :return: list of LabelPropLib.overview.Result, doubtful ones first.
        :raises InputError: the table or the settings cannot be used, or a file that is read or JSON of another program
            would be replaced; nothing was run.
        """
        from LabelPropLib import batch

        return batch.run(Path(tablePath), Path(outputFolder), Settings(**settings), missing, jobs, scheduler, say)

    def addDirections(self, collected, propagation):
        """
        Add a segmentation node for each of the directions that were asked for.

        :return: dict "up", "down" -> node
        """
        return {
            direction: self._addSegmentation(collected, labelMaps, direction)
            for direction, labelMaps in propagation.directions.items()
        }


#
# LabelPropTest
#


class LabelPropTest(ScriptedLoadableModuleTest):
    """The logic on a small synthetic volume, also in plain Python; in the application the panel, too."""

    PATIENCE_S = 300

    def setUp(self):
        if importlib.util.find_spec("torch") is None:
            self.skipTest("PyTorch is not installed")
        slicer.mrmlScene.Clear()
        self.volumeNode, self.segmentationNode, self.truth = addTaperedTube()
        self.segment = self.segmentationNode.GetSegmentation().GetSegment("tube")

    def voxels(self):
        return slicer.util.arrayFromSegmentBinaryLabelmap(self.segmentationNode, "tube", self.volumeNode) > 0

    def test_DrawnSlicesAreKeptAndTheOthersFound(self):
        report = LabelPropLogic().propagate(self.volumeNode, self.segmentationNode, preset="fast", device="cpu")
        found = self.voxels()
        for k in (0, 6, 12):
            np.testing.assert_array_equal(found[k], self.truth[k])
        self.assertTrue(found.any(axis=(1, 2)).all())
        overlap = 2 * (found & self.truth).sum() / (found.sum() + self.truth.sum())
        self.assertGreater(overlap, 0.85)
        self.assertEqual(report["segments"], {"1": "tube"})
        self.assertEqual(
            slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus(self.segment),
            slicer.vtkSlicerSegmentationsModuleLogic.InProgress,
        )

    def test_CancelledRunChangesNothing(self):
        before = self.voxels()
        with self.assertRaises(Cancelled):
            LabelPropLogic().propagate(self.volumeNode, self.segmentationNode, isCancelled=lambda: True)
        np.testing.assert_array_equal(self.voxels(), before)

    def test_PanelPropagates(self):
        if not hasattr(slicer, "app"):
            self.skipTest("The panel needs the Slicer application")
        panel = slicer.util.getModuleWidget("LabelProp")
        panel.initializeParameterNode()
        try:
            parameters = panel.logic.getParameterNode()
            parameters.inputVolume, parameters.segmentation = self.volumeNode, self.segmentationNode
            parameters.preset, parameters.device = "fast", "cpu"
            panel.ui.applyButton.click()
            self.assertTrue(panel.isRunning)
            end = time.monotonic() + self.PATIENCE_S
            while panel.isRunning and time.monotonic() < end:
                slicer.app.processEvents()
                time.sleep(0.005)  # leave the processor to the background process
            self.assertIn(" s on cpu", panel.ui.resultText.plainText)
            self.assertTrue(self.voxels().any(axis=(1, 2)).all())
        finally:
            panel.exit()

    def test_BadInputIsExplained(self):
        self.segmentationNode.GetSegmentation().ClearSegment("tube")
        with self.assertRaisesRegex(InputError, "No annotated slice"):
            LabelPropLogic().propagate(self.volumeNode, self.segmentationNode)


def addTaperedTube():
    """A volume of a bright tube that gets thinner and moves, drawn on three slices; both nodes and the true mask."""
    k, j, i = np.indices((13, 40, 48))
    truth = (j - 20) ** 2 + (i - 18 - k) ** 2 < (11 - 0.4 * k) ** 2
    image = np.where(truth, 200, 60) + np.random.default_rng(0).integers(0, 30, truth.shape)
    volumeNode = slicer.util.addVolumeFromArray(image.astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]), "Tube")
    drawn = np.zeros(truth.shape, np.uint8)
    drawn[[0, 6, 12]] = truth[[0, 6, 12]]
    segmentationNode = scene.add_segmentation_of_labels(drawn, volumeNode, "Tube drawn", {1: "tube"})
    return volumeNode, segmentationNode, truth
