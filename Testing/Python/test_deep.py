"""Deep label fusion: what it must leave alone, what it may do, and that the shipped weights choose well."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks
from scipy import ndimage

from LabelPropLib import checkpoint
from LabelPropLib.candidates import Chains, arrivals
from LabelPropLib.fusion import deep, similarity
from LabelPropLib.fusion.subnets import CORRECTION_CHANNELS, VOTING_CHANNELS, DeepLabelFusion
from LabelPropLib.gaps import Gap
from LabelPropLib.label_planes import DISTANCE_LIMIT, LabelPlanes
from LabelPropLib.preprocessing import prepare, signed_distance

SIZE = 64


def disc(row, column, radius):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def arrivals_of_discs(order=(1, 2, 3), radius=7):
    """Three labels at planes 1 to 4 of 6: two on both sides, one below alone; no motion, noise for images."""
    masks = {label: np.zeros((6, SIZE, SIZE), bool) for label in (1, 2, 3)}
    masks[1][[0, 5]] = disc(20, 20, 8), disc(22, 22, 11)
    masks[2][[0, 5]] = disc(36, 36, 9), disc(34, 38, 6)
    masks[3][0] = disc(48, 18, radius)
    image = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(6, SIZE, SIZE)), (0, 2, 2)).astype(np.float32)
    annotation = annotate_from_masks(image, masks, (3.0, 1.0, 1.0), axis=0)
    stack = prepare(annotation, 200)
    planes = LabelPlanes(annotation, stack)
    crossing = Chains(torch.zeros(5, 2, 32, 32), stack.images).cross(Gap(0, 5, 1, 4))
    return [arrivals(label, crossing, planes) for label in order]


def shaken(networks):
    """The networks with random weights in the layers that start at zero."""
    for subnet in (networks.voting, networks.correction):
        torch.nn.init.normal_(subnet.out.weight, std=0.5)
    return networks


@torch.no_grad()
def test_networks_that_say_nothing_leave_the_similarity_rule_as_it_is():
    arrived = arrivals_of_discs()
    for label, score in zip(arrived, deep.fuse(arrived, DeepLabelFusion()), strict=True):
        expected = similarity.fuse(label)
        window = deep.look(label)
        assert torch.equal(window.of(score)[window.mask], window.of(expected)[window.mask])
        assert torch.equal(score > 0, expected > 0)


def arrival_of_disc(radius, size):
    """A disc, `radius` pixels or 8 mm, on both sides of three of five planes of a ramp; no motion."""
    rows, columns = np.mgrid[:size, :size]
    masks = {1: np.zeros((5, size, size), bool)}
    masks[1][[0, 4]] = (rows - size / 2 + 0.5) ** 2 + (columns - size / 2 + 0.5) ** 2 < radius**2
    image = np.broadcast_to(columns / size, (5, size, size)).astype(np.float32)
    annotation = annotate_from_masks(image, masks, (2.0, 8 / radius, 8 / radius), axis=0)
    stack = prepare(annotation, 400)
    crossing = Chains(torch.zeros(4, 2, 32, 32), stack.images).cross(Gap(0, 4, 1, 3))
    return arrivals(1, crossing, LabelPlanes(annotation, stack))


def told_of_disc(radius):
    arrived = arrival_of_disc(radius, 10 * radius)
    return deep.features(arrived, deep.look(arrived), deep.scale(arrived))


@torch.no_grad()
@pytest.mark.parametrize("radius", [7, 10])
def test_thin_and_thick_labels_look_alike_to_the_networks(radius):
    """As one of LABEL_DEPTH."""
    like, seen = told_of_disc(int(deep.LABEL_DEPTH)), told_of_disc(radius)
    assert (seen.scale > 1) == (radius < deep.LABEL_DEPTH)
    assert float(seen.lower.max()) == pytest.approx(float(like.lower.max()), abs=0.7)
    assert int((seen.lower > 0).sum()) == pytest.approx(int((like.lower > 0).sum()), rel=0.15)
    assert float(seen.target.std()) == pytest.approx(float(like.target.std()), rel=0.2)


@pytest.mark.parametrize(("radius", "scale"), [(2, deep.SCALES[1]), (60, deep.SCALES[0])])
def test_scales_have_limits(radius, scale):
    assert deep.scale(arrival_of_disc(radius, 160)) == scale


@torch.no_grad()
def test_networks_see_intensities_relative_to_those_in_and_around_the_label():
    """Of a ramp, in a disc and as far around it as its radius: half of that is the deviation of the columns."""
    target = told_of_disc(8).target
    assert float(target.mean()) == pytest.approx(0, abs=0.05)
    assert float(target.diff(dim=2).mean()) == pytest.approx(1 / 8, rel=0.25)
    assert deep.relative(torch.tensor([-99.0, 2.0, 99.0]), (1.0, 0.5)).tolist() == [-4, 2, 4]
    assert deep.bounded(torch.tensor([-99.0, 2.0, 99.0])).tolist() == [-3, 0.5, 3]


@torch.no_grad()
def test_a_candidate_that_is_voted_for_weighs_more():
    """Here, in its window, the nearer one."""
    arrived = arrival_of_disc(8, 80)
    votes = deep.vote(arrived, SimpleNamespace(voting=lambda view: view[:, 4]))
    change = votes.window.of(votes.way - similarity.similarity_way(arrived, torch.zeros_like(votes.way)))
    assert (change[0] < 0).all() and (change[2] > 0).all()


def test_where_a_label_is_absent_the_networks_see_it_far_outside():
    arrived = arrivals_of_discs()[2]
    told = deep.features(arrived, deep.look(arrived), 1.2)
    assert (told.upper == -1.2 * DISTANCE_LIMIT).all() and told.lower.max() > 0


@torch.no_grad()
def test_a_tip_on_one_plane_alone_is_left_to_the_similarity_rule():
    networks = DeepLabelFusion()
    networks.correction.out.bias += 1
    for radius, is_left in ((2, True), (7, False)):
        arrived = arrivals_of_discs(radius=radius)
        assert torch.equal(deep.fuse(arrived, networks)[2], similarity.fuse(arrived[2])) == is_left
    both = arrival_of_disc(2, 40)  # as thin, but on two planes
    assert not torch.equal(deep.fuse([both], networks)[0], similarity.fuse(both))


@torch.no_grad()
@pytest.mark.parametrize("radius", [3, 20])
def test_a_correction_is_as_large_in_the_pixels_of_the_slice_for_any_scale(radius):
    """Networks that move every contour by one of their pixels move it by 1 / scale of the slice's."""
    networks = DeepLabelFusion()
    networks.correction.out.bias += 1
    arrived = arrival_of_disc(radius, 8 * radius)
    window = deep.look(arrived)
    moved = deep.fuse([arrived], networks)[0] - similarity.fuse(arrived)
    assert moved.shape[1:] == tuple(part.stop - part.start for part in arrived.box)
    expected = torch.full_like(moved, 1 / deep.scale(arrived))
    torch.testing.assert_close(window.of(moved)[window.mask], window.of(expected)[window.mask])


@torch.no_grad()
def test_the_order_of_labels_does_not_matter():
    torch.manual_seed(0)
    networks = shaken(DeepLabelFusion())
    forwards = deep.fuse(arrivals_of_discs((1, 2, 3)), networks)
    backwards = deep.fuse(arrivals_of_discs((3, 2, 1)), networks)[::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert torch.equal(first, second)


@torch.no_grad()
def test_no_label_leaves_the_surroundings_of_its_votes():
    torch.manual_seed(1)
    networks = shaken(DeepLabelFusion())
    networks.correction.out.bias += 50
    arrived = arrivals_of_discs()
    for label, score in zip(arrived, deep.fuse(arrived, networks), strict=True):
        window = deep.look(label)
        inside = torch.zeros_like(score, dtype=torch.bool)
        window.of(inside).copy_(window.mask)
        assert (score[~inside] < 0).all()
        assert (score[inside] > 0).any()


@settings(max_examples=10)
@given(height=st.integers(9, 41), width=st.integers(9, 41))
def test_subnets_take_boxes_of_any_size(height, width):
    networks = DeepLabelFusion()
    assert networks.voting(torch.zeros(2, VOTING_CHANNELS, height, width)).shape == (2, height, width)
    assert networks.correction(torch.zeros(2, CORRECTION_CHANNELS, height, width)).shape == (2, height, width)


def test_the_best_rival_is_the_highest_other_label_in_ones_own_box():
    arrived = arrivals_of_discs((1, 2))
    scores = [similarity.fuse(label) for label in arrived]
    rivals = deep.best_rival(0, arrived, scores, ())
    (rows, columns), (other_rows, other_columns) = (label.box for label in arrived)
    row, column = max(rows.start, other_rows.start), max(columns.start, other_columns.start)
    here = rivals[:, row - rows.start, column - columns.start]
    there = scores[1][:, row - other_rows.start, column - other_columns.start]
    assert torch.equal(here, there.clamp(min=-24.0))
    assert (deep.best_rival(0, arrived, scores, {(1, 2)}) == -24.0).all()


@torch.no_grad()
def test_a_label_that_may_overlap_does_not_keep_another_away(shipped):
    arrived = arrivals_of_discs((1, 2))
    apart, over = deep.fuse(arrived, shipped), deep.fuse(arrived, shipped, {(1, 2)})
    alone = [score for label in arrived for score in deep.fuse([label], shipped)]
    for index in (0, 1):
        assert torch.equal(over[index], alone[index]) and not torch.equal(over[index], apart[index])


@pytest.fixture
def shipped():
    tensors, _ = checkpoint.load(checkpoint.SHIPPED_FOLDER / "fusion.pt", "fusion")
    networks = DeepLabelFusion()
    networks.load_state_dict(tensors)
    return networks


@torch.no_grad()
def test_shipped_weights_pick_the_candidate_that_is_right(shipped):
    """Left of the middle the lower plane looks like the slices, right of it the upper one does: 95 % of the oracle."""
    masks = {1: np.zeros((7, SIZE, SIZE), bool)}
    low, high = disc(26, 32, 12) | disc(38, 32, 12), disc(32, 26, 12) | disc(32, 38, 12)
    truth = np.where(np.arange(SIZE) < SIZE // 2, low, high)
    masks[1][[0, 6]] = low, high
    shapes = np.stack([low, *[truth] * 5, high])
    noise = np.random.default_rng(0).normal(size=shapes.shape)
    image = (ndimage.gaussian_filter(shapes.astype(float), (0, 0.7, 0.7)) + 0.05 * noise).astype(np.float32)
    annotation = annotate_from_masks(image, masks, (3.0, 1.0, 1.0), axis=0)
    stack = prepare(annotation, 200)
    crossing = Chains(torch.zeros(6, 2, 32, 32), stack.images).cross(Gap(0, 6, 1, 5))
    arrived = arrivals(1, crossing, LabelPlanes(annotation, stack))
    (score,) = deep.fuse([arrived], shipped)
    drawn = torch.from_numpy(signed_distance(truth[stack.box], (1.0, 1.0)))[arrived.box] > 0
    candidates = torch.stack([arrived.lower.distances > 0, arrived.upper.distances > 0])
    oracle = torch.where((candidates == drawn).any(dim=0), drawn, ~drawn)

    def dice(found):
        return float(2 * (found & drawn).sum() / (found.sum() + len(found) * drawn.sum()))

    assert dice(score > 0) >= 0.95 * dice(oracle)
    assert dice(score > 0) > max(dice(candidate) for candidate in candidates) + 0.02
