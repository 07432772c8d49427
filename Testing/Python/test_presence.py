"""Whether a label is on a slice, by what the slice shows where the label was carried to."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks, standing_arrivals
from scipy import ndimage

from LabelPropLib.fusion import similarity
from LabelPropLib.presence import intensity_odds, likeness_inside

SIZE, COUNT = 48, 10
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]
DISC = (ROWS - 24) ** 2 + (COLUMNS - 24) ** 2 < 81
TISSUE, OTHER = (ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(SIZE, SIZE)), 2) for seed in (3, 4))


def arrivals_of(seen, upwards=True, brightness=0.5):
    """What reaches the planes between the first and the last one of a disc that only the lower of them bears.

    It is brighter than what is around it, and is seen on the first `seen` planes. Nothing moves. Not upwards: the
    volume, last plane first.
    """
    image = np.repeat(OTHER[None], COUNT, axis=0)
    image[:seen] = np.where(DISC, TISSUE + brightness, OTHER)
    masks = {1: np.zeros(image.shape, bool), 2: np.zeros(image.shape, bool)}
    masks[1][0] = DISC
    masks[2][[0, -1], 4:9, 4:9] = True
    order = slice(None, None, 1 if upwards else -1)
    annotation = annotate_from_masks(
        image[order].astype(np.float32), {label: mask[order] for label, mask in masks.items()}, (3.0, 1.0, 1.0), axis=0
    )
    return standing_arrivals(annotation, 0, COUNT - 1)


@pytest.mark.parametrize("upwards", [True, False])
@pytest.mark.parametrize("look", [intensity_odds, likeness_inside])
def test_tells_where_a_label_is_still_seen(look, upwards):
    arrived = arrivals_of(seen=4, upwards=upwards)
    values = look(*arrived.present, arrived)
    values = values if upwards else values.flip(0)
    assert (values[:3] > 0.5).all()
    assert (values[3:] < -0.5).all()


def test_likeness_tells_tissues_of_the_same_brightness_apart():
    arrived = arrivals_of(seen=4, brightness=0.0)
    values = likeness_inside(*arrived.present, arrived)
    assert (values[:3] > 0.5).all() and (values[3:] < -0.5).all()


def test_likeness_says_nothing_where_there_is_no_other_plane():
    arrived = arrivals_of(seen=4)
    beyond = replace(arrived, crossing=replace(arrived.crossing, upper=None))
    assert (likeness_inside(arrived.lower, beyond) == 0).all()


@settings(max_examples=15)
@given(seen=st.tuples(st.integers(1, COUNT - 1), st.integers(1, COUNT - 1)), upwards=st.booleans())
def test_a_label_goes_at_least_as_far_where_it_is_seen_longer(seen, upwards):
    shorter, longer = ((similarity.fuse(arrivals_of(count, upwards)) > 0).sum() for count in sorted(seen))
    assert longer >= shorter
