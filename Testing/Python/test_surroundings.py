"""What is around a stroke: how far, which labels are concerned, and the terms of the odds that it is wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from LabelPropLib.annotation import BACKGROUND, annotate_from_label_volume
from LabelPropLib.label_planes import DISTANCE_LIMIT, SURROUND
from LabelPropLib.labelmaps import FusedScore
from LabelPropLib.preprocessing import prepare
from LabelPropLib.surroundings import (
    NOT_SCRIBBLED,
    REACH,
    SIGHT,
    SMOOTHING,
    TERMS,
    USUAL_SHARPNESS,
    Standing,
    Window,
    around_strokes,
    at,
    drawn_volume,
    length_of,
    next_to,
    path_lengths,
)

SHAPE = (11, 30, 32)
PLANES = (0, 5, 10)
SCORES = {1: 1.0, 2: 2.0, 3: -1.0}
millimetres = st.tuples(*[st.floats(0.5, 4)] * 3)


def labels_side_by_side():
    """(K, J, I): label 1 on the left, label 2 right of it, label 3 on some of the planes."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 8:22, 8:14] = 1
    labels[:, 8:22, 14:20] = 2
    labels[:6, 8:22, 20:24] = 3
    return labels


def annotate(spacing=(2.0, 1.0, 1.0), shared=False):
    """Planes 0, 5 and 10 drawn; on 10 label 3 is absent. shared: labels 1 and 2 have a drawn voxel in common."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[list(PLANES)] = labels_side_by_side()[list(PLANES)]
    image = 50.0 * labels_side_by_side() + np.random.default_rng(0).normal(size=SHAPE)
    annotation = annotate_from_label_volume(image.astype(np.float32), drawn, spacing)
    if shared:
        annotation.complete[2][5][10, 13] = True
    return annotation


def window_of(annotation, votes=(), first=0):
    """A volume from a plane on, with the same score everywhere: label 2 before label 1, label 3 nowhere.

    votes: of labels.
    """
    stack = prepare(annotation, 200)
    size = (9, *stack.size)
    fused = [
        FusedScore(
            label,
            range(1, 10),
            tuple(slice(0, length) for length in stack.size),
            torch.full(size, score),
            torch.full((2, *size), label in votes),
        )
        for label, score in SCORES.items()
    ]
    return Window((slice(first, SHAPE[0]), *(slice(0, length) for length in SHAPE[1:])), annotation, stack, fused)


def stroke_of(label, voxel=(3, 15, 16)):
    strokes = np.full(SHAPE, NOT_SCRIBBLED, np.int32)
    strokes[voxel] = label
    return strokes


def test_scores_and_votes_come_from_a_coarser_grid():
    annotation = annotate()
    stack = prepare(annotation, 16)
    assert stack.size < stack.shape
    columns = torch.arange(float(stack.size[1])).expand(9, *stack.size)
    votes = torch.stack([columns < 4, columns >= 4])
    part = FusedScore(1, range(1, 10), tuple(slice(0, length) for length in stack.size), columns, votes)
    place, values, votes = part.on_volume(stack, (slice(2, 4), slice(0, 30), slice(0, 32)))
    assert place == (slice(2, 4), *stack.box) and values.shape == votes.shape[1:] == (2, *stack.shape)
    np.testing.assert_allclose(values[0, 0], np.linspace(0, stack.size[1] - 1, stack.shape[1]), atol=1e-4)
    np.testing.assert_array_equal(votes[0], values < 3.5)
    np.testing.assert_array_equal(votes[1], values > 3.5)


def test_a_label_stands_against_the_best_of_those_that_exclude_it():
    window = window_of(annotate())
    inside = 3, 15, 16
    one, two, background = (window.standing(label) for label in (1, 2, BACKGROUND))
    assert one.margin[inside] == -1 and one.rival[inside] == 2 and one.missed[inside] == 1
    assert two.margin[inside] == 1 and two.rival[inside] == 1
    assert background.margin[inside] == -2 and background.rival[inside] == background.missed[inside] == 2
    assert one.margin[0, 0, 0] == -DISTANCE_LIMIT  # nothing was fused there


def test_labels_that_share_voxels_do_not_exclude_each_other():
    assert window_of(annotate()).excluded_by(1) == [2, 3]
    shared = window_of(annotate(shared=True))
    assert shared.excluded_by(1) == [3] and shared.excluded_by(2) == [3] and shared.excluded_by(3) == [1, 2]
    assert shared.standing(1).margin[3, 15, 16] == 1


def test_a_candidate_that_votes_for_another_label_votes_against_the_background():
    inside = 3, 15, 16
    window = window_of(annotate(), votes=(1,))
    assert window.standing(1).voted[inside] and not window.standing(2).voted[inside]
    assert not window.standing(BACKGROUND).voted[inside]
    assert window_of(annotate()).standing(BACKGROUND).voted[inside]


def test_a_known_plane_lies_between_or_does_not():
    window = window_of(annotate(), first=1)
    planes, others = np.array([1, 4, 4, 5, 9]) - 1, np.array([4, 1, 6, 5, 6]) - 1
    for label in (1, 3):
        unknown = window.unknown_between(np.full(5, label), planes, others)
        np.testing.assert_array_equal(unknown, [True, True, False, False, True])
    assert not window.unknown_between(np.full(5, BACKGROUND), planes, others).any()


def test_a_bridge_is_widest_in_the_middle_and_ends_beyond_the_volume():
    annotation = annotate()
    window = window_of(annotation)
    slices = window.bridge(np.full(4, 1), np.arange(1, 5))
    np.testing.assert_allclose(slices, np.sqrt([4 / 5, 6 / 5, 6 / 5, 4 / 5]))
    annotation.complete[1].pop(10)
    np.testing.assert_allclose(window.bridge(np.array([1]), np.array([8])), np.sqrt(3 * 3 / 6))


@settings(max_examples=25)
@given(spacing=millimetres, voxel=st.tuples(st.integers(1, 9), *[st.integers(0, 29)] * 2))
def test_nothing_is_around_a_stroke_further_than_its_reach_or_beyond_a_known_plane(spacing, voxel):
    window = window_of(annotate(spacing))
    for around in around_strokes(window.standing(1), stroke_of(1, voxel), window):
        offsets = (around.voxels - voxel) * spacing
        assert (np.linalg.norm(offsets, axis=1) <= REACH).all()
        assert set((around.voxels[:, 0] < 5).tolist()) <= {voxel[0] < 5}
        assert not set(around.voxels[:, 0].tolist()) & set(PLANES)


def test_a_stroke_that_ends_on_a_drawn_slice_is_no_longer_for_that():
    window = window_of(annotate())
    strokes = stroke_of(1, (4, 15, 16))
    (alone,) = around_strokes(window.standing(1), strokes, window)
    strokes[5, 15, 16] = 1
    (both,) = around_strokes(window.standing(1), strokes, window)
    np.testing.assert_array_equal(both.voxels, alone.voxels)
    np.testing.assert_array_equal(both.terms, alone.terms)


@pytest.mark.parametrize(("plane", "planes"), [(2, {1, 2, 3, 4}), (8, {6, 7, 8, 9})])
def test_what_is_around_a_stroke_goes_as_far_as_the_label_was_carried(plane, planes):
    """From plane 1 to plane 9; on plane 5 it is drawn."""
    annotation = annotate()
    for outermost in (0, 10):
        annotation.complete[1].pop(outermost)
    window = window_of(annotation)
    (around,) = around_strokes(window.standing(1), stroke_of(1, (plane, 15, 16)), window)
    assert set(around.voxels[:, 0].tolist()) == planes


@given(column=st.integers(3, 28), stroked=st.integers(0, 31))
@settings(max_examples=25)
def test_a_stroke_of_background_says_nothing_of_a_label_that_it_does_not_run_through(column, stroked):
    """Labels 1 and 2 were found left of a column and from it on; they lose what one of them has too much of."""
    window = window_of(annotate())
    found = np.where(np.arange(SHAPE[2]) < column, 1, 2)
    missed = np.full(SHAPE, -1, np.float32)

    def losers(label):
        standing = Standing(label, missed, np.broadcast_to(found, SHAPE), np.zeros(SHAPE, bool))
        (around,) = around_strokes(standing, stroke_of(label, (3, 15, stroked)), window)
        return set(found[around.voxels[:, 2]].tolist())

    assert losers(BACKGROUND) == {found[stroked]}
    assert losers(3) >= set(found[max(0, stroked - 2) : stroked + 3].tolist())  # what a label gains, any other may lose


def log_odds_around(annotation, label, votes):
    """Log-odds around a stroke of a label where label 2 was found, and whether the voxels truly bear the label."""
    window = window_of(annotation, votes)
    stroke = stroke_of(label, (3, 15, 12) if label else (3, 4, 16))
    (around,) = around_strokes(window.standing(label), stroke, window)
    return around.log_odds(), labels_side_by_side()[tuple(around.voxels.T)] == label


@pytest.mark.parametrize("label", [1, BACKGROUND])
def test_votes_and_intensities_speak_for_a_voxel(label):
    annotation = annotate()
    voted, truly = log_odds_around(annotation, label, votes=(1,) if label else ())
    outvoted, _ = log_odds_around(annotation, label, votes=(2,))
    assert (voted > outvoted).all()
    assert outvoted[truly].mean() > outvoted[~truly].mean()


def test_background_has_the_intensities_near_the_labels_that_no_label_has():
    annotation = annotate()
    away = ndimage.distance_transform_edt(labels_side_by_side()[0] == 0)
    annotation.image[:, away >= SURROUND] = 100.0  # as in label 2
    ratio = window_of(annotation).log_likelihood_ratio(
        2, np.array([BACKGROUND]), at(np.array([[5, 15, 17]])), np.array([5])
    )
    assert ratio > 3.5


def test_outvoted_is_what_was_voted_for_at_the_stroke_alone():
    window, left = window_of(annotate()), np.arange(SHAPE[2]) < 17
    for voted, outvoted in ((left, ~left), (~left, left & ~left)):
        standing = replace(window.standing(1), voted=np.broadcast_to(voted, SHAPE))
        (around,) = around_strokes(standing, stroke_of(1, (3, 15, 16)), window)
        np.testing.assert_array_equal(around.terms[:, TERMS.index("outvoted")], outvoted[around.voxels[:, 2]])


def upright(column):
    """(T, R, C) margin of a label right of a column."""
    return np.broadcast_to(np.arange(SHAPE[2]) - column, SHAPE).astype(np.float32)


def test_a_contour_on_an_edge_is_sharper_than_one_on_even_ground():
    window = window_of(annotate())
    on_edge, beside = (window.sharpness(upright(column))[5, 15] for column in (7.5, 3.5))
    assert on_edge[7] > 2 * beside[3]


def test_where_there_is_no_contour_the_usual_is_taken():
    window = window_of(annotate())
    even = np.full(SHAPE, -3.0, np.float32)
    np.testing.assert_allclose(window.sharpness(even), USUAL_SHARPNESS, rtol=1e-6)
    np.testing.assert_allclose(window.sharpness(upright(100)), USUAL_SHARPNESS, rtol=1e-6)


@given(st.integers(2, 5), st.integers(0, 2**16))
def test_what_is_out_of_sight_does_not_matter(column, seed):
    """Nor where the window ends, then: strokes far from each other have windows of their own, or share one."""
    window = window_of(annotate())
    margin = upright(7.5)
    before = window.sharpness(margin)[:, :, column]
    beyond = (slice(None), slice(None), slice(column + int(SIGHT) + 1, None))
    noise = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    window.image[beyond] += noise[beyond]
    window.smoothed = ndimage.gaussian_filter(window.image, (0, SMOOTHING, SMOOTHING), mode="nearest")
    other = margin.copy()
    other[beyond] += 5 * noise[beyond]
    np.testing.assert_array_equal(window.sharpness(other)[:, :, column], before)


def test_a_label_gains_what_another_one_loses():
    annotation = annotate()
    window = window_of(annotation)
    for label in (1, BACKGROUND):
        (around,) = around_strokes(window.standing(label), stroke_of(label), window)
        assert around.gaining == (drawn_volume(1, annotation) if label else np.inf)
        assert set(around.losing) == {drawn_volume(2, annotation)}
        assert set(around.losing_found) == {window.found_volume(2)}


def test_volumes_are_measured_between_drawn_and_absent_planes():
    annotation = annotate()
    assert drawn_volume(1, annotation) == 10 * 14 * 6
    assert drawn_volume(3, annotation) == 5 * 14 * 4 + 5 * 14 * 4 / 2


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (2.0, 0.5, 1.5)])
def test_what_was_found_of_a_label_counts_in_voxels_of_the_volume(spacing):
    """Labels 1 and 2 have a positive score on 9 planes, label 3 nowhere."""
    annotation = annotate(spacing)
    window = window_of(annotation)
    crop = np.prod([part.stop - part.start for part in window.stack.box])
    for label in (1, 2, 3):
        drawn = sum(mask.sum() for mask in annotation.complete[label].values())
        assert window.found_volume(label) == pytest.approx(drawn + (9 * crop if label < 3 else 0), rel=0.05)
    assert window.found_volume(BACKGROUND) == 0


def test_a_stroke_is_as_long_as_it_is_far_from_end_to_end():
    line = np.arange(30)[:, None] * [1.0, 2.0, 2.0]
    assert length_of(line) == pytest.approx(29 * 3, rel=0.2)
    assert length_of(line[:1]) == 0


@given(planes=st.sets(st.integers(0, 20), max_size=5), ends=st.tuples(*[st.integers(0, 20)] * 2).map(sorted))
def test_the_planes_next_to_a_range(planes, ends):
    first, last = ends
    found = next_to(planes, first, last)
    assert found == sorted(found) and {plane for plane in planes if first <= plane <= last} <= set(found) <= planes
    assert [plane for plane in found if plane <= first] == sorted(plane for plane in planes if plane <= first)[-1:]
    assert [plane for plane in found if plane >= last] == sorted(plane for plane in planes if plane >= last)[:1]


@given(spacing=millimetres, voxel=st.tuples(*[st.integers(0, 8)] * 3))
def test_paths_are_never_shorter_than_the_straight_line(spacing, voxel):
    strokes = np.zeros((9, 9, 9), bool)
    strokes[voxel] = True
    image = np.random.default_rng(0).random(strokes.shape).astype(np.float32)
    straight = ndimage.distance_transform_edt(~strokes, sampling=spacing)
    for scan in (np.zeros_like(image), image):
        lengths = path_lengths(strokes, scan, spacing, 100.0)
        assert (lengths >= straight * (1 - 1e-4)).all()


def test_an_edge_makes_the_path_across_it_longer():
    strokes = np.zeros((1, 1, 21), bool)
    strokes[..., 10] = True
    image = np.zeros(strokes.shape, np.float32)
    image[..., 14:] = 1
    lengths = path_lengths(strokes, image, (1, 1, 1), 100.0)[0, 0]
    assert lengths[15] - lengths[12] > 5 * (lengths[12] - lengths[10])
    assert lengths[7] == pytest.approx(3, abs=1e-3)


def test_the_nearest_stroke_is_the_nearest_in_millimetres():
    strokes = stroke_of(1, (3, 15, 16))
    strokes[2, 15, 11] = 2  # says nothing new; one slice, 8 mm, from what is 5 mm from the other one
    window = window_of(annotate((8.0, 1.0, 1.0)))
    (around,) = around_strokes(window.standing(1), strokes, window)
    assert [3, 15, 11] in around.voxels.tolist()


def test_the_way_to_a_stroke_counts_in_pixels_of_the_working_grid():
    window = window_of(annotate((2.0, 2.0, 1.0)))
    (around,) = around_strokes(window.standing(1), stroke_of(1, (3, 15, 16)), window)
    voxel = around.voxels.tolist().index([3, 17, 16])
    assert window.stack.pixel == 1 and around.terms[voxel, 3] == pytest.approx(np.log(4 + 0.5))
