"""LabelPropLogic, and the panel's description, in plain Python."""

import builtins
import contextlib
import importlib.util
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import slicer
from samples import (
    OBLIQUE,
    SHAPE,
    add_scan,
    add_segmentation,
    draw,
    drawn_masks,
    noise,
    propagate_nearest,
    segment_array,
    set_geometry,
    tag,
)

import LabelProp
from LabelProp import LabelPropLogic, LabelPropTest  # noqa: F401  the self test is run here too
from LabelPropLib import checkpoint, cli, scene, verbs
from LabelPropLib.errors import Cancelled, InputError
from LabelPropLib.scene import slices
from LabelPropLib.settings import Settings

MODULE_FOLDER = Path(LabelProp.__file__).parent


@pytest.fixture
def drawn():
    """An oblique scan, and the segmentation of two structures drawn on two slices."""
    volume = add_scan(ijk_to_ras=OBLIQUE)
    return volume, add_segmentation(volume, drawn_masks())


def contents(node, volume):
    return {name: segment_array(node, name, volume) for name in node.GetSegmentation().GetSegmentIDs()}


def assert_unchanged(node, volume, before):
    for name, mask in contents(node, volume).items():
        np.testing.assert_array_equal(mask, before[name])


def test_one_call(drawn, nearest_slice_engine):
    volume, node = drawn
    seen = []
    report = LabelPropLogic().propagate(volume, node, progress=lambda *values: seen.append(values))
    assert report["labels"] == [1, 2]
    assert report["segments"] == {"1": "left", "2": "right"}
    assert seen[-1][0] == 1.0
    for name, mask in drawn_masks().items():
        result = segment_array(node, name, volume)
        np.testing.assert_array_equal(result[[2, 9]], mask[[2, 9]])
        assert result[2:10].any(axis=(1, 2)).all()


def test_options_reach_the_pipeline(drawn, monkeypatch):
    volume, node = drawn
    seen = []

    def propagate(annotation, settings, *rest):
        seen.append(settings)
        return propagate_nearest(annotation, settings)

    monkeypatch.setattr("LabelPropLib.pipeline.propagate", propagate)
    LabelPropLogic().propagate(volume, node)
    options = {"registration": "instance", "fusion": "distance", "preset": "fast", "device": "cpu", "seed": 3}
    options |= {"extrapolate": True, "directions": True, "checkpoint": "none"}
    LabelPropLogic().propagate(volume, node, **options, graphCut=False)
    assert seen == [Settings(), Settings(**options, graph_cut=False)]


def test_chosen_segments(drawn, nearest_slice_engine):
    volume, node = drawn
    report = LabelPropLogic().propagate(volume, node, segmentIds=["right"])
    assert list(report["segments"].values()) == ["right"]
    np.testing.assert_array_equal(segment_array(node, "left", volume), drawn_masks()["left"])
    assert segment_array(node, "right", volume)[5].any()


def test_uncertainty_and_directions(drawn, nearest_slice_engine):
    volume, node = drawn
    uncertainty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    LabelPropLogic().propagate(volume, node, directions=True, uncertaintyVolumeNode=uncertainty)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(uncertainty), np.full(SHAPE, 0.25, np.float32))
    for direction in ("up", "down"):
        added = slicer.util.getNode(f"Segmentation ({direction})")
        assert segment_array(added, "left", volume)[5].any()


def test_second_volume(drawn):
    """It reaches the engine: a second volume of noise is found out, and without one there is a single image."""
    volume, node = drawn
    bands = np.add.outer(50 * np.arange(SHAPE[1]), 30 * np.arange(SHAPE[2])) % 400
    scan = add_scan((bands + noise() // 100).astype(np.int16), OBLIQUE, "Bands")
    report = LabelPropLogic().propagate(scan, node, preset="fast", device="cpu", secondVolumeNode=volume)
    assert report["image_shares"][0] > 0.9
    assert "second image varies like noise" in report["messages"][-1]
    redrawn = add_segmentation(volume, drawn_masks())
    report = LabelPropLogic().propagate(volume, redrawn, preset="fast", device="cpu")
    assert report["image_shares"] == [1.0]


def test_cancelled_run_writes_nothing(drawn):
    volume, node = drawn
    before, count = contents(node, volume), slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(Cancelled):
        LabelPropLogic().propagate(volume, node, directions=True, isCancelled=lambda: True)
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert_unchanged(node, volume, before)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"axis": "z"}, "Unknown axis 'z'"),
        ({"missing": "maybe"}, "maybe"),
        ({"preset": "instant"}, "Unknown preset 'instant'"),
        ({"device": "abacus"}, "Unknown device 'abacus'"),
        ({"segmentIds": ["nobody"]}, "No segment nobody"),
    ],
)
def test_bad_input_writes_nothing(drawn, options, message):
    volume, node = drawn
    before, count = contents(node, volume), slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(InputError, match=message):
        LabelPropLogic().propagate(volume, node, **options)
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert_unchanged(node, volume, before)


def test_result_of_changed_segments_goes_into_a_new_segmentation(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    collected = logic.collect(volume, node)
    propagation = logic.compute(collected, Settings())
    redrawn = drawn_masks(planes=(3, 8))["left"]
    draw(node, "left", redrawn, volume)
    report = logic.write(collected, propagation)
    np.testing.assert_array_equal(segment_array(node, "left", volume), redrawn)
    added = slicer.util.getNode("Segmentation (propagated)")
    assert segment_array(added, "left", volume)[5].any()
    assert "were changed meanwhile" in report["messages"][-1]
    again = logic.propagate(volume, added)
    assert again["annotated_slices"] == [2, 9]


def test_result_of_a_removed_segmentation_goes_into_a_new_one(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    collected = logic.collect(volume, node)
    slicer.mrmlScene.RemoveNode(node)
    report = logic.write(collected, logic.compute(collected, Settings()))
    assert "segmentation was removed meanwhile" in report["messages"][-1]
    assert segment_array(slicer.util.getNode("Segmentation (propagated)"), "left", volume)[5].any()


def test_result_of_segments_that_became_surfaces_goes_into_a_new_segmentation(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    collected = logic.collect(volume, node)
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    logic.write(collected, logic.compute(collected, Settings()))
    assert segment_array(slicer.util.getNode("Segmentation (propagated)"), "left", volume)[5].any()


def test_what_was_found_is_no_input_of_the_next_run(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    reports = [logic.propagate(volume, node, directions=True) for _ in range(2)]
    reports.append(logic.propagate(volume, slicer.util.getNode("Segmentation (up)")))
    assert [report["annotated_slices"] for report in reports] == [[2, 9]] * 3


@pytest.mark.parametrize("left, right, reading", [((2, 6, 10), (4, 8), "unknown"), ((2, 5, 9), (2, 5), "absent")])
def test_missing_labels_are_read_as_before_by_the_next_runs(nearest_slice_engine, left, right, reading):
    """Also where a slice that was found of one segment alone has been corrected."""
    volume = add_scan()
    masks = {"left": drawn_masks(planes=left)["left"], "right": drawn_masks(planes=right)["right"]}
    node = add_segmentation(volume, masks)
    reports = [LabelPropLogic().propagate(volume, node) for _ in range(2)]
    correct(volume, node, [3])
    reports += [LabelPropLogic().propagate(volume, node) for _ in range(2)]
    assert [report["missing"] for report in reports] == [reading] * 4
    assert reports[-1]["annotated_slices"] == sorted({*left, *right, 3})


def correct(volume, node, planes):
    """Move the left structure on some planes; returns its mask."""
    mask = segment_array(node, "left", volume)
    for plane in planes:
        mask[plane] = np.roll(mask[plane], 2, axis=0)
    draw(node, "left", mask, volume)
    return mask


def test_corrected_slice_is_kept_by_the_next_run(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    logic.propagate(volume, node)
    corrected = correct(volume, node, [5])
    report = logic.propagate(volume, node)
    np.testing.assert_array_equal(segment_array(node, "left", volume)[5], corrected[5])
    assert report["annotated_slices"] == [2, 5, 9]
    assert report["messages"] == []


def test_corrected_slice_is_kept_after_a_run_along_another_axis(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    for axis in ("k", "j"):
        logic.propagate(volume, node, axis=axis)
    corrected = correct(volume, node, [5])
    logic.propagate(volume, node, axis="k")
    np.testing.assert_array_equal(segment_array(node, "left", volume)[5], corrected[5])


def test_edits_that_do_not_count_are_told(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    logic.propagate(volume, node)
    correct(volume, node, range(3, 9))
    (message,) = logic.propagate(volume, node)["messages"]
    assert message.startswith("6 of 6 slices of 'left' that were found earlier have changed since")


def test_bad_input_leaves_what_is_known_of_slices(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    logic.propagate(volume, node)
    correct(volume, node, [5])
    segment = node.GetSegmentation().GetSegment("left")
    names = "LabelProp.Roles", "LabelProp.Propagated"
    before = [tag(segment, name) for name in names]
    with pytest.raises(InputError, match="maybe"):
        logic.propagate(volume, node, missing="maybe")
    assert [tag(segment, name) for name in names] == before


def test_marks_of_slices_follow_a_cropped_scan(nearest_slice_engine):
    volume = add_scan(ijk_to_ras=OBLIQUE)
    node = add_segmentation(volume, {"left": drawn_masks(planes=(4, 9))["left"]})
    logic = LabelPropLogic()
    logic.propagate(volume, node)
    slices.set_role(node, "left", 0, "absent", [11])
    corrected = correct(volume, node, [6])
    place = OBLIQUE.copy()
    place[:3, 3] += 2 * OBLIQUE[:3, 2]
    scan = add_scan(noise()[2:], place, "Cropped")
    set_geometry(node, scan)
    report = logic.propagate(scan, node)
    assert report["annotated_slices"] == [2, 4, 7] and report["messages"] == []
    np.testing.assert_array_equal(segment_array(node, "left", scan)[4], corrected[6])
    assert scene.segments.read_roles(node.GetSegmentation().GetSegment("left")).of(0, "absent") == {9}


def test_marks_that_cannot_follow_the_geometry_are_given_up_and_that_is_told(drawn, nearest_slice_engine):
    volume, node = drawn
    logic = LabelPropLogic()
    logic.propagate(volume, node, segmentIds=["left"])
    set_geometry(node, add_scan(noise((20, 26, 26)), np.diag([0.8, 0.8, 3.0, 1.0])))
    before = segment_array(node, "left", volume)
    report = logic.propagate(volume, node, segmentIds=["left"], axis="k")
    assert "nothing is known any more of the slices of 'left' across k" in report["messages"][0]
    found = segment_array(node, "left", volume)
    np.testing.assert_array_equal(found & before, before)


@pytest.mark.parametrize("ids", [lambda: iter(["left"]), lambda: np.array(["left"])], ids=["iterator", "array"])
def test_segments_and_atlases_in_any_collection(drawn, monkeypatch, ids):
    volume, node = drawn
    atlas = add_segmentation(volume, drawn_masks())
    seen = []

    def propagate(annotation, settings, *rest):
        seen.append((annotation.labels, len(annotation.atlases)))
        return propagate_nearest(annotation, settings)

    monkeypatch.setattr("LabelPropLib.pipeline.propagate", propagate)
    LabelPropLogic().propagate(volume, node, segmentIds=ids(), atlases=zip([volume], [atlas]))
    assert seen == [((1,), 1)]


def test_missing_pytorch_is_explained(drawn, monkeypatch):
    volume, node = drawn
    real_import = builtins.__import__

    def import_without_torch(name, *arguments, **options):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", import_without_torch)
    before = contents(node, volume)
    with pytest.raises(ImportError, match="needs PyTorch, which cannot be loaded"):
        LabelPropLogic().propagate(volume, node)
    assert_unchanged(node, volume, before)


@pytest.mark.parametrize("agreed", [True, False])
def test_pytorch_is_installed_through_its_extension(monkeypatch, agreed):
    asked = {}

    class PyTorchUtilsLogic:
        def installTorch(self, **options):
            asked.update(options)
            return types.ModuleType("torch") if agreed else None

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    assert LabelProp.installPyTorchIfMissing()
    assert asked == {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert LabelProp.installPyTorchIfMissing() is agreed
    assert asked == {"askConfirmation": True, "torchVersionRequirement": ">=2.1"}


def test_failed_installation_of_pytorch_is_explained_and_not_begun_twice(monkeypatch):
    clicks = []

    class PyTorchUtilsLogic:
        def installTorch(self, **options):
            with pytest.raises(RuntimeError, match="is being installed"):
                LabelProp.installPyTorchIfMissing()  # as from a button while pip runs
            clicks.append(options)
            raise subprocess.CalledProcessError(1, "pip")

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="could not be installed: .*pip"):
            LabelProp.installPyTorchIfMissing()
    assert len(clicks) == 2


def test_missing_pytorch_extension_is_explained(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(RuntimeError, match="install it in the Extensions Manager"):
        LabelProp.installPyTorchIfMissing()


def test_pytorch_is_not_loaded_with_the_module():
    code = "import LabelProp, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=MODULE_FOLDER).returncode == 0


def test_module_loads_before_slicers_own_modules():
    """Slicer loads modules by name: LabelProp comes before Segmentations, whose logic is not there yet."""
    code = """
import slicer
slicer.mrmlScene = slicer.vtkMRMLScene()
for name in [name for name in vars(slicer) if name.startswith("vtkSlicer")]:
    delattr(slicer, name)
import LabelProp
"""
    subprocess.run([sys.executable, "-c", code], cwd=MODULE_FOLDER, check=True)


def test_sample():
    volume, node = LabelProp.addSampleThigh()
    collected = scene.collect(volume, node)
    assert collected.annotation.axis == 0
    assert len(collected.annotation.planes) == 3
    assert "sartorius" in collected.segment_ids.values()


def test_sample_is_shown(drawn, monkeypatch):
    layers, registered = {}, mock.Mock()
    monkeypatch.setattr(LabelProp, "addSampleThigh", lambda: drawn)
    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=registered))
    monkeypatch.setattr(slicer.util, "setSliceViewerLayers", layers.update)
    LabelProp.registerSampleData()
    assert registered.registerCustomSampleDataSource.call_args.kwargs["customDownloader"](None) == drawn
    assert layers == {"background": drawn[0], "fit": True}


# The panel


PANEL = ElementTree.parse(MODULE_FOLDER / "Resources" / "UI" / "LabelProp.ui")
WIDGETS = {widget.get("name"): widget.get("class") for widget in PANEL.iter("widget")}


def test_panel_has_a_widget_for_every_parameter():
    connected = [
        node.findtext("string") for node in PANEL.iter("property") if node.get("name") == "SlicerParameterName"
    ]
    assert sorted(connected) == sorted(LabelProp.LabelPropParameterNode.__annotations__)


def test_panel_has_the_widgets_that_the_module_speaks_of():
    used = set()
    for line in (MODULE_FOLDER / "LabelProp.py").read_text(encoding="utf-8").splitlines():
        used |= {part.split(".")[0].split("(")[0] for part in line.split("self.ui.")[1:]}
    assert used and used <= set(WIDGETS)


def test_panel_names_its_buttons_for_those_who_hear_them():
    for widget in PANEL.iter("widget"):
        if widget.get("class").endswith("Button"):
            texts = {node.get("name"): node.findtext("string") for node in widget.findall("property")}
            assert texts.get("accessibleName", texts["text"]) != "...", widget.get("name")


def test_panel_gives_every_selector_the_scene():
    connected = {connection.findtext("receiver") for connection in PANEL.iter("connection")}
    assert connected == {name for name, kind in WIDGETS.items() if kind == "qMRMLNodeComboBox"}


class Job:
    """In place of the background process: remembers what it was given."""

    running = False

    def submit(self, annotation, settings, checkpoint=None):
        self.running, self.annotation, self.settings, self.checkpoint = True, annotation, settings, checkpoint

    def cancel(self):
        self.running = False

    def forget(self):
        self.forgotten = True


class Command:
    """In place of a command line in the background: remembers what it was given."""

    running = False

    def start(self, arguments):
        self.running, self.arguments = True, arguments

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def panel(drawn, monkeypatch):
    """The panel as the application would set it up, with widgets that have properties only."""
    monkeypatch.setattr(slicer.util, "tryWithErrorDisplay", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(slicer.util, "errorDisplay", lambda text: None)
    volume, node = drawn
    widget = LabelProp.LabelPropWidget.__new__(LabelProp.LabelPropWidget)
    widget.logic = LabelPropLogic()
    widget.ui = types.SimpleNamespace(**{name: types.SimpleNamespace() for name in WIDGETS})
    widget._job = Job()
    widget._batch = Command()
    text = widget.ui.resultText
    text.plainText = ""
    text.appendPlainText = lambda line: setattr(text, "plainText", f"{text.plainText}\n{line}".lstrip("\n"))
    widget._parameterNode = LabelProp.LabelPropParameterNode()
    widget._parameterNode.inputVolume = volume
    widget._parameterNode.segmentation = node
    widget._parameterNode.uncertaintyVolume = None
    widget._parameterNode.secondVolume = None
    widget._showRunning(False)
    return widget


def finish(panel):
    panel._job.running = False
    panel._onDone(propagate_nearest(panel._job.annotation, panel._job.settings))


def test_panel_applies(panel, drawn):
    volume, node = drawn
    node.GetDisplayNode().SetSegmentVisibility("left", False)
    assert panel.ui.applyButton.text == "Apply"
    panel.onApplyButton()
    assert panel.ui.applyButton.text == "Cancel"
    assert panel._job.settings == Settings()
    panel._onProgress(0.5, "Registering", 30.0)
    assert panel.ui.progressBar.value == 50
    assert panel.ui.progressBar.format == "Registering · 30 s left"
    finish(panel)
    assert panel.ui.applyButton.text == "Apply"
    assert panel.ui.resultText.plainText == "0.0 s on cpu (copying 0.0 s)\n0.5 GB of memory at most"
    assert segment_array(node, "right", volume)[5].any()
    assert not segment_array(node, "left", volume)[5].any()


def test_panel_applies_again_after_a_correction(panel, drawn):
    volume, node = drawn
    panel.onApplyButton()
    finish(panel)
    corrected = segment_array(node, "left", volume)
    corrected[5] = np.roll(corrected[5], 2, axis=0)
    draw(node, "left", corrected, volume)
    panel.onApplyButton()
    (left,) = (label for label, name in panel._collected.segment_ids.items() if name == "left")
    complete = panel._job.annotation.complete[left]
    assert sorted(complete) == [2, 5, 9]
    np.testing.assert_array_equal(complete[5], corrected[5])


def test_panel_writes_uncertainty(panel):
    panel._parameterNode.uncertaintyVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    panel.onApplyButton()
    assert panel._job.settings.uncertainty
    finish(panel)
    assert (slicer.util.arrayFromVolume(panel._parameterNode.uncertaintyVolume) == 0.25).all()


def test_uncertainty_does_not_replace_a_scan(panel, drawn):
    volume, node = drawn
    fat = add_scan(noise()[::-1].copy(), OBLIQUE, "Fat")
    panel._parameterNode.secondVolume = fat
    for target in (volume, fat):
        panel._parameterNode.uncertaintyVolume = target
        with pytest.raises(InputError, match="would be replaced by the map of uncertainty"):
            panel.onApplyButton()
        with pytest.raises(InputError, match="would be replaced by the map of uncertainty"):
            LabelPropLogic().propagate(volume, node, secondVolumeNode=fat, uncertaintyVolumeNode=target)
    assert not panel._job.running
    with pytest.raises(InputError, match="scalar volume node"):
        LabelPropLogic().propagate(volume, node, uncertaintyVolumeNode=node)


def test_what_is_known_of_slices_survives_bad_input(drawn):
    volume, node = drawn
    logic = LabelPropLogic()
    slices.set_role(node, "left", 0, "absent", [5])
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    with pytest.raises(InputError, match="binary labelmap"):
        logic.noticeCorrections(volume, node)
    node.GetSegmentation().SetSourceRepresentationName("Binary labelmap")
    with pytest.raises(InputError, match="No segment gone"):
        logic.noticeCorrections(volume, node, ["gone"])
    assert scene.segments.read_roles(node.GetSegmentation().GetSegment("left")).of(0, "absent") == {5}


def test_panel_when_a_segment_is_removed_meanwhile(panel, drawn):
    """The result goes into a new segmentation, with the segment, and that is said."""
    volume, node = drawn
    panel.onApplyButton()
    node.GetSegmentation().RemoveSegment("left")
    finish(panel)
    assert "the result is in the new segmentation" in panel.ui.resultText.plainText
    (added,) = (n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n is not node)
    names = [added.GetSegmentation().GetSegment(n).GetName() for n in added.GetSegmentation().GetSegmentIDs()]
    assert names == ["left", "right"]


def test_panel_when_another_module_is_opened_while_pytorch_is_installed(panel, monkeypatch):
    chosen = panel._parameterNode
    monkeypatch.setattr(panel.logic, "getParameterNode", lambda: chosen)

    def leave():
        panel._parameterNode = None
        return True

    monkeypatch.setattr(LabelProp, "installPyTorchIfMissing", leave)
    panel.onApplyButton()
    assert panel._job.running


def test_panel_gives_the_second_volume(panel):
    panel._parameterNode.secondVolume = add_scan(noise()[::-1].copy(), OBLIQUE, "Fat")
    panel.onApplyButton()
    np.testing.assert_array_equal(panel._job.annotation.second_image, noise()[::-1])


@pytest.mark.parametrize("entered, used", [("", "auto"), (" none ", "none"), ("mine.pt", "mine.pt")])
def test_panel_takes_weights(panel, entered, used):
    panel._parameterNode.checkpoint = entered
    panel.onApplyButton()
    assert panel._job.settings.checkpoint == used


def test_panel_trains_and_saves_weights(panel, drawn):
    volume, node = drawn
    before = contents(node, volume)
    panel.train("mine")
    assert panel.ui.applyButton.text == "Cancel" and not panel.ui.trainButton.enabled
    assert panel._job.checkpoint == "mine.pt"
    panel._job.running = False
    panel._onDone(None)
    assert panel._parameterNode.checkpoint == "mine.pt"
    assert "mine.pt" in panel.ui.resultText.plainText and panel.ui.trainButton.enabled
    assert_unchanged(node, volume, before)


def test_panel_runs_a_table(panel):
    panel._parameterNode.batchTable = "table.csv"
    panel._parameterNode.batchFolder = "results"
    panel._parameterNode.preset = "fast"
    panel._parameterNode.extrapolate = True
    panel._parameterNode.graphCut = False
    panel.onBatchButton()
    command = panel._batch.arguments
    assert command[:4] == ["batch", "table.csv", "-o", "results"]
    options = cli.parser().parse_args(command)
    assert verbs.settings_of(options) == Settings(preset="fast", extrapolate=True, graph_cut=False)
    assert panel.ui.batchButton.text == "Cancel"
    panel.onBatchButton()
    assert panel._batch.cancelled and not panel.ui.batchButton.enabled
    panel._onBatchEnded(1)
    assert panel.ui.batchButton.enabled and panel.ui.batchButton.text == "Run table"
    assert "Not all volumes" in panel.ui.resultText.plainText


def test_panel_tells_of_the_table_and_of_the_segments(panel):
    panel._parameterNode.batchTable, panel._parameterNode.batchFolder = "table.csv", "results"
    text = panel.ui.resultText
    text.plainText = "what was done before"
    panel.onBatchButton()
    text.appendPlainText("one.nii.gz: failed")
    panel.onApplyButton()
    finish(panel)
    assert text.plainText.splitlines()[:2] == ["one.nii.gz: failed", "0.0 s on cpu (copying 0.0 s)"]
    panel.onApplyButton()
    panel._batch.running = False
    panel.onBatchButton()
    panel.onApplyButton()
    assert text.plainText.startswith("one.nii.gz: failed") and "Cancelled" in text.plainText
    panel._batch.running = False
    panel.onApplyButton()
    assert text.plainText == ""


def test_panel_needs_a_table_and_a_folder(panel):
    panel._parameterNode.batchTable = " "
    panel._parameterNode.batchFolder = "results"
    with pytest.raises(InputError, match="Choose a table and a folder"):
        panel.onBatchButton()


def test_panel_cancels(panel, drawn):
    volume, node = drawn
    before = contents(node, volume)
    panel.onApplyButton()
    panel.onApplyButton()
    assert not panel._job.running
    assert panel.ui.applyButton.text == "Apply"
    assert "Cancelled" in panel.ui.resultText.plainText
    assert_unchanged(node, volume, before)


def test_panel_cancels_when_the_scene_is_closed(panel, monkeypatch):
    monkeypatch.setattr(panel, "setParameterNode", lambda node: None)
    panel.onApplyButton()
    panel.onSceneStartClose(None, None)
    assert not panel._job.running and panel._job.forgotten


def test_panel_tells_what_failed(panel):
    panel.onApplyButton()
    panel._job.running = False
    panel._onFailed("memory", "There was not enough memory.")
    assert panel.ui.resultText.plainText == "There was not enough memory."
    assert panel.ui.applyButton.text == "Apply" and panel._collected is None


def edit_all_that_was_found(volume, node):
    mask = segment_array(node, "left", volume)
    drawn = drawn_masks()["left"].any(axis=(1, 2))[:, None, None]
    draw(node, "left", np.where(drawn, mask, np.roll(mask, 1, axis=1)), volume)


def test_panel_tells_what_was_noticed_although_the_run_is_cancelled(panel, drawn):
    panel.onApplyButton()
    finish(panel)
    edit_all_that_was_found(*drawn)
    panel.onApplyButton()
    panel.onApplyButton()
    assert "have changed since" in panel.ui.resultText.plainText


def test_panel_tells_what_was_noticed_although_the_result_cannot_be_written(panel, drawn):
    panel.onApplyButton()
    finish(panel)
    edit_all_that_was_found(*drawn)
    panel.onApplyButton()
    with mock.patch.object(panel.logic, "write", side_effect=MemoryError), pytest.raises(MemoryError):
        finish(panel)
    assert "have changed since" in panel.ui.resultText.plainText


def test_what_was_noticed_is_logged_where_a_run_gives_no_report(drawn, nearest_slice_engine, monkeypatch, caplog):
    volume, node = drawn
    LabelPropLogic().propagate(volume, node)
    edit_all_that_was_found(volume, node)
    monkeypatch.setattr("LabelPropLib.pipeline.propagate", mock.Mock(side_effect=Cancelled))
    with pytest.raises(Cancelled):
        LabelPropLogic().propagate(volume, node)
    assert "have changed since" in caplog.text


def test_marks_that_are_made_while_a_run_computes_stay_when_it_is_cancelled(drawn, monkeypatch):
    volume, node = drawn

    def mark_and_cancel(*arguments):
        slices.set_role(node, "left", 0, "absent", [10])
        raise Cancelled

    monkeypatch.setattr("LabelPropLib.pipeline.propagate", mark_and_cancel)
    with pytest.raises(Cancelled):
        LabelPropLogic().propagate(volume, node)
    assert slices.survey(volume, node, ["left"]).roles["left"][10] == "absent"


def test_panel_begins_with_a_scan(panel, drawn, monkeypatch):
    """A label map is a scalar volume, too, but its selector does not list it."""
    volume, node = drawn
    slicer.mrmlScene.RemoveNode(volume)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    slicer.mrmlScene.AddNode(volume)
    panel._parameterNode.inputVolume = panel._parameterNode.segmentation = None
    monkeypatch.setattr(panel, "setParameterNode", lambda _node: None)
    monkeypatch.setattr(panel.logic, "getParameterNode", lambda: panel._parameterNode)
    panel.initializeParameterNode()
    assert panel._parameterNode.inputVolume is volume
    assert panel._parameterNode.segmentation is node


def test_panel_holds_no_scan_when_nothing_runs(panel):
    for end in (lambda: finish(panel), panel.onApplyButton):
        panel.onApplyButton()
        assert panel._job.running and panel._collected is not None
        end()
        assert not panel._job.running and panel._collected is None


def test_panel_needs_a_volume_and_a_segmentation(panel):
    assert panel.ui.applyButton.enabled
    panel._parameterNode.segmentation = None
    panel._checkCanApply()
    assert not panel.ui.applyButton.enabled
    assert "Select a volume and a segmentation" in panel.ui.applyButton.toolTip


def test_report_as_text():
    report = {
        "messages": ["Label 3 ends between slices 4 and 8."],
        "device": "cpu",
        "seconds": {"registering": 12.34, "fusing": 1.0},
    }
    assert LabelProp.formatReport(report) == (
        "Label 3 ends between slices 4 and 8.\n13.3 s on cpu (registering 12.3 s, fusing 1.0 s)"
    )


def test_expected_quality_as_text():
    report = {
        "messages": [],
        "device": "cpu",
        "seconds": {"fusing": 1.0},
        "peak_memory_gb": 0.84,
        "segments": {"3": "Left"},
        "expected_mean_dice": 0.9,
        "annotated_slices": [4, 7],  # 7 for another segment
        "expected_dice": {"3": {"4": 1.0, "5": 0.95, "7": 0.85}},
        "suggested_slice": {"plane": 7, "gain": 0.01},
    }
    assert LabelProp.formatReport(report).splitlines() == [
        "Expected Dice: 0.90",
        "  Left: 0.90, least on slice 7: 0.85",
        "Best slice to draw next: 7",
        "1.0 s on cpu (fusing 1.0 s)",
        "0.8 GB of memory at most",
    ]


@pytest.mark.parametrize(
    "seconds, text",
    [(None, "Fusing"), (4.4, "Fusing · 4 s left"), (59, "Fusing · 59 s left"), (200, "Fusing · 3 min left")],
)
def test_progress_as_text(seconds, text):
    assert LabelProp.formatProgress("Fusing", seconds) == text


def test_weights_trained_from_the_console_are_used(tmp_path):
    volume_node, segmentation_node, _ = LabelProp.addTaperedTube()
    path, logic = tmp_path / "weights.pt", LabelPropLogic()
    logic.train(volume_node, segmentation_node, path, licence="CC0", preset="fast", device="cpu")
    _, metadata = checkpoint.load(path, "registration")
    assert metadata["licence"] == "CC0" and metadata["training"]["annotated_slices"] == 3
    report = logic.propagate(volume_node, segmentation_node, registration="pretrained", checkpoint=path, preset="fast")
    assert report["registration"] == "pretrained"


def test_weights_are_not_written_over_those_that_they_begin_with(tmp_path):
    volume_node, segmentation_node, _ = LabelProp.addTaperedTube()
    path = tmp_path / "weights.pt"
    path.write_bytes((checkpoint.SHIPPED_FOLDER / "registration.pt").read_bytes())
    with pytest.raises(InputError, match="in use as another file"):
        LabelPropLogic().train(volume_node, segmentation_node, path, checkpoint=str(path))


def test_weights_are_not_written_over_something_else(tmp_path):
    volume_node, segmentation_node, _ = LabelProp.addTaperedTube()
    with pytest.raises(InputError, match=r"\.pt"):
        LabelPropLogic().train(volume_node, segmentation_node, tmp_path / "weights.txt")
    assert list(tmp_path.iterdir()) == []
