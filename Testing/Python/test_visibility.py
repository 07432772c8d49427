"""How plainly a slice shows a contour: on slices whose edges are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from LabelPropLib.visibility import contrast, sharpness

SIZE = 64


def distances_to_disc(radius, centre=(31.5, 31.5)):
    """(1, SIZE, SIZE) signed distance to a circle, pixels, positive inside."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return torch.from_numpy(radius - np.hypot(rows - centre[0], columns - centre[1]))[None].float()


def slice_of_disc(radius, blur=0.5, noise=0.0, gain=1.0):
    """(1, 1, SIZE, SIZE) a bright disc on dark ground."""
    disc = ndimage.gaussian_filter((distances_to_disc(radius)[0] > 0).numpy().astype(float), blur)
    disc = disc + noise * np.random.default_rng(0).normal(size=disc.shape)
    return torch.from_numpy(gain * disc)[None, None].float()


@given(st.floats(8, 20), st.floats(2.5, 6), st.sampled_from([-1, 1]))
@settings(max_examples=30)
def test_a_contour_on_the_edge_is_sharper_than_one_beside_it(radius, offset, side):
    slices = slice_of_disc(radius)
    on, beside = (sharpness(distances_to_disc(r), slices) for r in (radius, radius + side * offset))
    assert on > 2 * beside


def test_sharpness_and_contrast_fall_with_blur_and_noise_but_not_with_gain():
    contour = distances_to_disc(14)
    plain = slice_of_disc(14)
    for measure in (sharpness, contrast):
        value = measure(contour, plain)
        assert measure(contour, slice_of_disc(14, blur=3)) < value
        assert measure(contour, slice_of_disc(14, gain=7.0) - 3) == pytest.approx(value.item(), rel=1e-3)
    assert contrast(contour, slice_of_disc(14, noise=0.5)) < contrast(contour, plain)


@pytest.mark.parametrize("steepness", [2, 6, 12, 20])
def test_a_contour_does_not_vanish_where_its_score_is_steep(steepness):
    """From seven times the slope of a distance on, no pixel of this one's score lies between -1 and 1."""
    contour, slices = distances_to_disc(9), slice_of_disc(9)
    assert sharpness(steepness * contour, slices) > sharpness(contour, slices)


def test_even_ground_shows_nothing():
    contour, even = distances_to_disc(14), torch.full((1, 2, SIZE, SIZE), 0.4)
    assert sharpness(contour, even).shape == contrast(contour, even).shape == (1, 2)
    assert (sharpness(contour, even) == 0).all() and (contrast(contour, even) < 1e-3).all()


def test_where_nothing_was_found_nothing_is_seen():
    nowhere = torch.full((1, SIZE, SIZE), -24.0)
    for measure in (sharpness, contrast):
        assert measure(nowhere, slice_of_disc(14)).isfinite().all()
    assert (sharpness(nowhere, slice_of_disc(14)) == 0).all()


@pytest.mark.parametrize("axis", [1, 2])
def test_a_contour_across_a_single_line_is_as_sharp_as_across_many(axis):
    ramp = torch.linspace(-9.5, 9.5, 20).view(1, 1, 20)
    many = ramp.expand(1, 12, 20).transpose(2, axis)
    one = ramp.transpose(2, axis)
    for measure in (sharpness, contrast):
        assert measure(one, (one > 0).float()[None]).item() == pytest.approx(
            measure(many, (many > 0).float()[None]).item()
        )


def test_a_contour_without_one_of_its_rims_has_no_contrast():
    score = torch.full((1, 20, 20), -9.0)
    score[0, 0, 0] = -1  # nothing was found, and hardly anything lies around it
    assert contrast(score, torch.rand(1, 1, 20, 20)).item() == 0
