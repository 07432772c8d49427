"""How far a label goes on that only one of two neighbouring drawn planes bears."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks, standing_arrivals
from scipy import ndimage

from LabelPropLib.ends import MOST_TREND, Growth, round_off, way_to_dissimilarity
from LabelPropLib.fusion import similarity
from LabelPropLib.preprocessing import signed_distance

SIZE = 48


def disc(middle, radius):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (rows - middle) ** 2 + (columns - middle) ** 2 < radius**2


def annotate(radii):
    """Label 1, a disc of these radii on planes 0, 6, 12, ..., absent where 0; label 2 is on all of these planes.

    All planes look alike.
    """
    masks = {label: np.zeros((6 * len(radii) - 5, SIZE, SIZE), bool) for label in (1, 2)}
    masks[1][::6] = [disc(26, radius) for radius in radii]
    masks[2][::6] = disc(6, 4)
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(SIZE, SIZE)), 2)
    image = np.broadcast_to(noise, masks[1].shape).astype(np.float32)
    return annotate_from_masks(image, masks, (3.0, 1.0, 1.0), axis=0)


def arrivals_at(annotation, lower):
    """What reaches the planes above the drawn plane `lower`."""
    return standing_arrivals(annotation, lower, lower + 6)


@pytest.mark.parametrize(
    ("radii", "plane", "upwards", "expected"),
    [
        ((8, 0, 4), 0, True, Growth(0.0, False)),
        ((0, 8, 4), 12, False, Growth(0.0, False)),
        ((4, 8, 0), 6, True, Growth(np.log(4 / 1.4), True)),
        ((8, 4, 0), 6, True, Growth(np.log(1 / 4.1), True)),
        ((0, 8, 0), 6, True, Growth(MOST_TREND[1], True)),
        ((0, 4, 8), 6, False, Growth(np.log(1 / 4.1), True)),
        ((8, 4, 8, 0), 12, True, Growth(np.log(4 / 1.4), True)),  # of two before, the one next to it
        ((0, 8, 4, 8), 6, False, Growth(np.log(4 / 1.4), True)),
    ],
)
def test_growth_is_seen_from_the_gap(radii, plane, upwards, expected):
    found = Growth.of(annotate(radii), 1, plane, upwards)
    assert found.known_before == expected.known_before
    assert found.trend == pytest.approx(expected.trend, abs=0.1)


def test_only_a_label_of_one_side_has_a_growth():
    annotation = annotate((8, 8, 0))
    assert arrivals_at(annotation, 0).growth is None
    assert arrivals_at(annotation, 6).growth == Growth.of(annotation, 1, 6, True)


def length(radii, lower):
    """On how many pixels of the planes above `lower` a disc is found that only one side bears."""
    return int((similarity.fuse(arrivals_at(annotate(radii), lower)) > 0).sum())


def test_a_label_that_grows_goes_further_than_one_that_shrinks():
    assert length((4, 8, 0), 6) > length((11, 8, 0), 6)


def test_the_first_there_is_of_a_label_goes_further_than_one_that_was_there_before():
    assert length((8, 0, 0), 0) > length((8, 8, 0), 6)


@settings(max_examples=20)
@given(trends=st.tuples(st.floats(*MOST_TREND), st.floats(*MOST_TREND)), upwards=st.booleans())
def test_what_grows_more_covers_what_grows_less(trends, upwards):
    arrived = arrivals_at(annotate((8, 8, 0, 8, 8)), 6 if upwards else 12)
    less, more = (similarity.fuse(replace(arrived, growth=Growth(trend, True))) > 0 for trend in sorted(trends))
    assert (more | ~less).all()


@given(depth=st.floats(2, 20), steps=st.integers(3, 30))
def test_a_label_rounds_off_ever_faster_and_is_gone_at_the_other_side(depth, steps):
    distances = torch.linspace(-10, depth, 50).expand(steps, 1, 50)
    way = torch.linspace(0, 1, steps)[:, None, None]
    sizes = (round_off(distances, depth, way) > 0).sum(dim=(1, 2))
    assert (sizes[1:] <= sizes[:-1]).all()
    assert sizes[0] == (distances[0] > 0).sum() and sizes[-1] == 0


def test_a_label_carried_outwards_ends_where_the_image_changes():
    generator = torch.Generator().manual_seed(0)
    carried = torch.rand(1, SIZE, SIZE, generator=generator).expand(10, -1, -1)
    other = torch.rand(1, SIZE, SIZE, generator=generator).expand(10, -1, -1)
    distances = torch.from_numpy(signed_distance(disc(20, 6), (1.0, 1.0)))[None].expand(10, -1, -1)
    targets = torch.cat([carried[:6], other[6:]])
    way = way_to_dissimilarity(distances, carried, targets)
    kept = (round_off(distances, float(distances.max()), way[:, None, None]) > 0).any(dim=2).any(dim=1)
    assert kept.tolist() == [True] * 6 + [False] * 4
