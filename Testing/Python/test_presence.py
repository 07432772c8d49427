"""Whether a label is on a slice, by what the slice shows where the label was carried to."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks, standing_arrivals
from scipy import ndimage

from LabelPropLib.fusion import similarity
from LabelPropLib.label_planes import INTENSITY_BINS
from LabelPropLib.preprocessing import INTENSITY_RANGE
from LabelPropLib.presence import intensity_odds, likeness_inside, log_odds, middles_of_bins

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


def test_log_odds_are_those_of_smoothed_histograms_and_linear_in_between():
    inside, around = 50 * torch.rand(2, INTENSITY_BINS, generator=torch.Generator().manual_seed(0))
    middles = middles_of_bins(inside)
    np.testing.assert_allclose(middles, np.linspace(*INTENSITY_RANGE, 2 * INTENSITY_BINS + 1)[1::2], rtol=1e-5)
    shares = [ndimage.gaussian_filter1d(counts.numpy(), 1.5, mode="nearest") + 1 for counts in (inside, around)]
    table = np.log(shares[0] / shares[0].sum()) - np.log(shares[1] / shares[1].sum())
    candidates = [SimpleNamespace(inside=share * inside, around=share * around) for share in (0.3, 0.7)]
    np.testing.assert_allclose(log_odds(candidates, middles), table, atol=0.02)
    half_way = log_odds(candidates, (middles[1:] + middles[:-1]) / 2)
    np.testing.assert_allclose(half_way, (table[1:] + table[:-1]) / 2, atol=0.02)
    np.testing.assert_allclose(log_odds(candidates, torch.tensor([-9.0, 9.0])), table[[0, -1]], atol=0.02)


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
