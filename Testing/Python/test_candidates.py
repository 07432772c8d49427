"""What reaches a slice: gaps, chains, candidates, and the choice of a rule; and which labels win a voxel."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks

from LabelPropLib import boxes
from LabelPropLib.candidates import BOX_MARGIN, Chains, arrivals
from LabelPropLib.filters import channel_weights
from LabelPropLib.fusion import deep, similarity
from LabelPropLib.fusion.choice import LeftOut, choose
from LabelPropLib.gap_fusion import RULES, Scan, choose_rules, hide_slices, leave_one_out, scores
from LabelPropLib.gaps import Gap, gaps
from LabelPropLib.label_planes import LabelPlanes, far_ends
from LabelPropLib.labelmaps import FusedScore, LabelMaps, exclusive_layers
from LabelPropLib.preprocessing import prepare, signed_distance
from LabelPropLib.registration.consistency import on_grid
from LabelPropLib.registration.fields import sample
from LabelPropLib.registration.instance import field_size

SIZE = 40


def disc(row, column, radius=6):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


@pytest.fixture
def annotation():
    """Label 1 on planes 0, 4 and 10, label 2 on 4 alone; 2 absent on 0 and 10."""
    masks = {label: np.zeros((11, SIZE, SIZE), bool) for label in (1, 2)}
    for plane in (0, 4, 10):
        masks[1][plane] = disc(15, 15)
    masks[2][4] = disc(26, 28)
    image = np.random.default_rng(1).normal(size=(11, SIZE, SIZE)).astype(np.float32)
    return annotate_from_masks(image, masks, (2.0, 1.0, 1.0), axis=0)


def test_gaps_lie_between_known_planes(annotation):
    stack = prepare(annotation, 200)
    assert gaps(annotation, stack, extrapolate=False) == {Gap(0, 4, 1, 3): [1, 2], Gap(4, 10, 5, 9): [1, 2]}


def test_gaps_beyond_the_outermost_planes_need_a_label_there():
    masks = {1: np.zeros((9, SIZE, SIZE), bool)}
    masks[1][[2, 6]] = disc(20, 20)
    image = np.random.default_rng(1).normal(size=(9, SIZE, SIZE)).astype(np.float32)
    annotation = annotate_from_masks(image, masks, (2.0, 1.0, 1.0), axis=0)
    stack = prepare(annotation, 200, extrapolate=True)
    assert list(gaps(annotation, stack, extrapolate=True)) == [Gap(None, 2, 0, 1), Gap(2, 6, 3, 5), Gap(6, None, 7, 8)]


def test_absence_beyond_the_outermost_drawn_planes_opens_no_gap():
    masks = {1: np.zeros((13, SIZE, SIZE), bool)}
    masks[1][[2, 6]] = disc(20, 20)
    image = np.random.default_rng(1).normal(size=(13, SIZE, SIZE)).astype(np.float32)
    annotation = annotate_from_masks(image, masks, (2.0, 1.0, 1.0), axis=0, absent={1: {0, 7, 10}})
    stack = prepare(annotation, 200)
    assert list(gaps(annotation, stack, extrapolate=False)) == [Gap(0, 4, 1, 3)]
    assert LabelPlanes(annotation, stack).known(1) == [0, 4]
    whole = prepare(annotation, 200, extrapolate=True)
    assert list(gaps(annotation, whole, extrapolate=True)) == [Gap(0, 2, 1, 1), Gap(2, 6, 3, 5)]


def test_chains_add_up_translations():
    """A velocity that is constant in space and along the chain carries points by its sum."""
    images = torch.zeros(6, 1, SIZE, SIZE)
    velocity = torch.zeros(5, 2, SIZE, SIZE)
    velocity[:, 0], velocity[:, 1] = 1.5, -0.5
    chains = Chains(velocity, images)
    up = chains.carry(0, range(1, 6)).coordinates
    down = chains.carry(5, range(0, 5)).coordinates
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    inside = (slice(15, 25), slice(15, 25))
    for target in range(1, 6):
        torch.testing.assert_close(up[target - 1, 0][inside], (rows + 1.5 * target)[inside])
        torch.testing.assert_close(up[target - 1, 1][inside], (columns - 0.5 * target)[inside])
        torch.testing.assert_close(down[5 - target, 0][inside], (rows - 1.5 * target)[inside])


def test_a_chain_to_a_far_plane_is_that_through_all_planes_before():
    velocity = torch.randn(5, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    chains = Chains(velocity, torch.rand(6, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(chains.carry(0, range(5, 6)).images[0], chains.carry(0, range(1, 6)).images[4])


def test_arrivals_of_a_standing_scan_are_the_drawn_contours(annotation):
    stack = prepare(annotation, 200)
    planes = LabelPlanes(annotation, stack)
    crossing = Chains(torch.zeros(10, 2, 20, 20), stack.images).cross(Gap(0, 4, 1, 3))
    both, one = (arrivals(label, crossing, planes) for label in (1, 2))
    drawn = signed_distance(disc(15, 15)[stack.box], (1.0, 1.0))
    for candidate in (both.lower, both.upper):
        np.testing.assert_allclose(candidate.distances[1], drawn[both.box], atol=1e-4)
    assert one.lower is None and one.upper.source == 4


@given(
    seed=st.integers(0, 200),
    speed=st.floats(0, 4),
    drift=st.sampled_from([-1.0, 0.0, 1.0]),
    row=st.integers(0, 70),
    column=st.integers(0, 70),
    is_above=st.booleans(),
)
@example(seed=0, speed=0.0, drift=-3.0, row=0, column=0, is_above=False)  # off the border of the plane
@example(seed=0, speed=0.0, drift=3.0, row=70, column=70, is_above=False)
def test_a_box_holds_all_that_lies_near_what_is_carried(seed, speed, drift, row, column, is_above):
    """As if the whole plane had been sampled, wherever the label lies and however far it is carried."""
    size, generator = 71, torch.Generator().manual_seed(seed)
    masks = {label: np.zeros((7, size, size), bool) for label in (1, 2)}
    rows, columns = np.mgrid[:size, :size]
    masks[1][[0, 6] if is_above else 0] = (rows - row) ** 2 + (columns - column) ** 2 < 16
    masks[2][[0, 6]] = (rows == columns) & (rows % 10 == 0)  # all over the plane, so nothing of it is cropped
    image = np.random.default_rng(seed).normal(size=(7, size, size))
    annotation = annotate_from_masks(image, masks, (2.0, 1.0, 1.0), axis=0)
    stack = prepare(annotation, 200)
    planes = LabelPlanes(annotation, stack)
    velocity = torch.nn.functional.interpolate(
        speed * torch.randn(6, 2, 3, 3, generator=generator), size=(36, 36), mode="bilinear", align_corners=True
    )
    crossing = Chains(velocity + drift, stack.images).cross(Gap(0, 6, 1, 5))
    whole = [
        sample(planes.distances(1, side.source)[None, None].expand(5, -1, -1, -1), side.coordinates)[:, 0]
        for side in (crossing.lower, crossing.upper)[: 1 + is_above]
    ]
    near = (torch.stack(whole).amax(dim=(0, 1)) > -BOX_MARGIN).nonzero()
    arrived = arrivals(1, crossing, planes)
    if len(near):  # else it was carried out of the plane
        corners = zip(near.amin(dim=0), near.amax(dim=0), strict=True)
        assert arrived.box == tuple(slice(int(first), int(last) + 1) for first, last in corners)
    for candidate, distances in zip(arrived.present, whole, strict=True):
        torch.testing.assert_close(candidate.distances, distances[:, arrived.box[0], arrived.box[1]])


def test_a_label_carried_out_of_the_plane_is_nowhere():
    masks = {1: np.zeros((7, 71, 71), bool), 2: np.zeros((7, 71, 71), bool)}
    masks[1][0, :4, :4] = True
    masks[2][[0, 6], ::10, ::10] = True  # all over the plane, so nothing of it is cropped
    image = np.random.default_rng(0).normal(size=(7, 71, 71))
    annotation = annotate_from_masks(image, masks, (2.0, 1.0, 1.0), axis=0)
    stack = prepare(annotation, 200)
    velocity = torch.full((6, 2, 36, 36), 9.0)
    crossing = Chains(velocity, stack.images).cross(Gap(0, 6, 3, 5))
    arrived = arrivals(1, crossing, LabelPlanes(annotation, stack))
    assert arrived.lower.distances.max() < -BOX_MARGIN
    networks = deep.load("auto", True, torch.device("cpu"))
    for score in (similarity.fuse(arrived), *deep.fuse([arrived], networks)):
        assert not (score > 0).any()


def test_candidates_vote_where_they_bear_the_label(annotation):
    stack = prepare(annotation, 200)
    planes = LabelPlanes(annotation, stack)
    chains = Chains(torch.zeros(10, 2, 20, 20), stack.images)
    both, one = (arrivals(label, chains.cross(Gap(0, 4, 1, 3)), planes) for label in (1, 2))
    for votes in both.votes:
        np.testing.assert_array_equal(votes[1], disc(15, 15)[stack.box][both.box])
    assert not one.votes[0].any() and one.votes[1].any()  # absent on plane 0: no vote is one against it
    outwards = arrivals(1, chains.cross(Gap(None, 4, 0, 3)), planes).votes
    assert outwards[0].any() and torch.equal(outwards[0], outwards[1])


@torch.no_grad()
@pytest.mark.parametrize("rule", ["similarity", "deep"])
def test_a_component_that_ends_is_carried_like_a_label_that_ends(rule):
    """Discs of a spine as one label: pooled with those that go on, it would vanish next to its last plane."""
    masks = {label: np.zeros((9, SIZE, SIZE), bool) for label in (1, 2, 3)}
    masks[1][[0, 8]] = masks[2][[0, 8]] = disc(10, 10)
    masks[1][0] |= disc(28, 28)
    masks[2][0] |= disc(28, 28, radius=1.5)  # too thin to be carried by itself
    masks[3][[0, 8]] = disc(10, 10) | disc(28, 28)
    image = np.random.default_rng(1).normal(size=(9, SIZE, SIZE)).astype(np.float32)
    overlapping = annotate_from_masks(image, masks, (2.0, 1.0, 1.0), axis=0)
    stack = prepare(overlapping, 200)
    crossing = Chains(torch.zeros(8, 2, 20, 20), stack.images).cross(Gap(0, 8, 1, 7))
    ending, thin, going_on = (arrivals(label, crossing, LabelPlanes(overlapping, stack)) for label in (1, 2, 3))
    assert not thin.parts and not going_on.parts
    assert [(part.lower is None, part.upper is None) for part in ending.parts] == [(False, False), (False, True)]
    networks = deep.load("auto", True, torch.device("cpu"))
    (score,) = scores([ending], {1: rule}, networks, set())
    first, second = (disc(*middle, 3)[stack.box][ending.box] for middle in ((10, 10), (28, 28)))
    assert (score[:, first] > 0).all()
    assert (score[:3, second] > 0).all() and not (score[6, second] > 0).any()


@given(scale=st.floats(0.2, 5), offset=st.floats(-10, 10), seed=st.integers(0, 100))
def test_channels_are_weighed_by_what_goes_on_from_plane_to_plane(scale, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    anatomy = torch.rand(1, 30, 30, generator=generator).repeat(5, 1, 1)
    noise = scale * torch.rand(5, 30, 30, generator=generator) + offset
    for channels in ([anatomy, noise], [noise, anatomy]):
        weights = channel_weights(torch.stack(channels, dim=1))
        assert weights.mean() == pytest.approx(1)
        assert [weight > 1.9 for weight in weights] == [channel is anatomy for channel in channels]
    assert torch.equal(channel_weights(noise[:, None]), torch.ones(1))
    assert torch.equal(channel_weights(torch.stack([anatomy, noise], dim=1)[:1]), torch.ones(2))


def test_far_ends_hold_the_labels_that_both_planes_bear(annotation):
    stack = prepare(annotation, 200)
    found = far_ends(annotation, stack, LabelPlanes(annotation, stack))
    assert (found.moving, found.fixed) == ((0, 4, 4, 10), (4, 0, 10, 4))
    assert (found.labels_moving[:, 0].amax(dim=(1, 2)) > 0.9).all()
    assert not found.labels_moving[:, 1].any()
    for moving, fixed, there in zip(found.moving, found.fixed, found.labels_fixed, strict=True):
        assert torch.equal(there, found.labels_moving[list(zip(found.moving, found.fixed)).index((fixed, moving))])


def test_far_ends_on_the_grid_of_the_fields_are_those_averaged_onto_it(annotation):
    stack = prepare(annotation, 200)
    planes, size = LabelPlanes(annotation, stack), field_size(stack.images)
    coarse, averaged = far_ends(annotation, stack, planes, size), on_grid(far_ends(annotation, stack, planes), size)
    assert torch.equal(coarse.labels_moving, averaged.labels_moving)
    assert torch.equal(coarse.labels_fixed, averaged.labels_fixed)


def left_out(overlap, total, slices=3):
    return LeftOut(overlap, total, slices)


def test_the_simplest_rule_within_the_margin_is_chosen():
    assert choose({"plain": left_out(90, 200), "clever": left_out(90.5, 200)}, margin=0.01) == "plain"
    assert choose({"plain": left_out(90, 200), "clever": left_out(95, 200)}, margin=0.01) == "clever"
    assert choose({"plain": LeftOut(), "clever": LeftOut()}, margin=0.01) == "plain"


def test_one_hidden_slice_decides_nothing():
    results = {"plain": left_out(50, 200, slices=1), "clever": left_out(95, 200, slices=1)}
    assert choose(results, margin=0.01) == "plain"


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 4)), min_size=2, max_size=3),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_a_rule_that_cannot_be_beaten_is_chosen_whatever_the_others_do(results, margin):
    left_outs = {f"rule {n}": left_out(overlap, 200, slices) for n, (overlap, slices) in enumerate(results)}
    if not left_outs["rule 0"].may_be_beaten(margin):
        assert choose(left_outs, margin) == "rule 0"


@pytest.fixture
def standing_scan():
    """Label 1 on planes 0, 4 and 8 of 17, label 2 on every fourth plane; nothing moves."""
    masks = {label: np.zeros((17, SIZE, SIZE), bool) for label in (1, 2)}
    masks[1][[0, 4, 8]] = disc(14, 14)
    masks[2][[0, 4, 8, 12, 16]] = disc(28, 28)
    image = np.random.default_rng(1).normal(size=(17, SIZE, SIZE)).astype(np.float32)
    annotation = annotate_from_masks(image, masks, (2.0, 1.0, 1.0), axis=0)
    stack = prepare(annotation, 200)
    chains = Chains(torch.zeros(16, 2, 20, 20), stack.images)
    return Scan(annotation, stack, LabelPlanes(annotation, stack), chains)


def test_only_slices_between_two_that_bear_the_label_are_hidden(standing_scan):
    """The last slice that bears label 1 is none: a rule that carries it on for ever would find that one best."""
    found = leave_one_out(standing_scan, None, hide_slices(standing_scan), ["similarity"], (1, 2))
    assert found[1]["similarity"].slices == 1  # plane 4
    assert found[2]["similarity"].slices == 3  # planes 4, 8 and 12


@torch.no_grad()
def test_a_rule_gives_way_to_one_that_finds_hidden_slices_clearly_better(standing_scan, monkeypatch):
    networks = deep.load("auto", True, torch.device("cpu"))
    assert choose_rules(standing_scan, networks, "joint") == ({1: "joint", 2: "joint"}, {})
    rules, factors = choose_rules(standing_scan, networks, "auto")
    assert rules == {1: "deep", 2: "deep"}
    assert 0 < factors[2] < factors[1] < 1  # nothing drifts, and the more slices say so the more it counts
    assert choose_rules(standing_scan, None, "auto")[0] == {1: "similarity", 2: "similarity"}
    monkeypatch.setitem(RULES, "similarity", lambda arrived: torch.full_like(arrived.lower.distances, -1.0))
    assert choose_rules(standing_scan, None, "auto")[0] == {1: "similarity", 2: "appearance"}


def test_left_out_counts_the_dice_of_all_hidden_slices():
    result = LeftOut()
    for column in (15, 18):
        result.add(*(torch.from_numpy(signed_distance(disc(15, c), (1.0, 1.0))) for c in (15, column)))
    first, second = disc(15, 15), disc(15, 18)
    expected = 2 * (first.sum() + (first & second).sum()) / (3 * first.sum() + second.sum())
    assert result.dice == pytest.approx(expected)


@given(pairs=st.sets(st.tuples(st.integers(1, 6), st.integers(1, 6)).filter(lambda pair: pair[0] < pair[1])))
def test_labels_that_may_overlap_lie_in_different_layers(pairs):
    layers = exclusive_layers(tuple(range(1, 7)), pairs)
    assert sorted(label for layer in layers for label in layer) == list(range(1, 7))
    assert not any({first, second} <= set(layer) for first, second in pairs for layer in layers)
    assert len(layers) == 1 or pairs


LABELS = (2, 3, 5, 9)
PAIRS = tuple(combinations(LABELS, 2))


@settings(max_examples=15)
@given(pairs=st.sets(st.sampled_from(PAIRS)), order=st.permutations(LABELS), seed=st.integers(0, 99))
def test_a_voxel_bears_the_labels_that_beat_all_that_exclude_them(pairs, order, seed):
    """Voxel by voxel, the earlier one where they are even; decided again where that is asked for, and nowhere else.

    In the end what was drawn and scribbled is kept, and takes the place of what it excludes.
    """
    shape, generator = (5, 10, 10), np.random.default_rng(seed)
    masks = {label: np.zeros(shape, bool) for label in LABELS}
    for column, sharing in enumerate([*((label,) for label in LABELS), *pairs]):
        for label in sharing:
            masks[label][[0, 4], 5, column] = True
    stroke, background = np.array([[2, 3, 3]]), np.array([[2, 4, 4]])
    annotation = annotate_from_masks(
        generator.normal(size=shape), masks, (2.0, 1.0, 1.0), axis=0, scribbles={order[0]: stroke, 0: background}
    )
    maps = LabelMaps(annotation, prepare(annotation, 200))
    first, again = ({label: generator.integers(-1, 4, shape).astype(np.float32) for label in order} for _ in range(2))
    for label, values in first.items():
        maps.enter(FusedScore(label, range(5), (slice(0, 10),) * 2, torch.from_numpy(values)))
    twin, where = maps.copy(), generator.random(shape) < 0.5
    twin.decide_again(boxes.whole(shape), again, where)

    def shared(label, others):
        return {other for other in others if (min(other, label), max(other, label)) in pairs}

    def borne(found):
        return {index: {int(volume[index]) for volume in found.volumes()} - {0} for index in np.ndindex(shape)}

    expected = {}
    for index in np.ndindex(shape):
        winners = {}
        for label, values in (again if where[index] else first).items():
            rivals = winners.keys() - shared(label, winners)
            if values[index] > max([0, *(winners[rival] for rival in rivals)]):
                winners = {other: winners[other] for other in shared(label, winners)} | {label: values[index]}
        expected[index] = set(winners)
    before = borne(maps)
    assert borne(twin) == expected
    assert all(before[index] == expected[index] for index in np.ndindex(shape) if not where[index])
    twin.keep_given(annotation)
    for index in np.ndindex(shape):
        if index[0] in (0, 4):
            expected[index] = {label for label in LABELS if masks[label][index]}
    expected[tuple(stroke[0])] = {order[0], *shared(order[0], expected[tuple(stroke[0])])}
    expected[tuple(background[0])] = set()
    assert borne(twin) == expected and borne(maps) == before
