"""What counts as complete, absent, unknown; which axis; what is refused."""

import tracemalloc

import numpy as np
import pytest
from samples import annotate_from_masks

from LabelPropLib.annotation import (
    BACKGROUND,
    annotate_from_label_volume,
    find_axis,
    intensities,
)
from LabelPropLib.errors import InputError

SPACING = (4.0, 1.0, 1.0)


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(12, 20, 24)).astype(np.float32)


def labels_on(shape, axis, drawn):
    """Label volume with `drawn`: plane -> labels, each a block of its own on planes along `axis`."""
    labels = np.zeros(shape, np.int32)
    planes = np.moveaxis(labels, axis, 0)
    for plane, values in drawn.items():
        for value in values:
            planes[plane, 2 + value % 7 : 5 + value % 7, 3:9] = value
    return labels


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_is_that_of_the_annotated_planes(image, axis):
    labels = labels_on(image.shape, axis, {1: [1], 5: [1], 9: [1]})
    assert annotate_from_label_volume(image, labels, SPACING).axis == axis


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_of_a_single_annotated_plane(image, axis):
    assert find_axis(labels_on(image.shape, axis, {4: [1]})) == axis


def test_axis_of_every_second_plane_of_separate_structures():
    """Discs of a spine leave more empty planes between them than every second sagittal plane does."""
    labels = np.zeros((60, 40, 17), np.int32)
    for disc, top in enumerate((4, 24, 44), start=1):
        labels[top : top + 6, 10:30, ::2] = disc
    assert find_axis(labels) == 2


def test_labels_missing_on_outer_planes_are_absent_there(image):
    labels = labels_on(image.shape, 0, {0: [3], 5: [3, 900], 10: [900]})
    annotation = annotate_from_label_volume(image, labels, SPACING)
    assert annotation.missing == "absent"
    assert annotation.absent == {3: {10}, 900: {0}}
    assert annotation.labels == (3, 900)


def test_a_label_missing_between_its_own_planes_means_that_missing_is_unknown(image):
    labels = labels_on(image.shape, 0, {0: [1], 5: [2], 10: [1]})
    annotation = annotate_from_label_volume(image, labels, SPACING)
    assert annotation.missing == "unknown"
    assert annotation.known_planes(1) == {0, 10}
    assert annotation.known_planes(2) == {5}


def test_one_of_many_labels_missing_between_its_own_planes_makes_itself_alone_unknown(image):
    """It vanishes and comes back, or was drawn on fewer planes: nothing of the others, which end, is lost by it."""
    labels = labels_on(image.shape, 0, {0: [1, 2, 3], 4: [1, 3, 4], 7: [1, 4], 10: [1, 2, 4]})
    annotation = annotate_from_label_volume(image, labels, SPACING)
    assert (annotation.missing, annotation.sparser) == ("absent", (2,))
    assert [annotation.known_planes(label) for label in (1, 2, 3)] == [{0, 4, 7, 10}, {0, 10}, {0, 4, 7, 10}]


def test_a_plane_that_lacks_most_labels_around_it_says_nothing_of_those_that_end(image):
    """One label was drawn once more: the last one ends between planes 4 and 10, not before plane 7."""
    labels = labels_on(image.shape, 0, {0: [1, 2, 3, 4], 4: [1, 2, 3, 4], 7: [1], 10: [1, 2, 3], 11: [1, 2, 3]})
    annotation = annotate_from_label_volume(image, labels, SPACING)
    assert (annotation.missing, annotation.sparser, annotation.partial) == ("absent", (2, 3), (7,))
    assert [annotation.known_planes(label) for label in (1, 2, 4)] == [
        {0, 4, 7, 10, 11},
        {0, 4, 10, 11},
        {0, 4, 10, 11},
    ]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_of_a_volume_take_the_memory_of_their_planes_alone(axis):
    """Not that of the whole volume for each: there may be a hundred."""
    values = np.arange(1, 101).reshape(10, 10)
    labels = np.zeros((40, 40, 40), np.uint8)
    for plane in (3, 30):
        np.moveaxis(labels, axis, 0)[plane] = np.kron(values, np.ones((4, 4), np.uint8))
    image = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    tracemalloc.start()
    annotation = annotate_from_label_volume(image, labels, SPACING)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 20 * labels.size
    assert annotation.axis == axis and annotation.labels == tuple(range(1, 101))
    for label, planes in annotation.complete.items():
        for plane, mask in planes.items():
            np.testing.assert_array_equal(mask, np.take(labels, plane, axis) == label)


def test_missing_is_read_as_told(image):
    labels = labels_on(image.shape, 0, {0: [1], 5: [2], 10: [1]})
    assert annotate_from_label_volume(image, labels, SPACING, missing="absent").known_planes(1) == {0, 5, 10}
    labels = labels_on(image.shape, 0, {0: [3], 5: [3, 4]})
    assert annotate_from_label_volume(image, labels, SPACING, missing="unknown").known_planes(4) == {5}


def test_an_ignored_plane_says_nothing(image):
    masks = {1: labels_on(image.shape, 0, {0: [1], 5: [1], 10: [1]}) == 1}
    annotation = annotate_from_masks(image, masks, SPACING, ignored={1: {5}})
    assert annotation.known_planes(1) == {0, 10}


def test_ignoring_a_plane_of_one_label_does_not_make_the_others_unknown(image):
    labels = labels_on(image.shape, 0, {0: [1, 2], 5: [1, 2], 10: [1]})
    masks = {value: labels == value for value in (1, 2)}
    annotation = annotate_from_masks(image, masks, SPACING, axis=0, ignored={1: {5}})
    assert annotation.missing == "absent"
    assert annotation.known_planes(2) == {0, 5, 10}


def test_a_plane_marked_absent_is_known(image):
    masks = {1: labels_on(image.shape, 0, {2: [1], 10: [1]}) == 1}
    annotation = annotate_from_masks(image, masks, SPACING, axis=0, absent={1: {6}})
    assert annotation.known_planes(1) == {2, 6, 10}
    assert annotation.missing == "absent"


def test_planes_marked_beyond_the_volume_say_nothing(image):
    masks = {1: labels_on(image.shape, 0, {2: [1], 10: [1]}) == 1}
    annotation = annotate_from_masks(image, masks, SPACING, axis=0, absent={1: {-3, 6, 12}})
    assert annotation.known_planes(1) == {2, 6, 10}


def test_overlapping_labels_are_found(image):
    mask = labels_on(image.shape, 0, {2: [1], 8: [1]}) == 1
    annotation = annotate_from_masks(image, {1: mask, 2: mask, 5: ~mask & False}, SPACING)
    assert annotation.overlapping() == {(1, 2)} and not annotation.some_missing


@pytest.mark.parametrize(
    ("inner_on", "outer_on", "missing", "covered"),
    [
        ([4, 6], [2, 5, 8], "unknown", [(1, 2)]),
        ([4, 5], [2, 5, 8], "unknown", []),  # the slice that was drawn for both tells whether they overlap
        ([4, 6], [2, 5, 8], "absent", []),  # so does one on which either is known to be absent
        ([2, 5], [6, 8], "unknown", []),  # one goes on where the other one ends
    ],
)
def test_labels_that_may_overlap_are_told_where_no_slice_tells(image, inner_on, outer_on, missing, covered):
    masks = {label: np.zeros(image.shape, bool) for label in (1, 2)}
    masks[1][inner_on, 5:9, 5:9], masks[2][outer_on, 3:12, 3:9] = True, True
    assert annotate_from_masks(image, masks, SPACING, 0, missing).covered() == covered


def nan(image):
    return np.where(np.arange(24) == 3, np.nan, image)


@pytest.mark.parametrize(
    ("spoil", "drawn", "complaint"),
    [
        (lambda image: image, {}, "No annotated slice"),
        (lambda image: image, {plane: [1] for plane in range(12)}, "are annotated"),
        (nan, {1: [1], 5: [1]}, "NaN"),
        (lambda image: np.full_like(image, 7), {1: [1], 5: [1]}, "constant"),
        (lambda image: image[:, :, :, None], {1: [1], 5: [1]}, "size|dimensions"),
        (lambda image: image[:-1], {1: [1], 5: [1]}, "size"),
    ],
)
def test_bad_input_is_refused(image, spoil, drawn, complaint):
    labels = labels_on(image.shape, 0, drawn)
    with pytest.raises(InputError, match=complaint):
        annotate_from_label_volume(spoil(image), labels, SPACING, axis=0)


@pytest.mark.parametrize(
    ("kind", "offset"), [(np.int32, 2**30), (np.uint32, 4 * 10**9), (np.int64, -(10**15)), (np.float64, 10**12)]
)
def test_intensities_far_from_zero_are_told_apart(kind, offset):
    near = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6))
    np.testing.assert_array_equal(intensities((near + offset).astype(kind)), near - near.min())
    np.testing.assert_array_equal(intensities((near + 10**5).astype(kind)), near + 10**5)


@pytest.mark.parametrize("value", [0.5, np.nan, -1])
def test_values_that_are_no_labels_are_refused(image, value):
    labels = labels_on(image.shape, 0, {1: [1], 5: [1]}) * value
    with pytest.raises(InputError, match="are no labels: give whole numbers"):
        annotate_from_label_volume(image, labels, SPACING)


def test_a_single_slice_is_refused(image):
    labels = labels_on(image.shape, 0, {0: [1]})
    with pytest.raises(InputError, match="single slice"):
        annotate_from_label_volume(image[:1], labels[:1], SPACING, axis=0)


@pytest.mark.parametrize(("axis", "flat"), [(1, "j"), (2, "i")])
def test_slices_of_a_single_row_are_refused(image, axis, flat):
    labels = labels_on(image.shape, 0, {0: [1]})
    with pytest.raises(InputError, match=f"along axis {flat}:"):
        annotate_from_label_volume(*(np.take(volume, [4], axis) for volume in (image, labels)), SPACING, axis=0)


def test_scribbles_of_a_label_that_no_slice_bears_are_refused(image):
    labels = labels_on(image.shape, 0, {1: [1], 5: [1]})
    scribbles = np.zeros(image.shape, np.int32)
    scribbles[3, 4, 4] = 9
    with pytest.raises(InputError, match="label 9"):
        annotate_from_label_volume(image, labels, SPACING, scribbles=scribbles)


def test_255_in_scribbles_is_background(image):
    labels = labels_on(image.shape, 0, {1: [1], 5: [1]})
    scribbles = np.zeros(image.shape, np.int32)
    scribbles[3, 4, 4] = 255
    annotation = annotate_from_label_volume(image, labels, SPACING, scribbles=scribbles)
    assert annotation.scribbles[BACKGROUND].tolist() == [[3, 4, 4]]


def test_spacing_along_the_slices_and_across_them(image):
    labels = labels_on(image.shape, 1, {2: [1], 8: [1]})
    annotation = annotate_from_label_volume(image, labels, (3.0, 2.0, 1.0), axis=1)
    assert annotation.slice_spacing == 2.0 and annotation.plane_spacing == (3.0, 1.0)
