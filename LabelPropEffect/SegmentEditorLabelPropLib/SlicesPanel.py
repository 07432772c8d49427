"""What is annotated: a line that sums it up, the strip of slices, and buttons for the role of the current slice.

After a run the strip also shows how good the result is expected to be, and which slice to draw next.
"""

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from LabelPropLib import scene
from LabelPropLib.annotation import AXIS_NAMES
from LabelPropLib.errors import InputError
from LabelPropLib.roles import ABSENT, COMPLETE, IGNORED, PROPAGATED_TAG, SCRIBBLE
from LabelPropLib.scene.slices import (
    anatomical_plane,
    background_segments,
    set_background,
    set_role,
    survey,
)

from .SliceStrip import ROLES, Lane, SliceStrip, roleIcon, roleTitles
from .SliceViews import SliceAxis, planeTitles, sliceNodes

REFRESH_DELAY_MS = 50  # a brush stroke and a scroll come as many events


class SlicesPanel(VTKObservationMixin):
    """
    :param scriptedEffect: the effect that the panel belongs to.
    :param segmentIds: called for the IDs of the segments to show.
    :param onSurveyed: called when the slices were looked through anew.
    """

    def __init__(self, scriptedEffect, segmentIds, onSurveyed):
        VTKObservationMixin.__init__(self)
        self.scriptedEffect = scriptedEffect
        self.segmentIds = segmentIds
        self.onSurveyed = onSurveyed
        self.strip = None
        self.overview = None
        self.forgetQuality()
        self.currentSlice = None
        self.deviceText = ""
        self._surveyNeeded = True
        self._surveyed = (None, None)  # the nodes that were looked through
        self.remarks = []  # of the last look at the slices, about what is not known of them any more
        self._borne = {}  # segment ID -> the slices that bear its voxels, of segments that were asked for since
        self._direction = None  # the parameter when the slices were looked through
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(REFRESH_DELAY_MS)
        self._timer.connect("timeout()", self._refreshWhatChanged)

    def addRows(self):
        """Make the widgets."""
        self._addStrip()
        self._addQuality()
        self._addRoles()

    def _addStrip(self):
        """What is annotated: in words, and as a strip to click on."""
        self.statusLabel = qt.QLabel()
        self.statusLabel.objectName = "SegmentEditorLabelPropStatus"
        self.statusLabel.setWordWrap(True)
        self.scriptedEffect.addOptionsWidget(self.statusLabel)

        self.strip = SliceStrip(self.showSlice)
        self.previousButton = self._stepButton(qt.Qt.LeftArrow, _("Previous annotated slice"), -1)
        self.nextButton = self._stepButton(qt.Qt.RightArrow, _("Next annotated slice"), 1)
        stripRow = qt.QHBoxLayout()
        stripRow.setSpacing(2)
        for widget in (self.previousButton, self.strip.widget, self.nextButton):
            stripRow.addWidget(widget)
        self.scriptedEffect.addOptionsWidget(stripRow)

    def _addQuality(self):
        """How good the result should be, and the way to the slice to draw next."""
        self.qualityLabel = qt.QLabel()
        self.qualityLabel.objectName = "SegmentEditorLabelPropQuality"
        self.qualityLabel.setToolTip(
            _("The overlap with the truth (Dice) to expect on the slices that segments were carried to.")
        )
        self.suggestedButton = qt.QPushButton()
        self.suggestedButton.objectName = "SegmentEditorLabelPropSuggested"
        self.suggestedButton.setToolTip(
            _("The slice that is expected to improve the result most. Draw it completely, then update.")
        )
        self.suggestedButton.connect("clicked()", lambda: self.showSlice(self.quality.suggested))
        qualityRow = qt.QHBoxLayout()
        qualityRow.addWidget(self.qualityLabel)
        qualityRow.addWidget(self.suggestedButton)
        self.scriptedEffect.addOptionsWidget(qualityRow)

    def _addRoles(self):
        """What the selected segment is on the current slice."""
        self.roleLabel = qt.QLabel()
        self.roleLabel.objectName = "SegmentEditorLabelPropRole"
        policy = qt.QSizePolicy()
        policy.setHorizontalPolicy(qt.QSizePolicy.Ignored)  # a long name must not make the panel wider
        self.roleLabel.setSizePolicy(policy)
        self.backgroundCheckBox = qt.QCheckBox(_("Background"))
        self.backgroundCheckBox.objectName = "SegmentEditorLabelPropBackground"
        self.backgroundCheckBox.setToolTip(
            _("The selected segment is not a structure: what is drawn of it on any slice is background for all others.")
        )
        self.backgroundCheckBox.connect("clicked(bool)", self.setBackground)
        labelRow = qt.QHBoxLayout()
        labelRow.addWidget(self.roleLabel, 1)
        labelRow.addWidget(self.backgroundCheckBox)
        self.scriptedEffect.addOptionsWidget(labelRow)
        self.roleButtons = {role: self._roleButton(role) for role in ROLES}
        roleRow = qt.QHBoxLayout()
        roleRow.setSpacing(2)
        for button in self.roleButtons.values():
            roleRow.addWidget(button)
        self.scriptedEffect.addOptionsWidget(roleRow)

    def observe(self):
        """Keep up with the segments, the selected one, and the slice views."""
        parameterSetNode = self.scriptedEffect.parameterSetNode()
        volumeNode, segmentationNode = self.nodes()
        self.addObserver(parameterSetNode, vtk.vtkCommand.ModifiedEvent, self._onSegmentsModified)
        if volumeNode is not None:
            self.addObserver(volumeNode, volumeNode.ImageDataModifiedEvent, self._onSegmentsModified)
        if segmentationNode is not None:
            # Of the node, not of its segments, which a sequence exchanges for those of another time.
            for event in (
                slicer.vtkMRMLSegmentationNode.SegmentationChangedEvent,
                slicer.vtkSegmentation.SegmentAdded,
                slicer.vtkSegmentation.SegmentRemoved,
                slicer.vtkSegmentation.SegmentModified,
                slicer.vtkSegmentation.SourceRepresentationModified,
                slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent,
            ):
                self.addObserver(segmentationNode, event, self._onSegmentsModified)
        for sliceNode in sliceNodes():
            self.addObserver(sliceNode, vtk.vtkCommand.ModifiedEvent, self._onViewModified)
        self.refresh()

    def stopObserving(self):
        """Stop keeping up, while the effect is not in use."""
        self._timer.stop()
        self.removeObservers()

    def cleanup(self):
        """Let go of everything."""
        self.stopObserving()
        self.overview, self._surveyed = None, (None, None)
        self.forgetQuality()
        self._timer.disconnect("timeout()", self._refreshWhatChanged)
        if self.strip is not None:
            self.strip.cleanup()

    def refresh(self):
        """Look through the slices of all segments anew, and show them."""
        self._surveyNeeded = True
        self._refreshWhatChanged()

    def updateGUIFromMRML(self, deviceText):
        """Follow a change of a parameter: of the direction, maybe, or of what is computed on."""
        if deviceText != self.deviceText:
            self.deviceText = deviceText
            self._refreshSoon()
        if self.scriptedEffect.parameter("Direction") != self._direction:
            self._surveyNeeded = True
            self._refreshSoon()

    def planes(self):
        """Axis of the segmentation -> 'axial', 'coronal' or 'sagittal'."""
        return {name: anatomical_plane(self.overview.grid, axis) for axis, name in enumerate(AXIS_NAMES)}

    def showSlice(self, index):
        """Jump to a slice in all views."""
        self.currentSlice = index
        self._axis().show(index)
        self._show()

    def setRole(self, role):
        """Give the current slice a role for the selected segment, or take it away if it has that role already."""
        segmentId = self._selectedSegmentId()
        if role == self.overview.roles[segmentId].get(self.currentSlice):
            role = COMPLETE
        segmentationNode = self.scriptedEffect.parameterSetNode().GetSegmentationNode()
        self.scriptedEffect.saveStateForUndo()
        set_role(segmentationNode, segmentId, self.overview.axis, role, [self.currentSlice])
        self.refresh()

    def setBackground(self, background):
        """Make the selected segment a scribble of background, or a structure again."""
        self.scriptedEffect.saveStateForUndo()
        set_background(
            self.scriptedEffect.parameterSetNode().GetSegmentationNode(), self._selectedSegmentId(), background
        )
        self.refresh()

    def showQuality(self, quality):
        """
        Show what is expected of the result, as long as the present volume and segmentation are chosen.

        :param quality: LabelPropLib.scene.slices.ExpectedQuality, None to show nothing any more.
        """
        self.forgetQuality()
        if quality is not None:
            self.quality, self._qualityNodes = quality, self.nodes()
        self._refreshWhatChanged()

    def forgetQuality(self):
        """Forget what was expected of a result: there is none any more."""
        self.quality = None  # ExpectedQuality of the last run
        self._qualityNodes = (None, None)  # the volume and the segmentation that it is of
        self._applied = {}  # segment ID -> what its tag said of the slices found, once they were applied

    def qualityIsOfSegments(self):
        """The result was applied: keep what is expected of it until that is undone, or the segments are cleared."""
        self._applied = self._propagated()

    def _onSegmentsModified(self, _caller, _event):
        self._surveyNeeded = True
        self._refreshSoon()

    def _onViewModified(self, _caller, _event):
        self._refreshSoon()

    def _refreshSoon(self):
        if not self._timer.isActive():  # else it would not be seen before the user stops
            self._timer.start()

    def _refreshWhatChanged(self):
        self._timer.stop()
        surveyed = self._surveyNeeded or self._surveyed != self.nodes()
        if surveyed:
            self._surveyNeeded = False
            self._survey()
        if self.overview is not None:
            shown = self._axis().current()
            self.currentSlice = self.currentSlice if shown is None else shown
        self._show()
        if surveyed:
            self.onSurveyed()

    def nodes(self):
        """Source volume and segmentation, None where there is none; the editor's node may be gone with the scene."""
        node = self.scriptedEffect.parameterSetNode()
        return (None, None) if node is None else (node.GetSourceVolumeNode(), node.GetSegmentationNode())

    def _survey(self):
        self.overview, self._borne, self.remarks = None, {}, []
        self._surveyed = volumeNode, segmentationNode = self.nodes()
        self._direction = self.scriptedEffect.parameter("Direction")
        if volumeNode is None or volumeNode.GetImageData() is None or segmentationNode is None:
            return
        present = segmentationNode.GetSegmentation().GetSegmentIDs()
        segmentIds = [segmentId for segmentId in self.segmentIds() if segmentId in present]
        try:
            self.overview = survey(volumeNode, segmentationNode, segmentIds, self._direction, self.remarks.append)
        except InputError as error:  # of a tag that was written by other means
            self.statusLabel.text = str(error)
        if self._qualityNodes == self._surveyed:
            left = self._propagated()
            if not all(left.get(name, set()) and left[name] <= found for name, found in self._applied.items()):
                self.forgetQuality()

    def _propagated(self):
        """Segment ID -> what its tag says of the slices that a run has found, of the segments that bear some."""
        segmentation = self.scriptedEffect.parameterSetNode().GetSegmentationNode().GetSegmentation()
        segments = {name: segmentation.GetSegment(name) for name in segmentation.GetSegmentIDs()}
        tags = {name: scene.read_tag(segment, PROPAGATED_TAG) for name, segment in segments.items()}
        return {name: set(text.split()) for name, text in tags.items() if text}

    def _show(self):
        segmentId = self._selectedSegmentId()
        lanes = self._lanes(segmentId)
        slices = self.overview.slices if self.overview else range(0)
        suggested = self._suggestedSlice()
        self.strip.show(slices, lanes, self.currentSlice, suggested)
        if self.overview is not None:
            self.statusLabel.text = self._status()
            self.statusLabel.setToolTip(_("Segments to propagate:") + "\n" + "\n".join(lane.name for lane in lanes))
        expected = self._qualityShown() and self.quality.mean is not None
        self.qualityLabel.text = (
            _("Expected Dice: {value}").format(value=f"{self.quality.mean:.2f}") if expected else ""
        )
        self.qualityLabel.setVisible(bool(expected))
        self.suggestedButton.text = _("Go to suggested slice {index}").format(index=suggested)
        self.suggestedButton.setVisible(suggested is not None)
        marks = self.strip.marks()
        current = slices.start if self.currentSlice is None else self.currentSlice
        self.previousButton.setEnabled(any(mark < current for mark in marks))
        self.nextButton.setEnabled(any(mark > current for mark in marks))
        self._showRole(lanes)

    def _qualityShown(self):
        """Whether there is an estimate, of what is chosen and of slices across the axis that is shown."""
        if self.quality is None or self.overview is None:
            return False
        return self._qualityNodes == self.nodes() and self.quality.axis == self.overview.axis

    def _suggestedSlice(self):
        """The slice to draw next, None when it is known what is on it, or there is no suggestion."""
        if not self._qualityShown() or self.quality.suggested is None:
            return None
        suggestedFor = self.quality.suggested_for or self.overview.roles
        roles = [self.overview.roles.get(name, {}).get(self.quality.suggested) for name in suggestedFor]
        return None if COMPLETE in roles or ABSENT in roles else self.quality.suggested

    def _showRole(self, lanes):
        lane = next((lane for lane in lanes if lane.selected), None)
        background = lane is not None and self._selectedSegmentId() in self._backgroundIds()
        self.backgroundCheckBox.setEnabled(lane is not None)
        self.backgroundCheckBox.setChecked(background)
        known = lane is not None and not background and self.currentSlice in self.overview.slices
        role = lane.roles.get(self.currentSlice) if known else None
        if known:
            self.roleLabel.text = _("{segment} on slice {index} is:").format(segment=lane.name, index=self.currentSlice)
        elif background:
            self.roleLabel.text = _("{segment} is a scribble of background.").format(segment=lane.name)
        else:
            self.roleLabel.text = self._whyNoRole()
        empty = role in (None, ABSENT) or (role == IGNORED and not self._bearsVoxels(self._selectedSegmentId()))
        possible = {COMPLETE: not empty, SCRIBBLE: not empty, ABSENT: empty, IGNORED: True}
        color = qt.QColor.fromRgbF(*lane.color) if lane else qt.QColor(128, 128, 128)
        palette = self.roleLabel.palette
        ink = qt.QColor(palette.color(qt.QPalette.ButtonText))
        for name, button in self.roleButtons.items():
            button.setEnabled(known and possible[name])
            button.setChecked(name == role)
            button.setIcon(roleIcon(name, color, ink, button.devicePixelRatioF()))

    def _whyNoRole(self):
        """What to say in place of the selected segment's role on the current slice."""
        segment = None
        if self.overview is not None:  # else the editor's node may be gone
            segmentId = self.scriptedEffect.parameterSetNode().GetSelectedSegmentID()
            _volumeNode, segmentationNode = self.nodes()
            if segmentId and segmentId not in self.overview.roles:
                segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
        if segment is None:
            return _("Selected segment on this slice is:")
        if segmentId in scene.visible_segments(segmentationNode):
            return _("Not propagated: {segment}").format(segment=segment.GetName())
        return _("Hidden, not propagated: {segment}").format(segment=segment.GetName())

    def _bearsVoxels(self, segmentId):
        """Whether there is something of the segment on the current slice, whatever the role says."""
        if segmentId not in self._borne:
            segmentationNode = self.scriptedEffect.parameterSetNode().GetSegmentationNode()
            stored = scene.stored_segments(segmentationNode, [segmentId], self.overview.grid)[segmentId]
            self._borne[segmentId] = set(stored.planes([self.overview.axis])[self.overview.axis])
        return self.currentSlice in self._borne[segmentId]

    def _lanes(self, selectedId):
        if self.overview is None:
            return []
        segmentation = self.scriptedEffect.parameterSetNode().GetSegmentationNode().GetSegmentation()
        segments = {segmentId: segmentation.GetSegment(segmentId) for segmentId in self.overview.roles}
        quality = self.quality.dice if self._qualityShown() else {}
        return [
            Lane(
                segment.GetName(),
                segment.GetColor(),
                self.overview.roles[segmentId],
                segmentId == selectedId,
                quality.get(segmentId, {}),
            )
            for segmentId, segment in segments.items()
            if segment is not None
        ]

    def _backgroundIds(self):
        return background_segments(self.scriptedEffect.parameterSetNode().GetSegmentationNode())

    def _status(self):
        roles = [role for slices in self.overview.roles.values() for role in slices.values()]
        if COMPLETE not in roles:
            return _("Draw the visible segments on a few slices, in one direction, then initialize.")
        drawn = {index for slices in self.overview.roles.values() for index in slices if slices[index] == COMPLETE}
        scribbled = {index for slices in self.overview.roles.values() for index in slices if slices[index] == SCRIBBLE}
        parts = [
            _("{plane} slices ({axis})").format(
                plane=planeTitles()[self.planes()[AXIS_NAMES[self.overview.axis]]], axis=AXIS_NAMES[self.overview.axis]
            ),
            _("{count} complete").format(count=len(drawn)),
        ]
        if scribbled:
            parts.append(_("{count} scribbled").format(count=len(scribbled)))
        count = sum(COMPLETE in slices.values() for slices in self.overview.roles.values())
        parts.append(_("1 segment") if count == 1 else _("{count} segments").format(count=count))
        if self.deviceText:
            parts.append(self.deviceText)
        return " · ".join(parts)

    def _selectedSegmentId(self):
        """The selected segment, None if it is not among those shown."""
        if self.overview is None:
            return None
        selected = self.scriptedEffect.parameterSetNode().GetSelectedSegmentID()
        return selected if selected in self.overview.roles else None

    def _axis(self):
        segmentationNode = self.scriptedEffect.parameterSetNode().GetSegmentationNode()
        return SliceAxis(self.overview.grid, self.overview.axis, segmentationNode)

    def _step(self, direction):
        current = self.overview.slices.start if self.currentSlice is None else self.currentSlice
        beyond = [mark for mark in self.strip.marks() if (mark - current) * direction > 0]
        if beyond:
            self.showSlice(min(beyond, key=lambda mark: abs(mark - current)))

    def _stepButton(self, arrow, toolTip, direction):
        button = qt.QToolButton()
        button.setArrowType(arrow)
        button.setAutoRaise(True)
        button.setToolTip(toolTip)
        button.accessibleName = toolTip  # there is no text
        button.connect("clicked()", lambda: self._step(direction))
        return button

    def _roleButton(self, role):
        toolTips = {
            COMPLETE: _("The selected segment is drawn completely on this slice: these voxels and no others."),
            SCRIBBLE: _("What is drawn of the selected segment on this slice is only a hint: there may be more of it."),
            ABSENT: _("The selected segment is not on this slice."),
            IGNORED: _("Do not read what the selected segment has on this slice."),
        }
        button = qt.QToolButton()
        button.objectName = f"SegmentEditorLabelProp{role.capitalize()}"
        button.text = roleTitles()[role]
        button.setToolTip(toolTips[role])
        button.setCheckable(True)
        button.setToolButtonStyle(qt.Qt.ToolButtonTextBesideIcon)
        policy = qt.QSizePolicy()
        policy.setHorizontalPolicy(qt.QSizePolicy.Expanding)
        button.setSizePolicy(policy)
        button.connect("clicked()", lambda: self.setRole(role))
        return button
