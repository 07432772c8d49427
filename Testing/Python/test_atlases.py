"""Finished volumes of other subjects: aligned, made to fit the drawn slices, and used only where they help."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import annotate_from_masks
from scipy import ndimage

from LabelPropLib import atlases
from LabelPropLib.annotation import AtlasVolume, annotate_from_label_volume
from LabelPropLib.candidates import Chains, arrivals
from LabelPropLib.errors import InputError
from LabelPropLib.fusion import similarity
from LabelPropLib.gaps import Gap
from LabelPropLib.label_planes import LabelPlanes
from LabelPropLib.memory import Memory
from LabelPropLib.pipeline import propagate
from LabelPropLib.preprocessing import prepare
from LabelPropLib.settings import Settings

SPACING = (3.0, 1.0, 1.0)
PLANES = 17
FAST = Settings(preset="fast", device="cpu")


def spindle(seed, least=5.0, most=10.0, shift=(0.0, 0.0), contrast=25.0):
    """A bright spindle, label 4, thickest in the middle of the stack, beside a dark bar: (image, labels)."""
    k, rows, columns = np.indices((PLANES, 48, 52))
    radius = least + (most - least) * np.sin(np.pi * k / (PLANES - 1))
    labels = 4 * ((rows - 22 - shift[0]) ** 2 + (columns - 24 - shift[1]) ** 2 < radius**2)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=labels.shape), (0, 1, 1))
    bar = np.abs(rows - 40 - shift[0]) < 3
    return (contrast * labels - 60 * bar + 10 * noise).astype(np.float32), labels.astype(np.int32)


def atlas(image, labels, spacing=SPACING):
    return AtlasVolume(image, labels, np.diag([*spacing, 1.0]))


def annotate(image, labels, planes=(0, 8, 16), **options):
    sparse = np.zeros_like(labels)
    sparse[list(planes)] = labels[list(planes)]
    return replace(annotate_from_label_volume(image, sparse, SPACING, axis=0), **options)


def dice(first, second):
    return 2 * (first & second).sum() / max(1, first.sum() + second.sum())


@pytest.fixture(scope="module")
def scan():
    return spindle(0)


@pytest.fixture(scope="module")
def standing(scan):
    """The annotation, its stack and planes, and chains that copy: nothing moves from slice to slice."""
    annotation = annotate(*scan)
    stack = prepare(annotation, 200)
    return annotation, stack, LabelPlanes(annotation, stack), Chains(torch.zeros(PLANES - 1, 2, 20, 20), stack.images)


def turned(image, labels, order, flipped, spacing=SPACING):
    """The atlas in another orientation, as a scanner may have stored it."""
    matrix = np.diag([*spacing, 1.0])
    for axis in flipped:
        matrix[:, 3] += matrix[:, axis] * (image.shape[axis] - 1)
        matrix[:, axis] *= -1
    image, labels = (np.ascontiguousarray(np.flip(array, flipped).transpose(order)) for array in (image, labels))
    return AtlasVolume(image, labels, matrix[:, [*order, 3]])


def test_an_atlas_where_the_scan_lies_is_as_it_was_drawn(scan, standing):
    """Its contour runs between voxels, as those of drawn slices do: it loses no layer of them."""
    annotation = standing[0]
    grid = atlases._sitk_image(scan[0], atlases.grid_matrix(annotation))
    identity = sitk.AffineTransform(3)
    distances = atlases.signed_distances(atlas(*scan), 4, identity, grid)
    np.testing.assert_array_equal(distances > 0, scan[1] == 4)


@settings(max_examples=5)
@given(order=st.permutations([0, 1, 2]), flipped=st.sets(st.integers(0, 2)), size=st.floats(0.85, 1.15))
def test_an_atlas_is_brought_to_the_scan_however_it_lies(scan, standing, order, flipped, size):
    annotation, stack, _, _ = standing
    other = turned(*spindle(1, shift=(3, -2)), tuple(order), tuple(flipped), tuple(size * s for s in SPACING))
    carried = atlases.carry(replace(annotation, atlases=(other,)), stack)
    truth = scan[1][:, stack.box[0], stack.box[1]] == 4
    assert dice(carried[4].numpy() > 0, truth) > 0.9


def test_several_atlases_are_averaged_and_labels_that_none_bears_left_out(scan):
    image, labels = scan
    labels = np.where((labels == 4) & (np.indices(labels.shape)[2] > 24), 9, labels)
    annotation = annotate(image, labels)
    stack = prepare(annotation, 200)
    pair = tuple(atlas(*spindle(seed)) for seed in (1, 2))
    one, two = (atlases.carry(replace(annotation, atlases=(each,)), stack) for each in pair)
    both = atlases.carry(replace(annotation, atlases=pair), stack)
    assert list(both) == [4]
    torch.testing.assert_close(both[4], (one[4] + two[4]) / 2)


@given(lower=st.sampled_from([0, 8]), seed=st.integers(0, 100))
def test_bridged_distances_are_those_drawn_on_the_bounding_planes(standing, lower, seed):
    _, stack, planes, _ = standing
    distances = 10 * torch.randn(PLANES, *stack.size, generator=torch.Generator().manual_seed(seed))
    bridged = atlases.anchored(distances, 4, Gap(lower, lower + 8, lower, lower + 8), planes)
    for plane in (0, 8):
        torch.testing.assert_close(bridged[plane], planes.distances(4, lower + plane), atol=1e-4, rtol=0)


@pytest.mark.parametrize("gap", [Gap(8, None, 9, 12), Gap(None, 8, 4, 7)])
def test_beyond_the_outermost_plane_distances_are_moved_as_on_it(standing, gap):
    _, stack, planes, _ = standing
    distances = 10 * torch.randn(PLANES, *stack.size, generator=torch.Generator().manual_seed(0))
    expected = distances[gap.first : gap.last + 1] + planes.distances(4, 8) - distances[8]
    torch.testing.assert_close(atlases.anchored(distances, 4, gap, planes), expected)


def test_a_label_known_to_be_absent_stays_absent(scan):
    image, labels = scan
    labels = labels.copy()
    labels[8] = 7  # drawn on the slice, so that it counts as annotated
    annotation = annotate(image, labels)
    stack = prepare(annotation, 200)
    planes = LabelPlanes(annotation, stack)
    inside, outside = (
        atlases.anchored(torch.full((PLANES, *stack.size), distance), 4, Gap(0, 8, 0, 8), planes)[8]
        for distance in (9.0, -9.0)
    )
    assert (inside < 0).all() and (outside == -9).all()


@pytest.mark.parametrize(("planes", "used"), [((0, 8), [4]), ((0,), [])])
def test_what_is_hidden_is_between_two_known_slices_one_of_which_bears_the_label(scan, planes, used):
    """That is slice 8, for label 4, which is not on 16; for label 9 there is none, so that nothing speaks for it."""
    image, labels = scan
    planes, bar = list(planes), np.zeros(labels.shape, bool)
    bar[:, 38:43] = True
    drawn = {4: np.zeros(labels.shape, bool), 9: np.zeros(labels.shape, bool)}
    drawn[4][planes], drawn[9][[0, 16]] = labels[planes] == 4, bar[[0, 16]]
    absent = {4: {8, 16} - set(planes)}
    annotation = annotate_from_masks(image, drawn, SPACING, axis=0, missing="unknown", absent=absent)
    other, finished = spindle(1, shift=(2, 2))
    annotation = replace(annotation, atlases=(atlas(other, np.where(bar, 9, finished)),))
    stack = prepare(annotation, 200)
    chains = Chains(torch.zeros(len(stack.images) - 1, 2, 20, 20), stack.images)
    rules = dict.fromkeys((4, 9), similarity.fuse)
    assert list(atlases.helpful(annotation, stack, LabelPlanes(annotation, stack), chains, rules)) == used


def test_alignment_begins_with_the_boxes_of_the_labels(scan):
    mask = np.zeros(scan[0].shape, bool)
    mask[7:9, 20:30, 22:40] = True
    image, box = atlases._surroundings(scan[0], mask, np.diag([*SPACING, 1.0]))
    np.testing.assert_allclose(box, [[22, 20, 21], [39, 29, 24]])
    assert image.GetOrigin() == (7, 5, 6) and image.GetSize() == (45, 40, 12)
    other = np.array([[1.0, 2, 3], [5, 8, 4]])
    transform = atlases._box_to_box(box, other)
    np.testing.assert_allclose([transform.TransformPoint(corner) for corner in box.tolist()], other)


def test_an_atlas_that_finds_hidden_slices_is_used(scan, standing):
    annotation, stack, planes, chains = standing
    annotation = replace(annotation, atlases=(atlas(*spindle(1, shift=(2, 2))),))
    (distances,) = atlases.helpful(annotation, stack, planes, chains, {4: similarity.fuse}).values()
    arrived = arrivals(4, chains.cross(Gap(0, 8, 1, 7)), planes)
    truth = torch.from_numpy(scan[1][1:8, stack.box[0], stack.box[1]] == 4)[:, arrived.box[0], arrived.box[1]]
    alone = similarity.fuse(arrived)
    assert dice(atlases.blend(alone, arrived, distances, planes) > 0, truth) > dice(alone > 0, truth)


def test_an_atlas_of_another_shape_is_not_used_and_changes_no_voxel(scan):
    image, labels = scan
    hourglass = atlas(*spindle(1, least=12, most=3))
    found = propagate(annotate(image, labels, atlases=(hourglass,)), FAST)
    assert found.report["atlases_used"] == []
    assert any("atlases were not used: no label on" in message for message in found.report["messages"])
    np.testing.assert_array_equal(found.label_maps[0], propagate(annotate(image, labels), FAST).label_maps[0])


def test_marks_of_absence_beyond_the_drawn_slices_hide_none(scan):
    """They lie outside of the stack; between them and a drawn slice there is nothing to look at."""
    image, labels = scan
    drawn = np.zeros(labels.shape, bool)
    drawn[[4, 8, 12]] = labels[[4, 8, 12]] == 4
    gained = []
    for absent in (set(), {0, 16}):
        annotation = annotate_from_masks(image, {4: drawn}, SPACING, axis=0, absent={4: absent})
        annotation = replace(annotation, atlases=(atlas(*spindle(1, shift=(2, 2))),))
        stack = prepare(annotation, 200)
        chains = Chains(torch.zeros(len(stack.images) - 1, 2, 20, 20), stack.images)
        used = atlases.helpful(annotation, stack, LabelPlanes(annotation, stack), chains, {4: similarity.fuse})
        gained.append(list(used))
    assert gained == [[4], [4]]


def test_without_a_hidden_slice_no_atlas_is_used(scan):
    found = propagate(annotate(*scan, planes=(0, 16), atlases=(atlas(*scan),)), FAST)
    assert found.report["atlases_used"] == []
    assert any("atlases were not used: at least three" in message for message in found.report["messages"])


def test_a_used_atlas_is_told_and_gives_the_same_voxels_again():
    """Where the images show something else than the label, which is at its place in both subjects."""
    image, labels = spindle(0, contrast=0)
    annotation = annotate(image, labels, atlases=(atlas(*spindle(1, contrast=0)),))
    similarity = replace(FAST, fusion="similarity")
    first, second = (propagate(annotation, similarity) for _ in range(2))
    assert first.report["atlases_used"] == [4]
    assert any("used for label 4" in message for message in first.report["messages"])
    np.testing.assert_array_equal(first.label_maps[0], second.label_maps[0])
    assert dice(first.mask(4), labels == 4) > dice(propagate(annotate(image, labels), similarity).mask(4), labels == 4)


def test_images_that_have_nothing_in_common_are_aligned_by_their_boxes(scan, standing):
    """The worst that can happen: an atlas whose image lets the alignment drift away is judged as any other one."""
    annotation, stack, _, _ = standing
    image = np.zeros_like(scan[0])
    image[0, 0, 0] = 1
    carried = atlases.carry(replace(annotation, atlases=(atlas(image, scan[1]),)), stack)
    assert carried[4].isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda image, labels: (image, np.zeros_like(labels)), "bears no label"),
        (lambda image, labels: (image, labels[:, :-1]), "atlas labels have the size"),
        (lambda image, labels: (np.zeros_like(image), labels), "atlas image is constant"),
        (lambda image, labels: (image, np.where(labels, 5, 0)), "shares no label with the annotations, which have 4"),
    ],
)
def test_atlases_that_cannot_be_used(scan, change, message):
    with pytest.raises(InputError, match=message):
        annotate(*scan, atlases=(atlas(*change(*scan)),))


def test_what_was_found_with_an_atlas_is_not_taken_over_without_it_or_with_another_one():
    image, labels = spindle(0, contrast=0)
    with_atlas = annotate(image, labels, atlases=(atlas(*spindle(1, contrast=0)),))
    without = replace(with_atlas, atlases=())
    similarity = replace(FAST, fusion="similarity")
    for first, second, used in ((with_atlas, without, []), (without, with_atlas, [4])):
        memory = Memory()
        propagate(first, similarity, memory=memory)
        again = propagate(second, similarity, memory=memory)
        assert again.report["atlases_used"] == used
        np.testing.assert_array_equal(again.label_maps[0], propagate(second, similarity).label_maps[0])
