"""Copying the nearest slice, and Slicer's Fill between slices, run as Slicer runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import LabelPropLib
from LabelPropLib.baselines import copy_nearest, effect_box, fill_between_slices


def moving_discs(axis: int = 0) -> np.ndarray:
    """Two discs that move through 13 slices, with labels 3 and 200, drawn on all slices."""
    k, j, i = np.indices((13, 40, 50))
    labels = np.zeros(k.shape, np.uint16)
    labels[(j - 12) ** 2 + (i - 12 - k) ** 2 < 64] = 3
    labels[(j - 28) ** 2 + (i - 32 + k) ** 2 < 49] = 200
    return np.moveaxis(labels, 0, axis)


def draw(labels: np.ndarray, axis: int, planes: list[int]) -> np.ndarray:
    """The label volume with these planes alone."""
    drawn = np.zeros_like(labels)
    np.moveaxis(drawn, axis, 0)[planes] = np.moveaxis(labels, axis, 0)[planes]
    return drawn


@given(st.sets(st.integers(0, 12), min_size=1), st.integers(0, 2))
def test_nearest_drawn_slice_is_copied(planes, axis):
    planes = sorted(planes)
    drawn = draw(moving_discs(axis), axis, planes)
    filled = np.moveaxis(copy_nearest(drawn, axis), axis, 0)
    for plane, found in enumerate(filled):
        if planes[0] <= plane <= planes[-1]:
            nearest = min(planes, key=lambda candidate: abs(candidate - plane))
            np.testing.assert_array_equal(found, np.take(drawn, nearest, axis))
        else:
            assert not found.any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fill_between_slices_finds_moving_discs(axis):
    truth = moving_discs(axis)
    filled = fill_between_slices(draw(truth, axis, [0, 6, 12]))
    assert filled.dtype == truth.dtype
    assert set(np.unique(filled)) == {0, 3, 200}
    for plane in (0, 6, 12):
        np.testing.assert_array_equal(np.take(filled, plane, axis), np.take(truth, plane, axis))
    for label in (3, 200):
        overlap = 2 * ((filled == label) & (truth == label)).sum() / ((filled == label).sum() + (truth == label).sum())
        assert overlap > 0.9


def test_label_on_one_drawn_slice_alone_is_not_carried():
    drawn = draw(moving_discs(), 0, [0, 12])
    drawn[12][drawn[12] == 3] = 0
    filled = fill_between_slices(drawn)
    assert not (filled[1:] == 3).any()
    assert (filled == 200).any(axis=(1, 2)).all()


def test_effect_works_on_the_labels_and_a_tenth_around():
    labels = np.zeros((30, 200, 60), np.uint8)
    labels[10:12, 20:121, 0:50] = 1
    assert effect_box(labels) == (slice(7, 15), slice(10, 131), slice(0, 54))


def test_process_that_filled_ends_well():
    """Slicer's filter, run in this very process, could end it by a segmentation fault at exit."""
    code = (
        "import numpy as np, SimpleITK\n"
        "from LabelPropLib.baselines import fill_between_slices\n"
        "drawn = np.zeros((9, 64, 64), np.uint8)\n"
        "drawn[0, 8:40, 8:40] = drawn[8, 20:60, 20:60] = 1\n"
        "print(fill_between_slices(drawn)[4].any())"
    )
    folder = Path(LabelPropLib.__file__).parents[1]
    finished = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout.strip()) == (0, "True")
