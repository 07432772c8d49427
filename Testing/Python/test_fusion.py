"""Fusion rules: joint label fusion against its formula, and what every rule owes to duplicates, order and labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks

from LabelPropLib.candidates import Atlas, Chains, arrivals
from LabelPropLib.ends import round_off
from LabelPropLib.fusion import joint
from LabelPropLib.fusion.pooling import pool
from LabelPropLib.gap_fusion import RULES
from LabelPropLib.gaps import Gap, gaps
from LabelPropLib.label_planes import LabelPlanes
from LabelPropLib.labelmaps import FusedScore, LabelMaps
from LabelPropLib.preprocessing import prepare

SPACING = (3.0, 1.0, 1.0)
SIZE = 48
GIVEN = (0, 6, 12, 18)
GAP = Gap(6, 12, 7, 11)


def tube(slices=19, drift=0.3):
    """A tube that drifts so many pixels a slice through textured ground: (image, mask)."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = np.stack([(rows - 22 - drift * k) ** 2 + (columns - 26 + drift * k) ** 2 < 81 for k in range(slices)])
    noise = np.random.default_rng(3).normal(size=(SIZE, SIZE))
    image = 60.0 * mask + 20 * noise + 3 * np.random.default_rng(4).normal(size=mask.shape)
    return image.astype(np.float32), mask


def keep(mask, planes=GIVEN):
    sparse = np.zeros_like(mask)
    sparse[list(planes)] = mask[list(planes)]
    return sparse


def standing_arrivals(drift):
    """What arrives in the gap from plane 6 to 12 where nothing is thought to move; and the truth."""
    image, mask = tube(drift=drift)
    annotation = annotate_from_masks(image, {1: keep(mask)}, SPACING, axis=0)
    stack = prepare(annotation, 200)
    chains = Chains(torch.zeros(len(stack.images) - 1, 2, 24, 24), stack.images)
    arrived = arrivals(1, chains.cross(GAP), LabelPlanes(annotation, stack))
    rows, columns = arrived.box
    truth = torch.from_numpy(mask[:, stack.box[0], stack.box[1]])[GAP.first : GAP.last + 1, rows, columns]
    return arrived, truth


@pytest.fixture(scope="module")
def standing():
    """The tube drifts, which nothing that arrives knows but the shape between the two planes."""
    return standing_arrivals(drift=0.3)


@pytest.fixture(scope="module")
def registered():
    """The tube stands still: all that arrives is right."""
    return standing_arrivals(drift=0.0)


def with_atlases(arrived, atlases):
    """The same arrivals with other atlases; the nearest planes are those that bound the gap."""
    bounds = (arrived.gap.lower, arrived.gap.upper)
    nearest = tuple(atlas for atlas in atlases if atlas.source in bounds)
    others = tuple(atlas for atlas in atlases if atlas.source not in bounds)
    return replace(arrived, nearest=nearest, more=lambda: others)


def dice(score, truth):
    found = score > 0
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def test_the_atlases_are_near_and_further_planes_and_the_shape(standing):
    arrived, _ = standing
    assert [atlas.source for atlas in arrived.atlases] == [6, 12, 0, 18, ("shape", 6, 12)]
    assert arrived.atlases[0].hops.tolist() == [1, 2, 3, 4, 5]
    assert arrived.atlases[3].hops.tolist() == [11, 10, 9, 8, 7]


def test_the_shape_between_two_planes_follows_a_drift(standing):
    """Nothing was registered, and yet it lies where the tube is, half-way between its drawn contours."""
    arrived, truth = standing
    assert dice(arrived.atlases[-1].distances, truth) > 0.95
    assert dice(arrived.atlases[-1].distances, truth) > dice(RULES["distance"](arrived), truth)


@pytest.mark.parametrize("planes", [(6, 18), (0, 12)])
def test_a_source_without_the_label_is_an_atlas_that_says_so(planes):
    image, mask = tube()
    drawn = {1: keep(mask, planes), 2: keep(np.roll(mask, 10, axis=1), GIVEN)}
    annotation = annotate_from_masks(image, drawn, SPACING, axis=0, missing="absent")
    stack = prepare(annotation, 200)
    chains = Chains(torch.zeros(len(stack.images) - 1, 2, 24, 24), stack.images)
    arrived = arrivals(1, chains.cross(GAP), LabelPlanes(annotation, stack))
    found = {atlas.source: atlas.distances is not None for atlas in arrived.atlases}
    assert found == {source: source in planes for source in (6, 12, 0, 18)}
    assert (arrived.lower is None, arrived.upper is None) == (6 not in planes, 12 not in planes)


@settings(max_examples=25)
@given(count=st.integers(2, 7), alpha=st.floats(0.01, 1), beta=st.floats(0.5, 4), seed=st.integers(0, 1000))
def test_joint_weights_are_those_of_a_dense_solve(count, alpha, beta, seed):
    """w = M^-1 1 / (1' M^-1 1), M_ij = (<|A_i - T| |A_j - T|>^beta + alpha [i = j]) sqrt(hops_i hops_j)."""
    random = np.random.default_rng(seed)
    residuals = random.gamma(2, 1, (1, count, 2, 9, 9)).astype(np.float32)
    hops = random.integers(1, 12, count)
    parameters = joint.Parameters(alpha=alpha, beta=beta, patch_radius=2)
    pixels = torch.tensor([[0, 4, 4], [0, 3, 5]])
    errors = joint.joint_errors(torch.from_numpy(residuals), pixels, parameters)
    matrices = joint.with_prior(
        errors, torch.from_numpy(hops).expand(2, -1), torch.eye(count, dtype=torch.bool), parameters
    )

    patches = [
        residuals[0, :, :, row - 2 : row + 3, column - 2 : column + 3].reshape(count, -1)
        for _, row, column in pixels.tolist()
    ]
    products = np.stack([patch @ patch.T / patch.shape[1] for patch in patches]).astype(float)
    products /= np.mean([np.diag(product) for product in products])
    for product, weights in zip(products, joint.weights(matrices)):
        matrix = (product**beta + (alpha + joint.RIDGE * np.eye(count)) * np.eye(count)) * np.sqrt(np.outer(hops, hops))
        kept = np.arange(count)
        while True:
            expected = np.linalg.solve(matrix[np.ix_(kept, kept)], np.ones(len(kept)))
            if (expected > 0).all():
                break
            kept = kept[expected > 0]
        dense = np.zeros(count)
        dense[kept] = expected / expected.sum()
        np.testing.assert_allclose(weights.numpy(), dense, atol=1e-5)


def test_pooled_distances_are_rounded_off_by_the_weight_of_absence():
    inside = torch.full((1, 2, 2), 4.0)
    channels, hops = torch.zeros(1, 1, 2, 2), torch.ones(1)
    bearing = [Atlas(source, hops, channels, source * inside, depth=8.0) for source in (1, 2)]
    absent = Atlas(3, hops, channels, None)
    weights = torch.tensor([0.25, 0.75, 0.0])[:, None, None, None]
    torch.testing.assert_close(pool([*bearing, absent], weights), 7 * torch.ones(1, 2, 2))
    torch.testing.assert_close(pool(bearing, weights[:2]), 7 * torch.ones(1, 2, 2))
    torch.testing.assert_close(
        pool([*bearing, absent], torch.tensor([0.1, 0.3, 0.6])[:, None, None, None]),
        round_off(7 * torch.ones(1, 2, 2), 8.0, torch.tensor(0.6)),
    )
    assert (pool([*bearing, absent], torch.tensor([0.1, 0.1, 0.8])[:, None, None, None]) < 0).all()


def test_duplicates_share_one_weight():
    errors = torch.tensor([[[1.0, 0.2, 0.3], [0.2, 0.8, 0.1], [0.3, 0.1, 1.2]]])
    twice = [0, 0, 1, 2]
    hops = torch.ones(1, 4)
    source = torch.tensor(twice)
    same = source[:, None] == source
    parameters = joint.Parameters()
    single = joint.weights(joint.with_prior(errors, hops[:, :3], torch.eye(3, dtype=torch.bool), parameters))[0]
    double = joint.weights(joint.with_prior(errors[:, twice][:, :, twice], hops, same, parameters))[0]
    torch.testing.assert_close(double[0], double[1])
    torch.testing.assert_close(double[:2].sum(), single[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(double[2:], single[1:], atol=1e-3, rtol=0)


@pytest.mark.parametrize("rule", list(RULES))
def test_a_duplicated_candidate_changes_nothing(standing, rule):
    arrived, truth = standing
    once = RULES[rule](arrived)
    for atlas in arrived.atlases:
        again = RULES[rule](with_atlases(arrived, [*arrived.atlases, atlas]))
        assert abs(dice(again, truth) - dice(once, truth)) < 0.001
        assert float(((again > 0) != (once > 0)).float().mean()) < 0.001


@pytest.mark.parametrize("rule", list(RULES))
def test_the_order_of_candidates_does_not_matter(standing, rule):
    arrived, _ = standing
    turned = RULES[rule](with_atlases(arrived, arrived.atlases[::-1]))
    torch.testing.assert_close(turned, RULES[rule](arrived), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rule", list(RULES))
def test_other_label_values_give_the_same_labels(rule):
    image, mask = tube()
    other = np.roll(mask, (14, -12), axis=(1, 2)) & ~mask
    first, second = (fused(image, {a: keep(mask), b: keep(other)}, rule) for a, b in ((1, 2), (9, 3)))
    assert (first == 1).any() and (first == 2).any()
    np.testing.assert_array_equal(first == 1, second == 9)
    np.testing.assert_array_equal(first == 2, second == 3)


def fused(image, masks, rule):
    """Labels of a volume in which nothing is thought to move."""
    annotation = annotate_from_masks(image, masks, SPACING, axis=0)
    stack = prepare(annotation, 200)
    planes = LabelPlanes(annotation, stack)
    chains = Chains(torch.zeros(len(stack.images) - 1, 2, 24, 24), stack.images)
    maps = LabelMaps(annotation, stack)
    for gap, labels in gaps(annotation, stack, extrapolate=False).items():
        for label in labels:
            arrived = arrivals(label, chains.cross(gap), planes)
            maps.enter(FusedScore(label, gap.targets, arrived.box, RULES[rule](arrived)))
    (labels,) = maps.volumes()
    return labels


def test_a_candidate_corrupted_in_one_region_loses_its_weight_there(registered):
    """In a part of the tube the image of one atlas is noise and its label is gone."""
    arrived, truth = registered
    rows, columns = np.nonzero(truth.any(dim=0).numpy())
    region = (..., slice(rows.min(), int(rows.mean())), slice(columns.min(), columns.max() + 1))
    first, *others = arrived.atlases
    channels, distances = first.channels.clone(), first.distances.clone()
    channels[region] = torch.rand(channels[region].shape, generator=torch.Generator().manual_seed(5))
    distances[region] = -6.0
    damaged = with_atlases(arrived, [replace(first, channels=channels, distances=distances), *others])

    middle = torch.zeros_like(truth)
    middle[region] = truth[region]
    before, after = (weight_of_first(arrivals, torch.nonzero(middle)) for arrivals in (arrived, damaged))
    assert after < before / 5
    assert dice(RULES["joint"](damaged), truth) > dice(RULES["distance"](damaged), truth) + 0.02


def weight_of_first(arrived, pixels):
    """Mean weight that joint label fusion gives the first atlas."""
    crossing, (rows, columns) = arrived.crossing, arrived.box
    target = joint.features(crossing.channels[..., rows, columns], crossing)
    return joint.joint_weights(arrived.atlases, target, crossing, pixels, joint.Parameters())[0].mean()


def test_of_further_planes_the_next_one_is_an_atlas():
    image, mask = tube()
    annotation = annotate_from_masks(image, {1: keep(mask)}, SPACING, axis=0)
    stack = prepare(annotation, 200)
    crossing = Chains(torch.zeros(len(stack.images) - 1, 2, 24, 24), stack.images).cross(Gap(12, 18, 13, 17))
    atlases = arrivals(1, crossing, LabelPlanes(annotation, stack)).atlases
    assert [atlas.source for atlas in atlases] == [12, 18, 6, ("shape", 12, 18)]


def test_the_image_of_the_shape_is_that_of_the_nearer_plane(registered):
    arrived, _ = registered
    rows, columns = arrived.box
    below, above = (side.channels[..., rows, columns] for side in (arrived.crossing.lower, arrived.crossing.upper))
    shape = arrived.atlases[-1].channels
    torch.testing.assert_close(shape[:2], below[:2])
    torch.testing.assert_close(shape[2:], above[2:])
