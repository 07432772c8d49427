"""Dice and contour distances: against sums by hand and by brute force, over axes, slices left out, and from files."""

import io
import sys
from unittest import mock

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from LabelPropLib import cli, evaluation
from LabelPropLib.errors import InputError
from LabelPropLib.evaluation import contour, contour_distances, run, score_labels

SPACING = (4.0, 1.5, 0.5)
MASKS = arrays(bool, (6, 7))


def square(rows: slice, columns: slice, shape=(20, 20)) -> np.ndarray:
    """A mask of one rectangle."""
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def random_labels(seed: int) -> np.ndarray:
    """A (K, J, I) label volume of blobs that differ from slice to slice."""
    return np.kron(np.random.default_rng(seed).integers(0, 3, (6, 4, 5)), np.ones((1, 4, 3))).astype(np.uint8)


def write(path, array, spacing=SPACING):
    """A label volume as a file."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path))
    return path


def test_equal_volumes_score_perfectly():
    labels = random_labels(0)
    for score in score_labels(labels, labels, SPACING, axis=0).values():
        assert (score.dice, score.assd, score.hd95, score.worst_slice_dice) == (1, 0, 0, 1)


def test_labels_are_compared_within_their_boxes(monkeypatch):
    """To look for each in the whole volume takes longer than to measure it."""
    reference = np.zeros((9, 30, 40), np.int32)
    reference[1:5, 2:9, 3:9], reference[6:8, 20:29, 30:39] = 70_000, 3
    predicted = np.roll(reference, 1, axis=2)
    compared = mock.Mock(side_effect=evaluation.score_mask)
    monkeypatch.setattr(evaluation, "score_mask", compared)
    scores = score_labels(predicted, reference, SPACING, axis=0)
    assert [call.args[0].shape for call in compared.call_args_list] == [(2, 9, 10), (4, 7, 7)]
    assert {label: score.dice for label, score in scores.items()} == pytest.approx({3: 8 / 9, 70_000: 5 / 6})


def test_shifted_square():
    reference = np.zeros((3, 20, 20), np.uint8)
    reference[:, 5:15, 5:15] = 7
    score = score_labels(np.roll(reference, 2, axis=1), reference, (4.0, 1.5, 1.5), axis=0)[7]
    assert score.dice == pytest.approx(0.8)
    assert score.hd95 == pytest.approx(3.0)  # two pixels of 1.5 mm, at the two sides that moved
    assert 0 < score.assd < 3


def test_missing_slice_costs_its_radius():
    reference = np.zeros((2, 20, 20), np.uint8)
    reference[:, 5:14, 5:14] = 1
    predicted = reference.copy()
    predicted[1] = 0
    score = score_labels(predicted, reference, (4.0, 2.0, 2.0), axis=0)[1]
    assert score.hd95 == pytest.approx(10.0)  # the middle of 9 x 9 pixels of 2 mm is 5 pixels from outside
    assert score.worst_slice_dice == 0
    assert score.dice == pytest.approx(2 / 3)


@given(MASKS, MASKS)
def test_contour_distances_are_those_between_all_pairs(predicted, reference):
    distances = contour_distances(predicted, reference, (1.5, 0.5))
    if predicted.any() and reference.any():
        pairs = cdist(np.argwhere(contour(predicted)) * (1.5, 0.5), np.argwhere(contour(reference)) * (1.5, 0.5))
        np.testing.assert_allclose(np.sort(distances), np.sort([*pairs.min(0), *pairs.min(1)]))
    else:
        assert len(distances) == contour(predicted | reference).sum()


@given(st.permutations(range(3)))
def test_axes_of_the_array_do_not_matter(order):
    predicted, reference = random_labels(1), random_labels(2)
    expected = score_labels(predicted, reference, SPACING, axis=0)
    spacing = tuple(SPACING[axis] for axis in order)
    moved = score_labels(predicted.transpose(order), reference.transpose(order), spacing, axis=order.index(0))
    for label, score in expected.items():
        assert moved[label].dice == pytest.approx(score.dice)
        assert moved[label].assd == pytest.approx(score.assd)
        assert moved[label].hd95 == pytest.approx(score.hd95)


def test_slices_left_out_do_not_count():
    predicted, reference = random_labels(1), random_labels(2)
    spoiled = predicted.copy()
    spoiled[[1, 4]] = 9
    assert score_labels(spoiled, reference, SPACING, 0, [1, 4]) == score_labels(
        predicted, reference, SPACING, 0, [1, 4]
    )
    assert score_labels(spoiled, reference, SPACING, 0) != score_labels(predicted, reference, SPACING, 0)


def test_labels_of_a_few_voxels_are_not_scored():
    reference = np.zeros((4, 20, 20), np.uint8)
    reference[:, :3, :3] = 1
    reference[0, 10:15, 10:15] = 2
    assert list(score_labels(reference, reference, SPACING, axis=0)) == [1]


def test_command_prints_a_line_for_each_label(tmp_path, capsys):
    reference = random_labels(2)
    reference[1:5, :3, :3] = 5  # too small on each slice for one of them to be the worst
    annotations = np.zeros_like(reference)
    annotations[[0, 5]] = reference[[0, 5]]
    paths = [
        write(tmp_path / f"{name}.nii.gz", array)
        for name, array in {"found": random_labels(1), "reference": reference, "annotations": annotations}.items()
    ]
    assert cli.main(["evaluate", str(paths[0]), str(paths[1]), "--annotations", str(paths[2])]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    scores = score_labels(random_labels(1), reference, SPACING, 0, [0, 5])
    for label, score in scores.items():
        worst = "-" if label == 5 else f"{score.worst_slice_dice:.3f}"
        assert lines[str(label)] == [f"{score.dice:.4f}", f"{score.assd:.2f}", f"{score.hd95:.2f}", worst]
    means = [np.mean([getattr(score, name) for score in scores.values()]) for name in ("dice", "assd", "hd95")]
    assert lines["mean"] == [f"{means[0]:.4f}", *(f"{mean:.2f}" for mean in means[1:])]
    assert "4 of 6 slices across k, without the annotated ones" in printed


def test_names_of_segments_tell_what_is_compared(tmp_path, capsys):
    """Slicer numbers segments anew when it saves them: one value is another structure in another file."""
    image = sitk.ReadImage(str(write(tmp_path / "reference.nii.gz", random_labels(2))))
    for name, segments in {"found": {1: "Psoas links", 2: "Niere"}, "other": {1: "Psoas links", 2: "Milz"}}.items():
        for n, (label, segment) in enumerate(segments.items()):
            image.SetMetaData(f"Segment{n}_LabelValue", str(label))
            image.SetMetaData(f"Segment{n}_Name", segment)
        sitk.WriteImage(image, str(tmp_path / f"{name}.seg.nrrd"))
    for reference, said in (("reference.nii.gz", "Niere"), ("other.seg.nrrd", "Niere / Milz")):
        run(tmp_path / "found.seg.nrrd", tmp_path / reference)
        ends = [
            line[49:].strip() for line in capsys.readouterr().out.splitlines() if line.split()[:1] in (["1"], ["2"])
        ]
        assert ends == ["Psoas links", said]


def test_labels_that_the_reference_lacks_are_named(tmp_path, capsys):
    predicted = random_labels(2)
    predicted[3, 2:5, 2:5] = 77
    run(write(tmp_path / "found.nii.gz", predicted), write(tmp_path / "reference.nii.gz", random_labels(2)))
    assert f"Not scored, in {tmp_path / 'found.nii.gz'} only: label 77." in capsys.readouterr().out


def test_letters_that_stdout_cannot_show_are_escaped(tmp_path, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # as of a file on Windows
    monkeypatch.setattr(sys, "stdout", shown)
    predicted = random_labels(2)
    predicted[3, 2:5, 2:5] = 77
    paths = write(tmp_path / "膝.nii.gz", predicted), write(tmp_path / "reference.nii.gz", random_labels(2))
    assert cli.main(["evaluate", *map(str, paths)]) == 0
    shown.flush()
    assert rb"\u819d.nii.gz only: label 77." in shown.buffer.getvalue()


def test_rounding_of_a_header_does_not_choose_the_axis(tmp_path, capsys):
    labels = np.zeros((12, 14, 16), np.uint8)
    labels[3:9, 4:10, 5:11] = 1
    for spacing in ((1.0, 1.0, 1.0), (1.0, 1.0000001, 1.0), (0.0004, 0.0003, 0.0003)):
        path = write(tmp_path / "labels.nii.gz", labels, spacing)
        run(path, path)
        assert "12 of 12 slices across k" in capsys.readouterr().out
    path = write(tmp_path / "labels.nii.gz", labels, (0.0002, 0.0004, 0.0001))
    run(path, path)
    assert "14 of 14 slices across j" in capsys.readouterr().out


def test_bad_input_is_explained(tmp_path):
    reference = write(tmp_path / "reference.nii.gz", random_labels(2))
    empty = write(tmp_path / "empty.nii.gz", np.zeros_like(random_labels(2)))
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path / "nothing.nii.gz", reference)
    with pytest.raises(InputError, match="resample"):
        run(write(tmp_path / "smaller.nii.gz", random_labels(1)[1:]), reference)
    with pytest.raises(InputError, match="resample"):
        run(write(tmp_path / "thinner.nii.gz", random_labels(1), (3.0, 1.5, 0.5)), reference)
    with pytest.raises(InputError, match="export the segmentation as a label volume on the other's grid"):
        run(write(tmp_path / "cropped.seg.nrrd", random_labels(1)[1:]), reference)
    with pytest.raises(InputError, match="no label"):
        run(reference, empty)
    with pytest.raises(InputError, match="No annotated slice"):
        run(reference, reference, empty)
    layer = sitk.ReadImage(str(reference))
    sitk.WriteImage(sitk.Compose(layer, layer), str(tmp_path / "overlapping.seg.nrrd"))
    with pytest.raises(InputError, match="a segmentation in 2 layers: export it as a label volume"):
        run(tmp_path / "overlapping.seg.nrrd", reference)


def test_a_thin_spur_does_not_count_as_hausdorff_distance():
    reference = np.zeros((1, 40, 40), np.uint8)
    reference[0, 5:35, 5:35] = 1
    predicted = reference.copy()
    predicted[0, 20, 35:40] = 1
    score = score_labels(predicted, reference, SPACING, axis=0)[1]
    assert score.hd95 == 0 and score.assd > 0


def test_a_slice_of_a_few_pixels_is_not_the_worst_one():
    reference = np.zeros((2, 20, 20), np.uint8)
    reference[0, 5:15, 5:15] = reference[1, 5:8, 5:8] = 1
    predicted = reference.copy()
    predicted[1] = 0
    assert score_labels(predicted, reference, SPACING, axis=0)[1].worst_slice_dice == 1


def test_the_axis_is_that_of_the_annotations_and_labels_not_scored_are_named(tmp_path, capsys):
    reference = random_labels(2)
    reference[0, 0, :3] = 9
    annotations = np.zeros_like(reference)
    annotations[:, [0, 15]] = reference[:, [0, 15]]
    run(
        write(tmp_path / "found.nii.gz", random_labels(1)),
        write(tmp_path / "reference.nii.gz", reference),
        write(tmp_path / "annotations.nii.gz", annotations),
    )
    said = capsys.readouterr().out
    assert "14 of 16 slices across j, without the annotated ones." in said
    assert "Not scored, under 30 voxels there: label 9." in said


def test_annotations_that_hold_found_slices_are_refused(tmp_path):
    labels = random_labels(1)
    write(tmp_path / "labels.nii.gz", labels)
    image = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    image.SetMetaData("Segment0_Tags", "LabelProp.Roles:k:ignored=3|LabelProp.Propagated:k 3=12|")
    sitk.WriteImage(image, str(tmp_path / "found.seg.nrrd"))
    with pytest.raises(InputError, match="found, not drawn"):
        run(tmp_path / "labels.nii.gz", tmp_path / "labels.nii.gz", tmp_path / "found.seg.nrrd")
