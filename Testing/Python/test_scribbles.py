"""Scribbles on scores that are known: what they change, how far, and what they leave alone."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks
from scipy import ndimage, special

from LabelPropLib import graph_cut, pipeline, scribbles, surroundings
from LabelPropLib.annotation import BACKGROUND, annotate_from_label_volume
from LabelPropLib.gaps import Gap, gaps, gaps_to_scribbles
from LabelPropLib.labelmaps import FusedScore, LabelMaps
from LabelPropLib.memory import Memory
from LabelPropLib.preprocessing import prepare, signed_distance
from LabelPropLib.registration import instance
from LabelPropLib.settings import Settings
from LabelPropLib.surroundings import COEFFICIENTS, REACH, SIGHT, Coefficients, Surroundings, Window, around_strokes

SPACING = (3.0, 1.0, 1.0)
SHAPE = (13, 64, 72)
ANNOTATED = (0, 12)
INTENSITY = {0: 0.0, 3: 60.0, 9: 120.0}
PLANE_KINDS = ("axial", "coronal", "sagittal", "oblique")


def block(columns, rows=slice(22, 40)):
    """(K, J, I) bool: the same rectangle on all planes."""
    mask = np.zeros(SHAPE, bool)
    mask[:, rows, columns] = True
    return mask


TRUTH = np.zeros(SHAPE, np.uint8)
TRUTH[block(slice(16, 36))] = 3
TRUTH[block(slice(36, 56))] = 9
# What was fused is 6 mm off on planes 4 to 8: label 3 has taken a strip of label 9, and label 9 one of the background.
FUSED = TRUTH.copy()
FUSED[4:9] = np.roll(TRUTH[4:9], 6, axis=2)
FUSED[4:9, 22:40, 16:22] = 3


@dataclasses.dataclass
class Case:
    """What fusion left, and the map without scribbles."""

    annotation: object
    stack: object
    scores: list
    maps: LabelMaps

    def update(self, strokes, follow_edges=False):
        """The label map after strokes label -> (N, 3), and what the user is told."""
        annotation = dataclasses.replace(self.annotation, scribbles=strokes)
        maps = self.maps.copy()
        scribbles.spread(annotation, self.stack, self.scores, maps, follow_edges)
        maps.keep_given(annotation)
        (found,) = maps.volumes()
        return found, scribbles.contradictions(annotation, maps)

    def around(self, label, voxels):
        """What is around a stroke (N, 3) of a label, and the volume's box that it may change."""
        annotation = dataclasses.replace(self.annotation, scribbles={label: voxels})
        (region,) = scribbles.regions(annotation, self.stack.pixel)
        window = Window(region.box, annotation, self.stack, self.scores)
        return region.box, list(around_strokes(window.standing(label), region.strokes, window))


@pytest.fixture(scope="module")
def case():
    noise = np.random.default_rng(0).normal(size=SHAPE)
    image = (np.vectorize(INTENSITY.get)(TRUTH) + 2 * noise).astype(np.float32)
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[list(ANNOTATED)] = TRUTH[list(ANNOTATED)]
    annotation = annotate_from_label_volume(image, drawn, SPACING)
    return fused_case(annotation, prepare(annotation, 200), FUSED)


def fused_case(annotation, stack, fused):
    """As if fusion had made `fused` (K, J, I) of the annotation."""
    maps = LabelMaps(annotation, stack)
    everywhere = tuple(slice(0, size) for size in stack.size)
    scores = []
    for label in annotation.labels:
        found = fused[(slice(1, 12), *stack.box)] == label
        values = torch.from_numpy(np.stack([signed_distance(plane, SPACING[1:]) for plane in found]))
        votes = torch.from_numpy(np.stack([found, found]))  # no candidate knows better
        scores.append(FusedScore(label, range(1, 12), everywhere, values, votes))
        maps.enter(scores[-1])
    return Case(annotation, stack, scores, maps)


def plane_through(kind, centre):
    """(K, J, I) bool: the voxels of a plane through a voxel."""
    millimetres = (np.indices(SHAPE) - np.reshape(centre, (3, 1, 1, 1))) * np.reshape(SPACING, (3, 1, 1, 1))
    normal = {"axial": (1, 0, 0), "coronal": (0, 1, 0), "sagittal": (0, 0, 1), "oblique": (0.6, 0, 0.8)}[kind]
    half_thickness = {"axial": 1.5, "oblique": 1.3, "coronal": 2.5}.get(kind, 0.5)  # a thick stroke among the thin
    return np.abs(np.tensordot(normal, millimetres, 1)) < half_thickness


def distance_to(voxels):
    """(K, J, I) mm to the nearest of the voxels."""
    there = np.zeros(SHAPE, bool)
    there[tuple(voxels.T)] = True
    return ndimage.distance_transform_edt(~there, sampling=SPACING)


def stroke_through(wrong, kind):
    """A thin stroke in a plane of the kind through the middle of what is wrong, (N, 3)."""
    depth = ndimage.distance_transform_edt(wrong, sampling=SPACING)
    middle = np.unravel_index(depth.argmax(), SHAPE)
    inner = wrong & plane_through(kind, middle) & (depth >= 2)
    return np.argwhere(inner)


def dice(found, label):
    return 2 * ((found == label) & (TRUTH == label)).sum() / ((found == label).sum() + (TRUTH == label).sum())


@pytest.mark.parametrize("follow_edges", [False, True])
@pytest.mark.parametrize("kind", PLANE_KINDS)
@pytest.mark.parametrize("label", [9, BACKGROUND])
def test_a_stroke_corrects_at_least_half_of_the_region_it_runs_through(case, label, kind, follow_edges):
    before, _ = case.update({})
    wrong = (TRUTH == label) & (before != label)
    voxels = stroke_through(wrong, kind)
    after, told = case.update({label: voxels}, follow_edges)
    assert told == []
    assert (after[tuple(voxels.T)] == label).all()
    assert (after[wrong & (distance_to(voxels) <= REACH)] == label).mean() >= 0.5
    np.testing.assert_array_equal(after[distance_to(voxels) > REACH], before[distance_to(voxels) > REACH])
    assert all(dice(after, other) >= dice(before, other) - 0.002 for other in (3, 9))


@settings(max_examples=25)
@given(data=st.data())
def test_a_correct_stroke_anywhere_keeps_its_voxels_and_all_that_is_far(case, data):
    centre = [data.draw(st.integers(0, size - 1)) for size in SHAPE]
    kind = data.draw(st.sampled_from(PLANE_KINDS))
    radius = data.draw(st.sampled_from([2, 8]))
    near = np.linalg.norm((np.indices(SHAPE).T - centre) * SPACING, axis=-1).T <= radius
    painted = plane_through(kind, centre) & near
    strokes = {int(label): np.argwhere(painted & (TRUTH == label)) for label in np.unique(TRUTH[painted])}
    before, _ = case.update({})
    after, told = case.update(strokes, follow_edges=data.draw(st.booleans()))
    assert told == []
    np.testing.assert_array_equal(after[painted], TRUTH[painted])
    far = distance_to(np.argwhere(painted)) > REACH
    np.testing.assert_array_equal(after[far], before[far])
    for plane in ANNOTATED:
        np.testing.assert_array_equal(after[plane], TRUTH[plane])
    assert all(dice(after, label) >= dice(before, label) - 0.002 for label in (3, 9))


def test_a_stroke_that_says_nothing_new_changes_nothing(case):
    before, _ = case.update({})
    for label in (3, 9):
        after, _ = case.update({label: np.argwhere((before == label) & plane_through("axial", (6, 30, 30)))})
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("label", [9, BACKGROUND])
def test_a_stroke_corrects_the_same_whichever_axis_the_slices_lie_across(case, axis, label):
    """And if the volume begins nine slices before the first drawn one."""
    spacing = list(SPACING[1:])
    spacing.insert(axis, SPACING[0])
    image = np.moveaxis(np.pad(case.annotation.image, ((9, 0), (0, 0), (0, 0)), mode="edge"), 0, axis)
    complete = {
        label: {plane + 9: mask for plane, mask in planes.items()} for label, planes in case.annotation.complete.items()
    }
    annotation = dataclasses.replace(case.annotation, image=image, spacing=tuple(spacing), axis=axis, complete=complete)
    turned = fused_case(annotation, prepare(annotation, 200), FUSED)
    voxels = stroke_through((TRUTH == label) & (case.update({})[0] != label), "axial")
    voxels = np.concatenate([voxels, [[12, 30, 18]]])  # the last one contradicts a drawn slice
    expected, said = case.update({label: voxels}, follow_edges=True)
    strokes = {label: np.insert(voxels[:, 1:], axis, voxels[:, 0] + 9, axis=1)}
    found, told = turned.update(strokes, follow_edges=True)
    np.testing.assert_array_equal(np.moveaxis(found, axis, 0)[9:], expected)
    assert told == [text.replace("slice 12", "slice 21") for text in said] and len(said) == 1


def test_strokes_far_apart_do_not_know_of_each_other(case):
    first, second = np.array([[6, 24, 39]]), np.array([[6, 56, 39]])
    both, _ = case.update({9: np.concatenate([first, second])})
    one, _ = case.update({9: first})
    other, _ = case.update({9: second})
    near = distance_to(first) < distance_to(second)
    np.testing.assert_array_equal(both, np.where(near, one, other))
    before, _ = case.update({})
    assert (one != before).sum() > 1


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (0.5, 4.0, 2.0)])
def test_the_box_of_a_stroke_holds_all_within_reach_and_what_is_looked_at_for_it(case, spacing):
    annotation = dataclasses.replace(case.annotation, spacing=spacing, scribbles={9: np.array([[6, 30, 40]])})
    (region,) = scribbles.regions(annotation, pixel=1.5)
    for part, voxel, step, sight, size in zip(region.box, (6, 30, 40), spacing, (0, SIGHT, SIGHT), SHAPE, strict=True):
        margin = np.ceil((REACH + 1.5 * sight) / step)
        assert (part.start, part.stop) == (max(0, voxel - margin), min(size, voxel + margin + 1))


def test_a_complete_slice_wins_and_the_user_is_told(case):
    on_slice = np.array([[12, 30, 18 + n] for n in range(4)])
    found, told = case.update({9: np.concatenate([on_slice, [[6, 30, 40]]])})
    np.testing.assert_array_equal(found[12], TRUTH[12])
    assert found[6, 30, 40] == 9
    assert told == ["4 scribbled voxels contradict slice 12, which is annotated completely: the slice was kept."]


def test_what_is_scribbled_twice_on_a_slice_drawn_for_another_label_contradicts_no_slice():
    image = np.random.default_rng(0).normal(size=(9, 30, 30)).astype(np.float32)
    drawn = {1: np.zeros(image.shape, bool), 2: np.zeros(image.shape, bool)}
    drawn[1][[0, 8], 5:12, 5:12] = drawn[2][[0, 4, 8], 18:25, 18:25] = True
    for strokes, said in (
        ({1: [(4, 8, 8)], BACKGROUND: [(4, 8, 8)]}, "1 voxels are scribbled twice"),
        ({1: [(4, 20, 20)]}, "1 scribbled voxels contradict slice 4"),
        ({2: [(4, 8, 8)]}, "1 scribbled voxels contradict slice 4"),
    ):
        strokes = {label: np.array(voxels) for label, voxels in strokes.items()}
        annotation = annotate_from_masks(image, drawn, SPACING, 0, missing="unknown", scribbles=strokes)
        report = pipeline.propagate(annotation, Settings(preset="fast")).report
        assert [message for message in report["messages"] if "scribbled" in message][0].startswith(said)


@pytest.mark.parametrize(("labels", "counts"), [((9, BACKGROUND), 0), ((3, 9), 9)])
def test_a_voxel_scribbled_twice_is_told(case, labels, counts):
    """In whatever order they are given."""
    found = []
    for order in (labels, labels[::-1]):
        volume, told = case.update({label: np.array([[6, 30, 40]]) for label in order})
        assert volume[6, 30, 40] == counts
        assert len(told) == 1 and "1 voxels are scribbled twice" in told[0]
        found.append(volume)
    np.testing.assert_array_equal(*found)


def test_strokes_outside_the_crop_are_kept(case):
    corner = np.array([[6, 0, 0], [6, 0, 1]])
    assert case.stack.box[0].start > 0
    found, _ = case.update({3: corner})
    assert (found[tuple(corner.T)] == 3).all()


@pytest.mark.parametrize("label", [9, BACKGROUND])
def test_voxels_around_a_stroke_are_likelier_wrong_where_they_truly_are(case, label):
    before, _ = case.update({})
    voxels = stroke_through((TRUTH == label) & (before != label), "axial")
    box, (around,) = case.around(label, voxels)
    places = tuple((around.voxels + [part.start for part in box]).T)
    assert around.terms.shape == (len(around.voxels), 12) and np.isfinite(around.terms).all()
    assert (before[places] != label).all() and (distance_to(voxels)[places] <= REACH).all()
    assert not set(places[0].tolist()) & set(ANNOTATED)
    log_odds, truly = around.log_odds(), TRUTH[places] == label
    assert log_odds[truly].mean() > log_odds[~truly].mean() + 1


def test_nothing_is_around_a_stroke_that_says_nothing_new(case):
    before, _ = case.update({})
    _, found = case.around(9, np.argwhere((before == 9) & plane_through("axial", (6, 30, 30))))
    assert found == []


def test_a_longer_stroke_corrects_more(case):
    voxels = stroke_through((TRUTH == 9) & (FUSED != 9), "axial")
    (_, (long,)), (_, (short,)) = (case.around(9, part) for part in (voxels, voxels[len(voxels) // 2 :][:1]))
    assert scribbles.choose(long).sum() > scribbles.choose(short).sum() > 0


def surroundings_with(log_odds, volume, label_count=1, found=None):
    """What is around a stroke: voxels of such log-odds, so many labels of such a volume, found with another one."""
    terms = np.zeros((len(log_odds), 12))
    terms[:, 0] = (log_odds - COEFFICIENTS.constant) / COEFFICIENTS.depth
    drawn = np.full(len(log_odds), volume)
    found = np.where(np.isinf(drawn), 0, drawn if found is None else found)
    return Surroundings(np.zeros((len(log_odds), 3), int), terms, volume, drawn, found, label_count)


def test_the_likeliest_voxels_are_corrected_and_unlikely_ones_are_not():
    log_odds = np.array([-6.0, 5.0, 5.0, -6.0, 5.0, -6.0])
    np.testing.assert_array_equal(scribbles.choose(surroundings_with(log_odds, 1e4)), log_odds > 0)


def test_of_a_small_label_less_is_put_at_risk_than_of_a_large_one():
    log_odds = np.linspace(1, -3, 400)
    small, large, background = (scribbles.choose(surroundings_with(log_odds, v)).sum() for v in (100, 1e5, np.inf))
    assert small < large <= background < 400
    assert not scribbles.choose(surroundings_with(np.full(400, -3.0), 100)).any()


def test_of_many_labels_one_may_lose_more_than_the_only_one():
    log_odds = np.linspace(1, -3, 400)
    only, one_of_five = (scribbles.choose(surroundings_with(log_odds, 300, count)).sum() for count in (1, 5))
    assert 0 < only < one_of_five


@given(
    seed=st.integers(0, 2**32 - 1),
    volume=st.sampled_from([50.0, 1e3, 1e5]),
    spread=st.sampled_from([1.0, 3.0]),
    gains_background=st.booleans(),
)
def test_no_choice_may_lose_more_than_the_risks_allow(seed, volume, spread, gains_background):
    around = surroundings_with(spread * np.random.default_rng(seed).normal(-1, 1, 300), volume)
    if gains_background:
        around = dataclasses.replace(around, gaining=np.inf)
    lost = scribbles.losses(around)[:, scribbles.choose(around)].sum(axis=1)
    assert len(lost) == len(scribbles.RISKS) + gains_background
    assert (lost <= np.array(scribbles.risks(around))[:, 1] + 1e-12).all()


def test_background_takes_little_of_a_small_label_however_likely_it_is_wrong():
    around = dataclasses.replace(surroundings_with(np.full(400, 6.0), 400), gaining=np.inf)
    left = 400 - scribbles.choose(around).sum()
    assert 0 < 1 - 2 * left / (left + 400) <= scribbles.RISK_OF_BACKGROUND[1] * 1.05
    assert scribbles.choose(surroundings_with(np.full(400, 6.0), 400)).sum() > 300


def test_a_label_that_was_drawn_small_is_not_given_whatever_gains_while_it_is_small():
    """Of few voxels that miss many more each likely one gains; once it has those that are sure, no longer."""
    sure, unlikely = np.full(30, 3.0), np.full(400, -1.4)
    around = surroundings_with(np.concatenate([sure, unlikely]), np.inf, found=np.inf)
    small, large = (dataclasses.replace(around, gaining=float(volume)) for volume in (20, 2000))
    assert (scribbles.losses(small)[0] < 0).all()
    assert scribbles.choose(small)[:30].all()
    assert scribbles.choose(small)[30:].sum() < 20
    assert scribbles.choose(large).sum() >= 30


@given(has=st.integers(1, 500), around=st.integers(1, 500), missing=st.floats(0.01, 0.99), given_up=st.floats(0.01, 1))
def test_the_dice_to_expect_is_that_of_what_the_label_has_then(has, around, missing, given_up):
    """Of a label that lacks a share of what is around, and is given the first voxels of it, each as likely its own."""
    count = int(np.ceil(given_up * around))
    found, own, shared = has + count, has + missing * around, has + missing * count
    surroundings = dataclasses.replace(
        surroundings_with(np.full(around, special.logit(missing)), np.inf), gaining=float(has)
    )
    dice = scribbles.expected_dice(surroundings, missing * around, missing * count, count)
    assert dice == pytest.approx(2 * shared / (found + own))
    assert scribbles.expected_dice(surroundings_with(np.zeros(3), np.inf), 1.5, 1.5, 3) == 1


@given(seed=st.integers(0, 2**32 - 1), volume=st.sampled_from([5.0, 50.0, 1e3]))
def test_no_choice_gives_up_more_of_the_best_dice_than_it_may(seed, volume):
    log_odds = 2 * np.random.default_rng(seed).normal(-1, 1, 300)
    around = dataclasses.replace(surroundings_with(log_odds, np.inf, label_count=3), gaining=volume)
    probability = special.expit(around.log_odds())
    right = [0, *np.cumsum(-np.sort(-probability))]
    dice = [scribbles.expected_dice(around, right[-1], right[count], count) for count in range(301)]
    best = int(np.argmax(dice))
    count = scribbles.choose(around).sum()
    assert count <= best or dice[count] >= dice[best] - 3 * scribbles.MOST_GIVEN_UP - 1e-12
    assert scribbles.least_dice(around, probability) == pytest.approx(dice[best] - 3 * scribbles.MOST_GIVEN_UP)


def test_a_graph_cut_gives_up_no_more_of_the_best_dice_either():
    sure, unlikely = np.full(30, 3.0), np.full(400, -1.4)
    log_odds = np.concatenate([sure, unlikely])
    around = dataclasses.replace(surroundings_with(log_odds, np.inf, found=np.inf), gaining=20.0)
    probability = special.expit(log_odds)
    arguments = around, probability, scribbles.losses(around), scribbles.least_dice(around, probability)
    assert scribbles.is_within_limits(log_odds > 0, *arguments)
    assert not scribbles.is_within_limits(np.arange(430) < 150, *arguments)
    assert 0.1 * probability.sum() < probability[150:].sum()  # so that SHARE allows it


@given(found=st.integers(200, 5000), drawn=st.integers(200, 5000), is_right=st.booleans())
def test_what_a_label_may_lose_by_a_voxel_is_what_its_dice_falls_by(found, drawn, is_right):
    """A label of `drawn` voxels, of which as many are among the `found` ones as can be, and background that gains."""
    log_odds = np.array([-60.0 if is_right else 60.0])
    around = dataclasses.replace(surroundings_with(log_odds, drawn, found=found), gaining=np.inf)
    shared = min(found, drawn)
    falls = [2 * shared / (found + drawn) - 2 * (shared - right) / (found - 1 + drawn) for right in (is_right, True)]
    *as_likely, as_if_right = scribbles.losses(around)
    np.testing.assert_allclose(as_likely, falls[0], rtol=0.01)
    np.testing.assert_allclose(as_if_right, falls[1], rtol=0.01)


ODDS_ONCE_FITTED = Coefficients(
    constant=-0.809,
    depth=-0.830,
    stroke_depth=0.830,
    both_depths=0.0,
    distance=-0.913,
    length=0.499,
    slices=-0.260,
    bridge=1.786,
    voted=0.929,
    outvoted=-0.485,
    likelihood=0.393,
    dissimilarity=-5.816,
    sharpness=0.0,
)


@pytest.fixture(scope="module")
def walled():
    """A label that ends at a thin dark wall, alike on both sides; 6 mm before it on planes 4 to 8: (case, truth)."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    end = 40 + np.round(4 * np.sin(rows / 6))
    truth = np.zeros(SHAPE, np.uint8)
    truth[:, (columns >= 15) & (columns < end) & (rows >= 13) & (rows < 52)] = 3
    image = np.where((columns >= end) & (columns < end + 2), 0, 100) + np.random.default_rng(0).normal(0, 4, SHAPE)
    found = truth.copy()
    found[4:9] *= columns < end - 6
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[list(ANNOTATED)] = truth[list(ANNOTATED)]
    annotation = annotate_from_label_volume(image.astype(np.float32), drawn, SPACING)
    return fused_case(annotation, prepare(annotation, 200), found), truth


@pytest.mark.parametrize("kind", ["axial", "coronal", "oblique"])
def test_a_graph_cut_ends_the_correction_at_an_edge(walled, kind, monkeypatch):
    """Of odds once fitted, and always the same: what the cut makes of them is not to hang on the newest fit."""
    monkeypatch.setattr(surroundings, "COEFFICIENTS", ODDS_ONCE_FITTED)
    case, truth = walled
    before, _ = case.update({})
    voxels = stroke_through((truth == 3) & (before != 3), kind)
    wrong, beyond = [], []
    for follow_edges in (False, True):
        found, told = case.update({3: voxels}, follow_edges)
        assert told == [] and (found[tuple(voxels.T)] == 3).all()
        wrong.append((found != truth).sum())
        beyond.append(((found == 3) & (truth != 3)).sum())
    assert wrong[1] < wrong[0] < (before != truth).sum()
    assert beyond[1] < 0.9 * beyond[0]


@pytest.mark.parametrize("region", ["nothing", "everything"])
def test_a_graph_cut_that_helps_less_or_risks_more_is_not_taken(case, monkeypatch, region):
    voxels = stroke_through((TRUTH == 9) & (FUSED != 9), "axial")
    monkeypatch.setattr(graph_cut, "cut", lambda unary, *rest: np.full(len(unary), region == "everything"))
    (without, _), (found, _) = (case.update({9: voxels}, follow_edges) for follow_edges in (False, True))
    np.testing.assert_array_equal(found, without)


def test_a_graph_cut_knows_what_was_drawn_and_what_is_sure(case, monkeypatch):
    """It is told where the label is for certain, on drawn planes, too, and asked no more than it can do in time."""
    asked = []

    def cut(unary, voxels, region, image, spacing):
        asked.append((unary, voxels, region))
        return unary > 0

    monkeypatch.setattr(graph_cut, "cut", cut)
    monkeypatch.setattr(scribbles, "MOST_VOXELS", 200)
    voxels = stroke_through((TRUTH == 9) & (FUSED != 9), "coronal")
    annotation = dataclasses.replace(case.annotation, scribbles={9: voxels})
    (region,) = scribbles.regions(annotation, case.stack.pixel)
    _, (around,) = case.around(9, voxels)
    odds = np.full(region.strokes.shape, -np.inf)
    odds[tuple(around.voxels.T)] = around.log_odds()
    case.update({9: voxels}, follow_edges=True)
    assert asked
    for unary, questionable, certain in asked:
        assert len(unary) == len(questionable) == 200
        assert not certain[tuple(questionable.T)].any()
        inside = region.strokes == 9
        assert certain[inside].all()
        sure = odds > odds[tuple(questionable.T)].max()
        assert sure.any() and certain[sure].all()
        for plane in ANNOTATED:
            drawn = TRUTH[region.box][plane - region.box[0].start]
            np.testing.assert_array_equal(certain[plane - region.box[0].start], drawn == 9)


@pytest.mark.parametrize("label", [3, 9, BACKGROUND])
def test_what_is_drawn_in_a_window(case, label):
    for planes, known in ((slice(0, 12), 0), (slice(1, 13), 11)):
        box = (planes, slice(20, 45), slice(10, 60))
        drawn = Window(box, case.annotation, case.stack, case.scores).drawn(label)
        np.testing.assert_array_equal(drawn[known], TRUTH[box][known] == label)
        assert not np.delete(drawn, known, axis=0).any()


def test_without_the_option_nothing_is_cut(case, monkeypatch):
    def never(*arguments):
        raise AssertionError("no graph cut was asked for")

    monkeypatch.setattr(graph_cut, "cut", never)
    case.update({9: stroke_through((TRUTH == 9) & (FUSED != 9), "axial")})


def drifting(planes):
    """A bright disc that drifts through the planes: (image, labels)."""
    rows, columns = np.mgrid[:40, :40]
    labels = np.stack([((rows - 14 - k) ** 2 + (columns - 18) ** 2 < 49).astype(np.uint8) for k in range(planes)])
    noise = np.random.default_rng(1).normal(size=labels.shape)
    return (100 * labels + 6 * ndimage.gaussian_filter(noise, 1)).astype(np.float32), labels


@pytest.fixture(scope="module")
def beyond():
    """Runs with and without a stroke two planes beyond the last annotated one, in one memory: (labels, runs)."""
    image, labels = drifting(9)
    drawn = np.zeros_like(labels)
    drawn[[0, 5]] = labels[[0, 5]]
    stroke = np.zeros_like(labels)
    stroke[7, 19:24, 18] = 1
    annotation = annotate_from_label_volume(image, drawn, SPACING)
    scribbled = annotate_from_label_volume(image, drawn, SPACING, scribbles=stroke)
    memory = Memory()
    fast = Settings(preset="fast")
    return labels, {
        "without": pipeline.propagate(annotation, fast, memory=memory).label_maps[0],
        "warm": pipeline.propagate(scribbled, fast, memory=memory).label_maps[0],
        "cold": pipeline.propagate(scribbled, fast).label_maps[0],
    }


def test_a_stroke_beyond_the_last_slice_carries_the_label_there(beyond):
    labels, runs = beyond
    for name in ("warm", "cold"):
        for plane in (6, 7):
            found, there = runs[name][plane] > 0, labels[plane] > 0
            assert 2 * (found & there).sum() / (found.sum() + there.sum()) > 0.85
    assert not runs["without"][6:].any()


def test_a_stroke_beyond_the_last_slice_changes_nothing_before_it(beyond):
    _, runs = beyond
    for name in ("warm", "cold"):
        np.testing.assert_array_equal(runs[name][:6], runs["without"][:6])


@pytest.mark.parametrize(("rows", "column"), [(slice(18, 22), 30), (slice(10, 30), 34)])
def test_a_stroke_may_cross_the_only_drawn_slice(rows, column):
    image, labels = drifting(9)
    drawn = np.zeros_like(labels)
    drawn[4] = labels[4]
    stroke = np.zeros_like(labels)
    stroke[[2, 3, 5, 6], rows, column] = 1
    annotation = annotate_from_label_volume(image, drawn, SPACING, scribbles=stroke)
    (found,) = pipeline.propagate(annotation, Settings(preset="fast")).label_maps
    assert found[stroke > 0].all() and not found[[0, 1, 7, 8]].any()
    np.testing.assert_array_equal(found[4], labels[4])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("planes", [(6,), (7, 8)])
def test_a_label_absent_on_the_last_slice_is_not_carried_to_its_stroke(planes, turned):
    _, labels = drifting(9)
    image = np.random.default_rng(0).normal(size=labels.shape)
    drawn = np.zeros_like(labels)
    drawn[[0, 5]] = labels[[0, 5]]
    drawn[5] *= 2
    strokes = np.zeros_like(labels)
    strokes[8, 20, 18] = 1
    strokes[list(planes), 21, 18] = 2
    order = slice(None, None, -1 if turned else 1)
    annotation = annotate_from_label_volume(image[order], drawn[order], SPACING, scribbles=strokes[order])
    assert annotation.missing == "absent"
    stack = prepare(annotation, 200)
    expected = Gap(None, 3, 8 - planes[-1], 2) if turned else Gap(5, None, 6, planes[-1])
    assert gaps_to_scribbles(annotation, stack) == {expected: [2]}
    between = Gap(3, 8, 4, 7) if turned else Gap(0, 5, 1, 4)
    assert list(gaps(annotation, stack, extrapolate=False)) == [between]
    without = dataclasses.replace(annotation, scribbles={2: np.empty((0, 3), int)})
    assert gaps_to_scribbles(without, stack) == {}


def test_a_stroke_needs_no_registration_and_no_fusion(monkeypatch):
    image, labels = drifting(7)
    drawn = np.zeros_like(labels)
    drawn[[0, 6]] = labels[[0, 6]]
    stroke = np.zeros_like(labels)
    stroke[3, 8:12, 18] = 255
    memory, fast = Memory(), Settings(preset="fast")
    plain = dataclasses.replace(fast, graph_cut=False)
    pipeline.propagate(annotate_from_label_volume(image, drawn, SPACING), fast, memory=memory)

    def never(*arguments, **choices):
        raise AssertionError("nothing is to be computed again")

    monkeypatch.setattr(instance, "optimise", never)
    monkeypatch.setattr(pipeline, "fuse_gaps", never)
    scribbled = annotate_from_label_volume(image, drawn, SPACING, scribbles=stroke)
    cut, cuts = graph_cut.cut, []
    monkeypatch.setattr(graph_cut, "cut", lambda *arguments: cuts.append(arguments) or cut(*arguments))
    (found,) = pipeline.propagate(scribbled, plain, memory=memory).label_maps
    assert not found[3, 8:12, 18].any() and not cuts
    (along_edges,) = pipeline.propagate(scribbled, fast, memory=memory).label_maps
    assert cuts
    monkeypatch.undo()
    np.testing.assert_array_equal(found, pipeline.propagate(scribbled, plain).label_maps[0])
    np.testing.assert_array_equal(along_edges, pipeline.propagate(scribbled, fast).label_maps[0])
