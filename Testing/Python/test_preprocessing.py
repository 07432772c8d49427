"""The stack of planes that is worked on: its crop, its intensities, and distances on it."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import annotate_from_masks

from LabelPropLib.label_planes import LabelPlanes
from LabelPropLib.labelmaps import FusedScore
from LabelPropLib.preprocessing import (
    Stack,
    crop_box,
    percentiles,
    prepare,
    robust_range,
    signed_distance,
    signed_distance_nearby,
)


@pytest.fixture
def annotation():
    """A square on planes 0, 4 and 10 of a scan of noise."""
    masks = {1: np.zeros((11, 40, 40), bool)}
    masks[1][[0, 4, 10], 10:20, 10:20] = True
    image = np.random.default_rng(1).normal(size=masks[1].shape).astype(np.float32)
    return annotate_from_masks(image, masks, (2.0, 1.0, 1.0), axis=0)


@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1e9, 1e30])
@pytest.mark.parametrize("seen", [1.0, 0.004])
def test_intensities_may_be_in_any_unit(annotation, unit, seen):
    """Also those of a scan that is empty but for a few voxels: its 1st and 99th percentile are the same."""
    annotation = replace(annotation, image=annotation.image * (np.random.default_rng(2).random((11, 40, 40)) < seen))
    scaled = replace(annotation, image=annotation.image * np.float32(unit))
    torch.testing.assert_close(prepare(scaled, 200).images, prepare(annotation, 200).images, rtol=0, atol=1e-5)


def test_the_scans_intensities_do_not_depend_on_a_second_image(annotation):
    both = prepare(replace(annotation, second_image=1000 * annotation.image[::-1] + 5000), 200)
    alone = prepare(annotation, 200)
    np.testing.assert_allclose(both.normalise(annotation.image), alone.normalise(annotation.image))
    np.testing.assert_allclose(alone.images[:, 0], alone.normalise(annotation.image)[alone.crop], atol=1e-6)
    np.testing.assert_allclose(alone.normalise(np.array(alone.intensities)), [0, 1], atol=1e-6)


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=60), st.sampled_from([np.int16, np.float32]))
def test_percentiles_are_those_of_numpy(values, kind):
    array = np.array(values, kind)
    expected = np.percentile(array.astype(np.float64), [1, 99])
    np.testing.assert_allclose(percentiles(array, (0.01, 0.99)), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("padding", "is_left_out"), [(-2000, True), (-32768, True), (-1024, False)])
def test_voxels_without_data_do_not_set_the_range(padding, is_left_out):
    image = np.random.default_rng(0).integers(-700, 300, (4, 30, 30)).astype(np.int16)
    padded = image.copy()
    padded[:, :9] = padding
    expected = robust_range(image[:, 9:]) if is_left_out else (padding, percentiles(padded, (0.99,))[0])
    assert robust_range(padded) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("spacing", [0.01, 0.2, 1.0])
def test_the_margin_of_the_crop_is_no_more_than_40_pixels_however_small_these_are(spacing):
    image, masks = np.arange(1.2e6, dtype=np.float32).reshape(3, 500, 800), {1: np.zeros((3, 500, 800), bool)}
    masks[1][::2, 200:230, 200:230] = True
    rows, columns = crop_box(annotate_from_masks(image, masks, (3.0, spacing, spacing), axis=0))
    assert rows == columns and rows.start == 200 - min(40, 12 / spacing)


def test_the_margin_of_the_crop_is_a_share_of_a_large_label():
    image, masks = np.arange(2.7e5, dtype=np.float32).reshape(3, 300, 300), {1: np.zeros((3, 300, 300), bool)}
    masks[1][::2, 50:251, 140:150] = True
    assert crop_box(annotate_from_masks(image, masks, (3.0, 1.0, 1.0), axis=0)) == (slice(19, 282), slice(128, 162))


def test_the_crop_does_not_depend_on_the_last_digit_of_a_spacing():
    """Spacings are lengths of columns of a matrix of directions: from file to file they differ by rounding."""
    image, masks = np.arange(1e4, dtype=np.float32).reshape(4, 50, 50), {1: np.zeros((4, 50, 50), bool)}
    masks[1][[0, 3], 20:30, 20:30] = True
    for last_digit in (1.0, 0.9999999999999998, 1.0000000000000002):
        assert crop_box(annotate_from_masks(image, masks, (3.0, last_digit, last_digit), axis=0)) == (slice(8, 42),) * 2


@given(st.tuples(*[st.integers(8, 40)] * 2), st.tuples(*[st.integers(2, 60)] * 2), st.data())
def test_boxes_of_the_working_grid_and_of_the_volume_hold_each_other(working, native, data):
    """The corners of both grids coincide; in a window all is as if the whole plane had been resampled."""

    def part_of(sizes, beyond=0):
        bounds = [sorted(data.draw(st.tuples(*[st.integers(-beyond, size - 1 + beyond)] * 2))) for size in sizes]
        return tuple(slice(first, last + 1) for first, last in bounds)

    images = torch.rand(1, 1, *working, generator=torch.Generator().manual_seed(0))
    corner = (3, 5)
    crop = tuple(slice(start, start + size) for start, size in zip(corner, native, strict=True))
    stack = Stack(images, (0,), (0.0, 1.0), 7, range(1), crop, 1.0, 2.0)
    assert stack.crop == (slice(7, 8), *crop)
    box, part = part_of(working), part_of(native, beyond=3)
    window, values = stack.window_to_volume_grid(images[0][:, box[0], box[1]], box)
    whole = torch.nn.functional.interpolate(images, size=native, mode="bilinear", align_corners=True)[0]
    np.testing.assert_allclose(values, whole[:, window[0], window[1]], atol=1e-4)
    of_volume = tuple(slice(p.start + start, p.stop + start) for p, start in zip(part, corner, strict=True))
    found = stack.working_box(of_volume)
    common = []
    for axis in range(2):
        step = Fraction(working[axis] - 1, native[axis] - 1)
        held = [line for line in range(native[axis]) if box[axis].start <= line * step <= box[axis].stop - 1]
        assert list(range(native[axis])[window[axis]]) == held
        start = max(0, math.floor(part[axis].start * step))
        stop = min(working[axis], math.ceil((part[axis].stop - 1) * step) + 1)
        assert found[axis] == slice(start, max(start, stop))
        common.append([line for line in held if part[axis].start <= line < part[axis].stop])
    inside = images[0][:, box[0], box[1]]
    score = FusedScore(1, range(1), box, inside, torch.stack([inside > 0.4, inside > 0.6]))
    covered, values, votes = score.on_volume(stack, (slice(5, 9), *of_volume))
    expected = whole[:, common[0]][..., common[1]]
    if expected.numel():
        corners = (line[0] + start for line, start in zip(common, corner, strict=True))
        assert covered == (slice(7, 8), *(slice(c, c + n) for c, n in zip(corners, values.shape[1:], strict=True)))
        np.testing.assert_allclose(values, expected, atol=1e-4)
        assert votes.shape == (2, *values.shape) and not (votes[1] & ~votes[0]).any()
    else:
        assert values.size == votes.size == 0


def test_crop_and_distances_are_measured_in_millimetres():
    masks = {1: np.zeros((5, 40, 60), bool)}
    masks[1][[0, 4], 10:20, 20:24] = True
    image = np.random.default_rng(1).normal(size=masks[1].shape).astype(np.float32)
    annotation = annotate_from_masks(image, masks, (2.0, 2.0, 0.5), axis=0)
    assert crop_box(annotation) == (slice(4, 26), slice(0, 48))  # 12 mm around
    stack = prepare(annotation, 200)
    assert stack.pixel == 0.5 and stack.size == (88, 48)
    corners = image[0][np.ix_([4, 25], [0, 47])]  # they coincide on both grids
    np.testing.assert_allclose(stack.images[0, 0][::87, ::47], stack.normalise(corners), atol=1e-6)
    depth = LabelPlanes(annotation, stack).distances(1, 0).max()
    assert depth == pytest.approx(1.5, abs=0.1)  # half of 4 columns, without half a pixel: 0.75 mm


@given(seed=st.integers(0, 100), reach=st.floats(0.5, 12), spacing=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)))
def test_distances_nearby_are_those_of_the_whole_plane(seed, reach, spacing):
    generator = np.random.default_rng(seed)
    mask = np.zeros((40, 50), bool)
    top, left = generator.integers(0, (35, 45))
    mask[top : top + 6, left : left + 8] = generator.random((min(6, 40 - top), min(8, 50 - left))) < 0.7
    mask[top, left] = True
    whole, nearby = signed_distance(mask, spacing), signed_distance_nearby(mask, spacing, reach)
    np.testing.assert_array_equal(nearby.clip(-reach), whole.clip(-reach))
