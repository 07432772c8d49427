"""Which slices are annotated and how, and what a preview may change of the segments."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import slicer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from samples import OBLIQUE, add_transform, set_geometry, tag
from scipy.spatial.transform import Rotation

from LabelPropLib import boxes, patches, scene
from LabelPropLib.annotation import find_axis
from LabelPropLib.roles import PROPAGATED_TAG, Roles, slice_roles
from LabelPropLib.scene.protection import drawn_of_others, masks_to_write, protect
from LabelPropLib.scene.slices import (
    ExpectedQuality,
    anatomical_plane,
    background_segments,
    expected_quality,
    fingerprints,
    follow_geometry,
    mark_propagated,
    notice_corrections,
    set_background,
    set_role,
    survey,
    was_begun_anew,
    with_role,
)

SHAPE = (4, 5, 6)
ROLES = st.sampled_from(["complete", "scribble", "absent", "ignored"])
masks = npst.arrays(bool, SHAPE)
planes = st.sets(st.integers(0, 3))


@settings(max_examples=40)
@given(first=masks, second=masks)
def test_survey_agrees_with_what_is_propagated(first, second):
    slicer.mrmlScene.Clear()
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE), OBLIQUE)
    segmentation = scene.add_segmentation_of_labels(np.where(first, 1, 2 * second), volume, "s", {1: "a", 2: "b"})
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    if not ids:
        return
    overview = survey(volume, segmentation, ids)
    drawn = {name: scene.segment_on_grid(segmentation, name, overview.grid) for name in ids}
    assert overview.axis == find_axis(np.any(list(drawn.values()), axis=0))
    for name, mask in drawn.items():
        others = tuple(a for a in range(3) if a != overview.axis)
        found = {index - overview.slices.start: role for index, role in overview.roles[name].items()}
        assert found == dict.fromkeys(np.flatnonzero(mask.any(axis=others)).tolist(), "complete")


def test_box_of_a_segment_on_another_lattice():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE), np.diag([1.0, 1.0, 3.0, 1.0]))
    coarse = slicer.util.addVolumeFromArray(np.zeros((2, 3, 3)), np.diag([2.0, 2.0, 6.0, 1.0]))
    labels = np.zeros((2, 3, 3), np.uint8)
    labels[1, 1, 1] = 1
    segmentation = scene.add_segmentation_of_labels(labels, coarse, "s", {1: "a"})
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    grid = scene.geometry.work_grid(volume, segmentation)
    stored = scene.stored_segments(segmentation, ["a"], grid)["a"]
    on_grid = scene.segment_on_grid(segmentation, "a", grid)
    first = grid.GetExtent()[4]
    assert stored.planes([0])[0] == [first + k for k in np.flatnonzero(on_grid.any(axis=(1, 2)))]


@pytest.mark.parametrize("axis", range(3))
def test_fingerprints_change_with_the_slice_alone(axis):
    shape = (6, 6, 6)
    volume = slicer.util.addVolumeFromArray(np.zeros(shape))
    mask = np.zeros(shape, np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    segmentation = scene.add_segmentation_of_labels(mask, volume, "s", {1: "a"})
    grid = scene.geometry.work_grid(volume, segmentation)
    before = fingerprints(scene.stored_segments(segmentation, ["a"], grid)["a"], axis)
    for corner in (5, 0):  # the labelmap's extent grows, too
        np.moveaxis(mask, axis, 0)[3, corner, corner] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, "a", volume)
        after = fingerprints(scene.stored_segments(segmentation, ["a"], grid)["a"], axis)
        assert set(before) == set(after) == {2, 3}
        assert before[2] == after[2] and before[3] != after[3]
    mask = np.roll(mask, 1, axis=(axis + 1) % 3)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, "a", volume)
    assert before[2] != fingerprints(scene.stored_segments(segmentation, ["a"], grid)["a"], axis)[2]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("value", [1, 70_000])
def test_only_slices_that_were_edited_are_looked_through_again(monkeypatch, axis, value):
    """However many segments share them; what is found is the same."""
    labels = np.zeros(SHAPE, np.int32)
    labels[1:3, 1:3, 2:4], labels[2:, 3, 1:5] = value, 2
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE))
    segmentation = scene.add_segmentation_of_labels(labels, volume, "s", {value: "a", 2: "b"})
    grid = scene.geometry.work_grid(volume, segmentation)
    scene.stored_segments(segmentation, ["a"], grid)
    looked_at = mock.Mock(side_effect=patches.patches_of_plane)
    monkeypatch.setattr(patches, "patches_of_plane", looked_at)
    layer = segmentation.GetSegmentation().GetSegment("a").GetRepresentation(scene.segments.BINARY_LABELMAP)
    edited = scene.voxels(layer)[1]
    edited[0, 0] = value
    stored = scene.stored_segments(segmentation, ["a", "b"], grid)
    assert looked_at.call_count == 1
    afresh = slicer.vtkOrientedImageData()
    afresh.DeepCopy(layer)
    for name in stored:
        segmentation.GetSegmentation().GetSegment(name).AddRepresentation(scene.segments.BINARY_LABELMAP, afresh)
    for name, segment in scene.stored_segments(segmentation, ["a", "b"], grid).items():
        mask = segment.on_grid(grid)
        borne = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))).tolist()
        assert stored[name].planes([axis]) == {axis: borne}
        assert fingerprints(stored[name], axis) == fingerprints(segment, axis)
        assert list(fingerprints(segment, axis)) == borne


def test_segment_that_is_kept_in_floats():
    """As a script may hand it over."""
    mask = np.zeros(SHAPE, np.float32)
    mask[1:3, 1:3, 2:4] = 1
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE))
    segmentation = scene.add_segmentation_of_labels(mask.astype(np.uint8), volume, "s", {1: "a"})
    grid = scene.geometry.work_grid(volume, segmentation)
    layer = scene.image_from_array(mask, grid)
    segmentation.GetSegmentation().GetSegment("a").AddRepresentation(scene.segments.BINARY_LABELMAP, layer)
    np.testing.assert_array_equal(scene.segment_on_grid(segmentation, "a", grid), mask == 1)


def collect_box():
    """What is read of a segment drawn on the first and last slice, on a grid that begins at slice 10."""
    volume = slicer.util.addVolumeFromArray(np.random.default_rng(0).random(SHAPE))
    mask = np.zeros(SHAPE, np.uint8)
    mask[[0, 3], 1:3, 1:3] = 7
    segmentation = scene.add_segmentation_of_labels(mask, volume, "s", {7: "a"})
    collected = scene.collect(volume, segmentation, axis="k")
    grid = slicer.vtkOrientedImageData()
    grid.SetExtent(0, 5, 0, 4, 10, 13)
    return replace(collected, grid=grid)


def test_expected_quality_is_told_in_slices_of_the_segmentation():
    quality = expected_quality(
        collect_box(),
        {
            "expected_dice": {"7": {"1": 0.9, "2": 0.8}},
            "expected_mean_dice": 0.85,
            "suggested_slice": {"plane": 2, "gain": 0.1, "boundary_mm": 3.0, "labels": [7]},
        },
    )
    assert quality == ExpectedQuality(
        axis=0, dice={"a": {11: 0.9, 12: 0.8}}, mean=0.85, suggested=12, suggested_for=("a",)
    )


@pytest.mark.parametrize("report", [{}, {"suggested_slice": None}])
def test_runs_need_not_estimate_their_quality(report):
    assert expected_quality(collect_box(), report) == ExpectedQuality(axis=0)


@pytest.fixture
def applied():
    """Volume, segmentation and mask of a segment that was drawn on slices 0 and 11 of 12, and found on the others."""
    shape = (12, 6, 7)
    volume = slicer.util.addVolumeFromArray(np.random.default_rng(0).random(shape))
    mask = np.zeros(shape, np.uint8)
    mask[[0, 11], 1:4, 1:5] = 1
    node = scene.add_segmentation_of_labels(mask, volume, "s", {1: "a"})
    drawn = survey(volume, node, ["a"])
    mask[:, 1:4, 1:5] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "a", volume)
    mark_propagated(node, drawn)
    return volume, node, mask


def corrected_slices(volume, node, mask):
    """The slices that are read as drawn ones, and as absent ones, after the segment has become the mask."""
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "a", volume)
    notice_corrections(node, survey(volume, node, ["a"]))
    roles = survey(volume, node, ["a"]).roles["a"]
    return tuple([index for index, role in sorted(roles.items()) if role == which] for which in ("complete", "absent"))


def test_what_was_found_is_no_input(applied):
    assert corrected_slices(*applied) == ([0, 11], [])


def test_several_slices_may_be_corrected_at_once(applied):
    volume, node, mask = applied
    mask[[2, 4, 8], 4] = 1
    mask[[5, 6]] = 0
    assert corrected_slices(volume, node, mask) == ([0, 2, 4, 8, 11], [5, 6])


def test_half_of_what_was_found_may_be_erased(applied):
    volume, node, mask = applied
    mask[6:] = 0
    assert corrected_slices(volume, node, mask) == ([0], [6, 7, 8, 9, 10])


def test_what_is_done_to_the_whole_segment_corrects_nothing(applied):
    volume, node, mask = applied
    mask[:, 1, 1] = 0
    mask[[1, 10]] = 0  # smoothing takes thin ends away
    assert corrected_slices(volume, node, mask) == ([0, 11], [])


def test_what_is_left_of_a_segment_that_shrank_is_no_input(applied):
    volume, node, mask = applied
    mask[:4] = mask[8:] = 0
    mask[4:8, 1] = 0
    assert corrected_slices(volume, node, mask) == ([], [])


@pytest.mark.parametrize("slices", [[3, 9], [2, 4, 6, 8]])
@pytest.mark.parametrize("seen_empty", [False, True])
def test_what_is_drawn_after_the_segment_was_cleared_is_read(applied, seen_empty, slices):
    volume, node, mask = applied
    mask[:] = 0
    if seen_empty:
        assert corrected_slices(volume, node, mask) == ([], [])
    mask[slices, 2:5, 2:5] = 1
    assert corrected_slices(volume, node, mask) == (slices, [])


def test_what_is_drawn_where_a_later_run_found_nothing_is_read(applied):
    volume, node, mask = applied
    before = survey(volume, node, ["a"])
    mask[6:11] = 0  # as the next run found
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "a", volume)
    mark_propagated(node, before)
    mask[8, 2:5, 2:5] = 1
    assert corrected_slices(volume, node, mask) == ([0, 8, 11], [])


def test_strokes_that_are_added_to_a_scribble_leave_it_one(applied):
    """Also where the slice was found once, and corrected."""
    volume, node, mask = applied
    mask[5, 4] = 1
    assert corrected_slices(volume, node, mask) == ([0, 5, 11], [])
    set_role(node, "a", 0, "scribble", [5])
    mask[5, 5] = 1
    assert corrected_slices(volume, node, mask) == ([0, 11], [])


def test_what_was_found_is_kept_along_each_axis(applied):
    volume, node, _ = applied
    before = tag(node.GetSegmentation().GetSegment("a"), "LabelProp.Propagated")
    assert before.startswith("k 1=")
    along_j = survey(volume, node, ["a"], "j")
    mark_propagated(node, replace(along_j, roles={"a": {1: "complete"}}))
    both = tag(node.GetSegmentation().GetSegment("a"), "LabelProp.Propagated")
    assert both.startswith(f"{before} j 2=")
    mark_propagated(node, replace(along_j, roles={"a": dict.fromkeys(along_j.roles["a"], "scribble")}))
    assert tag(node.GetSegmentation().GetSegment("a"), "LabelProp.Propagated") == before


def slices_on(volume, node):
    """The slices of the segment that are complete, absent and ignored, on the geometry of another volume."""
    set_geometry(node, volume)
    roles = survey(volume, node, ["a"]).roles["a"].items()
    return [sorted(index for index, role in roles if role == which) for which in ("complete", "absent", "ignored")]


@pytest.fixture
def marked(applied):
    """A segmentation as `applied` gives, of a segment drawn on slices 2 and 8, found in between, and absent on 10."""
    volume, node, mask = applied
    mask[[0, 1, 9, 10, 11]] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "a", volume)
    set_role(node, "a", 0, "complete", [2, 8])
    mark_propagated(node, survey(volume, node, ["a"]))
    set_role(node, "a", 0, "absent", [10])
    return node


@pytest.mark.parametrize(
    "slices, step, start, expected",
    [
        (8, 1.0, 2.0, [[0, 6], [], [1, 2, 3, 4, 5]]),
        (24, 0.5, -0.25, [[4, 5, 16, 17], [20, 21], list(range(6, 16))]),
        (6, 2.0, 0.0, [[1, 4], [5], [2, 3]]),
        (14, -1.0, 13.0, [[5, 11], [3], [6, 7, 8, 9, 10]]),
    ],
    ids=["cropped", "finer", "coarser", "flipped"],
)
def test_marks_follow_the_geometry(marked, slices, step, start, expected):
    place = np.diag([1, 1, step, 1.0])
    place[2, 3] = start
    assert slices_on(slicer.util.addVolumeFromArray(np.zeros((slices, 6, 7)), place), marked) == expected


def test_marks_follow_to_a_flipped_geometry_of_the_same_extent():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE))
    mask = np.zeros(SHAPE, np.uint8)
    for k in range(4):
        mask[k, 1:3, 1 : 3 + k] = 1
    node = scene.add_segmentation_of_labels(mask, volume, "s", {1: "a"})
    mark_propagated(node, replace(survey(volume, node, ["a"], "k"), roles={"a": dict.fromkeys([0, 1], "complete")}))
    place = np.diag([1.0, 1.0, -1.0, 1.0])
    place[2, 3] = 3.0
    flipped = slicer.util.addVolumeFromArray(np.zeros(SHAPE), place)
    set_geometry(node, flipped)
    set_role(node, "a", 0, "scribble", [])  # they follow before a new one is set, too
    assert slices_on(flipped, node) == [[2, 3], [], [0, 1]]


def test_marks_follow_to_another_axis(marked):
    place = np.eye(4)[:, [2, 1, 0, 3]]
    volume = slicer.util.addVolumeFromArray(np.zeros((7, 6, 12)), place)
    set_geometry(marked, volume)
    follow_geometry(marked, ["a"])
    roles = scene.segments.read_roles(marked.GetSegmentation().GetSegment("a"))
    assert roles.slices == {"i": {"absent": {10}, "ignored": {3, 4, 5, 6, 7}}}


@pytest.mark.parametrize("angle", [-20, 20])
def test_nothing_is_known_of_slices_of_a_geometry_that_was_turned(marked, angle):
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("x", angle, degrees=True).as_matrix()
    volume = slicer.util.addVolumeFromArray(np.zeros((12, 6, 7)), turned)
    set_geometry(marked, volume)
    said = []
    roles = survey(volume, marked, ["a"], "k", said.append).roles["a"]
    assert set(roles.values()) == {"complete"} and len(said) == 1 and "slices of 'a' across k:" in said[0]


def test_marks_stay_where_the_voxels_move_with_the_geometry(marked):
    move = np.eye(4)
    move[2, 3] = 3.0
    marked.SetAndObserveTransformNodeID(add_transform(move).GetID())
    roles = scene.segments.read_roles(marked.GetSegmentation().GetSegment("a"))
    marked.HardenTransform()
    said = []
    follow_geometry(marked, ["a"], said.append)
    assert scene.segments.read_roles(marked.GetSegmentation().GetSegment("a")) == roles and not said


def test_background_role_is_kept_beside_those_of_slices():
    collected = collect_box()
    node = collected.segmentation_node
    set_role(node, "a", 0, "scribble", [3])
    set_background(node, "a", True)
    assert background_segments(node) == {"a"}
    set_background(node, "a", False)
    assert background_segments(node) == set()
    assert scene.segments.read_roles(node.GetSegmentation().GetSegment("a")).of(0, "scribble") == {3}


def test_changed_roles_change_the_state():
    collected = collect_box()
    assert collected.unchanged
    set_role(collected.segmentation_node, "a", 0, "absent", [2])
    assert not collected.unchanged


@given(slices=st.sets(st.integers(-5, 5)), role=ROLES, earlier=ROLES)
def test_a_slice_has_one_role(slices, role, earlier):
    roles = with_role(with_role(Roles(), 1, earlier, range(-5, 6)), 1, role, slices)
    assert Roles.parse(str(roles)) == Roles.parse(str(with_role(roles, 1, role, slices)))
    shown = slice_roles([index for index in range(-5, 6) if role != "absent"], roles, 1)
    assert all(shown[index] == role for index in slices)


def test_anatomical_planes():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE), OBLIQUE)
    segmentation = scene.add_segmentation_of_labels(np.ones(SHAPE, np.uint8), volume, "s")
    grid = scene.geometry.work_grid(volume, segmentation)
    assert [anatomical_plane(grid, axis) for axis in range(3)] == ["axial", "coronal", "sagittal"]


@settings(max_examples=60)
@given(preview=masks, current=masks, others=masks, locked=masks, known=planes, scribbled=planes)
def test_what_is_protected_is_not_changed(preview, current, others, locked, known, scribbled):
    scribbled = scribbled - known
    given = {"a": (preview, current, known, scribbled), "b": (~preview, others & ~current, set(), set())}
    drawn = {
        name: {plane: (now & ~found)[plane] for plane in complete | hints}
        for name, (found, now, complete, hints) in given.items()
    }
    result = {
        name: protect(
            found,
            now,
            0,
            complete,
            hints,
            drawn_of_others(name, drawn, 0, boxes.whole(SHAPE)),
            occupied=np.roll(others, 1, axis=2),
            locked=locked,
        )
        for name, (found, now, complete, hints) in given.items()
    }
    np.testing.assert_array_equal(result["a"][sorted(known)], current[sorted(known)])
    np.testing.assert_array_equal(result["a"][locked], current[locked])
    np.testing.assert_array_equal(result["b"][locked], (others & ~current)[locked])
    kept = np.isin(np.arange(SHAPE[0]), sorted(known | scribbled))[:, None, None] & current
    assert not (kept & ~locked & ~preview & result["b"]).any()  # drawn since the preview was made
    assert result["a"][kept & ~locked].all()
    new = result["b"] & ~(others & ~current)
    assert not (new & np.roll(others, 1, axis=2)).any()


def test_a_slice_that_was_moved_as_it_is_was_corrected(applied):
    volume, node, mask = applied
    mask[4] = np.roll(mask[4], 1, axis=1)
    assert corrected_slices(volume, node, mask) == ([0, 4, 11], [])


def test_a_correction_after_the_whole_segment_was_smoothed_is_read(applied):
    volume, node, mask = applied
    mask[1:11, 1, 1] = 0
    assert corrected_slices(volume, node, mask) == ([0, 11], [])
    mask[5, 4] = 1
    assert corrected_slices(volume, node, mask) == ([0, 5, 11], [])


ALL = set(range(20))


@pytest.mark.parametrize(
    ("left", "as_it_was", "is_begun_anew"),
    [
        ({5, 10, 15}, set(), True),
        ({5, 10, 15}, {10}, False),
        ({5, 6}, set(), True),  # little
        (ALL - {8, 9}, set(), False),  # nearly all of it is there
        (ALL - {0, 1, 2, 17, 18, 19}, set(), False),  # it shrank
        (ALL - {3, 4, 5, 6, 14, 15}, set(), True),
    ],
)
def test_a_segment_of_which_much_is_gone_was_begun_anew(left, as_it_was, is_begun_anew):
    assert was_begun_anew(left, left - as_it_was, ALL - left) == is_begun_anew


def test_what_was_found_across_one_axis_says_nothing_across_another(applied):
    volume, node, mask = applied
    assert not notice_corrections(node, survey(volume, node, ["a"], "j"))
    mask[5, 4] = 1
    assert corrected_slices(volume, node, mask) == ([0, 5, 11], [])


@pytest.mark.parametrize("text", ["", "k three", "k 3=4=5"])
def test_a_damaged_tag_of_found_slices_says_nothing(applied, text):
    volume, node, mask = applied
    node.GetSegmentation().GetSegment("a").SetTag(PROPAGATED_TAG, text)
    assert corrected_slices(volume, node, mask) == ([0, 11], [])


def test_corrections_are_told(applied):
    """The effect looks at the slices anew then."""
    volume, node, mask = applied
    assert not notice_corrections(node, survey(volume, node, ["a"]))
    mask[5] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "a", volume)
    assert notice_corrections(node, survey(volume, node, ["a"]))
    assert not notice_corrections(node, survey(volume, node, ["a"]))


def test_roles_tell_the_axis_of_an_empty_segment():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE[::-1]))
    segmentation = scene.add_segmentation_of_labels(np.zeros(SHAPE[::-1], np.uint8), volume, "s")
    segmentation.GetSegmentation().AddEmptySegment("a", "a")
    assert survey(volume, segmentation, ["a"]).axis == 2  # without any that of the fewest slices
    assert tag(segmentation.GetSegmentation().GetSegment("a"), "LabelProp.Geometry") is None  # looked at, not marked
    set_role(segmentation, "a", 1, "absent", [3])
    assert survey(volume, segmentation, ["a"]).axis == 1


def test_background_strokes_say_nothing_of_the_axis():
    """They may lie on any slices; what is read across which axis is shown so."""
    volume = slicer.util.addVolumeFromArray(np.random.default_rng(0).random((9, 9, 9)))
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[[1, 7], 2:6, 2:6] = 1
    labels[:, 7, 2:6] = 2
    segmentation = scene.add_segmentation_of_labels(labels, volume, "s", {1: "a", 2: "ground"})
    set_background(segmentation, "ground", True)
    overview = survey(volume, segmentation, ["a", "ground"])
    assert overview.axis == scene.collect(volume, segmentation).annotation.axis
    assert overview.roles == {"a": dict.fromkeys([1, 7], "complete"), "ground": dict.fromkeys(range(9), "scribble")}


def test_segments_that_overlap_keep_what_they_share_where_one_was_drawn():
    """What was drawn before the preview was made takes nothing from what the preview gives the others."""
    drawn, nothing = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)
    since = {"a": {0: (drawn & ~drawn)[0]}, "b": {}}
    written = protect(drawn, nothing, 0, (), (), drawn_of_others("b", since, 0, boxes.whole(SHAPE)))
    np.testing.assert_array_equal(written, drawn)


def test_masks_to_write_are_no_larger_than_their_segments():
    """A hundred of them, each on the whole grid, would be more than memory holds."""
    volume = slicer.util.addVolumeFromArray(np.zeros((9, 10, 11)))
    labels = np.zeros((9, 10, 11), np.uint8)
    labels[0, :2, :3], labels[8, 8:, 9:] = 1, 2
    node = scene.add_segmentation_of_labels(labels, volume, "s", {1: "a", 2: "b"})
    overview = survey(volume, node, ["a", "b"], "k")
    labels[1, :2, :3], labels[7, 8:, 9:] = 1, 2
    preview = scene.add_segmentation_of_labels(labels, volume, "p", {1: "a", 2: "b"})
    editor = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(node)
    masks, grid, left = masks_to_write(editor, preview, overview)
    assert [mask.shape for box, mask in masks.values()] == [(2, 2, 3), (2, 2, 2)] and left == 0
    scene.write_masks(node, masks, grid)
    for value, name in enumerate("ab", 1):
        np.testing.assert_array_equal(scene.segment_on_grid(node, name, overview.grid), labels == value)


@pytest.mark.parametrize(("mode", "kept"), [("AllSegments", {2, 3}), ("VisibleSegments", {2}), ("None", set())])
def test_a_preview_keeps_drawn_slices_and_leaves_to_other_segments_what_is_theirs(mode, kept):
    volume = slicer.util.addVolumeFromArray(np.zeros((7, 6, 6)), np.diag([1.0, 1.0, 3.0, 1.0]))
    labels = np.zeros((7, 6, 6), np.uint8)
    labels[[1, 5], 1:5, 1:5] = 1
    labels[2, 1, :3], labels[3, 1:5, 3], labels[4, 2, 2:4] = 2, 3, 2
    node = scene.add_segmentation_of_labels(labels, volume, "s", {1: "a", 2: "shown", 3: "hidden"})
    node.GetDisplayNode().SetSegmentVisibility("hidden", False)
    found = np.zeros(labels.shape, np.uint8)
    found[1:6, 1:5, 1:5] = 1
    preview = scene.add_segmentation_of_labels(found, volume, "p", {1: "a"})
    for segmentation in (node, preview):
        segmentation.GetSegmentation().AddEmptySegment("late", "late")
    drawn = labels == 1
    drawn[[1, 5], 4, 4] = False  # corrected since
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn.astype(np.uint8), node, "a", volume)
    late = np.zeros(labels.shape, np.uint8)
    late[[3, 6], 2, 1:3] = 1  # drawn since; nothing was found of it
    slicer.util.updateSegmentBinaryLabelmapFromArray(late, node, "late", volume)
    overview = survey(volume, node, ["a", "late"], "k")
    nothing = boxes.whole((0, 0, 0)), np.zeros((0, 0, 0), bool)
    scene.write_masks(preview, {"late": nothing}, overview.grid)
    editor = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(node)
    editor.SetOverwriteMode(getattr(editor, f"Overwrite{mode}"))
    masks, grid, left = masks_to_write(editor, preview, overview)
    assert list(masks) == ["a"]
    scene.write_masks(node, masks, grid)
    theirs = np.isin(labels, list(kept))
    expected = np.where(drawn.any(axis=(1, 2))[:, None, None], drawn, (found > 0) & ~theirs & (late == 0))
    for name, mask in {"a": expected, "shown": labels == 2, "hidden": labels == 3, "late": late > 0}.items():
        np.testing.assert_array_equal(scene.segment_on_grid(node, name, overview.grid), mask)
    assert left == np.count_nonzero(theirs & (found > 0))


def test_masks_that_overlap_are_written_whole():
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE))
    node = scene.add_segmentation_of_labels(np.zeros(SHAPE, np.uint8), volume, "s")
    grid = scene.geometry.work_grid(volume, node)
    given = {"a": slice(0, 3), "b": slice(2, 5), "c": slice(4, 6)}
    masks = {}
    for name, columns in given.items():
        node.GetSegmentation().AddEmptySegment(name, name)
        masks[name] = (slice(1, 3), slice(0, 5), columns), np.ones((2, 5, columns.stop - columns.start), bool)
    scene.write_masks(node, masks, grid)
    for name, (box, _) in masks.items():
        expected = np.zeros(SHAPE, bool)
        expected[box] = True
        np.testing.assert_array_equal(scene.segment_on_grid(node, name, grid), expected)
    assert node.GetSegmentation().GetNumberOfLayers() == 2


def drawn_column(image, drawn):
    """A column drawn on some slices: volume, segmentation and mask."""
    mask = np.zeros(image.shape, np.uint8)
    mask[drawn, 2:5, 2:5] = 1
    volume = slicer.util.addVolumeFromArray(image, np.eye(4))
    return volume, scene.add_segmentation_of_labels(mask, volume, "s", {1: "a"}), mask


def find_between(volume, node, mask, found):
    """The column on other slices as well, as a run finds it."""
    overview = survey(volume, node, ["a"])
    mask[found, 2:5, 2:5] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "a", volume)
    mark_propagated(node, overview)


@pytest.mark.parametrize("found", [False, True])
def test_marks_follow_a_mirrored_geometry_of_the_same_extent(found):
    image = np.zeros((12, 6, 7))
    volume, node, mask = drawn_column(image, [2, 5])
    set_role(node, "a", 0, "absent", [8])
    if found:
        find_between(volume, node, mask, slice(3, 5))
    mirrored = np.diag([1.0, 1.0, -1.0, 1.0])
    mirrored[2, 3] = 11
    set_geometry(node, slicer.util.addVolumeFromArray(image, mirrored))
    roles = survey(volume, node, ["a"]).roles["a"]
    assert roles == {6: "complete", 9: "complete", 3: "absent"} | ({7: "ignored", 8: "ignored"} if found else {})


def test_marks_follow_a_shifted_geometry_although_slices_look_alike():
    image = np.zeros((12, 6, 7))
    volume, node, mask = drawn_column(image, [2, 10])
    find_between(volume, node, mask, slice(3, 10))
    shifted = np.eye(4)
    shifted[2, 3] = 1
    set_geometry(node, slicer.util.addVolumeFromArray(image, shifted))
    roles = survey(volume, node, ["a"]).roles["a"]
    assert [index for index, role in roles.items() if role == "complete"] == [1, 9]


@pytest.mark.parametrize("mirrored", [False, True])
def test_corrections_are_noticed_on_a_grid_that_was_cropped_or_mirrored_within_the_slices(mirrored):
    image = np.zeros((8, 12, 14))
    volume, node, mask = drawn_column(image, [1, 6])
    find_between(volume, node, mask, slice(2, 6))
    mask[3, 4] = mask[5] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "a", volume)
    other, part = np.eye(4), image[:, 1:, 2:]
    if mirrored:
        other[0, 0], other[0, 3], part = -1, 13, image
    else:
        other[:3, 3] = 2, 1, 0
    volume = slicer.util.addVolumeFromArray(part, other)
    set_geometry(node, volume)
    said = []
    assert notice_corrections(node, survey(volume, node, ["a"]), said.append) and not said
    roles = survey(volume, node, ["a"]).roles["a"]
    assert roles == {1: "complete", 2: "ignored", 3: "complete", 4: "ignored", 5: "absent", 6: "complete"}
