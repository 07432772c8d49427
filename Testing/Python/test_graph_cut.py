"""Graph cut: that what it returns is the region of least energy, and what that means in images."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from LabelPropLib.graph_cut import RESOLUTION, SIGMA, STRENGTH, cut


def energy(inside, unary, voxels, image, spacing):
    """Of a region (T, R, C), bool: the formula, face by face."""
    total = -sum(value for value, voxel in zip(unary, voxels, strict=True) if inside[tuple(voxel)])
    cube = np.prod(spacing) ** (2 / 3)
    for axis in range(3):
        area = np.prod(spacing) / spacing[axis]
        for lower in itertools.product(*(range(size - (a == axis)) for a, size in enumerate(image.shape))):
            upper = tuple(index + (a == axis) for a, index in enumerate(lower))
            if inside[lower] != inside[upper]:
                change = image[lower] - image[upper]
                total += STRENGTH * np.exp(-(change**2) / (2 * SIGMA**2)) * area / cube
    return total


@st.composite
def small_problems(draw):
    """(unary, voxels, region, image, spacing) with up to 9 voxels in question."""
    shape = draw(st.tuples(*[st.integers(1, 3)] * 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    questionable = generator.permutation(np.argwhere(np.ones(shape, bool)))[: draw(st.integers(1, 9))]
    region = generator.random(shape) < 0.5
    region[tuple(questionable.T)] = False
    unary = draw(st.sampled_from([0.2, 1.0])) * generator.normal(size=len(questionable))
    image = draw(st.sampled_from([0.0, 0.1, 0.5])) * generator.random(shape)
    spacing = draw(st.tuples(*[st.sampled_from([0.5, 1.0, 4.0])] * 3))
    return unary, questionable, region, image, spacing


@settings(max_examples=50)
@given(problem=small_problems())
def test_no_other_region_has_less_energy(problem):
    unary, voxels, region, image, spacing = problem

    def energy_of(chosen):
        inside = region.copy()
        inside[tuple(voxels.T)] = chosen
        return energy(inside, unary, voxels, image, spacing)

    least = min(energy_of(np.array(chosen, bool)) for chosen in itertools.product([0, 1], repeat=len(voxels)))
    terms = 7 * len(voxels)  # each is rounded once
    assert energy_of(cut(*problem)) <= least + terms / RESOLUTION


def test_of_several_regions_the_smallest():
    voxels = np.argwhere(np.ones((3, 3, 3), bool))
    nowhere = np.zeros((3, 3, 3), bool)
    assert not cut(np.zeros(len(voxels)), voxels, nowhere, np.zeros((3, 3, 3)), (1, 1, 1)).any()


def test_a_border_moves_to_the_edge_next_to_it():
    """Odds that end two voxels before an edge of the image, or two behind it, give a region that ends there."""
    shape = (5, 12, 24)
    image = np.broadcast_to(np.arange(24) >= 12, shape).astype(float)
    voxels = np.argwhere(np.ones(shape, bool))
    for end in (10, 14):
        chosen = cut(0.05 * (end - 0.5 - voxels[:, 2]), voxels, np.zeros(shape, bool), image, (1, 1, 1))
        np.testing.assert_array_equal(chosen, voxels[:, 2] < 12)


def test_odds_that_are_sure_are_stronger_than_the_image():
    shape = (3, 6, 6)
    voxels = np.argwhere(np.ones(shape, bool))
    unary = np.random.default_rng(0).choice([-1, 1], len(voxels)) * 7 * STRENGTH
    np.testing.assert_array_equal(cut(unary, voxels, np.zeros(shape, bool), np.zeros(shape), (1, 1, 1)), unary > 0)
