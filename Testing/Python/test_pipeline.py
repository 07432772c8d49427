"""The whole pipeline on small volumes with known truth."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks
from scipy import ndimage

from LabelPropLib import pipeline
from LabelPropLib.annotation import BACKGROUND, annotate_from_label_volume
from LabelPropLib.candidates import Chains
from LabelPropLib.errors import Cancelled, InputError
from LabelPropLib.gaps import shared_gaps
from LabelPropLib.label_planes import LabelPlanes, far_ends
from LabelPropLib.memory import Memory
from LabelPropLib.pipeline import propagate
from LabelPropLib.preprocessing import prepare
from LabelPropLib.registration import instance
from LabelPropLib.report import messages, volume_ml
from LabelPropLib.settings import FUSIONS, Settings

SPACING = (3.0, 1.0, 1.0)


def tubes(slices=17, size=56):
    """A bright and a dark tube that drift and swell through the slices, on a textured ground: (image, labels)."""
    rows, columns = np.mgrid[:size, :size]
    labels = np.zeros((slices, size, size), np.int32)
    for k in range(slices):
        way = k / (slices - 1)
        first = (rows - 20 - 8 * way) ** 2 + (columns - 18 - 5 * np.sin(3 * way)) ** 2 < (7 + 3 * way) ** 2
        second = ((rows - 34 + 6 * way) / 1.4) ** 2 + (columns - 38 + 4 * way) ** 2 < (8 - 2 * way) ** 2
        labels[k][first] = 3
        labels[k][second] = 700
    noise = np.random.default_rng(0).normal(size=labels.shape)
    texture = ndimage.gaussian_filter(noise, (2, 2, 2)) * 4
    image = 100 * (labels == 3) - 60 * (labels == 700) + 25 * texture + 4 * noise
    return image.astype(np.float32), labels


def keep(labels, planes, axis=0):
    """`labels` on `planes` alone."""
    sparse = np.zeros_like(labels)
    for plane in planes:
        index = [slice(None)] * 3
        index[axis] = plane
        sparse[tuple(index)] = labels[tuple(index)]
    return sparse


def dice(first, second):
    return 2 * (first & second).sum() / max(1, first.sum() + second.sum())


@pytest.fixture(scope="module")
def volume():
    return tubes()


@pytest.fixture(scope="module")
def found(volume):
    image, labels = volume
    return propagate(annotate_from_label_volume(image, keep(labels, [0, 8, 16]), SPACING))


def test_better_than_copying_the_nearest_slice(volume, found):
    _, labels = volume
    nearest = np.stack([labels[min((0, 8, 16), key=lambda p: abs(p - k))] for k in range(17)])
    for label in (3, 700):
        assert dice(found.mask(label), labels == label) > dice(nearest == label, labels == label) + 0.03
        assert dice(found.mask(label), labels == label) > 0.93


def test_given_slices_come_back_voxel_for_voxel(volume, found):
    _, labels = volume
    (result,) = found.label_maps
    for plane in (0, 8, 16):
        np.testing.assert_array_equal(result[plane], labels[plane])


def test_report_tells_what_was_done(found):
    assert found.report["axis"] == "k"
    assert found.report["annotated_slices"] == [0, 8, 16]
    assert found.report["labels"] == [3, 700]
    assert found.report["missing"] == "absent"
    assert set(found.report["fusion"]) == {"3", "700"}
    assert {"preparing", "registering", "choosing", "fusing", "scribbling", "assessing"} == set(found.report["seconds"])


def test_missing_labels_are_spoken_of_where_there_are_some(volume, found):
    assert not any("missing" in message for message in found.report["messages"])
    image, labels = volume
    masks = {label: keep(labels, [0, 8, 16]) == label for label in (3, 700)}
    masks[700][16] = False
    for choice, reading in {"absent": "absent", "unknown": "not drawn"}.items():
        annotation = annotate_from_masks(image, masks, SPACING, 0, choice)
        (told,) = messages(annotation, Settings(), torch.ones(1))
        assert told.startswith(f"Labels missing on an annotated slice are read as {reading} there")
        for marked in ({"absent": {700: {16}}}, {"ignored": {700: {16}}}):
            annotation = annotate_from_masks(image, masks, SPACING, 0, choice, **marked)
            assert messages(annotation, Settings(), torch.ones(1)) == []


def test_labels_that_are_missing_between_their_own_slices_are_named(volume):
    masks = {label: keep(volume[1], [0, 8, 12, 16]) == 3 for label in (3, 5, 700)}
    masks[5][8] = False
    annotation = annotate_from_masks(volume[0], masks, SPACING, 0)
    _, told = messages(annotation, Settings(), torch.ones(1))
    assert told.endswith("read as not drawn where they are missing: label 5.")
    masks[3][4] = keep(volume[1], [8])[8] == 3
    *_, told = messages(annotate_from_masks(volume[0], masks, SPACING, 0), Settings(), torch.ones(1))
    assert told.endswith("for most are missing that should be there: slice 4.")


def test_labels_that_may_overlap_are_spoken_of(volume):
    masks = {label: np.zeros(volume[1].shape, bool) for label in (3, 700)}
    masks[3][[0, 16], 5:15, 5:15] = masks[700][[4, 8], 5:15, 5:15] = True
    annotation = annotate_from_masks(volume[0], masks, SPACING, 0, "unknown")
    of_segments = replace(annotation, names={3: "thigh", 700: "sartorius"})
    for drawn, outer, inner in ((annotation, "label 3", "label 700"), (of_segments, "'thigh'", "'sartorius'")):
        _, told = messages(drawn, Settings(), torch.ones(1))
        assert told.startswith(f"Within {outer} lies {inner}, but no slice was drawn for both")


def test_same_seed_same_voxels(volume, found):
    image, labels = volume
    again = propagate(annotate_from_label_volume(image, keep(labels, [0, 8, 16]), SPACING))
    np.testing.assert_array_equal(again.label_maps[0], found.label_maps[0])


@settings(max_examples=6)
@given(order=st.permutations([0, 1, 2]), flipped=st.sets(st.sampled_from([0, 1, 2])))
def test_axes_and_directions_do_not_matter(volume, found, order, flipped):
    image, labels = volume
    turned = [
        np.ascontiguousarray(np.flip(array, tuple(flipped)).transpose(order))
        for array in (image, keep(labels, [0, 8, 16]))
    ]
    spacing = tuple(SPACING[axis] for axis in order)
    result = propagate(annotate_from_label_volume(*turned, spacing)).label_maps[0]
    back = np.flip(result.transpose(np.argsort(order)), tuple(flipped))
    for label in (3, 700):
        assert dice(back == label, found.mask(label)) >= 0.99


@pytest.mark.parametrize("fusion", ["distance", "similarity", "appearance", "joint"])
def test_every_fusion_rule_finds_the_labels(volume, fusion):
    image, labels = volume
    result = propagate(annotate_from_label_volume(image, keep(labels, [0, 8, 16]), SPACING), Settings(fusion=fusion))
    assert set(result.report["fusion"].values()) == {fusion}
    for label in (3, 700):
        assert dice(result.mask(label), labels == label) > 0.9


def test_nothing_goes_beyond_the_outermost_slices_unless_asked(volume):
    image, labels = volume
    annotation = annotate_from_label_volume(image, keep(labels, [4, 12]), SPACING)
    (within,) = propagate(annotation).label_maps
    assert not within[:4].any() and not within[13:].any() and within[4:13].any(axis=(1, 2)).all()
    (beyond,) = propagate(annotation, Settings(extrapolate=True)).label_maps
    assert dice(beyond[2] > 0, labels[2] > 0) > 0.8 and dice(beyond[14] > 0, labels[14] > 0) > 0.8


def test_absence_may_be_marked_beyond_the_outermost_slices(volume):
    image, labels = volume
    masks = {1: keep(labels == 3, [4, 12])}
    annotation = annotate_from_masks(image, masks, SPACING, axis=0, absent={1: {0, 16}})
    result = propagate(annotation, Settings(preset="fast")).mask(1)
    assert result.any(axis=(1, 2)).tolist() == [4 <= plane <= 12 for plane in range(17)]


def test_a_single_annotated_slice_stays_alone_and_says_so(volume):
    image, labels = volume
    annotation = annotate_from_label_volume(image, keep(labels, [8]), SPACING)
    alone = propagate(annotation)
    np.testing.assert_array_equal(alone.label_maps[0], keep(labels, [8]))
    assert any("Only slice 8" in message for message in alone.report["messages"])
    beside = propagate(annotate_from_label_volume(image, keep(labels, [8, 9]), SPACING, 0), Settings(preset="fast"))
    assert any("between the annotated slices 8 to 9" in message for message in beside.report["messages"])
    carried = propagate(annotation, Settings(extrapolate=True))
    assert dice(carried.label_maps[0][6:11] > 0, labels[6:11] > 0) > 0.85


def test_a_label_on_one_side_alone_ends_where_the_image_says(volume):
    image, labels = volume
    ground = image - 100 * (labels == 3)
    for last in (4, 10):
        ended = labels.copy()
        ended[last + 1 :][ended[last + 1 :] == 3] = 0
        scan = (ground + 100 * (ended == 3)).astype(np.float32)
        result = propagate(annotate_from_label_volume(scan, keep(ended, [0, 16]), SPACING)).mask(3)
        end = np.flatnonzero(result.any(axis=(1, 2)))[-1]
        assert abs(end - last) <= 2


def test_unknown_is_not_background(volume):
    """Labels drawn each on its own slices are filled between their own slices, as if they were alone."""
    image, labels = volume
    sparse = {3: keep(np.where(labels == 3, 3, 0), [2, 8, 14]), 700: keep(np.where(labels == 700, 700, 0), [0, 5, 16])}
    masks = {label: drawn > 0 for label, drawn in sparse.items()}
    annotation = annotate_from_masks(image, masks, SPACING, axis=0)
    assert annotation.missing == "unknown"
    result = propagate(annotation)
    assert np.flatnonzero(result.mask(3).any(axis=(1, 2))).tolist() == list(range(2, 15))
    assert np.flatnonzero(result.mask(700).any(axis=(1, 2))).tolist() == list(range(0, 17))
    for label in (3, 700):
        assert dice(result.mask(label)[2:15], labels[2:15] == label) > 0.9
        for plane in annotation.complete[label]:
            np.testing.assert_array_equal(result.mask(label)[plane], masks[label][plane])


def test_overlapping_labels_may_overlap_in_between(volume):
    image, labels = volume
    core = np.stack([ndimage.binary_erosion(plane, iterations=3) for plane in labels == 3])
    masks = {1: keep(labels == 3, [0, 8, 16]), 2: keep(core, [0, 8, 16])}
    result = propagate(annotate_from_masks(image, masks, SPACING, axis=0))
    assert len(result.label_maps) == 2
    assert dice(result.mask(1), labels == 3) > 0.93
    assert (result.mask(2) & ~result.mask(1)).sum() < 0.02 * result.mask(2).sum()


def test_labels_that_exclude_each_other_do_so_when_a_third_one_overlaps_one_of_them(volume):
    """Not on a drawn slice, not in between, and not where a stroke says so."""
    image, labels = volume
    rows, columns = np.mgrid[: labels.shape[1], : labels.shape[2]]

    def disc(row, column, radius):
        return (rows - row) ** 2 + (columns - column) ** 2 < radius**2

    masks = {label: np.zeros(labels.shape, bool) for label in (1, 2, 3)}
    for plane in (0, 16):
        masks[1][plane], masks[2][plane], masks[3][plane] = disc(28, 16, 9), disc(28, 28, 9), disc(28, 42, 5)
    masks[2][8] = disc(28, 28, 9) | disc(28, 38, 7)  # bulges to where the third one is
    annotation = annotate_from_masks(image, masks, SPACING, axis=0, missing="unknown")
    assert annotation.overlapping() == {(1, 2)}
    stroke = np.argwhere(np.arange(17)[:, None, None] == np.where(disc(28, 26, 3), 4, -1))
    for scribbles in ({}, {3: stroke}):
        result = propagate(replace(annotation, scribbles=scribbles))
        assert len(result.label_maps) == 2 and (result.mask(1) & result.mask(2)).any()
        assert not (result.mask(2) & result.mask(3)).any()
        np.testing.assert_array_equal(result.mask(2)[8], masks[2][8])
    assert result.mask(3)[tuple(stroke.T)].all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_label_that_has_ended_stays_away_however_far_the_scan_goes_on(fusion):
    rows, columns = np.mgrid[:48, :56]
    labels = np.stack([(rows - 24) ** 2 + (columns - 28) ** 2 < (9 - 0.2 * k) ** 2 for k in range(30)])
    labels[13:] = False
    noise = np.random.default_rng(0).normal(size=labels.shape)
    image = 60 * labels + 60 * ndimage.gaussian_filter(noise, 1) + 3 * noise
    for turn in (1, -1):
        annotation = annotate_from_label_volume(image[::turn], keep(labels, [4, 8])[::turn], SPACING)
        result = propagate(annotation, Settings(extrapolate=True, fusion=fusion, preset="fast"))
        assert not result.mask(1)[::turn][15:].any()
        assert result.mask(1)[::turn][9:12].any(axis=(1, 2)).all()


@pytest.mark.parametrize("columns, width", [(31, 3.0), (28, 2.0), (33, 3.0)])
def test_labels_reach_the_border_of_a_plane_on_any_grid(columns, width):
    """Of 31 columns on 93 pixels the last one lies at pixel 92, and not a rounding error before it."""
    labels = np.zeros((11, 48, columns), np.int32)
    labels[:, 10:30, 2:] = 1
    image = 100.0 * labels + np.random.default_rng(0).normal(size=labels.shape)
    annotation = annotate_from_label_volume(image, keep(labels, [0, 10]), (3.0, 1.0, width))
    found = propagate(annotation, Settings(preset="fast")).mask(1)
    assert found[5, 12:28, -4:].all()


def test_a_label_that_fills_slices_is_the_same_upside_down(volume):
    image, labels = volume
    masks = {1: np.zeros(labels.shape, bool), 2: labels == 700}
    masks[1][[0, 16]], masks[1][8] = True, labels[8] == 3
    turned = {label: mask[:, ::-1, ::-1] for label, mask in masks.items()}
    fast = Settings(preset="fast", fusion="distance")
    found, again = (
        propagate(annotate_from_masks(i, {1: keep(m[1], [0, 8, 16])}, SPACING, axis=0), fast).mask(1)
        for i, m in ((image, masks), (image[:, ::-1, ::-1].copy(), turned))
    )
    assert (found != again[:, ::-1, ::-1]).mean() < 0.005


def test_what_one_label_is_drawn_on_does_not_matter_to_another(volume):
    """Drawn on slices of its own a label pulls on the registration as it does alone."""
    image, labels = volume
    masks = {3: keep(labels == 3, [0, 6, 12, 13]), 700: keep(labels == 700, [3, 9, 15])}
    together = annotate_from_masks(image, masks, SPACING, axis=0, missing="unknown")
    assert list(shared_gaps(together).items()) == [((0, 6), [3]), ((3, 9), [700]), ((6, 12), [3]), ((9, 15), [700])]
    stack = prepare(together, 160)
    ends = far_ends(together, stack, LabelPlanes(together, stack))
    assert ends.gaps == {(0, 6), (3, 9), (6, 12), (9, 15)}


def test_what_is_held_of_a_gap_is_given_up_before_the_next(volume, monkeypatch):
    """Scores are kept for strokes alone, and for a memory of runs."""
    image, labels = volume
    annotation = annotate_from_label_volume(image, keep(labels, [0, 5, 10, 16]), SPACING)
    cross, correct, crossings, held, scores = Chains.cross, pipeline.corrected, [], [], []

    def watched(self, gap):
        held.append(sum(crossing() is not None for crossing in crossings))
        crossing = cross(self, gap)
        crossings.append(weakref.ref(crossing))
        return crossing

    def corrected(annotation, stack, fusion, *rest, **options):
        scores.append(len(fusion.scores))
        return correct(annotation, stack, fusion, *rest, **options)

    def still(stack, *rest):
        return torch.zeros(len(stack.images) - 1, 2, *instance.field_size(stack.images))

    monkeypatch.setattr(Chains, "cross", watched)
    monkeypatch.setattr(pipeline, "corrected", corrected)
    monkeypatch.setattr(pipeline, "register", still)
    settings = Settings(preset="fast", fusion="similarity")
    stroked = replace(annotation, scribbles={3: np.array([[3, 20, 20]])})
    for memory, drawn in ((None, annotation), (Memory(), annotation), (None, stroked)):
        propagate(drawn, settings, memory=memory)
    assert scores == [0, 6, 6] and held[:3] == [0, 0, 0]


def test_a_stroke_beyond_the_drawn_slices_leaves_the_trust_in_both_images_as_it_is():
    image, labels = tubes()
    random = np.random.default_rng(9)
    second = image + random.normal(0, 60, image.shape)
    image[11:] = random.normal(0, 60, image[11:].shape)  # beyond, the second one is the better one
    scribbles = np.zeros_like(labels)
    scribbles[16, 26:30, 20] = 3
    shares = [
        propagate(
            annotate_from_label_volume(image, keep(labels, [0, 5, 10]), SPACING, 0, "auto", strokes, second),
            Settings(preset="fast"),
        ).report["image_shares"]
        for strokes in (None, scribbles)
    ]
    assert shares[0] == shares[1]


def test_a_stroke_that_agrees_with_what_was_extrapolated_changes_nothing(volume):
    image, labels = volume
    settings = Settings(preset="fast", extrapolate=True)
    before = propagate(annotate_from_label_volume(image, keep(labels, [4, 8]), SPACING), settings)
    furthest = np.argwhere(before.mask(3))[-1]
    assert furthest[0] > 10
    scribbles = np.zeros_like(labels)
    scribbles[tuple(furthest)] = 3
    annotation = annotate_from_label_volume(image, keep(labels, [4, 8]), SPACING, scribbles=scribbles)
    after = propagate(annotation, settings)
    np.testing.assert_array_equal(after.label_maps, before.label_maps)


@pytest.mark.parametrize(
    "error, devices, why",
    [
        (NotImplementedError("'aten::x' is not currently implemented for the MPS device."), "mps cpu", "cannot do all"),
        (TypeError("the MPS framework doesn't support float64."), "mps cpu", "cannot do all of it on this GPU"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "mps mps cpu", "The GPU's memory ran out"),
    ],
)
def test_what_a_gpu_cannot_do_is_done_on_the_processor(volume, monkeypatch, error, devices, why):
    image, labels = volume
    tried = []

    def compute(annotation, settings, clock, memory, plan):
        tried.append((plan.device.type, plan.why))
        if plan.device.type == "mps":
            raise error
        return plan

    monkeypatch.setattr(pipeline, "compute", compute)
    monkeypatch.setattr(pipeline.planner, "choose_device", lambda name: torch.device("mps"))
    propagate(annotate_from_label_volume(image, keep(labels, [0, 8]), SPACING))
    assert [device for device, _ in tried] == devices.split()
    assert why in tried[-1][1]


def test_intensities_beyond_all_reckoning_are_refused(volume):
    image, labels = volume
    with pytest.raises(InputError, match="too large to compute with"):
        annotate_from_label_volume(image / np.abs(image).max() * 3e38, keep(labels, [0, 8]), SPACING)


def test_scribbled_voxels_keep_their_label(volume):
    image, labels = volume
    scribbles = np.zeros_like(labels)
    scribbles[5, 30:33, 3:6] = 700
    scribbles[11, 24, 10:30] = 255
    scribbles[8, 30, 5] = 3  # contradicts a slice that is drawn completely: the slice wins
    annotation = annotate_from_label_volume(image, keep(labels, [0, 8, 16]), SPACING, scribbles=scribbles)
    (result,) = propagate(annotation).label_maps
    assert (result[5, 30:33, 3:6] == 700).all()
    assert not result[11, 24, 10:30].any()
    np.testing.assert_array_equal(result[8], labels[8])


def test_directions_and_uncertainty_on_request(volume):
    image, labels = volume
    drawn = keep(labels, [0, 8, 16])
    drawn[16] *= drawn[16] == 3  # so that label 700 ends, and nothing of it is carried down from there
    result = propagate(annotate_from_label_volume(image, drawn, SPACING), Settings(directions=True, uncertainty=True))
    assert set(result.directions) == {"up", "down"}
    for name, (direction,) in result.directions.items():
        assert dice(direction == 3, labels == 3) > 0.85
        assert (direction[9:16] == 700).any() == (name == "up") and (direction[1:8] == 700).any()
    assert result.uncertainty.shape == image.shape and result.uncertainty.dtype == np.float32
    assert 0 <= result.uncertainty.min() and 0.1 < result.uncertainty.max() <= 1
    assert not result.uncertainty[8].any()
    contour = ndimage.binary_dilation(result.mask(3)) & ~ndimage.binary_erosion(result.mask(3))
    middle = np.isin(np.arange(17), (4, 12))
    assert result.uncertainty[middle][contour[middle]].mean() > 3 * result.uncertainty[middle].mean()


def test_cancel_stops_the_work(volume):
    image, labels = volume
    asked = []

    def is_cancelled():
        asked.append(True)
        return len(asked) > 5

    with pytest.raises(Cancelled):
        propagate(annotate_from_label_volume(image, keep(labels, [0, 16]), SPACING), is_cancelled=is_cancelled)
    assert len(asked) == 6


def test_progress_rises_to_one(volume):
    image, labels = volume
    told = []
    annotation = annotate_from_label_volume(image, keep(labels, [0, 16]), SPACING)
    propagate(annotation, progress=lambda fraction, stage: told.append((fraction, stage)))
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert [stage for stage in dict.fromkeys(stage for _, stage in told)][:2] == ["Preparing", "Registering"]


@pytest.mark.parametrize("name", ["registration", "fusion", "preset", "device"])
def test_unknown_choices_are_refused(name):
    with pytest.raises(InputError, match=f"Unknown {name} 'psychic'"):
        Settings(**{name: "psychic"})


def test_large_scans_are_worked_on_at_a_coarser_grid_and_come_back_on_their_own(volume):
    image, labels = (np.repeat(np.repeat(array, 5, axis=1), 5, axis=2)[:9] for array in volume)
    annotation = annotate_from_label_volume(image, keep(labels, [0, 8]), (3.0, 0.2, 0.2))
    result = propagate(annotation, Settings(preset="fast"))
    assert result.label_maps[0].shape == image.shape
    for label in (3, 700):
        assert dice(result.mask(label), labels == label) > 0.9


@pytest.fixture(scope="module")
def contrasts():
    """Two contrasts of the tubes that show one of them each, and the labels."""
    _, labels = tubes()
    rng = np.random.default_rng(5)
    texture = ndimage.gaussian_filter(rng.normal(size=(2, *labels.shape)), (0, 2, 2, 2)) * 60
    first, second = (100 * (labels == label) + texture[n] for n, label in enumerate((3, 700)))
    return first.astype(np.float32), second.astype(np.float32), labels


def mean_dice(image, labels, second_image=None):
    sparse = keep(labels, [0, 8, 16])
    found = propagate(annotate_from_label_volume(image, sparse, SPACING, second_image=second_image))
    return np.mean([dice(found.mask(label), labels == label) for label in (3, 700)]), found.report


def test_a_second_image_shows_what_the_first_does_not(contrasts):
    first, second, labels = contrasts
    alone, _ = mean_dice(first, labels)
    both, report = mean_dice(first, labels, second)
    assert both > alone + 0.01
    assert report["image_shares"] == pytest.approx([0.5, 0.5], abs=0.15)


def test_a_second_image_of_noise_costs_nothing_and_is_told(volume, found):
    image, labels = volume
    noise = 1e4 * np.random.default_rng(7).normal(size=image.shape).astype(np.float32)
    alone = np.mean([dice(found.mask(label), labels == label) for label in (3, 700)])
    both, report = mean_dice(image, labels, noise)
    assert both > alone - 0.01
    assert report["image_shares"][1] < 0.05
    assert any("second image varies like noise" in message for message in report["messages"])
    swapped, report = mean_dice(noise, labels, image)
    assert swapped > alone - 0.01
    assert any("The image varies like noise" in message for message in report["messages"])


def test_the_same_image_twice_is_that_image(volume, found):
    image, labels = volume
    twice = propagate(annotate_from_label_volume(image, keep(labels, [0, 8, 16]), SPACING, second_image=3 * image + 5))
    for label in (3, 700):
        assert dice(twice.mask(label), found.mask(label)) > 0.99


@pytest.mark.parametrize(
    "second, message",
    [
        (np.zeros((17, 56, 56)), "second image is constant"),
        (np.full((17, 56, 56), np.nan), "second image has 53312 voxels that are NaN"),
        (np.random.default_rng(0).random((17, 56, 55)), "second image has the size"),
        (np.random.default_rng(0).random((56, 56)), "second image has 2 dimensions"),
    ],
)
def test_a_second_image_that_cannot_be_used(volume, second, message):
    image, labels = volume
    with pytest.raises(InputError, match=message):
        annotate_from_label_volume(image, keep(labels, [0, 8, 16]), SPACING, second_image=second)


@st.composite
def drawings(draw):
    """A small scan with rectangles drawn somewhere, strokes, marks of absence: arguments of `annotate_from_masks`."""
    shape = draw(st.tuples(*[st.integers(2, 14)] * 3))
    axis = draw(st.sampled_from([0, 1, 2]))
    height, width = (size for a, size in enumerate(shape) if a != axis)
    masks = {label: np.zeros(shape, bool) for label in draw(st.sets(st.sampled_from([1, 7, 300]), min_size=1))}
    for mask in masks.values():
        for plane in draw(st.sets(st.integers(0, shape[axis] - 1), min_size=1, max_size=4)):
            rows, columns = (sorted(draw(st.tuples(*[st.integers(0, size)] * 2))) for size in (height, width))
            np.moveaxis(mask, axis, 0)[plane, slice(*rows), slice(*columns)] = True
    voxels = st.lists(st.tuples(*(st.integers(0, size - 1) for size in shape)), min_size=1, max_size=8).map(np.array)
    return {
        "image": np.random.default_rng(draw(st.integers(0, 9))).normal(size=shape).astype(np.float32),
        "masks": masks,
        "spacing": draw(st.tuples(*[st.sampled_from([0.3, 1.0, 6.0])] * 3)),
        "axis": axis,
        "absent": draw(st.dictionaries(st.sampled_from(sorted(masks)), st.sets(st.integers(-2, 14), max_size=3))),
        "scribbles": draw(st.dictionaries(st.sampled_from([BACKGROUND, *masks]), voxels)),
    }


@settings(max_examples=40)
@given(drawings(), st.booleans(), st.booleans())
def test_whatever_is_drawn_is_kept_or_refused(drawing, extrapolate, uncertainty):
    try:
        annotation = annotate_from_masks(**drawing)
    except InputError:
        return
    chosen = Settings(preset="fast", extrapolate=extrapolate, uncertainty=uncertainty, suggestions=3)
    result = propagate(annotation, chosen)
    json.dumps(result.report, allow_nan=False)
    assert result.uncertainty is None or np.isfinite(result.uncertainty).all()
    for label in annotation.labels:
        planes = np.moveaxis(result.mask(label), annotation.axis, 0)
        for plane in annotation.known_planes(label):
            drawn = annotation.complete[label].get(plane, np.zeros(planes.shape[1:], bool))
            np.testing.assert_array_equal(planes[plane], drawn)


def test_volumes_are_told_in_millilitres(volume):
    annotation = annotate_from_label_volume(volume[0], keep(volume[1], [0, 8]), (3.0, 2.0, 0.5), axis=0)
    labels = np.zeros(volume[1].shape, np.uint16)
    labels[2, :10, :10], labels[3, :10, :20] = 3, 700
    over = np.zeros_like(labels)
    over[4, 0, :50] = 3
    assert volume_ml(annotation, [labels, over]) == {"3": 0.45, "700": 0.6}
    of_a_mouse = replace(annotation, spacing=(0.03, 0.02, 0.005))
    assert volume_ml(of_a_mouse, [labels, over]) == {"3": 4.5e-7, "700": 6e-7}
