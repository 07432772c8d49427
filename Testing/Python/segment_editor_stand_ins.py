"""Enough of Slicer's Segment Editor, on the real vtkSlicerSegmentEditorLogic, to run a scripted effect in plain Python.

`install()` makes the modules that the effect imports: `qt`, `ctk`, `slicer.i18n`, and `SegmentEditorEffects` with the
base class of auto-complete effects, of which only the protocol is here. The self test of the effect, written for the
Slicer application, runs on these as it is.
"""

import contextlib
import sys
import types

import qt_stand_ins
import slicer
import slicer.util
from PySide6 import QtWidgets

from LabelPropLib import plain_slicer

PREVIEW_ROLE = "SegmentationResultPreview"
PREVIEW_OWNER = "SegmentationResultPreviewOwnerEffect"
BINARY_LABELMAP = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


class ScriptedEffect:
    """qSlicerSegmentEditorScriptedEffect: what an effect calls its host for."""

    def __init__(self, logic, effectClass):
        import qt

        self.perSegment = True
        self.requireSegments = True
        self.showEffectCursorInSliceView = True
        self._logic = logic
        self._active = False
        self._frame = qt.QFrame()
        self._layout = qt.QFormLayout(self._frame)
        self._layout.setContentsMargins(4, 4, 4, 4)
        self._layout.setSpacing(4)
        self._self = effectClass(self)

    def self(self):
        return self._self

    def active(self):
        return self._active

    def activate(self):
        self._frame.setVisible(True)
        self._active = True
        self._self.updateGUIFromMRML()
        self._self.activate()

    def deactivate(self):
        self._frame.setVisible(False)
        self._active = False
        self._self.deactivate()

    def optionsFrame(self):
        return self._frame

    def optionsLayout(self):
        return self._layout

    def addOptionsWidget(self, widget):
        self._adopt(widget)
        self._layout.addRow(widget)

    def addLabeledOptionsWidget(self, label, widget):
        import qt

        self._adopt(widget)
        labelWidget = qt.QLabel(label)
        self._layout.addRow(labelWidget, widget)
        return labelWidget

    def _adopt(self, widget):
        """The host has its own ideas of the sizes of widgets, though not of those in a layout."""
        if isinstance(widget, QtWidgets.QWidget):
            widget.setParent(self._frame)
            widget.setSizePolicy(QtWidgets.QSizePolicy.Preferred, QtWidgets.QSizePolicy.MinimumExpanding)

    def parameterSetNode(self):
        return self._logic.GetSegmentEditorNode()

    def parameter(self, name):
        node = self.parameterSetNode()
        if node is None:
            return ""
        value = node.GetAttribute(f"{self.name}.{name}")
        value = node.GetAttribute(name) if value is None else value
        assert value is not None, f"Parameter named {name} cannot be found for effect {self.name}"
        return value

    def integerParameter(self, name):
        return int(self.parameter(name))

    def parameterDefined(self, name):
        return bool(self.parameterSetNode().GetAttribute(f"{self.name}.{name}"))

    def setParameter(self, name, value):
        self.setCommonParameter(f"{self.name}.{name}", value)

    def setParameterDefault(self, name, value):
        if not self.parameterDefined(name):
            self.setParameter(name, value)

    def setCommonParameter(self, name, value):
        assert isinstance(value, (str, int, float)), f"There is no overload for {value!r}"
        node = self.parameterSetNode()
        if node.GetAttribute(name) != str(value):
            wasDisabled = node.GetDisableModifiedEvent()
            node.SetDisableModifiedEvent(1)
            node.SetAttribute(name, str(value))
            node.SetDisableModifiedEvent(wasDisabled)
            node.InvokeCustomModifiedEvent(node.EffectParameterModified)

    def nodeReference(self, name):
        node = self.parameterSetNode()
        return node and (node.GetNodeReference(f"{self.name}.{name}") or node.GetNodeReference(name))

    def setCommonNodeReference(self, name, referenced):
        node = self.parameterSetNode()
        if node.GetNodeReference(name) is not referenced:
            node.SetNodeReferenceID(name, referenced.GetID() if referenced else None)
            node.InvokeCustomModifiedEvent(node.EffectParameterModified)

    def sourceVolumeImageData(self):
        assert self._logic.UpdateAlignedSourceVolume()
        return self._logic.GetAlignedSourceVolume()

    def saveStateForUndo(self):
        self._logic.SaveStateForUndo()

    def selectEffect(self, name):
        self.parameterSetNode().SetActiveEffectName(name)


class AutoCompleteEffect:
    """AbstractScriptedSegmentEditorAutoCompleteEffect, without its own way of computing and applying."""

    def __init__(self, scriptedEffect):
        import qt

        self.scriptedEffect = scriptedEffect
        scriptedEffect.perSegment = False
        self.selectedSegmentIds = None
        self.selectedSegmentModifiedTimes = {}
        self.observedSegmentation = None
        self.segmentationNodeObserverTags = []
        self.delayedAutoUpdateTimer = qt.QTimer()
        self.delayedAutoUpdateTimer.setSingleShot(True)
        self.delayedAutoUpdateTimer.interval = 1000
        self.delayedAutoUpdateTimer.connect("timeout()", self.onPreview)

    def cleanup(self):
        self.delayedAutoUpdateTimer.disconnect("timeout()", self.onPreview)

    def setupOptionsFrame(self):
        import ctk
        import qt

        self.autoUpdateCheckBox = qt.QCheckBox("Auto-update")
        self.autoUpdateCheckBox.setChecked(True)
        self.previewButton = self._expandingButton("Initialize", "Preview")
        self.previewOpacitySlider = ctk.ctkSliderWidget()
        self.previewShow3DButton = qt.QPushButton("Show 3D")
        self.previewShow3DButton.setCheckable(True)
        self.cancelButton = self._expandingButton("Cancel", "Cancel")
        self.applyButton = self._expandingButton("Apply", "Apply")
        for label, widgets in (
            ("Preview:", (self.autoUpdateCheckBox, self.previewButton)),
            (
                "Display:",
                (qt.QLabel("inputs"), self.previewOpacitySlider, qt.QLabel("results"), self.previewShow3DButton),
            ),
            (None, (self.cancelButton, self.applyButton)),
        ):
            row = qt.QHBoxLayout()
            for widget in widgets:
                row.addWidget(widget)
            if label is None:
                self.scriptedEffect.addOptionsWidget(row)
            else:
                self.scriptedEffect.addLabeledOptionsWidget(label, row)
        self.previewButton.connect("clicked()", self.onPreview)
        self.cancelButton.connect("clicked()", self.onCancel)
        self.applyButton.connect("clicked()", self.onApply)
        self.previewOpacitySlider.connect("valueChanged(double)", self.updateMRMLFromGUI)
        self.previewShow3DButton.connect("toggled(bool)", self.updateMRMLFromGUI)
        self.autoUpdateCheckBox.connect("stateChanged(int)", self.updateMRMLFromGUI)

    def _expandingButton(self, text, name):
        import qt

        button = qt.QPushButton(text)
        button.objectName = type(self).__name__ + name
        policy = qt.QSizePolicy()
        policy.setHorizontalPolicy(qt.QSizePolicy.Expanding)
        button.setSizePolicy(policy)
        return button

    def onSegmentationModified(self, _caller, _event):
        """Sees what changes a labelmap only, but the first time whatever happens."""
        if not self.autoUpdateCheckBox.isChecked():
            return
        segmentation = self.scriptedEffect.parameterSetNode().GetSegmentationNode().GetSegmentation()
        updateNeeded = False
        for index in range(self.selectedSegmentIds.GetNumberOfValues()):
            segmentId = self.selectedSegmentIds.GetValue(index)
            segment = segmentation.GetSegment(segmentId)
            if segment is None:
                self.onCancel()
                return
            labelmap = segment.GetRepresentation(BINARY_LABELMAP)
            modifiedTime = labelmap.GetMTime() if labelmap else None
            if labelmap is None or self.selectedSegmentModifiedTimes.get(segmentId) != modifiedTime:
                self.selectedSegmentModifiedTimes[segmentId] = modifiedTime
                updateNeeded = True
        if updateNeeded:
            self.delayedAutoUpdateTimer.start()

    def observeSegmentation(self, enabled):
        segmentation = (
            self.scriptedEffect.parameterSetNode().GetSegmentationNode().GetSegmentation() if enabled else None
        )
        if segmentation is self.observedSegmentation:
            return
        for tag in self.segmentationNodeObserverTags:
            self.observedSegmentation.RemoveObserver(tag)
        self.segmentationNodeObserverTags = []
        self.observedSegmentation = segmentation
        if segmentation is not None:
            for event in (
                slicer.vtkSegmentation.SegmentAdded,
                slicer.vtkSegmentation.SegmentRemoved,
                slicer.vtkSegmentation.SegmentModified,
                slicer.vtkSegmentation.SourceRepresentationModified,
            ):
                self.segmentationNodeObserverTags.append(segmentation.AddObserver(event, self.onSegmentationModified))

    def getPreviewNode(self):
        """Does not notice that another effect owns the preview: the parameter that it looks for is a common one."""
        node = self.scriptedEffect.nodeReference(PREVIEW_ROLE)
        if node and self.scriptedEffect.parameterDefined(PREVIEW_OWNER):
            return node if self.scriptedEffect.parameter(PREVIEW_OWNER) == self.scriptedEffect.name else None
        return node

    def updateGUIFromMRML(self):
        """'Show 3D' is toggled aloud, so that all is written that the controls show, before AutoUpdate is shown."""
        previewed = self.getPreviewNode() is not None
        for widget in (self.cancelButton, self.applyButton, self.previewOpacitySlider, self.autoUpdateCheckBox):
            widget.setEnabled(previewed)
        self.previewShow3DButton.setEnabled(previewed)
        self.previewButton.text = "Update" if previewed else "Initialize"
        if previewed:
            set_silently(self.previewOpacitySlider, "value", self.getPreviewOpacity())
            self.previewShow3DButton.setChecked(self.getPreviewShow3D())
        else:
            self.delayedAutoUpdateTimer.stop()
        self.observeSegmentation(previewed and self.autoUpdateCheckBox.isChecked())
        set_silently(self.autoUpdateCheckBox, "checked", self.scriptedEffect.integerParameter("AutoUpdate") != 0)

    def updateMRMLFromGUI(self):
        if self.getPreviewNode() is not None:
            self.setPreviewOpacity(self.previewOpacitySlider.value)
            self.setPreviewShow3D(self.previewShow3DButton.checked)
        self.scriptedEffect.setParameter("AutoUpdate", 1 if self.autoUpdateCheckBox.isChecked() else 0)

    def setPreviewOpacity(self, opacity):
        self.scriptedEffect.parameterSetNode().GetSegmentationNode().GetDisplayNode().SetOpacity(1.0 - opacity)
        displayNode = self.getPreviewNode().GetDisplayNode()
        displayNode.SetOpacity(opacity)
        displayNode.SetOpacity3D(opacity)
        set_silently(self.previewOpacitySlider, "value", opacity)

    def getPreviewOpacity(self):
        return self.getPreviewNode().GetDisplayNode().GetOpacity() if self.getPreviewNode() else 0.6

    def setPreviewShow3D(self, show):
        if show:
            self.getPreviewNode().CreateClosedSurfaceRepresentation()
        else:
            self.getPreviewNode().RemoveClosedSurfaceRepresentation()
        set_silently(self.previewShow3DButton, "checked", show)

    def getPreviewShow3D(self):
        name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        node = self.getPreviewNode()
        return node is not None and node.GetSegmentation().ContainsRepresentation(name)


def set_silently(widget, name, value):
    """Set a property of a widget, whose signals nobody hears."""
    wasBlocked = widget.blockSignals(True)
    setattr(widget, name, value)
    widget.blockSignals(wasBlocked)


class SegmentEditorWidget:
    """qMRMLSegmentEditorWidget: hosts effects, and tells them what happens."""

    effectClasses = []  # the registered ones

    def __init__(self):
        import qt

        self.effectsOptionsFrame = qt.QFrame()
        qt.QVBoxLayout(self.effectsOptionsFrame).setContentsMargins(0, 0, 0, 0)
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._effects = []
        for effectClass in self.effectClasses:
            scriptedEffect = ScriptedEffect(self._logic, effectClass)
            scriptedEffect.self().setupOptionsFrame()
            self.effectsOptionsFrame.layout().addWidget(scriptedEffect.optionsFrame())
            scriptedEffect.optionsFrame().setVisible(False)
            self._effects.append(scriptedEffect)
        self._active = None
        self._segmentationNode = self._sourceVolumeNode = None  # as the effects know them
        self._observations = []
        self._isBeingDeleted = False

    def setMRMLScene(self, scene):
        self._logic.SetMRMLScene(scene)

    def setMRMLSegmentEditorNode(self, node):
        for observed, tag in self._observations:
            observed.RemoveObserver(tag)
        self._logic.SetSegmentEditorNode(node)
        for scriptedEffect in self._effects:
            scriptedEffect.self().setMRMLDefaults()
        self._observations = [
            (node, node.AddObserver(node.EffectParameterModified, self._onEffectParameterModified)),
            (node, node.AddObserver("ModifiedEvent", self._onModified)),
        ]

    def mrmlSegmentEditorNode(self):
        return self._logic.GetSegmentEditorNode()

    def setSegmentationNode(self, node):
        """The effect that is active still hears of the segmentation, and of its volume."""
        if self._logic.GetSegmentationNode() is not node:
            self._logic.SetSegmentationNode(node)
            self.setActiveEffect(None)

    def setSourceVolumeNode(self, node):
        self._logic.SetSourceVolumeNode(node)

    def setCurrentSegmentID(self, segmentId):
        self.mrmlSegmentEditorNode().SetSelectedSegmentID(segmentId)

    def setActiveEffectByName(self, name):
        self.setActiveEffect(next(effect for effect in self._effects if effect.name == name))

    def setActiveEffect(self, scriptedEffect):
        node = self.mrmlSegmentEditorNode()
        if node is not None:
            node.SetActiveEffectName(scriptedEffect.name if scriptedEffect else "")

    def activeEffect(self):
        return self._active

    def undo(self):
        self._logic.Undo()

    def deleteLater(self):
        """As the destructor: at once, for there is no application that would do it later."""
        self._isBeingDeleted = True
        for scriptedEffect in self._effects:
            scriptedEffect.self().cleanup()
        for observed, tag in self._observations:
            observed.RemoveObserver(tag)

    def _onEffectParameterModified(self, _caller, _event):
        if self._active is not None:
            self._active.self().updateGUIFromMRML()

    def _onModified(self, node, _event):
        """What the node says is done while the node is silent, as in the application."""
        assert not self._isBeingDeleted, "The application would crash here: effects are asked that are gone"
        if slicer.mrmlScene.IsClosing():
            return
        with slicer.util.NodeModify(node):
            self._onNodesModified(node)
            name = node.GetActiveEffectName()
            chosen = next((effect for effect in self._effects if effect.name == name), None)
            if chosen is not self._active:
                if self._active is not None:
                    self._active.deactivate()
                if chosen is not None:
                    chosen.activate()
                self._active = chosen

    def _onNodesModified(self, node):
        segmentationNode = node.GetSegmentationNode()
        if segmentationNode is not self._segmentationNode:
            self._segmentationNode = segmentationNode
            if segmentationNode is not None:
                role = segmentationNode.GetReferenceImageGeometryReferenceRole()
                self._logic.SetSourceVolumeNode(segmentationNode.GetNodeReference(role))
                segmentationNode.CreateDefaultDisplayNodes()
                if segmentationNode.GetSegmentation().GetNumberOfSegments():
                    node.SetSelectedSegmentID(segmentationNode.GetSegmentation().GetNthSegmentID(0))
        if segmentationNode is not None and node.GetSourceVolumeNode() is not self._sourceVolumeNode:
            self._sourceVolumeNode = node.GetSourceVolumeNode()
            for scriptedEffect in self._effects:
                scriptedEffect.self().sourceVolumeNodeChanged()
        if segmentationNode is not None and node.GetMaskMode() == segmentationNode.EditAllowedInsideSingleSegment:
            if segmentationNode.GetSegmentation().GetSegment(node.GetMaskSegmentID() or "") is None:
                node.SetMaskMode(segmentationNode.EditAllowedEverywhere)  # which the list of segments shows first


class ModuleManager:
    """`slicer.app.moduleManager()`, of which only what is connected to its signals is there."""

    def __init__(self):
        self.connected = []

    def connect(self, signature, slot):
        self.connected.append((signature, slot))

    def disconnect(self, signature, slot):
        self.connected.remove((signature, slot))

    def emit(self, signature):
        """Call the slots of a signal, without its arguments."""
        for connected, slot in list(self.connected):
            if connected == signature:
                slot()


class Application:
    """`slicer.app` without an application."""

    def processEvents(self):
        QtWidgets.QApplication.processEvents()

    def testingEnabled(self):
        return True

    def setOverrideCursor(self, _cursor):
        pass

    def restoreOverrideCursor(self):
        pass

    def pauseRender(self):
        pass

    def resumeRender(self):
        pass

    def __init__(self):
        self._moduleManager = ModuleManager()

    def moduleManager(self):
        return self._moduleManager


@contextlib.contextmanager
def application_running():
    """Context in which there is a `slicer.app`, by which code knows that it runs in the application."""
    slicer.app = Application()
    try:
        yield
    finally:
        del slicer.app


def install():
    """Make what the effect imports; returns the QApplication."""
    application = qt_stand_ins.install()
    plain_slicer.bootstrap()
    slicer.util.mainWindow = lambda: None
    slicer.qMRMLSegmentEditorWidget = SegmentEditorWidget
    make_module("slicer.i18n", tr=plain_slicer.tr, translate=plain_slicer.translate)
    make_module(
        "slicer.ScriptedLoadableModule",
        ScriptedLoadableModule=plain_slicer.ScriptedLoadableModule,
        ScriptedLoadableModuleTest=plain_slicer.ScriptedLoadableModuleTest,
    )
    make_module("SegmentEditorEffects")
    make_module(
        "SegmentEditorEffects.AbstractScriptedSegmentEditorAutoCompleteEffect",
        AbstractScriptedSegmentEditorAutoCompleteEffect=AutoCompleteEffect,
        ResultPreviewNodeReferenceRole=PREVIEW_ROLE,
    )
    return application


def make_module(name, **contents):
    """A module that `import` finds under the name."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(contents)
