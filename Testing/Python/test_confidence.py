"""What is expected of a propagation, and which slice is suggested: facts whatever the coefficients are."""

import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks, standing_arrivals, write_case
from scipy import ndimage

from LabelPropLib import cli, files, suggestion
from LabelPropLib.annotation import annotate_from_label_volume, stack_order
from LabelPropLib.confidence import (
    PRIOR,
    Contours,
    SeenDrift,
    assess,
    drift_mm,
    end_probabilities,
    expect,
    measure,
    present,
    remaining,
    scales,
)
from LabelPropLib.ends import Growth
from LabelPropLib.errors import InputError
from LabelPropLib.evidence import Ending, Evidence, Found, implied_dice, observe
from LabelPropLib.fusion import similarity
from LabelPropLib.labelmaps import FusedScore, LabelMaps
from LabelPropLib.pipeline import propagate
from LabelPropLib.preprocessing import prepare, signed_distance
from LabelPropLib.report_text import named
from LabelPropLib.settings import Settings
from LabelPropLib.suggestion import End, Outlook, Span, Suggestion, Unseen
from LabelPropLib.uncertainty import uncertainty_map

SPACING = (3.0, 1.0, 1.0)
FAST = Settings(preset="fast")
BOX = slice(0, 1), slice(0, 1)  # of a label whose distances are not kept


def seen(count, sharpness=0.3):
    """A contour that is as plain on each of `count` planes."""
    return Found(*(np.full(count, value) for value in (0.9, sharpness, 1.0)))


def fading(count):
    """A contour that becomes doubtful, and that the slices show less and less."""
    return Found(np.linspace(0.95, 0.5, count), np.linspace(0.3, 0.05, count), np.linspace(1.5, 0.2, count))


def between(below, above, disagreement=2.0, unlikeness=0.2, sharpness=0.3):
    """Evidence for one plane between two that bear the label; mm."""
    values = (np.array([value], float) for value in (below, above, unlikeness, disagreement))
    return Evidence(1, range(5, 6), *values, np.array([150.0]), None, seen(1, sharpness), 1.0, BOX)


def ending(count=6, presence=0.0, spacing=3.0, area=200.0):
    """Evidence for a label that the lower side of a gap of `count` planes bears."""
    steps = spacing * np.arange(1, count + 1)
    end = Ending(
        upwards=True,
        steps=steps,
        length=spacing * (count + 1),
        presence=np.full((count, 2), presence),
        area=np.full(count, area),
        depth=float(np.sqrt(area / np.pi)),
        log_depth=float(np.log1p(np.sqrt(area / np.pi))),
        growth=Growth(0.0, True),
    )
    distances = steps, end.length - steps
    return Evidence(1, range(1, count + 1), *distances, np.full(count, 0.2), None, None, end, seen(count), 1.0, BOX)


def disc(radius, size=64):
    rows, columns = np.mgrid[:size, :size] - size / 2 + 0.5
    return (rows**2 + columns**2 < radius**2).astype(np.uint8)


# The model


@given(
    st.floats(1, 40),
    st.floats(1, 40),
    st.floats(1.1, 3),
    st.sampled_from(["distance", "disagreement", "unlikeness", "blur"]),
)
def test_what_goes_further_disagrees_more_is_less_alike_or_on_no_edge_drifts_more(below, above, factor, what):
    better = between(below, above)
    worse = {
        "distance": between(factor * below, factor * above),
        "disagreement": between(below, above, disagreement=2 * factor),
        "unlikeness": between(below, above, unlikeness=0.2 * factor),
        "blur": between(below, above, sharpness=0.3 / factor),
    }[what]
    assert drift_mm(PRIOR, worse) > drift_mm(PRIOR, better)
    contours = Contours(np.array([200.0]), np.array([50.0]))
    assert expect(PRIOR, worse, contours).dice < expect(PRIOR, better, contours).dice
    assert expect(PRIOR, worse, contours).surface > expect(PRIOR, better, contours).surface


def test_the_same_drift_costs_a_small_structure_more():
    large, small = (measure(disc(radius)[None], (1,), (1.0, 1.0))[1] for radius in (20, 5))
    evidence = between(10, 10)
    assert expect(PRIOR, evidence, small).dice < expect(PRIOR, evidence, large).dice < 1
    drifted = 20 + drift_mm(PRIOR, evidence)[0]  # as if the contour lay so far outside all around
    assert expect(PRIOR, evidence, large).dice == pytest.approx(2 * 20**2 / (20**2 + drifted**2), abs=0.01)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_area_and_perimeter_of_a_rectangle_and_a_disc(spacing):
    height, width = spacing
    planes = np.zeros((2, 64, 64), np.uint16)
    planes[0, 10:30, 5:45] = 700
    planes[1][disc(20) > 0] = 3
    measured = measure(planes, (3, 700), spacing)
    assert measured[700].area.tolist() == [20 * 40 * height * width, 0]
    np.testing.assert_allclose(measured[700].perimeter, [2 * (20 * height + 40 * width) * np.pi / 4, 0])
    if height == width:
        assert measured[3].area[1] == pytest.approx(np.pi * 20**2, rel=0.02)
        assert measured[3].perimeter[1] == pytest.approx(2 * np.pi * 20, rel=0.03)


@given(st.integers(1, 20), st.floats(-2, 2), st.integers(0, 20))
def test_presence_falls_along_the_gap_and_follows_the_evidence(count, presence, found):
    areas = np.where(np.arange(count) < found, 100.0, 0.0)
    ends = end_probabilities(PRIOR, ending(count, presence).ending, areas)
    assert ends.sum() == pytest.approx(1) and (ends >= 0).all()
    assert (np.diff(present(ends)) <= 1e-12).all()
    likelier = end_probabilities(PRIOR, ending(count, presence + 1).ending, areas)
    assert (present(likelier) >= present(ends) - 1e-9).all()


def test_a_label_found_well_beyond_its_likely_end_is_expected_to_be_bad_there():
    evidence = replace(ending(count=10), found=fading(10))
    everywhere = expect(PRIOR, evidence, Contours(np.full(10, 200.0), np.full(10, 50.0)))
    assert (np.diff(everywhere.dice) < 0).all() and everywhere.dice[-1] < 0.5 < everywhere.dice[0]
    nowhere = expect(PRIOR, evidence, Contours(np.zeros(10), np.zeros(10)))
    assert (nowhere.dice == 0).all()


def test_dice_that_a_score_implies_is_that_of_its_log_odds():
    score = torch.tensor([[[2.0, -1.0, 0.0, 30.0]], [[-9.0, -9.0, -9.0, -9.0]]])
    probability = torch.sigmoid(score)[0, 0].tolist()
    expected = 2 * (probability[0] + probability[3]) / (sum(probability) + 2)
    np.testing.assert_allclose(implied_dice(score), [expected, 0], rtol=1e-6)


def test_drift_is_scaled_by_what_hidden_slices_show():
    evidence = between(10, 10)
    expected = float(drift_mm(PRIOR, evidence)[0])
    factors = scales({1: [SeenDrift(evidence, 3 * expected)] * 3, 2: [SeenDrift(evidence, expected)], 3: []})
    assert 1 < factors[1] < 3 and factors[2] < factors[1] and factors[3] == factors[2]
    assert scales({1: []}) == {1: 1.0}


@settings(max_examples=50)
@given(st.integers(2, 15), st.integers(0, 14), st.booleans(), st.floats(-1, 1), st.integers(0, 3))
def test_drawing_a_slice_splits_a_gap_and_takes_drift_away(count, index, ends, presence, lost):
    index = index % count
    if ends:
        evidence = ending(count, presence)
    else:
        steps = 3.0 * np.arange(1, count + 1)
        values = (np.full(count, value) for value in (0.2, 2.0, 150.0))
        evidence = Evidence(1, range(1, count + 1), steps, steps[::-1], *values, None, seen(count), 1.0, BOX)
    is_found = np.arange(count) >= lost
    stretch = expect(PRIOR, evidence, Contours(200.0 * is_found, 50.0 * is_found))
    span = Span.of(stretch)
    assert span.error == pytest.approx((1 - stretch.dice) @ (stretch.found + stretch.there))
    outcomes = span.split(1 + index)
    assert sum(probability for probability, _ in outcomes) == pytest.approx(1)
    for _, parts in outcomes:
        assert 1 + index not in np.concatenate([part.planes for part in parts])
        assert all(part.end is None or part.end.probabilities.sum() == pytest.approx(1) for part in parts)
    after = sum(probability * sum(part.error for part in parts) for probability, parts in outcomes)
    if not ends:
        assert 0 < span.gain(1 + index) == pytest.approx(span.error - after)


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(1, 8))
def test_a_slice_without_the_label_cuts_off_what_was_found_beyond_its_end(end, further):
    count = end + further
    probabilities = np.where(np.arange(count + 1) == end, 1.0, 0.0)
    carried = np.full(count, 200.0)
    shapes = np.where(np.arange(count)[:, None] < np.arange(count + 1), carried[:, None], 0.0)

    def cut_off(found):
        areas = np.where(np.arange(count) < found, carried, 0.0)
        known = End(probabilities, shapes, carried, np.broadcast_to(areas[:, None], shapes.shape))
        return known.cut_off(known.before(end, np.zeros(end)))

    assert [cut_off(end + n) for n in range(further + 1)] == pytest.approx([200.0 * n for n in range(further + 1)])


# The whole pipeline


def columns(slices=20, size=48, last=None):
    """Two columns on a textured ground, (image, labels): 3 goes through all slices, 700 ends after slice `last`."""
    rows, across = np.mgrid[:size, :size]
    labels = np.zeros((slices, size, size), np.int32)
    for k in range(slices):
        labels[k][(rows - 15 - 6 * k / slices) ** 2 + (across - 14) ** 2 < 64] = 3
        if last is None or k <= last:
            labels[k][(rows - 32) ** 2 + (across - 34 + 3 * k / slices) ** 2 < 81] = 700
    noise = np.random.default_rng(0).normal(size=labels.shape)
    image = 100 * (labels == 3) + 70 * (labels == 700) + 60 * ndimage.gaussian_filter(noise, 2) + 4 * noise
    return image.astype(np.float32), labels


def annotate(image, labels, planes, **options):
    drawn = np.zeros_like(labels)
    drawn[list(planes)] = labels[list(planes)]
    return annotate_from_label_volume(image, drawn, SPACING, axis=0, **options)


@pytest.fixture(scope="module")
def volume():
    return columns()


@pytest.fixture(scope="module")
def found(volume):
    return propagate(annotate(*volume, (0, 4, 19)), replace(FAST, suggestions=3, uncertainty=True))


def test_drawn_slices_are_expected_to_be_perfect_and_others_are_not(found):
    for label in ("3", "700"):
        dice, surface = (found.report[name][label] for name in ("expected_dice", "expected_surface_distance_mm"))
        assert set(dice) == set(surface) == {str(plane) for plane in range(20)}
        for plane in range(20):
            drawn = plane in (0, 4, 19)
            assert (dice[str(plane)] == 1) == drawn and (surface[str(plane)] == 0) == drawn
            assert 0 < dice[str(plane)] <= 1


def test_the_middle_of_a_longer_gap_is_expected_to_be_worse(found):
    for label in ("3", "700"):
        dice = found.report["expected_dice"][label]
        assert dice["12"] < dice["2"] and dice["12"] < dice["5"]
    assert found.report["expected_mean_dice"] < 1


def test_expected_mean_dice_rises_with_the_slices_drawn(volume, found):
    more = propagate(annotate(*volume, (0, 4, 9, 14, 19)), FAST)
    assert more.report["expected_mean_dice"] > found.report["expected_mean_dice"]


def test_report_can_be_written_as_json_and_suggests_inside_the_long_gap(found):
    report = json.loads(json.dumps(found.report))
    first = report["suggested_slice"]
    assert set(first) == {"plane", "gain", "boundary_mm", "labels"}
    assert 5 < first["plane"] < 18 and set(first["labels"]) == {3, 700}
    assert 0 < first["gain"] < 1 and 80 < first["boundary_mm"] < 140
    assert report["suggested_slices"][0] == first
    planes = [suggested["plane"] for suggested in report["suggested_slices"]]
    assert len(set(planes)) == 3 and not set(planes) & {0, 4, 19}


def test_uncertainty_is_nothing_where_drawn_and_highest_on_contours(found):
    uncertainty = found.uncertainty
    assert uncertainty.dtype == np.float32 and 0 <= uncertainty.min() and uncertainty.max() <= 1
    assert not uncertainty[[0, 4, 19]].any()
    inside = found.mask(3)[12]
    contour = inside & ~ndimage.binary_erosion(inside)
    core = ndimage.binary_erosion(inside, iterations=4)
    assert uncertainty[12][contour].min() > 10 * max(uncertainty[12][core].max(), uncertainty[12, 0, 0])
    assert uncertainty[12].sum() > uncertainty[2].sum()


def test_a_hidden_end_is_looked_for_although_the_other_gap_is_longer():
    image, labels = columns(slices=21, last=14)
    report = propagate(annotate(image, labels, (0, 11, 20)), FAST).report
    assert 11 < report["suggested_slice"]["plane"] < 20
    without_end = propagate(annotate(*columns(slices=21), (0, 11, 20)), FAST).report
    assert 0 < without_end["suggested_slice"]["plane"] < 11


@given(gaps=st.lists(st.integers(2, 30), min_size=1, max_size=5), data=st.data())
def test_structures_that_no_drawn_slice_bears_are_met_in_the_middle_of_the_largest_gap(gaps, data):
    drawn = np.concatenate([[0], np.cumsum(gaps)]).tolist()
    numbers = {(lower, upper): float((upper - lower) ** 2) for lower, upper in zip(drawn[:-1], drawn[1:], strict=True)}
    unseen = Unseen(numbers)
    met = [unseen.met(plane) for plane in range(drawn[-1] + 1)]
    assert [met[plane] for plane in drawn] == [0] * len(drawn)
    lower, upper = max(numbers, key=numbers.get)
    assert max(met) == pytest.approx(met[(lower + upper) // 2]) and max(met) <= numbers[lower, upper] / 2
    plane = data.draw(st.sampled_from([plane for plane in range(drawn[-1]) if plane not in drawn]))
    left = unseen.drawn(plane)
    assert sum(left.numbers.values()) == pytest.approx(sum(numbers.values()) - met[plane])


def test_structures_are_expected_unseen_where_others_are_on_one_drawn_slice_alone(volume):
    image, labels = volume
    assert sum(Unseen.of(annotate(image, labels, (0, 10, 19))).numbers.values()) == 0
    labels = np.where(np.isin(np.arange(20), (0, 10))[:, None, None], labels, 3 * (labels == 3))
    several = Unseen.of(annotate(image, labels, (0, 5, 19))).numbers
    assert several[5, 19] == pytest.approx((14 / 5) ** 2 * several[0, 5]) and 0 < sum(several.values()) < 1


def test_a_suggested_slice_is_to_be_drawn_for_labels_that_gain_little_on_it_too(volume, monkeypatch):
    image, labels = volume
    drawn = np.zeros_like(labels)
    for label, planes in ((3, (0, 9, 11, 19)), (700, (0, 19))):
        drawn[list(planes)] += np.where(labels[list(planes)] == label, label, 0)
    seen = []
    monkeypatch.setattr(suggestion, "suggest", lambda confidence, count: seen.append(confidence) or [])
    propagate(annotate_from_label_volume(image, drawn, SPACING, axis=0, missing="unknown"), FAST)
    outlook = Outlook(seen[0])
    assert outlook.option(10).labels == (700, 3) and outlook.option(9).labels == (700,)


def test_following_the_suggestion_to_the_end_draws_all_that_is_left(volume):
    drawn = annotate(*volume, (0, 3, 6))
    planes = [s["plane"] for s in propagate(drawn, replace(FAST, suggestions=99)).report["suggested_slices"]]
    assert sorted(planes) == [1, 2, 4, 5]


def test_nothing_is_suggested_where_nothing_is_to_be_found(volume):
    report = propagate(annotate(*volume, (8,)), FAST).report
    assert report["suggested_slice"] is None and report["suggested_slices"] == []
    assert report["expected_mean_dice"] is None


def test_a_label_of_which_nothing_is_left_to_find_does_not_lift_the_mean(volume):
    image, labels = volume
    drawn = np.where(np.isin(np.arange(len(labels)), (0, 4, 8))[:, None, None], labels, 0)
    drawn[8, 1:4, 1:4] = 99
    report = propagate(annotate_from_label_volume(image, drawn, SPACING, axis=0, missing="unknown"), FAST).report
    assert report["expected_dice"]["99"] == {"8": 1}
    others = [report["expected_dice"][str(label)] for label in report["labels"] if label != 99]
    least, most = (f(v for planes in others for v in planes.values() if v < 1) for f in (min, max))
    assert least <= report["expected_mean_dice"] <= most


@pytest.mark.parametrize("size", [1, 3])
def test_a_label_that_got_lost_between_two_slices_is_expected_to_be_wrong_and_suggested(volume, size):
    image, labels = volume
    apart = np.zeros_like(labels)
    apart[0, 2 : 2 + size, 2 : 2 + size] = apart[4, 40 : 40 + size, 40 : 40 + size] = 1
    result = propagate(annotate(image, apart, (0, 4)), replace(FAST, uncertainty=True))
    assert not result.mask(1)[1:4].any() and result.uncertainty[1:4].max(axis=(1, 2)).tolist() == [1, 1, 1]
    assert not result.uncertainty[1:4, 20:24, 20:24].any()
    assert result.report["expected_dice"]["1"] == {"0": 1, "1": 0, "2": 0, "3": 0, "4": 1}
    assert result.report["expected_surface_distance_mm"]["1"] == {"0": 0, "4": 0}
    assert result.report["expected_mean_dice"] == 0
    suggested = result.report["suggested_slice"]
    assert 0 < suggested["plane"] < 4 and suggested["labels"] == [1] and suggested["gain"] > 0


def test_slices_without_a_boundary_to_trace_all_cost_the_same(volume):
    image, labels = volume
    nowhere = expect(PRIOR, ending(presence=5.0, area=0.0), Contours(np.zeros(6), np.zeros(6)))
    outlook = Outlook(SimpleNamespace(stretches=[nowhere], annotation=annotate(image, labels == 3, (0, 7))))
    assert nowhere.presence[0] > 0.5 and outlook.option(1).boundary_mm == 0
    assert outlook.best() is None  # and it gains nothing to draw one


def test_no_suggestion_asked_for_is_refused():
    with pytest.raises(InputError, match="1 or more"):
        Settings(suggestions=0)


def doubt_on(plane, confidence):
    """(H, W) by definition: the uncertainty on a plane of the volume, of evidence for label 1, with square pixels."""
    (stretch,) = confidence.stretches
    evidence, n = stretch.evidence, plane - stretch.evidence.planes.start
    labels = confidence.layers[1][plane]
    found = labels == 1
    wrong, there = np.zeros((2, *labels.shape))
    if found.any():
        half = evidence.pixel / 2 / stretch.drift[n]
        distances = np.abs(signed_distance(found, (evidence.pixel,) * 2))
        wrong = 0.5 * np.exp(-distances / stretch.drift[n]) * np.sinh(half) / half
    if stretch.ends is not None:
        depth = evidence.distances[n].numpy()
        depth = np.where(found[evidence.box], depth.clip(min=1e-3), depth)
        thresholds = evidence.ending.depth * (1 - remaining(evidence.ending)[n])
        there[evidence.box] = (thresholds < depth[..., None]) @ stretch.ends
        wrong = np.where(found, 1 - there * (1 - wrong), np.maximum(wrong, there))
    order = stack_order(confidence.annotation)
    uncertain = np.zeros(confidence.annotation.image.transpose(order).shape[1:])
    uncertain[confidence.stack.box] = np.where(labels == 2, 0, np.minimum(2 * wrong, 1))
    for strokes in confidence.annotation.scribbles.values():
        planes, *pixels = strokes[:, order].T
        uncertain[tuple(lines[planes == plane] for lines in pixels)] = 0
    return uncertain


def test_on_a_suggested_slice_nothing_unseen_is_left(volume):
    image, labels = volume
    drawn = np.zeros_like(labels)
    drawn[0], drawn[[0, 7], 40:, 40:] = labels[0] == 3, 2
    annotation = annotate_from_label_volume(image, drawn, SPACING, axis=0)
    stretch = expect(PRIOR, ending(), Contours(np.full(6, 200.0), np.full(6, 50.0)))
    outlook = Outlook(SimpleNamespace(stretches=[stretch], annotation=annotation))
    first, second = itertools.islice(outlook.suggestions(), 2)
    assert first.plane != second.plane
    assert Unseen.of(annotation).met(first.plane) > 0 == outlook._unseen.met(first.plane)


@pytest.mark.parametrize(("ends", "axis"), [(False, 0), (True, 0), (True, 2)])
def test_what_is_expected_is_the_same_upside_down(volume, ends, axis):
    """And what is measured for it is in mm. Nothing moves, so that each plane gets the outlines that were drawn."""
    image, labels = (np.pad(array[:8], ((0, 0), (0, 0), (0, 40)), mode="edge") for array in volume)
    masks = {1: np.zeros(labels.shape, bool), 2: np.zeros(labels.shape, bool)}
    masks[1][0], masks[2][[0, 7]] = labels[0] == 700, labels[[0, 7]] == 3
    masks[1][7] = ndimage.binary_dilation(masks[1][0]) & (not ends)
    areas = masks[1].sum(axis=(1, 2))[[0, 7]] / 4
    turns = []
    for order in (slice(None), slice(None, None, -1)):
        drawn = {label: np.moveaxis(mask[order], 0, axis) for label, mask in masks.items()}
        spacing = (3.0, 0.5, 0.5) if axis == 0 else (0.5, 0.5, 3.0)
        strokes = {1: np.array([[3, 32, 40]]), 0: np.array([[3, 32, column] for column in range(43, 88)])}
        strokes = {label: np.abs(voxels - [0 if order.step is None else 7, 0, 0]) for label, voxels in strokes.items()}
        strokes = {label: np.roll(voxels, -1, axis=1) if axis else voxels for label, voxels in strokes.items()}
        scan = np.moveaxis(image[order], 0, axis)
        annotation = annotate_from_masks(scan, drawn, spacing, axis, scribbles=strokes)
        arrived = standing_arrivals(annotation, 0, 7)
        score, stack = similarity.fuse(arrived), prepare(annotation, 200)
        maps = LabelMaps(annotation, stack)
        maps.enter(FusedScore(1, arrived.gap.targets, arrived.box, score))
        maps.keep_given(annotation)
        beside = np.moveaxis(maps.volumes()[0], axis, 0)[1:7, :, :30]
        beside[beside == 0] = 2
        evidence = observe(arrived, stack, score, keep_distances=True)
        turns.append(assess(annotation, stack, [evidence], maps.volumes(), {1: 1.5}))
    uncertainties = [np.moveaxis(uncertainty_map(turn), axis, 0) for turn in turns]
    np.testing.assert_allclose(uncertainties[0], uncertainties[1][::-1], atol=1e-3)
    for plane in range(1, 7):
        np.testing.assert_allclose(uncertainties[0][plane], doubt_on(plane, turns[0]), atol=2e-3)
    one, other = (turn.stretches[0] for turn in turns)
    span, other_span = (Span.of(stretch) for stretch in (one, other))
    for name in ("drift", "dice", "surface", "found", "there", "perimeter", "presence"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name)[::-1], rtol=1e-3, err_msg=name)
    assert (one.dice > 0.3).any() and span.error == pytest.approx(other_span.error, rel=1e-3)
    for plane in range(1, 7):
        assert span.gain(plane) == pytest.approx(other_span.gain(7 - plane), rel=1e-3)
    evidence, mirrored = one.evidence, other.evidence
    np.testing.assert_allclose(evidence.distances, mirrored.distances.flip(0), atol=1e-3)
    np.testing.assert_allclose(evidence.unlikeness, mirrored.unlikeness[::-1], atol=1e-4)
    assert evidence.planes == range(1, 7) and evidence.pixel == 0.5
    assert evidence.below.tolist() == evidence.above[::-1].tolist() == [3, 6, 9, 12, 15, 18]
    if ends:
        assert evidence.area is evidence.disagreement is None
        assert evidence.ending.upwards and not mirrored.ending.upwards
        for found in (evidence.ending, mirrored.ending):
            assert found.steps.tolist() == [3, 6, 9, 12, 15, 18] and found.length == 21
            assert found.area == pytest.approx([areas[0]] * 6)
            assert found.depth == pytest.approx(np.sqrt(areas[0] / np.pi), rel=0.1)
            assert found.log_depth == pytest.approx(np.log1p(2 * found.depth))
        np.testing.assert_allclose(evidence.ending.presence, mirrored.ending.presence, atol=1e-3)
    else:
        assert evidence.ending is None
        np.testing.assert_allclose(evidence.area, areas[0] + (areas[1] - areas[0]) * np.arange(1, 7) / 7)
        assert (0.5 * (0.2 + 0.7) < evidence.disagreement).all() and (evidence.disagreement < 0.5 * (0.2 + 1.5)).all()
        np.testing.assert_allclose(evidence.disagreement, mirrored.disagreement[::-1])


@pytest.mark.parametrize("other", [0, 0.003])
def test_what_is_expected_does_not_depend_on_the_unit_of_lengths(volume, other):
    """The same scan of a mouse, or with its lengths in other units: small pixels are no small structures."""
    image, labels = volume
    drawn = np.where(np.isin(np.arange(20), (0, 4, 19))[:, None, None], labels, 0)
    spacings = SPACING, tuple((other or 0.05) * mm for mm in SPACING)
    once, again = (propagate(annotate_from_label_volume(image, drawn, spacing, 0), FAST) for spacing in spacings)
    np.testing.assert_array_equal(once.label_maps[0], again.label_maps[0])
    assert again.report["expected_mean_dice"] == pytest.approx(once.report["expected_mean_dice"], abs=0.03)


def test_a_label_of_which_nothing_was_found_counts_as_far_as_it_is_likely_to_be_there(volume):
    image, labels = volume[0].copy(), volume[1]
    image[4, 2:8, 38:44] += 300  # something that is on this slice alone
    drawn = np.where(np.isin(np.arange(20), (0, 4, 19))[:, None, None], labels, 0)
    mean = propagate(annotate_from_label_volume(image, drawn, SPACING, 0), FAST).report["expected_mean_dice"]
    drawn[4, 2:8, 38:44] = 5
    report = propagate(annotate_from_label_volume(image, drawn, SPACING, 0), FAST).report
    assert set(report["expected_dice"]["5"]) == {"4"}
    assert 0.5 * mean < report["expected_mean_dice"] < mean


def test_to_see_that_a_label_is_absent_where_nothing_was_found_puts_nothing_right():
    absent = expect(PRIOR, ending(presence=-9.0), Contours(np.zeros(6), np.zeros(6)))
    assert absent.presence[0] < 0.03
    assert Span.of(absent).gain(1) < 0.05 * Span.of(absent).error
    found = expect(PRIOR, ending(presence=-9.0), Contours(np.full(6, 200.0), np.full(6, 50.0)))
    assert Span.of(found).gain(1) > 0.5 * Span.of(found).error


@pytest.mark.parametrize(("drawn", "beyond"), [((4, 10), (11, 12, 13)), ((10,), (9, 8, 7))])
def test_what_is_carried_to_a_stroke_beyond_is_assessed(volume, drawn, beyond):
    image, labels = volume
    stroke = np.zeros_like(labels)
    stroke[beyond[2]][ndimage.binary_erosion(labels[beyond[2]] == 3, iterations=5)] = 3
    result = propagate(annotate(image, labels == 3, drawn, scribbles=stroke // 3), replace(FAST, uncertainty=True))
    assert result.mask(1)[list(beyond)].any(axis=(1, 2)).all() and result.report["expected_mean_dice"] < 1
    assert all(0 < result.report["expected_dice"]["1"][str(plane)] < 1 for plane in beyond)
    assert result.uncertainty[list(beyond)].max(axis=(1, 2)).min() > 0.1 and not result.uncertainty[stroke > 0].any()
    assert not any("Only slice" in message for message in result.report["messages"])


def test_a_label_within_another_is_doubted_where_it_may_go_on(volume):
    """Labels may overlap: that the other one is there says nothing about it."""
    image, labels = volume
    outer, inner = labels == 700, np.zeros(labels.shape, bool)
    inner[10, 28:36, 28:36] = True
    masks = {1: np.where(np.isin(np.arange(20), (0, 10, 19))[:, None, None], outer, False), 2: inner}
    annotation = annotate_from_masks(image, masks, SPACING, 0, missing="unknown", absent={2: {0, 19}})
    result = propagate(annotation, replace(FAST, uncertainty=True))
    lost = next(plane for plane in range(11, 19) if not result.mask(2)[plane].any())
    assert result.mask(1)[lost, 30:34, 30:34].all() and result.uncertainty[lost, 30:34, 30:34].max() > 0.01


# The command


@pytest.fixture
def case(tmp_path, volume):
    """A folder with image.nii.gz and annotations.nii.gz."""
    image, labels = volume
    drawn = np.zeros_like(labels)
    drawn[[0, 4, 19]] = labels[[0, 4, 19]]
    write_case(tmp_path, image, drawn.astype(np.uint16))
    return tmp_path


def suggest(folder, *options):
    arguments = ["suggest", str(folder / "image.nii.gz"), str(folder / "annotations.nii.gz"), *map(str, options)]
    return cli.main(arguments)


def test_suggest_says_that_one_drawn_slice_has_none_in_between(case, volume, capsys):
    drawn = np.zeros_like(volume[1])
    drawn[4] = volume[1][4]
    write_case(case, volume[0], drawn.astype(np.uint16))
    assert suggest(case) == 0
    assert capsys.readouterr().out == "No slice to suggest: none lies between annotated ones.\n"


def test_suggest_prints_and_reports_and_writes_nothing_else(case, capsys):
    assert suggest(case, "--count", 2, "--axis", "k", "--report", case / "report.json") == 0
    said = capsys.readouterr().out.splitlines()
    report = json.loads((case / "report.json").read_text())
    assert len(said) == 3 and len(report["suggested_slices"]) == 2
    for line, start, suggested in zip(
        said[1:], ("Best slice to draw next", "Then"), report["suggested_slices"], strict=True
    ):
        assert line.startswith(f"{start}: {suggested['plane']} across k, for an expected Dice higher by")
        assert f"{suggested['boundary_mm']:.0f} mm to trace" in line and re.search(r"labels .*\b700\b", line)
    assert named({"segments": {"7": "Psoas"}}, 7) == "7 (Psoas)"
    assert sorted(path.name for path in case.iterdir()) == ["annotations.nii.gz", "image.nii.gz", "report.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--count", "0"), "'0': give a whole number from 1"),
        (("--count", "two"), "'two': give a whole number from 1"),
        (("--axis", "z"), "invalid choice"),
        (("--report", "annotations.nii.gz"), "annotations.nii.gz"),
        (("--scribbles", "missing.nii.gz"), "missing.nii.gz"),
    ],
)
def test_bad_input_is_refused_in_one_line(case, capsys, monkeypatch, options, message):
    monkeypatch.chdir(case)
    before = {path: path.stat().st_mtime_ns for path in case.iterdir()}
    assert suggest(case, *options) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and said.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in case.iterdir()} == before


def test_the_slice_that_gains_most_for_what_there_is_to_trace_is_suggested(volume, monkeypatch):
    image, labels = volume
    contours = Contours(np.array([150.0]), np.array([45.0]))
    stretches = [expect(PRIOR, replace(between(3, 6), planes=range(n, n + 1)), contours) for n in (1, 2)]
    outlook = Outlook(SimpleNamespace(stretches=stretches, annotation=annotate(image, labels == 3, (0, 7))))
    options = {1: Suggestion(1, 0.010, 100.0, (1,)), 2: Suggestion(2, 0.012, 1000.0, (1,))}
    monkeypatch.setattr(outlook, "option", options.get)
    assert outlook.best() == options[1]


def test_suggest_reads_its_input_as_it_is_told_to(case, volume, monkeypatch):
    from LabelProp import LabelPropLogic

    seen = []

    def compute(self, collected, settings, progress):
        seen.append((collected.annotation, settings))
        raise InputError("enough")

    monkeypatch.setattr(LabelPropLogic, "compute", compute)
    strokes = np.zeros(volume[1].shape, np.uint16)
    strokes[9, 20, 20] = 3
    files.write_volume(strokes, np.diag([0.7, 0.8, 3.0, 1.0]), case / "strokes.nii.gz")
    options = ("--axis", "j", "--missing", "unknown", "--scribbles", case / "strokes.nii.gz", "--seed", 3)
    assert suggest(case, *options) == 2
    ((annotation, settings),) = seen
    assert (annotation.axis, annotation.missing, list(annotation.scribbles)) == (1, "unknown", [3])
    assert settings == Settings(seed=3)
