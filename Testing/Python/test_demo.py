"""The phantom, the demo on it, and its picture."""

import sys
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from samples import annotate_from_masks
from scipy import ndimage

from LabelPropLib import cli, demo
from LabelPropLib.baselines import copy_nearest, fill_between_slices
from LabelPropLib.errors import InputError
from LabelPropLib.evaluation import score_labels
from LabelPropLib.phantom import CROSS_SECTIONS, DRAWN, make_phantom
from LabelPropLib.picture import choose_slices, draw_expected, save_doubtful_slice, save_picture
from LabelPropLib.scene import storage


@pytest.fixture(scope="module")
def phantom():
    return make_phantom()


def label_of(phantom, name: str) -> int:
    (label,) = [label for label, muscle in phantom.names.items() if muscle == name]
    return label


def slices_of(phantom, name: str) -> list[int]:
    return np.flatnonzero((phantom.labels == label_of(phantom, name)).any(axis=(1, 2))).tolist()


def test_phantom_is_another_one_with_another_seed(phantom):
    assert (make_phantom(seed=1).labels != phantom.labels).mean() > 0.01


def test_every_muscle_is_on_a_drawn_slice(phantom):
    assert set(phantom.names) == set(np.unique(phantom.labels)) - {0}
    assert set(phantom.names) == set(np.unique(phantom.labels[DRAWN])) - {0}
    assert len(phantom.names) == len(CROSS_SECTIONS) - 1  # one is in two parts


def test_muscles_end_start_and_split_inside(phantom):
    assert 5 < slices_of(phantom, "adductor longus")[0] < 24
    assert 24 < slices_of(phantom, "biceps femoris short head")[-1] < 42
    magnus = phantom.labels == label_of(phantom, "adductor magnus")
    large_parts = [
        sum(np.bincount(ndimage.label(plane)[0].ravel())[1:] > 60)
        for plane in magnus[slices_of(phantom, "adductor magnus")]
    ]
    assert large_parts[-1] == 1
    assert 2 in large_parts


def test_muscle_is_darker_than_the_fat_around_it(phantom):
    muscle = phantom.image[phantom.labels > 0]
    rim = ndimage.binary_dilation(phantom.labels > 0, np.ones((1, 5, 5))) & (phantom.labels == 0)
    assert np.median(muscle) < 0.7 * np.median(phantom.image[rim])


def test_outlines_alone_do_not_do(phantom):
    """Otherwise a method that looks at the image could not show what that is worth."""
    annotations = phantom.drawn_on(DRAWN)
    for filled in (copy_nearest(annotations, 0), fill_between_slices(annotations)):
        scores = score_labels(filled, phantom.labels, phantom.spacing, 0, DRAWN)
        assert 0.6 < np.mean([score.dice for score in scores.values()]) < 0.85


def test_demo(tmp_path, capsys, phantom):
    assert cli.main(["demo", "-o", str(tmp_path / "new" / "folder")]) == 0
    folder = tmp_path / "new" / "folder"
    printed = capsys.readouterr().out
    dice = {}
    for method in ("copy the nearest slice", "Fill between slices", "LabelProp"):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{method} ") and " took " not in line]
        dice[method] = float(line.removeprefix(method).split()[0])
    assert dice["LabelProp"] > max(dice["copy the nearest slice"], dice["Fill between slices"]) + 0.05

    volumes = {path.name: sitk.ReadImage(str(path)) for path in folder.glob("*.nii.gz")}
    assert set(volumes) == {"image.nii.gz", "annotations.nii.gz", "labelprop.nii.gz", "truth.nii.gz"}
    assert {image.GetSpacing() for image in volumes.values()} == {phantom.spacing[::-1]}
    for name, array in (("image", phantom.image), ("truth", phantom.labels)):  # the phantom is the same every time
        np.testing.assert_array_equal(sitk.GetArrayFromImage(volumes[f"{name}.nii.gz"]), array)
    found = sitk.GetArrayFromImage(volumes["labelprop.nii.gz"])
    np.testing.assert_array_equal(found[DRAWN], phantom.labels[DRAWN])
    scores = score_labels(found, phantom.labels, phantom.spacing, 0, DRAWN)
    assert np.mean([score.dice for score in scores.values()]) == pytest.approx(dice["LabelProp"], abs=6e-4)

    segmentation = storage.load_segmentation(folder / "labelprop.seg.nrrd").GetSegmentation()
    names = [segmentation.GetNthSegment(index).GetName() for index in range(segmentation.GetNumberOfSegments())]
    assert names == list(phantom.names.values())
    assert (matplotlib.image.imread(folder / "demo.png")[..., :3].std(axis=2) > 0.2).any()  # there are coloured lines


def test_demo_needs_a_folder_to_write_to(tmp_path):
    taken = tmp_path / "file"
    taken.touch()
    with pytest.raises(InputError, match="cannot be made"):
        demo.run(taken / "folder")


@pytest.mark.parametrize("name", ["image.nii.gz", "demo.png", "labelprop.seg.nrrd"])
def test_demo_replaces_only_a_demo(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{name} would be replaced, but was not written by a demo"):
        demo.run(tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"
    for written in (demo.SEGMENTATION, *(f"{volume}.nii.gz" for volume in demo.VOLUMES)):
        with pytest.raises(InputError):
            demo.check_free(tmp_path)
        (tmp_path / written).touch()
    demo.check_free(tmp_path)


@given(st.sets(st.integers(0, 29), min_size=1, max_size=12), st.integers(8, 12))
def test_pictures_show_drawn_slices_and_others_between(drawn, wanted):
    found = np.zeros((30, 4, 4), np.uint8)
    found[min(drawn) : max(drawn) + 1] = 1
    chosen = choose_slices(found, 0, sorted(drawn), wanted)
    assert chosen == sorted(set(chosen))
    assert {min(drawn), max(drawn)} <= set(chosen)
    assert len(chosen) == min(wanted, max(drawn) - min(drawn) + 1)
    if len(drawn) <= wanted:
        assert drawn <= set(chosen)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_picture_of_any_axis(tmp_path, axis):
    labels = np.zeros((12, 20, 25), np.uint8)
    labels[4:8, 6:15, 8:20] = 5
    save_picture(tmp_path / "picture.png", np.random.default_rng(0).random(labels.shape), labels, (3, 1, 1), axis, [])
    assert matplotlib.image.imread(tmp_path / "picture.png").shape[1] > 1000


def test_a_demo_that_fails_leaves_no_nodes(tmp_path, monkeypatch, phantom):
    def fail(self, *nodes, **options):
        raise InputError("enough")

    monkeypatch.setattr(demo, "make_phantom", lambda: phantom)
    monkeypatch.setattr(demo.LabelPropLogic, "propagate", fail)
    with pytest.raises(InputError, match="enough"):
        demo.run(tmp_path)
    for kind in ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode"):
        assert demo.slicer.mrmlScene.GetNumberOfNodesByClass(kind) == 0


def test_a_demo_that_cannot_be_written_leaves_nothing(tmp_path, capsys, monkeypatch, phantom):
    """The next one would take what is there for something else, and refuse to replace it."""

    def fail(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(demo, "draw_picture", fail)
    small = replace(phantom, image=phantom.image[:3], labels=phantom.labels[:3])
    _, segmentation_node = demo.add_to_scene(small, small.labels)
    with pytest.raises(OSError, match="No space"):
        demo.write(tmp_path, small, small.labels, small.labels, segmentation_node)
    assert not any(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    demo.write(tmp_path, small, small.labels, small.labels, segmentation_node)
    assert "(and no picture: import of matplotlib.figure halted" in capsys.readouterr().out


def test_small_picture_tells_what_is_expected_of_the_slice(tmp_path, monkeypatch):
    labels = np.zeros((12, 20, 25), np.uint8)
    labels[4:8, 6:15, 8:20] = 5
    drawn = np.zeros(labels.shape, bool)
    drawn[[4, 7]] = labels[[4, 7]] == 5
    annotation = annotate_from_masks(np.random.default_rng(0).random(labels.shape), {5: drawn}, (3, 1, 1), 0)
    report = {"expected_dice": {"5": {"4": 0.9, "6": 0.75}}, "segments": {"5": "a muscle of quite a long name"}}
    texts = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *rest, **more: texts.extend(figure.findobj(Text)))
    save_doubtful_slice(tmp_path / "picture.png", annotation, [labels], report, (False, False))
    said = {text.get_text() for text in texts}
    assert {"k = 6", "expected Dice 0.750", "a muscle of qu…e a long name 0.75"} <= said and "drawn" not in said


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("against_view", [(False, False), (True, False), (False, True)])
def test_small_picture_shows_the_patient_upright(tmp_path, axis, against_view):
    """What is bright lies in the first rows and columns, which are shown at the top and the left, or opposite."""
    image = np.zeros((20, 20, 20), np.float32)
    bright = np.moveaxis(image, axis, 0)
    bright[:, 2:8, 2:8] = 1
    masks = {1: np.zeros(image.shape, bool)}
    np.moveaxis(masks[1], axis, 0)[[4, 8], 5:15, 5:15] = True
    annotation = annotate_from_masks(image, masks, (1, 1, 1), axis)
    save_doubtful_slice(tmp_path / "picture.png", annotation, [masks[1].astype(np.uint8)], {}, against_view)
    shown = matplotlib.image.imread(tmp_path / "picture.png")[40:-40, 40:-40, :3].min(axis=2) > 0.8
    quarters = [[half.sum() for half in np.array_split(rows, 2, axis=1)] for rows in np.array_split(shown, 2)]
    assert np.unravel_index(np.argmax(quarters), (2, 2)) == (int(against_view[0]), int(against_view[1]))


@pytest.mark.parametrize("missing", ["absent", "unknown"])
def test_small_picture_calls_drawn_what_is_drawn_of_all_labels(tmp_path, monkeypatch, missing):
    masks = {label: np.zeros((12, 20, 25), bool) for label in (1, 2)}
    masks[1][[2, 5, 9], 2:8, 2:8] = True
    masks[2][[2, 9], 12:18, 2:8] = True
    annotation = annotate_from_masks(np.random.default_rng(0).random((12, 20, 25)), masks, (3, 1, 1), 0, missing)
    report = {"expected_dice": {"1": {"5": 1.0, "6": 0.9}, "2": {"5": 0.5, "6": 0.9}}}
    texts = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *rest, **more: texts.extend(figure.findobj(Text)))
    found = masks[1] + 2 * masks[2].astype(np.uint8)
    save_doubtful_slice(tmp_path / "picture.png", annotation, [found], report, (False, False))
    said = {text.get_text() for text in texts}
    assert "k = 5" in said and ("drawn" in said) == (missing == "absent")


def test_names_of_segments_are_no_formulas_and_fit_in_the_small_picture(tmp_path):
    figure = Figure(figsize=(2.56, 2.56), dpi=100)
    long = ("cyst ($5_$)", "Quadratus lumborum left", "MUSCULUS GLUTEUS MAXIMUS RIGHT", "Vertebral body L5")
    names = {str(n): name for n, name in enumerate(long, 1)}
    draw_expected(figure, {n: (1, 1, 1) for n in range(1, 5)}, names, {n: 0.91 for n in range(1, 5)})
    figure.savefig(tmp_path / "picture.png")
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= 256
