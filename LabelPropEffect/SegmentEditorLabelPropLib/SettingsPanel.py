"""The controls of the effect that say how to propagate, and the effect's parameters that they show."""

import ctk
import qt
from slicer.i18n import tr as _

from LabelProp import choiceTitles
from LabelPropLib.settings import Settings

from .SliceViews import planeTitles

LARGEST_SEED = 9999

# Parameter of the effect -> of the module, which knows its values.
CHOICES = {
    "Direction": "axis",
    "Preset": "preset",
    "Device": "device",
    "Registration": "registration",
    "Fusion": "fusion",
    "Missing": "missing",
}
SWITCHES = {"Extrapolate": 0, "GraphCut": 1}  # parameters that are 0 or 1, and their defaults


class SettingsPanel:
    """
    The row Direction/Preset, and the folded group Advanced.

    The effect's parameters are those of CHOICES and SWITCHES, and Seed.
    """

    def __init__(self, scriptedEffect):
        self.scriptedEffect = scriptedEffect
        self.boxes = {}
        self.checkBoxes = {}

    def addBasicRows(self):
        """What everybody needs."""
        direction = self._addComboBox(
            "Direction",
            _("The axis of the segmentation across which the drawn slices lie. Automatic: found from what is drawn."),
        )
        preset = self._addComboBox("Preset", _("How much time to spend on a better result."))
        self.scriptedEffect.addLabeledOptionsWidget(_("Direction:"), row(direction, qt.QLabel(_("Preset:")), preset))

    def addAdvancedGroup(self):
        """The rest, folded."""
        device = self._addComboBox(
            "Device", _("What to compute on. Automatic: a GPU if there is one that can be used.")
        )
        extrapolate = self._addCheckBox(
            "Extrapolate", _("Extrapolate"), _("Carry segments beyond the outermost drawn slices, too.")
        )
        registration = self._addComboBox("Registration", _("How neighbouring slices are registered to each other."))
        fusion = self._addComboBox("Fusion", _("How the outlines that reach a slice from the drawn ones are combined."))
        missing = self._addComboBox(
            "Missing",
            _(
                "How to read a slice that was drawn for other segments, but not for this one. Automatic: this one ends"
                " there, unless it is missing on a slice between its own first and last one, or segments look drawn"
                " each on their own slices."
            ),
        )
        graphCut = self._addCheckBox(
            "GraphCut",
            _("Snap scribbles to edges"),
            _("Where a scribble corrects the result, let the corrected region end at edges that are seen in the scan."),
        )
        self.seedSpinBox = qt.QSpinBox()
        self.seedSpinBox.objectName = "SegmentEditorLabelPropSeed"
        self.seedSpinBox.setRange(0, LARGEST_SEED)
        self.seedSpinBox.setToolTip(_("The same input and seed give the same voxels."))
        self.seedSpinBox.connect("valueChanged(int)", self.updateMRMLFromGUI)
        group = ctk.ctkCollapsibleGroupBox()
        group.objectName = "SegmentEditorLabelPropAdvanced"
        group.title = _("Advanced")
        layout = qt.QFormLayout(group)
        layout.addRow(_("Device:"), device)
        layout.addRow(_("Registration:"), registration)
        layout.addRow(_("Fusion:"), fusion)
        layout.addRow(_("Missing segments:"), missing)
        layout.addRow(_("Seed:"), row(self.seedSpinBox, extrapolate))
        layout.addRow(graphCut)
        group.collapsed = True
        self.scriptedEffect.addOptionsWidget(group)

    def setMRMLDefaults(self):
        """Set the parameters that are not set."""
        for name in ("Direction", "Device", "Registration", "Fusion", "Missing"):
            self.scriptedEffect.setParameterDefault(name, "auto")
        self.scriptedEffect.setParameterDefault("Preset", "balanced")
        for name, value in SWITCHES.items():
            self.scriptedEffect.setParameterDefault(name, value)
        self.scriptedEffect.setParameterDefault("Seed", 0)

    def settings(self):
        """
        The parameters as the pipeline takes them.

        :raises InputError: one of them has a value that there is not.
        """
        parameter = self.scriptedEffect.parameter
        return Settings(
            registration=parameter("Registration"),
            fusion=parameter("Fusion"),
            preset=parameter("Preset"),
            device=parameter("Device"),
            seed=self.scriptedEffect.integerParameter("Seed"),
            extrapolate=self.scriptedEffect.integerParameter("Extrapolate") != 0,
            graph_cut=self.scriptedEffect.integerParameter("GraphCut") != 0,
        )

    def setDevices(self, devices):
        """
        Offer only what can be computed on.

        :param devices: name of the device -> what it is, the fastest first.
        """
        box = self.boxes["Device"]
        for value in ("cuda", "mps"):
            index = box.findData(value)
            if value not in devices and index >= 0 and self.scriptedEffect.parameter("Device") != value:
                box.removeItem(index)

    def setDirections(self, planes):
        """
        Name the directions by the planes of this segmentation.

        :param planes: axis -> 'axial', 'coronal' or 'sagittal'.
        """
        box = self.boxes["Direction"]
        for axis, plane in planes.items():
            box.setItemText(box.findData(axis), f"{planeTitles()[plane]} ({axis})")

    def updateGUIFromMRML(self):
        """Show the parameters."""
        for name, box in self.boxes.items():
            wasBlocked = box.blockSignals(True)
            box.setCurrentIndex(box.findData(self.scriptedEffect.parameter(name)))
            box.blockSignals(wasBlocked)
        for name, box in self.checkBoxes.items():
            wasBlocked = box.blockSignals(True)
            box.checked = self.scriptedEffect.integerParameter(name) != 0
            box.blockSignals(wasBlocked)
        wasBlocked = self.seedSpinBox.blockSignals(True)
        self.seedSpinBox.value = self.scriptedEffect.integerParameter("Seed")
        self.seedSpinBox.blockSignals(wasBlocked)

    def updateMRMLFromGUI(self):
        """Keep what the controls show as parameters."""
        for name, box in self.boxes.items():
            if box.currentIndex >= 0:  # else it is a value that is not offered, set by a script or an older scene
                self.scriptedEffect.setParameter(name, box.currentData)
        for name, box in self.checkBoxes.items():
            self.scriptedEffect.setParameter(name, 1 if box.checked else 0)
        self.scriptedEffect.setParameter("Seed", self.seedSpinBox.value)

    def _addComboBox(self, name, toolTip):
        box = qt.QComboBox()
        box.objectName = f"SegmentEditorLabelProp{name}"
        box.setToolTip(toolTip)
        for value, title in choiceTitles()[CHOICES[name]].items():
            box.addItem(title, value)
        # A long entry must not make the panel wider.
        box.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        box.setMinimumContentsLength(6)
        policy = qt.QSizePolicy()
        policy.setHorizontalPolicy(qt.QSizePolicy.Expanding)
        box.setSizePolicy(policy)
        box.connect("currentIndexChanged(int)", self.updateMRMLFromGUI)
        self.boxes[name] = box
        return box

    def _addCheckBox(self, name, title, toolTip):
        box = qt.QCheckBox(title)
        box.objectName = f"SegmentEditorLabelProp{name}"
        box.setToolTip(toolTip)
        box.connect("toggled(bool)", self.updateMRMLFromGUI)
        self.checkBoxes[name] = box
        return box


def row(*widgets):
    """The widgets side by side."""
    layout = qt.QHBoxLayout()
    for widget in widgets:
        layout.addWidget(widget)
    return layout
