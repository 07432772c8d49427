"""Outlines as even as the drawn ones: when they are smoothed, and what that leaves as it is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks
from scipy import ndimage

from LabelPropLib.candidates import Chains, arrivals
from LabelPropLib.filters import smooth
from LabelPropLib.fusion import outlines
from LabelPropLib.fusion.distance import fuse
from LabelPropLib.gaps import Gap
from LabelPropLib.label_planes import LabelPlanes
from LabelPropLib.preprocessing import prepare, unevenness

SIZE = 96


def noise(seed, sigma=1.0):
    """(SIZE, SIZE) of unit variance."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(SIZE, SIZE)), sigma)
    return values / values.std()


def blob(radius, fraying=0.0):
    """A disc whose contour is moved by noise, pixels."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return radius - np.hypot(rows - SIZE / 2, columns - SIZE / 2) + fraying * noise(1) > 0


def arrival(drawn):
    """What arrives on planes 1 to 3 between two on which the same is drawn; nothing moves."""
    mask = np.zeros((5, SIZE, SIZE), bool)
    mask[[0, 4]] = drawn
    annotation = annotate_from_masks(np.stack([noise(2)] * 5).astype(np.float32), {1: mask}, (2.0, 1.0, 1.0), axis=0)
    stack = prepare(annotation, 200)
    crossing = Chains(torch.zeros(4, 2, 32, 32), stack.images).cross(Gap(0, 4, 1, 3))
    return arrivals(1, crossing, LabelPlanes(annotation, stack))


def frayed(score, pixels):
    """A score with a contour moved by noise that differs from plane to plane."""
    rows, columns = score.shape[-2:]
    moves = np.stack([noise(seed)[:rows, :columns] for seed in range(10, 10 + len(score))])
    return score + pixels * torch.from_numpy(moves).float()


def dice(first, second):
    return float(2 * ((first > 0) & (second > 0)).sum() / ((first > 0).sum() + (second > 0).sum()))


@torch.no_grad()
def test_what_has_frayed_is_smoothed_towards_what_was_there():
    arrived = arrival(blob(24))
    right = fuse(arrived)
    found = frayed(right, 1.5)
    smoothed = outlines.even_out(found, arrived)
    assert unevenness(smoothed > 0) < 0.5 * unevenness(found > 0)
    assert dice(smoothed, right) > dice(found, right)


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_what_is_no_less_even_than_drawn_stays_as_it_is(sigma):
    arrived = arrival(blob(24, fraying=3.0))
    found = smooth(fuse(arrived), sigma)
    assert outlines.even_out(found, arrived) is found


@torch.no_grad()
def test_a_thin_label_is_left_as_it_is():
    arrived = arrival(blob(outlines.THIN))
    found = frayed(fuse(arrived), 1.0)
    assert outlines.even_out(found, arrived) is found


@torch.no_grad()
@settings(max_examples=20)
@given(radius=st.integers(6, 30), pixels=st.floats(0, 3))
def test_far_from_the_contour_a_score_keeps_its_value(radius, pixels):
    arrived = arrival(blob(radius))
    found = frayed(fuse(arrived), pixels)
    smoothed = outlines.even_out(found, arrived)
    far = ndimage.minimum_filter(found.abs().numpy(), (1, 25, 25), mode="nearest") > outlines.REACH
    torch.testing.assert_close(smoothed[torch.from_numpy(far)], found[torch.from_numpy(far)])


def test_unevenness_grows_with_what_frays():
    values = [unevenness(torch.from_numpy(blob(24, fraying))[None]) for fraying in (0.0, 1.0, 3.0)]
    assert values == sorted(values) and values[0] < 0.05 < values[2]


def test_what_is_empty_is_even():
    assert unevenness(torch.zeros(2, 8, 8, dtype=torch.bool)) == 0.0
