"""The command line: files in, files out, exit status, and one line about what is wrong."""

import faulthandler
import functools
import gc
import importlib
import json
import locale
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from samples import (
    OBLIQUE,
    SHAPE,
    STRAIGHT,
    add_scan,
    add_segmentation,
    draw,
    drawn_masks,
    label_volume,
    noise,
    segment_array,
    tag,
)

import LabelPropLib
from LabelPropLib import cli, files, scene, verbs
from LabelPropLib.errors import InputError
from LabelPropLib.scene.storage import load_segmentation

LABELS = (7, 300)
INTERRUPTIONS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SCRIPT = Path(cli.__file__)


@pytest.fixture
def case(tmp_path):
    """A folder with an oblique scan and annotations of labels 7 and 300 on slices 2 and 9; returns the folder."""
    write(tmp_path / "image.nii.gz", noise())
    write(tmp_path / "annotations.nii.gz", label_volume(drawn_masks(), LABELS).astype(np.uint16))
    return tmp_path


def write(path, array, ijk_to_ras=OBLIQUE):
    files.write_volume(array, ijk_to_ras, path)


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def propagate(folder, *options, image="image.nii.gz", annotations="annotations.nii.gz", output="out.nii.gz"):
    """Exit status of `labelprop propagate` on files of the folder."""
    return cli.main(
        ["propagate", str(folder / image), str(folder / annotations), "-o", str(folder / output), *map(str, options)]
    )


def assert_refused(capsys, folder, message, *options, **names):
    """It ends with status 2 and one line that holds the message, and the folder is as it was."""
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert propagate(folder, *options, **names) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("labelprop: ")
    assert message in said.err
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before


def run_script(*arguments, **options):
    """The command in a process of its own, as a file, which is how Slicer runs it."""
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, **options)


# What comes out


def test_output_has_the_scans_grid_and_the_annotations_labels(case, nearest_slice_engine):
    assert propagate(case) == 0
    image, output = (sitk.ReadImage(str(case / name)) for name in ("image.nii.gz", "out.nii.gz"))
    np.testing.assert_allclose(output.GetOrigin(), image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(output.GetSpacing(), image.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(output.GetDirection(), image.GetDirection(), atol=1e-6)
    annotations, result = read(case / "annotations.nii.gz"), read(case / "out.nii.gz")
    assert result.dtype == np.uint16
    assert set(np.unique(result)) == {0, *LABELS}
    np.testing.assert_array_equal(result[[2, 9]], annotations[[2, 9]])
    assert result[2:10].any(axis=(1, 2)).all()
    assert sorted(path.name for path in case.iterdir()) == ["annotations.nii.gz", "image.nii.gz", "out.nii.gz"]


@pytest.mark.parametrize("suffix", files.VOLUME_SUFFIXES)
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.int64, np.float64])
def test_label_types_and_file_formats(tmp_path, nearest_slice_engine, suffix, kind):
    labels = {np.uint8: (1, 255), np.int16: (3, 32000)}.get(kind, (5, 70000))
    write(tmp_path / f"image{suffix}", noise())
    write(tmp_path / f"annotations{suffix}", label_volume(drawn_masks(), labels).astype(kind))
    names = {name: f"{name}{suffix}" for name in ("image", "annotations", "output")}
    assert propagate(tmp_path, **names) == 0
    result = read(tmp_path / f"output{suffix}")
    assert result.dtype.kind in "iu"
    assert set(np.unique(result)) == {0, *labels}
    np.testing.assert_array_equal(result[[2, 9]], read(tmp_path / f"annotations{suffix}")[[2, 9]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_is_found_or_given(tmp_path, nearest_slice_engine, axis):
    masks = drawn_masks(planes=(2, 9), axis=axis)
    write(tmp_path / "image.nii.gz", noise())
    write(tmp_path / "annotations.nii.gz", label_volume(masks, LABELS).astype(np.uint16))
    report = tmp_path / "report.json"
    for given in ("auto", "kji"[axis]):
        assert propagate(tmp_path, "--axis", given, "--report", report) == 0
        found = json.loads(report.read_text())
        assert found["axis"] == "kji"[axis]
        assert found["annotated_slices"] == [2, 9]


def test_suggestion_from_two_images(case, capsys):
    inputs = [str(case / name) for name in ("image.nii.gz", "annotations.nii.gz")]
    options = ["--second-image", inputs[0], "--preset", "fast", "--device", "cpu"]
    assert cli.main(["suggest", *inputs, *options]) == 0
    assert "Expected Dice on the slices that labels were carried to" in capsys.readouterr().out


def test_report(case, nearest_slice_engine):
    assert propagate(case, "--report", case / "report.json") == 0
    report = json.loads((case / "report.json").read_text())
    assert report["labels"] == list(LABELS)
    assert report["segments"] == {"7": "Label_7", "300": "Label_300"}
    assert report["device"] == "cpu"
    assert set(report["seconds"]) == {"reading", "loading", "copying"}


def test_time_and_memory_are_told(case, nearest_slice_engine, capsys):
    assert propagate(case) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "Labels 7, 300: 12 slices across k, annotated on 2, 9." in said.err
    assert "copying 0.0 s" in said.err
    assert "Peak memory: 0.50 GB." in said.err


def test_what_was_written_and_what_to_expect_of_it_are_told(case, capsys):
    options = ["--report", case / "report.json", "--preset", "fast", "--device", "cpu"]
    assert propagate(case, *options) == 0
    said, report = capsys.readouterr().err, json.loads((case / "report.json").read_text())
    assert f"Expected Dice on the slices that labels were carried to: {report['expected_mean_dice']:.3f}." in said
    for label, planes in report["expected_dice"].items():
        mean = np.mean([dice for dice in planes.values() if dice < 1])
        assert f"{mean:.3f} for {label}" in said and f"(Label_{label})" not in said
    assert f"Best slice to draw next: {report['suggested_slice']['plane']} across k, for" in said
    assert f"Written: {case / 'out.nii.gz'}, {case / 'report.json'}." in said


def test_directions_and_uncertainty(case, nearest_slice_engine):
    assert propagate(case, "--directions", "--uncertainty", case / "unsure.nrrd") == 0
    for name in ("out_up.nii.gz", "out_down.nii.gz"):
        np.testing.assert_array_equal(read(case / name), read(case / "out.nii.gz"))
    uncertainty = sitk.ReadImage(str(case / "unsure.nrrd"))
    assert uncertainty.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(
        uncertainty.GetOrigin(), sitk.ReadImage(str(case / "image.nii.gz")).GetOrigin(), atol=1e-5
    )
    assert (sitk.GetArrayFromImage(uncertainty) == 0.25).all()


@pytest.fixture
def asked(monkeypatch, nearest_slice_engine):
    """What the engine is asked for: (annotation, settings) of every run."""
    from LabelPropLib import pipeline

    engine, asked = pipeline.propagate, []

    def watched(annotation, settings, *arguments):
        asked.append((annotation, settings))
        return engine(annotation, settings, *arguments)

    monkeypatch.setattr(pipeline, "propagate", watched)
    return asked


def test_switches(case, asked):
    for options in ((), ("--extrapolate",), ("--no-graph-cut",)):
        assert propagate(case, *options) == 0
    switches = [(settings.extrapolate, settings.graph_cut) for _, settings in asked]
    assert switches == [(False, True), (True, True), (False, False)]


def test_scribbles(case, asked):
    strokes = np.zeros(SHAPE, np.uint16)
    strokes[5, 3, 4:9], strokes[4:8, 6, 6], strokes[6, 15, 2:7] = 7, 300, 255
    write(case / "scribbles.nii.gz", strokes)
    assert propagate(case, "--scribbles", case / "scribbles.nii.gz") == 0
    scribbles = asked[0][0].scribbles
    assert scribbles.keys() == {0, 7, 300}
    for label, value in ((7, 7), (300, 300), (0, 255)):
        np.testing.assert_array_equal(scribbles[label], np.argwhere(strokes == value))


@pytest.mark.parametrize("ijk_to_ras", [OBLIQUE, OBLIQUE @ np.diag([2, 2, 2, 1.0])], ids=["same grid", "coarser"])
def test_second_image(case, asked, ijk_to_ras):
    k, j, i = np.indices(SHAPE).astype(np.float32)
    linear = np.dot(np.linalg.inv(OBLIQUE) @ ijk_to_ras, np.stack([i, j, k, np.ones(SHAPE)]).reshape(4, -1))
    write(case / "fat.nii.gz", linear[:3].sum(axis=0).reshape(SHAPE).astype(np.float32), ijk_to_ras)
    assert propagate(case, "--second-image", case / "fat.nii.gz") == 0
    assert propagate(case) == 0
    np.testing.assert_allclose(asked[0][0].second_image, i + j + k, atol=1e-3)
    assert asked[1][0].second_image is None


def test_second_image_that_cannot_be_used(case, capsys):
    assert_refused(capsys, case, "no such file", "--second-image", case / "nowhere.nii.gz")
    write(
        case / "far.nii.gz",
        noise(),
        OBLIQUE @ np.diag([1, 1, 1, 0.0]) + np.array([[0, 0, 0, 900.0]] * 3 + [[0, 0, 0, 1]]),
    )
    assert_refused(capsys, case, "far.nii.gz", "--second-image", case / "far.nii.gz")
    write(case / "constant.nii.gz", np.full(SHAPE, 5, np.int16))
    assert_refused(capsys, case, "second image is constant", "--second-image", case / "constant.nii.gz")
    (case / "text.nii.gz").write_text("The patient lay still.")
    assert_refused(capsys, case, "text.nii.gz", "--second-image", case / "text.nii.gz")
    assert_refused(capsys, case, "in use", "--second-image", case / "out.nii.gz")


@pytest.mark.parametrize("kind", ["label volume", "segmentation"])
def test_atlases(case, asked, kind):
    finished = drawn_masks(planes=range(2, 10))
    write(case / "other.nii.gz", noise()[::-1], STRAIGHT)
    names = {"label volume": "finished.nii.gz", "segmentation": "finished.seg.nrrd"}
    write(case / names["label volume"], label_volume(finished, LABELS).astype(np.uint16), STRAIGHT)
    if kind == "segmentation":
        masks = dict(zip(("Label_7", "Label_300"), finished.values()))
        scene.storage.save_segmentation(add_segmentation(add_scan(), masks), case / names[kind])
    pair = ["--atlas", case / "other.nii.gz", case / names[kind]]
    assert propagate(case, *pair, *pair) == 0
    atlases = asked[0][0].atlases
    assert len(atlases) == 2
    for atlas in atlases:
        np.testing.assert_array_equal(atlas.image, noise()[::-1])
        np.testing.assert_array_equal(atlas.labels, label_volume(finished, LABELS))


def test_atlas_that_cannot_be_used(case, capsys):
    image, labels = case / "image.nii.gz", case / "annotations.nii.gz"
    assert_refused(capsys, case, "no such file", "--atlas", case / "nowhere.nii.gz", labels)
    assert_refused(capsys, case, "no such file", "--atlas", image, case / "nowhere.nii.gz")
    assert_refused(capsys, case, "expected 2 arguments", "--atlas", image)
    write(case / "elsewhere.nii.gz", read(labels), STRAIGHT)
    assert_refused(capsys, case, "resample one to the other's grid", "--atlas", image, case / "elsewhere.nii.gz")
    write(case / "strange.nii.gz", 5 * (read(labels) > 0).astype(np.uint16))
    assert_refused(capsys, case, "shares no segment", "--atlas", image, case / "strange.nii.gz")
    assert_refused(capsys, case, "in use", "--atlas", case / "out.nii.gz", labels)


def test_volume_of_one_time_point(case, nearest_slice_engine):
    image = sitk.ReadImage(str(case / "image.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([image]), str(case / "series.nrrd"))
    assert propagate(case, image="series.nrrd") == 0


# Segmentations of Slicer's


def save_segmentation(path, masks, cropped=False, ijk_to_ras=OBLIQUE):
    """A `.seg.nrrd` of the masks, with all that a segment carries; returns the tag that was set."""
    volume = add_scan(ijk_to_ras=ijk_to_ras)
    node = add_segmentation(volume, masks)
    segment = node.GetSegmentation().GetSegment("left")
    segment.SetName("Left muscle")
    segment.SetColor(0.25, 0.5, 0.75)
    segment.SetTag("Mine", "kept")
    if cropped:
        storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        storage.SetCropToMinimumExtent(True)
        storage.SetFileName(str(path))
        assert storage.WriteData(node)
    else:
        scene.storage.save_segmentation(node, path)


@pytest.mark.parametrize("cropped", [False, True])
def test_segmentation_in_and_out(case, nearest_slice_engine, cropped):
    masks = drawn_masks()
    save_segmentation(case / "drawn.seg.nrrd", masks, cropped)
    assert propagate(case, annotations="drawn.seg.nrrd", output="out.seg.nrrd") == 0
    node = load_segmentation(case / "out.seg.nrrd")
    segment = node.GetSegmentation().GetSegment("left")
    assert segment.GetName() == "Left muscle"
    np.testing.assert_allclose(segment.GetColor(), (0.25, 0.5, 0.75), atol=1e-6)
    assert tag(segment, "Mine") == "kept"
    assert tag(segment, "Segmentation.Status") == "inprogress"
    volume = add_scan(ijk_to_ras=OBLIQUE)
    for name, mask in masks.items():
        result = scene.labels_on_volume(node, {1: name}, volume, np.uint8) > 0
        np.testing.assert_array_equal(result[[2, 9]], mask[[2, 9]])
        assert result[2:10].any(axis=(1, 2)).all()


def test_slices_that_were_found_are_no_annotations_until_they_are_corrected(case, nearest_slice_engine):
    save_segmentation(case / "drawn.seg.nrrd", drawn_masks())
    assert propagate(case, annotations="drawn.seg.nrrd", output="first.seg.nrrd") == 0
    first, volume = load_segmentation(case / "first.seg.nrrd"), add_scan(ijk_to_ras=OBLIQUE)
    mask = segment_array(first, "left", volume)
    mask[5] = np.roll(mask[5], -1, axis=1)
    draw(first, "left", mask, volume)
    scene.storage.save_segmentation(first, case / "corrected.seg.nrrd")
    for name, expected in (("first", [2, 9]), ("corrected", [2, 5, 9])):
        before = (case / f"{name}.seg.nrrd").read_bytes()
        report = case / "report.json"
        assert propagate(case, "--report", report, annotations=f"{name}.seg.nrrd", output="second.seg.nrrd") == 0
        assert json.loads(report.read_text())["annotated_slices"] == expected
        assert (case / f"{name}.seg.nrrd").read_bytes() == before
    second = load_segmentation(case / "second.seg.nrrd")
    np.testing.assert_array_equal(segment_array(second, "left", volume)[5], mask[5])


def test_segmentation_keeps_overlap(case, nearest_slice_engine):
    masks = drawn_masks()
    masks["both"] = masks["left"] | masks["right"]
    save_segmentation(case / "drawn.seg.nrrd", masks)
    assert propagate(case, annotations="drawn.seg.nrrd", output="out.seg.nrrd") == 0
    node = load_segmentation(case / "out.seg.nrrd")
    volume = add_scan(ijk_to_ras=OBLIQUE)
    left, right, both = (scene.labels_on_volume(node, {1: name}, volume, np.uint8) > 0 for name in masks)
    assert left[5].any() and right[5].any()
    np.testing.assert_array_equal(left | right, both)


def test_directions_of_a_segmentation_with_a_segment_that_was_not_drawn(case, nearest_slice_engine):
    save_segmentation(case / "drawn.seg.nrrd", drawn_masks() | {"empty": np.zeros(SHAPE, bool)})
    assert propagate(case, "--directions", annotations="drawn.seg.nrrd") == 0
    np.testing.assert_array_equal(read(case / "out_up.nii.gz"), read(case / "out.nii.gz"))


def test_report_is_of_the_files_as_they_were_read(case, monkeypatch, nearest_slice_engine):
    before = (case / "annotations.nii.gz").stat().st_mtime_ns
    read_inputs = verbs.read_inputs

    def read_and_let_somebody_draw_on(options):
        inputs = read_inputs(options)
        os.utime(case / "annotations.nii.gz", ns=(before + 10**9, before + 10**9))
        return inputs

    monkeypatch.setattr(verbs, "read_inputs", read_and_let_somebody_draw_on)
    assert propagate(case, "--report", case / "report.json") == 0
    made_of = json.loads((case / "report.json").read_text())["made_of"]
    assert made_of["inputs"]["annotations"]["modified_ns"] == before


def test_overlap_needs_a_segmentation(case, capsys):
    masks = drawn_masks()
    masks["both"] = masks["left"] | masks["right"]
    save_segmentation(case / "drawn.seg.nrrd", masks)
    assert_refused(capsys, case, "left and both overlap", annotations="drawn.seg.nrrd")


def test_label_volume_to_segmentation_and_back(case, nearest_slice_engine):
    assert propagate(case) == 0
    assert propagate(case, output="out.seg.nrrd") == 0
    node = load_segmentation(case / "out.seg.nrrd")
    segmentation = node.GetSegmentation()
    labels = {segmentation.GetSegment(name).GetLabelValue(): name for name in segmentation.GetSegmentIDs()}
    assert labels == {7: "Label_7", 300: "Label_300"}
    volume = add_scan(ijk_to_ras=OBLIQUE)
    np.testing.assert_array_equal(scene.labels_on_volume(node, labels, volume, np.uint16), read(case / "out.nii.gz"))


def test_segmentation_to_label_volume_on_another_grid(case, nearest_slice_engine):
    coarse = OBLIQUE @ np.diag([2, 2, 1, 1.0])
    volume = add_scan(noise((12, 10, 12)), coarse, "Coarse")
    node = add_segmentation(volume, {})
    node.GetSegmentation().AddEmptySegment("left", "left")
    mask = np.zeros((12, 10, 12), bool)
    mask[[2, 9], 3:6, 4:8] = True
    draw(node, "left", mask, volume)
    scene.storage.save_segmentation(node, case / "coarse.seg.nrrd")
    assert propagate(case, annotations="coarse.seg.nrrd") == 0
    result = read(case / "out.nii.gz")
    assert result.shape == SHAPE
    assert 0.8 < result[5].sum() / (4 * mask[2].sum()) < 1.2


# Bad input


def test_missing_file(case, capsys):
    assert_refused(capsys, case, "nowhere.nii.gz: no such file", image="nowhere.nii.gz")
    assert_refused(capsys, case, "nowhere.seg.nrrd: no such file", annotations="nowhere.seg.nrrd")
    assert_refused(capsys, case, "no such file", "--scribbles", case / "nowhere.nii.gz")


def test_folder_for_a_file(case, capsys):
    (case / "folder.nii.gz").mkdir()
    assert_refused(capsys, case, "is a folder", image="folder.nii.gz")
    assert_refused(capsys, case, "is a folder", output="folder.nii.gz")


@pytest.mark.parametrize("name", ["text.nii.gz", "text.nrrd", "text.mha", "text.seg.nrrd"])
def test_file_that_is_no_image(case, capsys, name):
    (case / name).write_text("The patient lay still.")
    which = "annotations" if name.endswith(".seg.nrrd") else "image"
    assert_refused(capsys, case, name, **{which: name})


def test_nifti_with_another_one_of_its_name_unpacked_beside_it(case, nearest_slice_engine):
    """ITK alone would read the voxels of the other."""
    assert propagate(case, output="before.nii.gz") == 0
    for name in ("image.nii", "annotations.nii"):
        write(case / name, np.zeros(SHAPE, np.int16))
    assert propagate(case) == 0
    np.testing.assert_array_equal(read(case / "out.nii.gz"), read(case / "before.nii.gz"))


@pytest.mark.parametrize("name", ["out.NII.GZ", "out.Nii", "out.MHA", "out.NRRD", "out.nii.nii.gz", "out.img.nii"])
def test_output_with_an_ending_that_itk_does_not_write(case, nearest_slice_engine, name):
    assert propagate(case, output=name) == 0
    assert propagate(case) == 0
    (case / name).rename(case / f"again{name[3:].lower()}")
    np.testing.assert_array_equal(read(case / f"again{name[3:].lower()}"), read(case / "out.nii.gz"))


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_scan_of_large_integers(case, nearest_slice_engine, kind):
    write(case / "large.nrrd", (noise() - noise().min()).astype(kind))
    assert propagate(case, "--second-image", case / "large.nrrd", image="large.nrrd") == 0


def test_large_label_values_of_a_segmentation(case, nearest_slice_engine):
    labels = label_volume(drawn_masks(), (257_000, 300_000)).astype(np.uint32)
    node = scene.add_segmentation_of_labels(labels, add_scan(ijk_to_ras=OBLIQUE), "Large")
    scene.storage.save_segmentation(node, case / "large.seg.nrrd")
    assert propagate(case, annotations="large.seg.nrrd") == 0
    assert set(np.unique(read(case / "out.nii.gz"))) == {0, 257_000, 300_000}


@pytest.mark.parametrize("header", ["pair.hdr", "pair.img"])
def test_nifti_in_two_files(case, nearest_slice_engine, header):
    sitk.WriteImage(sitk.ReadImage(str(case / "image.nii.gz")), str(case / "pair.hdr"))
    assert propagate(case, image=header) == 0


@pytest.mark.parametrize("suffix", files.VOLUME_SUFFIXES)
def test_file_that_is_cut_off(case, capfd, suffix):
    write(case / f"cut{suffix}", noise())
    content = (case / f"cut{suffix}").read_bytes()
    (case / f"cut{suffix}").write_bytes(content[: len(content) // 2])
    assert propagate(case, image=f"cut{suffix}") == 2
    assert f"cut{suffix}: the file is damaged" in capfd.readouterr().err.splitlines()[-1]
    assert not (case / "out.nii.gz").exists()


@pytest.mark.parametrize(
    "shape, ijk_to_ras",
    [
        ((12, 20, 23), OBLIQUE),
        (SHAPE, OBLIQUE @ np.diag([1.1, 1, 1, 1])),
        (SHAPE, OBLIQUE @ np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
        (SHAPE, OBLIQUE @ np.diag([1, -1, 1, 1])),
        (SHAPE, STRAIGHT),
    ],
    ids=["size", "spacing", "origin", "flip", "direction"],
)
@pytest.mark.parametrize("which", ["annotations", "scribbles"])
def test_other_grid(case, capsys, shape, ijk_to_ras, which):
    write(case / "other.nii.gz", label_volume(drawn_masks(shape), LABELS).astype(np.uint16), ijk_to_ras)
    if which == "annotations":
        assert_refused(capsys, case, "resample one to the other's grid", annotations="other.nii.gz")
    else:
        assert_refused(capsys, case, "resample one to the other's grid", "--scribbles", case / "other.nii.gz")


def test_rounded_headers_are_the_same_grid(case, nearest_slice_engine):
    write(case / "rounded.nrrd", read(case / "annotations.nii.gz"), np.round(OBLIQUE, 4))
    assert propagate(case, annotations="rounded.nrrd") == 0


def test_no_annotated_slice(case, capsys):
    write(case / "empty.nii.gz", np.zeros(SHAPE, np.uint8))
    assert_refused(capsys, case, "No annotated slice", annotations="empty.nii.gz")


def test_every_slice_annotated(case, capsys):
    write(case / "full.nii.gz", np.ones(SHAPE, np.uint8))
    assert_refused(capsys, case, "nothing to propagate", annotations="full.nii.gz")


def test_several_time_points(case, capsys):
    image = sitk.ReadImage(str(case / "image.nii.gz"))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(case / "4d.nii.gz"))
    assert_refused(capsys, case, "4 dimensions", image="4d.nii.gz")


def test_colours(case, capsys):
    image = sitk.Cast(sitk.ReadImage(str(case / "image.nii.gz")), sitk.sitkUInt8)
    for name in ("rgb.nrrd", "rgb.nii.gz"):
        sitk.WriteImage(sitk.Compose(image, image, image), str(case / name))
        assert_refused(capsys, case, "3 components", image=name)
        assert_refused(capsys, case, "3 components", annotations=name)


def test_plane(case, capsys):
    sitk.WriteImage(sitk.GetImageFromArray(noise()[0]), str(case / "2d.nrrd"))
    assert_refused(capsys, case, "2 dimensions", image="2d.nrrd")


@pytest.mark.parametrize("name", ["nan.nrrd", "nan.nii.gz", "nan.nii", "nan.hdr"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_nan(case, capsys, name, kind):
    """In NIfTI ITK itself reads it as 0."""
    array = noise().astype(kind)
    array[3, 4, 5] = np.nan
    array[11, 19, 23] = np.inf
    write(case / name, array)
    assert_refused(capsys, case, "2 voxels that are NaN", image=name)


def test_nifti_of_a_tilted_gantry(case, capsys):
    write(case / "tilted.nii", noise())
    content = bytearray((case / "tilted.nii").read_bytes())
    content[252:256] = np.array([0, 1], "<i2").tobytes()  # no quaternion, but a matrix
    content[280:328] = np.array([[1, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 3, 0]], "<f4").tobytes()
    (case / "tilted.nii").write_bytes(content)
    assert_refused(capsys, case, "not at right angles", image="tilted.nii")


def test_nan_in_a_nifti_of_the_other_byte_order(case, capsys):
    array = np.ones(SHAPE, np.float32)
    array[3, 4, 5] = np.nan
    write(case / "nan.nii", array)
    content = (case / "nan.nii").read_bytes()
    numbers = np.frombuffer(content[352:], "<f4").astype(">f4").tobytes()
    fields = {0: "i4", 32: "i4", 40: "8i2", 70: "2i2", 76: "8f4", 108: "3f4", 252: "2i2", 256: "18f4"}
    header = bytearray(content[:352])
    for start, kind in fields.items():
        values = np.frombuffer(content, f"<{kind}", 1, start)
        header[start : start + values.nbytes] = values.byteswap().tobytes()
    (case / "nan.nii").write_bytes(header + numbers)
    assert_refused(capsys, case, "1 voxels that are NaN", image="nan.nii")


def test_constant(case, capsys):
    write(case / "constant.nii.gz", np.full(SHAPE, 5, np.int16))
    assert_refused(capsys, case, "constant", image="constant.nii.gz")


def test_single_slice(case, capsys):
    write(case / "one.nii.gz", noise((1, 20, 24)))
    write(case / "drawn.nii.gz", label_volume(drawn_masks((1, 20, 24), planes=(0,)), LABELS).astype(np.uint16))
    assert_refused(capsys, case, "single slice", image="one.nii.gz", annotations="drawn.nii.gz")


def test_scribbles_of_a_label_that_no_slice_bears(case, capsys):
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[5, 3, 4:9] = 8
    write(case / "scribbles.nii.gz", strokes)
    assert_refused(capsys, case, "Label_8", "--scribbles", case / "scribbles.nii.gz")


@pytest.mark.parametrize("value", [0.5, -1, np.nan, 2.0**31])
def test_values_that_are_no_labels(case, capsys, value):
    array = read(case / "annotations.nii.gz").astype(np.float64)
    array[array == 7] = value
    write(case / "odd.nrrd", array)
    assert_refused(capsys, case, "that are no labels", annotations="odd.nrrd")


def test_image_and_annotations_swapped(case, capsys):
    assert_refused(capsys, case, "look swapped", image="annotations.nii.gz", annotations="image.nii.gz")
    assert_refused(capsys, case, "given as the scan and as its labels", annotations="image.nii.gz")
    write(case / "ct.nii.gz", noise() - 1000)
    assert_refused(capsys, case, "perhaps a scan's", image="annotations.nii.gz", annotations="ct.nii.gz")


def test_many_labels_on_an_image_of_few_values_are_not_swapped(case, nearest_slice_engine):
    """An atlas of 200 labels, three voxels wide, which fill every plane of two axes, on a mask."""
    _, j, i = np.indices(SHAPE)
    atlas = (1 + j // 2 * 20 + i // 3).astype(np.uint16)
    atlas[1:-1] = 0
    write(case / "atlas.nii.gz", atlas)
    write(case / "mask.nii.gz", (noise() > 100).astype(np.uint8))
    assert propagate(case, image="mask.nii.gz", annotations="atlas.nii.gz") == 0


def test_output_folder_missing(case, capsys):
    assert_refused(capsys, case, "no such folder: create it first", output="results/out.nii.gz")
    assert_refused(capsys, case, "no such folder", "--report", case / "results" / "report.json")


def test_home_folder_that_the_shell_left_to_the_command(case, monkeypatch, nearest_slice_engine):
    monkeypatch.setenv("HOME", str(case))
    monkeypatch.setenv("USERPROFILE", str(case))  # on Windows
    assert propagate(case, "--report=~/report.json") == 0
    assert (case / "report.json").exists()
    options = cli.parser().parse_args(["train", "~/a.nii", "b.nii", "-o", "w.pt", "--checkpoint=~/v.pt"])
    assert (options.image, options.checkpoint) == (case / "a.nii", str(case / "v.pt"))


def test_output_folder_read_only(case, capsys):
    (case / "locked").mkdir()
    (case / "locked").chmod(0o500)
    try:
        if os.access(case / "locked", os.W_OK):
            pytest.skip("root may write anywhere")
        assert_refused(capsys, case, "cannot be written to", output="locked/out.nii.gz")
    finally:
        (case / "locked").chmod(0o700)


def test_output_folder_that_refuses_files(case, capsys, monkeypatch):
    def refuse(**options):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    assert_refused(capsys, case, "cannot be written to (Read-only file system): choose another folder")


def test_output_that_is_write_protected(case, capsys, monkeypatch):
    (case / "out.nii.gz").write_bytes(b"corrected by hand")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    assert_refused(capsys, case, "out.nii.gz is write-protected: give another name")


def test_output_through_a_link_into_a_folder_that_is_missing(case, capsys):
    (case / "out.nii.gz").symlink_to(case / "results" / "out.nii.gz")
    assert_refused(capsys, case, "results: no such folder: create it first")


@pytest.mark.parametrize("name", ["out.png", "out", "out.seg.nhdr", "out.mhd"])
def test_output_of_an_unwritable_kind(case, capsys, name):
    assert_refused(capsys, case, "cannot write this kind of file: choose one of .seg.nrrd, .nii.gz", output=name)
    if name != "out":
        assert_refused(capsys, case, "choose one of .nii.gz", "--uncertainty", case / name)


def test_picture_without_what_draws_it(case, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert_refused(capsys, case, "in sys.modules): pip install --upgrade matplotlib", "--picture", case / "out.png")


def test_settings_of_matplotlib_that_it_cannot_use_are_told():
    command = [sys.executable, "-c", "from LabelPropLib.machine import why_no_plots; print(why_no_plots())"]
    environment = {**os.environ, "MPLBACKEND": "one that is not installed"}
    told = subprocess.run(command, cwd=SCRIPT.parents[1], env=environment, capture_output=True, text=True)
    assert "'one that is not installed' is not a valid value for backend" in told.stdout


@pytest.mark.parametrize("name", ["image.nii.gz", "annotations.nii.gz"])
def test_output_in_the_place_of_an_input(case, capsys, name):
    assert_refused(capsys, case, "in use as another file", output=name)
    assert_refused(capsys, case, "in use as another file", "--uncertainty", case / "out.nii.gz")


def test_output_in_the_place_of_an_input_where_case_tells_no_names_apart(case, capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert_refused(capsys, case, "in use as another file", output="Image.nii.gz")


def test_on_windows_the_c_library_takes_paths_in_utf8(monkeypatch, capsys):
    chosen = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(locale, "setlocale", lambda *arguments: chosen.append(arguments))
    assert cli.main(["unheard-of"]) == 2
    assert chosen == [(locale.LC_CTYPE, ".utf8")]


def test_a_report_replaces_only_json_and_no_checkpoint(case, capsys):
    for name in ("image.nii.gz", "weights.pt"):
        assert_refused(capsys, case, "choose one of .json", "--report", case / name)
    (case / "weights.json").write_bytes(b"weights")
    weights = ["--checkpoint", case / "weights.json", "--report", case / "weights.json"]
    assert_refused(capsys, case, "in use as another file", *weights)
    inputs = [case / "image.nii.gz", case / "annotations.nii.gz"]
    for options in (weights, ["--report", case / "weights.pt"]):
        assert cli.main(["suggest", *map(str, inputs), *map(str, options)]) == 2
    assert (case / "weights.json").read_bytes() == b"weights" and not (case / "weights.pt").exists()


@pytest.mark.parametrize(
    "options",
    [["--axis", "z"], ["--missing", "no"], ["--fusion", "x"], ["--preset", "x"], ["--seed", "x"], ["--colour", "red"]],
)
def test_unknown_option_value(case, capsys, options):
    assert_refused(capsys, case, options[1] if options[0] != "--colour" else "--colour", *options)


def test_what_a_verb_does_not_know_is_looked_up_in_its_own_help(capsys):
    for arguments in (["evaluate", "a.nii.gz", "b.nii.gz", "--colour"], ["suggest", "a", "b", "--seed", "-1"]):
        assert cli.main(arguments) == 2
        assert f"see 'labelprop {arguments[0]} --help'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "one", "1.5"])
def test_numbers_that_are_none(capsys, text):
    for option, least in (("--seed", 0), ("--count", 1)):
        assert cli.main(["suggest", "image.nii.gz", "drawn.nii.gz", option, text]) == 2
        assert f"argument {option}: '{text}': give a whole number from {least}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train"], ["conquer"], [], ["propagate"], ["evaluate", "a.nii.gz"]])
def test_unknown_or_incomplete_command(capsys, arguments):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--help" in said


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["propagate", "--help"])
    assert ended.value.code == 0
    assert "--uncertainty" in capsys.readouterr().out


# How it ends


def test_failure_of_the_engine(case, capsys, monkeypatch):
    from LabelPropLib import pipeline

    def fail(*arguments):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(pipeline, "propagate", fail)
    (case / "out.nii.gz").write_bytes(b"before")
    assert propagate(case) == 1
    assert "out of luck" in capsys.readouterr().err
    assert (case / "out.nii.gz").read_bytes() == b"before"


def test_too_little_memory(case, capsys, monkeypatch):
    from LabelPropLib import pipeline

    def fail(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(pipeline, "propagate", fail)
    assert propagate(case) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("labelprop: There was not enough memory") and "preset 'fast'" in said


def test_failure_while_writing_leaves_all_outputs_as_they_were(case, capsys, monkeypatch, nearest_slice_engine):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.json, "dumps", fail)
    (case / "out.nii.gz").write_bytes(b"before")
    assert propagate(case, "--report", case / "report.json") == 1
    assert "No space left" in capsys.readouterr().err
    assert (case / "out.nii.gz").read_bytes() == b"before"
    assert sorted(path.name for path in case.iterdir()) == ["annotations.nii.gz", "image.nii.gz", "out.nii.gz"]


@pytest.mark.parametrize("suffix", [files.SEGMENTATION_SUFFIX, *files.VOLUME_SUFFIXES])
def test_a_file_that_was_cut_off_takes_no_place(case, capsys, monkeypatch, nearest_slice_engine, suffix):
    """On a full disk ITK and Slicer may write a part of it and say nothing."""

    def cut_off(write, node, path, **options):
        write(node, path, **options)
        os.truncate(path, os.path.getsize(path) - 40)
        return True

    for module, name in ((sitk, "WriteImage"), (scene.storage, "save_segmentation")):
        monkeypatch.setattr(module, name, functools.partial(cut_off, getattr(module, name)))
    (case / f"out{suffix}").write_bytes(b"before")
    names = {path.name for path in case.iterdir()}
    assert propagate(case, output=f"out{suffix}") == 1
    assert (
        capsys.readouterr().err
        == f"Copying\nlabelprop: out{suffix} could not be written: free some space on its disk.\n"
    )
    assert (case / f"out{suffix}").read_bytes() == b"before"
    assert {path.name for path in case.iterdir()} == names


def test_an_error_of_itk_while_writing_is_told_in_one_line(case, capsys, monkeypatch, nearest_slice_engine):
    def fail(*arguments, **options):
        raise RuntimeError("Exception thrown in SimpleITK:\nITK ERROR")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    assert propagate(case) == 1
    assert (
        capsys.readouterr().err == "Copying\nlabelprop: out.nii.gz could not be written: free some space on its disk.\n"
    )


@pytest.mark.parametrize("exception", [InputError, KeyboardInterrupt, RuntimeError])
def test_garbage_is_looked_for_as_before_afterwards(exception, monkeypatch, capsys):
    before, meanwhile = gc.get_threshold(), []

    def fail(options):
        meanwhile.append(gc.get_threshold())
        raise exception("failed")

    monkeypatch.setattr(verbs, "evaluate", fail)
    assert cli.main(["evaluate", "found.nii.gz", "true.nii.gz"]) != 0
    assert meanwhile[0][0] > before[0] and gc.get_threshold() == before


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_interrupted_run(case, capsys, monkeypatch, number):
    from LabelPropLib import pipeline

    monkeypatch.setattr(pipeline, "propagate", lambda *arguments: os.kill(os.getpid(), number) or time.sleep(10))
    handlers = [signal.getsignal(n) for n in INTERRUPTIONS]
    (case / "out.nii.gz").write_bytes(b"before")
    assert propagate(case) == 130
    assert capsys.readouterr().err == "labelprop: cancelled, nothing was written\n"
    assert (case / "out.nii.gz").read_bytes() == b"before"
    assert [signal.getsignal(n) for n in INTERRUPTIONS] == handlers


@pytest.mark.skipif(os.name == "nt", reason="needs SIGHUP")
def test_a_run_under_nohup_outlives_its_terminal(case, monkeypatch, nearest_slice_engine):
    from LabelPropLib import pipeline

    engine = pipeline.propagate
    monkeypatch.setattr(pipeline, "propagate", lambda *given: signal.raise_signal(signal.SIGHUP) or engine(*given))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert propagate(case) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("module", ["verbs", "demo"])
def test_what_crashes_when_it_is_interrupted_is_loaded_first(tmp_path, capsys, monkeypatch, module):
    class Interrupting:
        def find_spec(self, name, *rest):
            if name == f"LabelPropLib.{module}":
                signal.raise_signal(signal.SIGINT)

    importlib.import_module(f"LabelPropLib.{module}")
    monkeypatch.delattr(LabelPropLib, module)
    monkeypatch.delitem(sys.modules, f"LabelPropLib.{module}")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert cli.main(["demo", "-o", str(tmp_path / "demo")]) == 130
    assert capsys.readouterr().err == "labelprop: cancelled, nothing was written\n"
    assert f"LabelPropLib.{module}" in sys.modules and not list(tmp_path.iterdir())


def test_interrupted_while_files_take_their_places(case, capsys, monkeypatch, nearest_slice_engine):
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: signal.raise_signal(signal.SIGINT) or replace(*paths))
    report, names = case / "report.json", ["annotations.nii.gz", "image.nii.gz", "out.nii.gz", "report.json"]
    assert propagate(case, "--report", report) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"labelprop: cancelled, but written: {case / 'out.nii.gz'}, {report}"
    assert sorted(path.name for path in case.iterdir()) == names


@pytest.mark.parametrize("count", range(1, 6))
def test_interrupted_again_while_that_is_dealt_with(capsys, monkeypatch, count):
    """Ctrl+C as the terminal closes: it has hung there, waiting for itself."""
    calls = []

    def interrupt_again(frame, event, argument):
        if event == "call" and "interrupt" in (caller.f_code.co_name for caller, _ in traceback.walk_stack(frame)):
            calls.append(frame)
            if len(calls) == count:
                signal.raise_signal(signal.SIGINT)

    def interrupted(options):
        sys.setprofile(interrupt_again)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(verbs, "evaluate", interrupted)
    try:
        faulthandler.dump_traceback_later(60, file=sys.__stderr__, exit=True)
        assert cli.main(["evaluate", "found.nii.gz", "true.nii.gz"]) == 130
    finally:
        faulthandler.cancel_dump_traceback_later()
        sys.setprofile(None)


AS_THE_PROCESS_ENDS = """
import atexit, signal, sys
from LabelPropLib import cli
atexit.register(signal.raise_signal, signal.SIGINT)
sys.exit(cli.main(["nothing"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_interrupted_as_the_process_ends():
    ended = subprocess.run(
        [sys.executable, "-c", AS_THE_PROCESS_ENDS], cwd=SCRIPT.parents[1], capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGINT  # which shells call 130
    assert ended.stderr.startswith("labelprop: ") and ended.stderr.count("\n") == 1


SLOW_ENGINE = """
import sys, time
from LabelPropLib import cli, pipeline

def sleep(annotation, settings, progress, is_cancelled):
    progress(0.1, "Sleeping")
    time.sleep(60)

pipeline.propagate = sleep
sys.exit(cli.main())
"""


def test_interrupted_process_leaves_nothing(case):
    names = {path.name for path in case.iterdir()}
    command = [sys.executable, "-c", SLOW_ENGINE, "propagate", "image.nii.gz", "annotations.nii.gz", "-o", "out.nii.gz"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    with subprocess.Popen(command, cwd=case, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "Sleeping\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "labelprop: cancelled, nothing was written\n"
    assert process.returncode == 130
    assert {path.name for path in case.iterdir()} == names


def test_run_as_a_file(case):
    arguments = ("image.nii.gz", "annotations.nii.gz", "-o", "out.nii.gz", "--preset", "fast", "--device", "cpu")
    from_a_notebook = {**os.environ, "MPLBACKEND": "one that is not installed"}
    done = run_script("propagate", *arguments, "--picture", "out.png", cwd=case, env=from_a_notebook)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    annotations, result = read(case / "annotations.nii.gz"), read(case / "out.nii.gz")
    np.testing.assert_array_equal(result[[2, 9]], annotations[[2, 9]])
    assert set(np.unique(result)) == {0, *LABELS}


def test_run_as_a_file_with_bad_input(case):
    done = run_script("propagate", "image.nii.gz", "nowhere.nii.gz", "-o", "out.nii.gz", cwd=case)
    assert done.returncode == 2
    assert done.stderr == "labelprop: nowhere.nii.gz: no such file: check the path.\n"


def test_help_needs_no_library():
    """Nor does Ctrl+C, to be noticed, wait for one to be loaded."""
    code = "import LabelPropLib.cli, sys; sys.exit(bool({'numpy', 'slicer', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parents[1]).returncode == 0


def test_evaluate(case, capsys):
    assert cli.main(["evaluate", *[str(case / "annotations.nii.gz")] * 2]) == 0
    assert "1.0000" in capsys.readouterr().out
    assert cli.main(["evaluate", str(case / "nowhere.nii.gz"), str(case / "annotations.nii.gz")]) == 2


# Files


@pytest.mark.parametrize(
    "name, expected",
    [("out.nii.gz", "out_up.nii.gz"), ("a.b.seg.nrrd", "a.b_up.seg.nrrd"), ("out.nrrd", "out_up.nrrd")],
)
def test_ending(name, expected):
    assert files.with_ending(Path("folder", name), "_up") == Path("folder", expected)


def test_output_through_a_link(case, capsys, nearest_slice_engine):
    (case / "results").mkdir()
    (case / "results" / "true.nii.gz").write_bytes(b"")
    (case / "out.nii.gz").symlink_to(case / "results" / "true.nii.gz")
    assert propagate(case) == 0
    assert (case / "out.nii.gz").is_symlink()
    assert read(case / "results" / "true.nii.gz").any()
    (case / "loop.nii.gz").symlink_to(case / "loop.nii.gz")
    assert_refused(capsys, case, "loop.nii.gz: no such file", image="loop.nii.gz")
    assert propagate(case, output="loop.nii.gz") == 0
    assert read(case / "loop.nii.gz").any()


def test_half_a_pixel_within_the_plane_is_another_grid_however_thick_the_slices_are(case, capsys):
    moved = OBLIQUE.copy()
    moved[:3, 3] += OBLIQUE[:3, 0] / 3
    write(case / "other.nii.gz", read(case / "annotations.nii.gz"), moved)
    assert_refused(capsys, case, "resample one to the other's grid", annotations="other.nii.gz")


def test_nifti_without_its_last_voxels(case, capfd):
    write(case / "scan.nii", noise())
    (case / "scan.nii").write_bytes((case / "scan.nii").read_bytes()[:-100])
    assert_refused(capfd, case, "damaged or cut off", image="scan.nii")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_output_is_compressed(case, nearest_slice_engine, suffix):
    assert propagate(case, output=f"out{suffix}") == 0
    assert (case / f"out{suffix}").stat().st_size < read(case / f"out{suffix}").nbytes / 2


def test_an_output_is_prepared_beside_the_file_that_a_link_leads_to(tmp_path):
    """Which may be on another disk: only within one a file takes another's place at once."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.nrrd").symlink_to(tmp_path / "elsewhere" / "out.nrrd")
    with files.replacing([tmp_path / "out.nrrd"]) as staged:
        (written,) = staged.values()
        assert written.parent.parent == tmp_path / "elsewhere"
        files.write_volume(np.zeros((2, 2, 2), np.uint8), np.eye(4), written)


@pytest.mark.skipif(os.name == "nt", reason="has no such permissions")
def test_an_output_that_is_replaced_keeps_its_permissions(case, nearest_slice_engine):
    for mode in (0o600, 0o664):
        (case / "out.nii.gz").touch()
        (case / "out.nii.gz").chmod(mode)
        assert propagate(case) == 0
        assert (case / "out.nii.gz").stat().st_mode & 0o777 == mode


def test_streams_that_are_closed_are_no_hindrance(case, monkeypatch, nearest_slice_engine):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", None)
    assert propagate(case) == 0
    assert propagate(case, image="nowhere.nii.gz") == 2


def test_a_negative_seed_is_refused(case, capsys):
    assert_refused(capsys, case, "'-1': give a whole number from 0", "--seed", "-1")


@pytest.mark.parametrize("suffix", [".img", ".hdr"])
def test_pairs_of_floats_are_read_by_either_name(tmp_path, suffix):
    voxels = np.random.default_rng(0).normal(100, 30, (8, 32, 32)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "scan.img"))
    np.testing.assert_array_equal(files.voxels(files.read_volume(tmp_path / f"scan{suffix}")), voxels)
