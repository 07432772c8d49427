"""Segments to annotations and back, on real MRML: geometry, layers, transforms, what is kept, what is told the user."""

import dataclasses

import numpy as np
import pytest
import slicer
import vtk
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    OBLIQUE,
    SHAPE,
    STRAIGHT,
    add_scan,
    add_segmentation,
    add_transform,
    draw,
    drawn_masks,
    noise,
    propagate_nearest,
    segment_array,
    tag,
)
from scipy.spatial.transform import Rotation

from LabelPropLib import scene
from LabelPropLib.annotation import BACKGROUND
from LabelPropLib.errors import InputError
from LabelPropLib.roles import SLICE_ROLES, Roles
from LabelPropLib.scene import storage
from LabelPropLib.scene.geometry import lines_against_view
from LabelPropLib.scene.segments import read_roles, write_roles
from LabelPropLib.settings import Settings

OBLIQUE_A_LITTLE = np.eye(4)
OBLIQUE_A_LITTLE[:3, :3] = Rotation.from_euler("xyz", [20, -25, 15], degrees=True).as_matrix()
FLIPPED = STRAIGHT @ np.diag([-1, 1, -1, 1.0])
LEFT_HANDED = OBLIQUE @ np.diag([1, -1, 1, 1.0])
PERMUTED = STRAIGHT[:, [2, 0, 1, 3]]
GEOMETRIES = pytest.mark.parametrize(
    "ijk_to_ras",
    [STRAIGHT, OBLIQUE, FLIPPED, LEFT_HANDED, PERMUTED],
    ids=["straight", "oblique", "flipped", "left handed", "permuted"],
)
Logic = slicer.vtkSlicerSegmentationsModuleLogic


def shift(k, j, i, ijk_to_ras=STRAIGHT):
    """(4, 4) translation in mm by whole voxels."""
    matrix = np.eye(4)
    matrix[:3, 3] = ijk_to_ras[:3, :3] @ (i, j, k)
    return matrix


def masks_of(collected):
    """Segment ID -> (K, J, I) bool of its complete planes."""
    annotation = collected.annotation
    masks = {}
    for label, segment_id in collected.segment_ids.items():
        masks[segment_id] = np.zeros(annotation.image.shape, bool)
        for plane, pixels in annotation.complete.get(label, {}).items():
            np.moveaxis(masks[segment_id], annotation.axis, 0)[plane] = pixels
    return masks


def assert_masks_equal(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def propagate(collected):
    """Write what the nearest drawn slices give; returns segment ID -> mask that was written."""
    propagation = propagate_nearest(collected.annotation, Settings())
    scene.write_segments(collected, propagation.label_maps)
    return {collected.segment_ids[label]: propagation.mask(label) for label in collected.annotation.labels}


@GEOMETRIES
@pytest.mark.parametrize("one_layer", [False, True], ids=["a layer each", "one layer"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_round_trip(ijk_to_ras, one_layer, axis):
    masks = drawn_masks(planes=(2, 9), axis=axis)
    volume = add_scan(ijk_to_ras=ijk_to_ras)
    node = add_segmentation(volume, masks, one_layer)
    collected = scene.collect(volume, node)
    assert collected.annotation.axis == axis
    assert collected.annotation.planes == [2, 9]
    np.testing.assert_allclose(collected.annotation.spacing, np.linalg.norm(ijk_to_ras[:3, :3], axis=0)[::-1])
    np.testing.assert_array_equal(collected.annotation.image, noise())
    assert_masks_equal(masks_of(collected), masks)

    written = propagate(collected)
    for name, mask in masks.items():
        result = segment_array(node, name, volume)
        np.testing.assert_array_equal(result, written[name])
        np.testing.assert_array_equal(result.take((2, 9), axis), mask.take((2, 9), axis))
        assert result.take(range(2, 10), axis).any(axis=tuple(a for a in range(3) if a != axis)).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_of_a_tilted_gantry_lie_closer_than_their_voxels(axis):
    """3 mm from voxel to voxel across k, and 1.5 mm of them along j: the volume of a voxel is the determinant."""
    sheared = STRAIGHT.copy()
    sheared[1, 2], sheared[2, 2] = 1.5, np.sqrt(3.0**2 - 1.5**2)
    volume = add_scan(ijk_to_ras=sheared)
    annotation = scene.collect(volume, add_segmentation(volume, drawn_masks(axis=axis))).annotation
    np.testing.assert_allclose(np.prod(annotation.spacing), np.linalg.det(sheared[:3, :3]))
    np.testing.assert_allclose(np.delete(annotation.spacing, axis), np.delete((3.0, 0.8, 0.7), axis))


@pytest.mark.parametrize(
    ("towards", "against_view"),
    [
        ("LPS", {0: (False, False), 1: (True, False), 2: (True, False)}),
        ("RAS", {0: (True, True), 1: (True, True), 2: (True, True)}),
        ("PIR", {0: (False, False), 1: (True, False), 2: (True, False)}),  # sagittal slices as DICOM has them
    ],
)
def test_lines_run_with_the_view_or_against_it(towards, against_view):
    """towards: where i, j and k run."""
    ways = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    matrix = np.eye(4)
    matrix[:3, :3] = np.transpose([ways[letter] for letter in towards])
    volume = add_scan(ijk_to_ras=OBLIQUE_A_LITTLE @ matrix)
    grid = scene.collect(volume, add_segmentation(volume, drawn_masks())).grid
    assert {axis: lines_against_view(grid, axis) for axis in range(3)} == against_view


@GEOMETRIES
def test_shared_transform_changes_nothing(ijk_to_ras):
    masks = drawn_masks()
    volume = add_scan(ijk_to_ras=ijk_to_ras)
    node = add_segmentation(volume, masks)
    transform = add_transform(OBLIQUE @ np.diag([1.3, 0.8, 1, 1]))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    node.SetAndObserveTransformNodeID(transform.GetID())
    collected = scene.collect(volume, node)
    np.testing.assert_array_equal(collected.annotation.image, noise())
    assert_masks_equal(masks_of(collected), masks)
    written = propagate(collected)
    assert_masks_equal({name: scene.segment_on_grid(node, name, collected.grid) for name in masks}, written)


@GEOMETRIES
def test_volume_transformed_before_it_was_segmented(ijk_to_ras):
    volume = add_scan(ijk_to_ras=ijk_to_ras)
    volume.SetAndObserveTransformNodeID(add_transform(OBLIQUE).GetID())
    masks = drawn_masks()
    node = add_segmentation(add_scan(ijk_to_ras=OBLIQUE @ ijk_to_ras, name="Where the volume is seen"), masks)
    collected = scene.collect(volume, node)
    np.testing.assert_array_equal(collected.annotation.image, noise())
    assert_masks_equal(masks_of(collected), masks)


def test_volume_moved_after_it_was_segmented():
    masks = drawn_masks()
    volume = add_scan()
    node = add_segmentation(volume, masks)
    volume.SetAndObserveTransformNodeID(add_transform(shift(k=1, j=-2, i=3)).GetID())
    collected = scene.collect(volume, node)
    np.testing.assert_array_equal(collected.annotation.image[1:, :-2, 3:], noise()[:-1, 2:, :-3])
    assert (collected.annotation.image[0] == volume.GetImageBackgroundScalarComponentAsDouble(0)).all()
    assert_masks_equal(masks_of(collected), masks)


def test_segmentation_moved_after_it_was_drawn():
    masks = drawn_masks()
    volume = add_scan()
    node = add_segmentation(volume, masks)
    node.SetAndObserveTransformNodeID(add_transform(shift(k=-1, j=2, i=-3)).GetID())
    collected = scene.collect(volume, node)
    np.testing.assert_array_equal(collected.annotation.image[1:, :-2, 3:], noise()[:-1, 2:, :-3])
    written = propagate(collected)
    moved = segment_array(node, "left", volume)
    np.testing.assert_array_equal(moved[:-1, 2:, :-3], written["left"][1:, :-2, 3:])


def test_warped_volume():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode")
    displacements = vtk.vtkImageData()
    displacements.SetDimensions(8, 8, 8)
    displacements.SetSpacing(10, 10, 10)
    displacements.SetOrigin(-20, -20, -20)
    displacements.AllocateScalars(vtk.VTK_DOUBLE, 3)
    for component, mm in enumerate((3 * 0.7, -2 * 0.8, 3.0)):
        displacements.GetPointData().GetScalars().FillComponent(component, mm)
    grid_transform = slicer.vtkOrientedGridTransform()
    grid_transform.SetDisplacementGridData(displacements)
    transform.SetAndObserveTransformToParent(grid_transform)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    image = scene.collect(volume, node).annotation.image
    np.testing.assert_allclose(image[2:-1, 1:-3, 4:-1], noise()[1:-2, 3:-1, 1:-4], atol=1)


def test_reference_geometry_smaller_than_the_volume():
    volume = add_scan(ijk_to_ras=OBLIQUE)
    part = np.s_[1:11, 2:18, 0:20]
    corner = OBLIQUE.copy()
    corner[:3, 3] = OBLIQUE[:3] @ (0, 2, 1, 1)
    cropped = add_scan(noise()[part], corner, "Cropped")
    masks = drawn_masks(noise()[part].shape)
    node = add_segmentation(cropped, masks)
    collected = scene.collect(volume, node)
    np.testing.assert_array_equal(collected.annotation.image, noise()[part])
    written = propagate(collected)
    np.testing.assert_array_equal(segment_array(node, "right", volume)[part], written["right"])


@pytest.mark.parametrize("where", [np.s_[5, 15:20, 22], np.s_[0, 1:9, 3], np.s_[11, 0, 5:9]])
def test_strokes_beyond_the_reference_geometry_are_not_lost(where):
    volume = add_scan()
    part = np.s_[1:11, 2:18, 0:20]
    cropped = add_scan(noise()[part], shift(k=1, j=2, i=0) @ STRAIGHT, "Cropped")
    node = add_segmentation(cropped, drawn_masks(noise()[part].shape))
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[where] = 1
    scribbles = scene.writing.add_segmentation_of_scribbles(strokes, volume, "Scribbles", {1: "left"})
    collected = scene.collect(volume, node, scribbles_node=scribbles)
    start, cropped_start = map(scene.geometry.grid_start, (collected.grid, scene.geometry.work_grid(cropped, node)))
    first = np.subtract(start, cropped_start)
    np.testing.assert_array_equal(collected.annotation.scribbles[1] + first + (1, 2, 0), np.argwhere(strokes))


def test_strokes_beyond_the_volume_do_not_enlarge_the_grid():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    elsewhere = add_scan(ijk_to_ras=shift(k=300, j=0, i=0) @ STRAIGHT, name="Elsewhere")
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[5, 15:20, 22] = 1
    scribbles = scene.writing.add_segmentation_of_scribbles(strokes, elsewhere, "Scribbles", {1: "left"})
    collected = scene.collect(volume, node, scribbles_node=scribbles)
    assert collected.annotation.image.shape == SHAPE and not collected.annotation.scribbles


def test_reference_geometry_finer_than_the_volume():
    k = np.arange(SHAPE[0])[:, None, None] * np.ones(SHAPE)
    volume = add_scan((100 * k).astype(np.int16))
    node = add_segmentation(volume, drawn_masks())
    fine = scene.geometry.work_grid(volume, node)
    slicer.vtkCalculateOversamplingFactor.ApplyOversamplingOnImageGeometry(fine, 2)
    geometry = slicer.vtkSegmentationConverter.SerializeImageGeometry(fine)
    node.GetSegmentation().SetConversionParameter(scene.geometry.REFERENCE_GEOMETRY, geometry)
    collected = scene.collect(volume, node, axis="k")
    assert collected.annotation.image.shape == tuple(2 * n for n in SHAPE)
    np.testing.assert_allclose(collected.annotation.spacing, (1.5, 0.4, 0.35))
    np.testing.assert_allclose(collected.annotation.image[1:-1, 5, 5], 100 * (np.arange(1, 23) / 2 - 0.25), atol=1)
    assert collected.annotation.planes == [4, 5, 18, 19]


def draw_beyond(node):
    """Draw a segment on the third slice before the geometry begins; its (K, J, I) mask, and the volume it is on."""
    volume = add_scan(ijk_to_ras=STRAIGHT @ shift(k=-4, j=0, i=0, ijk_to_ras=np.eye(4)), name="Volume beyond")
    mask = np.zeros(SHAPE, bool)
    mask[1, 3:7, 3:8] = True
    node.GetSegmentation().AddEmptySegment("beyond", "beyond")
    draw(node, "beyond", mask, volume)
    return mask, volume


def test_segment_beyond_the_reference_geometry_is_not_lost():
    masks = drawn_masks()
    volume = add_scan()
    node = add_segmentation(volume, masks)
    mask, volume_beyond = draw_beyond(node)
    collected = scene.collect(volume, node, ["left", "beyond"])
    assert collected.annotation.image.shape == (15, 20, 24)
    np.testing.assert_array_equal(collected.annotation.image[3:], noise())
    assert collected.annotation.planes == [0, 5, 12]
    propagate(collected)
    np.testing.assert_array_equal(segment_array(node, "beyond", volume_beyond), mask)
    assert segment_array(node, "left", volume)[2:10].any(axis=(1, 2)).all()


@settings(max_examples=60)
@given(
    starts=st.tuples(*[st.integers(-4, 8)] * 3),
    lengths=st.tuples(*[st.integers(1, 9)] * 3),
    voxels=st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=6),
)
def test_segment_on_any_part_of_its_lattice(starts, lengths, voxels):
    """The same as resampling gives, whether the grid holds the segment, a part of it, or nothing."""
    slicer.mrmlScene.Clear()
    volume = add_scan(noise((5, 5, 5)))
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[tuple(np.transpose(voxels))] = 3
    node = scene.add_segmentation_of_labels(labels, volume, "s", {3: "a"})
    whole, _ = scene.geometry.volume_image(volume, node)
    grid = scene.image_from_array(np.zeros(lengths, np.uint8), whole, starts)
    expected = np.zeros(lengths, bool)
    for voxel in voxels:
        index = np.subtract(voxel, starts)
        if (index >= 0).all() and (index < lengths).all():
            expected[tuple(index)] = True
    np.testing.assert_array_equal(scene.segment_on_grid(node, "a", grid), expected)


def test_segments_on_lattices_of_their_own():
    volume = add_scan()
    turned = add_scan(noise().transpose(0, 2, 1), STRAIGHT[:, [1, 0, 2, 3]], "Turned")  # i and j exchanged
    node = add_segmentation(volume, {})
    mask = drawn_masks()["left"]
    node.GetSegmentation().AddEmptySegment("left", "left")
    draw(node, "left", mask.transpose(0, 2, 1), turned)
    collected = scene.collect(volume, node)
    assert_masks_equal(masks_of(collected), {"left": mask})
    written = propagate(collected)
    np.testing.assert_array_equal(segment_array(node, "left", volume), written["left"])


def test_segmentation_without_reference_geometry_gets_the_volumes():
    volume = add_scan(ijk_to_ras=OBLIQUE)
    masks = drawn_masks()
    node = add_segmentation(volume, masks)
    node.GetSegmentation().SetConversionParameter(scene.geometry.REFERENCE_GEOMETRY, "")
    collected = scene.collect(volume, node)
    assert node.GetSegmentation().GetConversionParameter(scene.geometry.REFERENCE_GEOMETRY) == ""
    assert_masks_equal(masks_of(collected), masks)
    propagate(collected)
    assert node.GetSegmentation().GetConversionParameter(scene.geometry.REFERENCE_GEOMETRY) != ""
    np.testing.assert_array_equal(scene.collect(volume, node, axis="j").annotation.image, noise())


def test_overlap_survives():
    masks = drawn_masks()
    masks["over both"] = masks["left"] | masks["right"]
    volume = add_scan()
    node = add_segmentation(volume, masks)
    collected = scene.collect(volume, node)
    assert collected.annotation.overlapping() == {(1, 3), (2, 3)}
    written = propagate(collected)
    results = {name: segment_array(node, name, volume) for name in masks}
    assert_masks_equal(results, written)
    np.testing.assert_array_equal(results["left"] | results["right"], results["over both"])


def test_names_colours_terminology_and_tags_are_kept():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks(), one_layer=True)
    segment = node.GetSegmentation().GetSegment("left")
    terminology = (
        "Segmentation category and type - 3D Slicer General Anatomy list~SCT^85756007^Tissue~SCT^71616004^Muscle"
    )
    segment.SetName("M. psoas | left")
    segment.SetColor(0.1, 0.2, 0.3)
    segment.SetTerminology(terminology)
    segment.SetTag("Mine", "yes")
    propagate(scene.collect(volume, node))
    segment = node.GetSegmentation().GetSegment("left")
    assert segment.GetName() == "M. psoas | left"
    assert segment.GetColor() == (0.1, 0.2, 0.3)
    assert segment.GetTerminology() == terminology
    assert tag(segment, "Mine") == "yes"


@pytest.mark.parametrize("before, after", [("NotStarted", "InProgress"), ("Completed", "Completed")])
def test_status(before, after):
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    segment = node.GetSegmentation().GetSegment("left")
    Logic.SetSegmentStatus(segment, getattr(Logic, before))
    collected = scene.collect(volume, node)
    added = scene.add_segmentation(collected, propagate_nearest(collected.annotation, Settings()).label_maps, "Result")
    propagate(collected)
    for result in (segment, added.GetSegmentation().GetSegment("left")):
        assert Logic.GetSegmentStatus(result) == getattr(Logic, after)


def test_other_segments_are_not_touched():
    masks = drawn_masks()
    volume = add_scan()
    node = add_segmentation(volume, masks, one_layer=True)
    node.CreateClosedSurfaceRepresentation()
    right = node.GetSegmentation().GetSegment("right")
    surface = right.GetRepresentation("Closed surface")
    surface_time, name = surface.GetMTime(), right.GetName()
    propagate(scene.collect(volume, node, ["left"]))
    np.testing.assert_array_equal(segment_array(node, "right", volume), masks["right"])
    assert right.GetRepresentation("Closed surface") is surface
    assert surface.GetMTime() == surface_time
    assert right.GetName() == name
    assert Logic.GetSegmentStatus(right) == Logic.NotStarted
    layers = [node.GetBinaryLabelmapInternalRepresentation(name) for name in ("left", "right")]
    assert layers[0] is not layers[1]
    np.testing.assert_array_equal(np.unique(scene.voxels(layers[1])), [0, right.GetLabelValue()])


def test_closed_surface_is_made_anew_where_there_was_one():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    segmentation = node.GetSegmentation()
    propagate(scene.collect(volume, node))
    assert not segmentation.ContainsRepresentation("Closed surface")

    node = add_segmentation(volume, drawn_masks())
    segmentation = node.GetSegmentation()
    node.CreateClosedSurfaceRepresentation()
    propagate(scene.collect(volume, node))
    bounds = segmentation.GetSegment("left").GetRepresentation("Closed surface").GetBounds()
    assert bounds[5] - bounds[4] > 7 * 3 - 3  # mm, from slice 2 to 9


def test_segments_of_a_result_share_a_layer_and_keep_their_label_values():
    volume = add_scan()
    masks = drawn_masks()
    labels = np.where(masks["left"], 37, 0) + np.where(masks["right"], 70000, 0)
    node = scene.add_segmentation_of_labels(labels, volume, "Labels")
    collected = scene.collect(volume, node)
    assert collected.segment_ids == {37: "Label_37", 70000: "Label_70000"}
    propagate(collected)
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfLayers() == 1
    assert [segmentation.GetSegment(name).GetLabelValue() for name in segmentation.GetSegmentIDs()] == [37, 70000]


def test_writing_twice_leaves_nothing_behind():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks(), one_layer=True)
    collected = scene.collect(volume, node)
    first = propagate(collected)
    scene.write_segments(collected, [np.where(first["left"], 1, 0) + np.where(first["right"], 2, 0)[::-1]])
    np.testing.assert_array_equal(segment_array(node, "left", volume), first["left"] & ~first["right"][::-1])
    assert set(np.unique(scene.voxels(node.GetBinaryLabelmapInternalRepresentation("left")))) <= {0, 1, 2, 3}
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_no_nodes_are_left_behind():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    count = slicer.mrmlScene.GetNumberOfNodes()
    propagate(scene.collect(volume, node))
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_no_nodes_are_left_behind_by_a_failure(tmp_path):
    volume = add_scan()
    node = add_segmentation(volume, {"empty": np.zeros(SHAPE)})
    count = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(InputError):
        scene.collect(volume, node)
    with pytest.raises(OSError):
        storage.save_segmentation(node, tmp_path / "missing" / "out.seg.nrrd")
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_new_segmentation_of_a_result():
    volume = add_scan(ijk_to_ras=OBLIQUE)
    node = add_segmentation(volume, drawn_masks())
    node.SetAndObserveTransformNodeID(add_transform(shift(1, 0, 0)).GetID())
    node.GetSegmentation().GetSegment("left").SetColor(0.1, 0.2, 0.3)
    collected = scene.collect(volume, node)
    propagation = propagate_nearest(collected.annotation, Settings())
    added = scene.add_segmentation(collected, propagation.label_maps, "Result")
    assert added.GetName() == "Result"
    assert added.GetSegmentation().GetSegmentIDs() == ("left", "right")
    assert added.GetSegmentation().GetSegment("left").GetColor() == (0.1, 0.2, 0.3)
    written = propagate(collected)
    for name in written:
        np.testing.assert_array_equal(segment_array(added, name, volume), segment_array(node, name, volume))


def test_new_segmentation_of_labels_that_were_not_found():
    volume = add_scan()
    collected = scene.collect(volume, add_segmentation(volume, drawn_masks()))
    added = scene.add_segmentation(collected, [np.zeros(SHAPE, np.uint8)], "Nothing")
    assert added.GetSegmentation().GetSegmentIDs() == ("left", "right")
    for name in ("left", "right"):
        assert not scene.segment_on_grid(added, name, collected.grid).any()


def test_volume_of_a_result_lies_on_the_scan():
    volume = add_scan(ijk_to_ras=OBLIQUE)
    transform = add_transform(shift(1, 2, 3))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    node = add_segmentation(volume, drawn_masks())
    node.SetAndObserveTransformNodeID(transform.GetID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    collected = scene.collect(volume, node, axis="k")
    target = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    uncertainty = np.random.default_rng(1).random(collected.annotation.image.shape, np.float32)
    scene.write_volume(collected, uncertainty, target)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(target), uncertainty)
    np.testing.assert_allclose(scene.geometry.ijk_to_ras(target), OBLIQUE, atol=1e-6)
    assert target.GetParentTransformNode() is transform
    assert target.GetDisplayNode() is not None


def test_changes_are_noticed():
    volume = add_scan()
    masks = drawn_masks()
    node = add_segmentation(volume, masks)
    collected = scene.collect(volume, node)
    assert collected.unchanged
    node.GetSegmentation().GetSegment("left").SetColor(0, 0, 1)
    node.GetSegmentation().SetSegmentIndex("left", 1)
    assert collected.unchanged
    draw(node, "left", masks["right"], volume)
    assert not collected.unchanged
    collected = scene.collect(volume, node)
    node.SetAndObserveTransformNodeID(add_transform(shift(1, 0, 0)).GetID())
    assert not collected.unchanged
    collected = scene.collect(volume, node)
    slicer.mrmlScene.RemoveNode(node)
    assert not collected.unchanged


def test_visible_segments():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    node.GetDisplayNode().SetSegmentVisibility("left", False)
    assert scene.visible_segments(node) == ["right"]
    slicer.mrmlScene.RemoveNode(node.GetDisplayNode())
    assert scene.visible_segments(node) == ["left", "right"]


# Roles


SLICES = st.frozensets(st.integers(-20, 500), min_size=1, max_size=5)
ROLES = st.builds(
    Roles,
    background=st.booleans(),
    slices=st.dictionaries(
        st.sampled_from("kji"), st.dictionaries(st.sampled_from(SLICE_ROLES), SLICES, min_size=1), max_size=3
    ),
)


@given(ROLES)
def test_roles_survive_as_text(roles):
    assert Roles.parse(str(roles)) == roles


def test_roles_as_text():
    roles = Roles(slices={"k": {"ignored": frozenset({5}), "scribble": frozenset({7, 3}), "absent": frozenset({12})}})
    assert str(roles) == "k:scribble=3,7;absent=12;ignored=5"
    assert str(Roles(background=True)) == "background"
    assert str(Roles()) == ""


@pytest.mark.parametrize("text", ["k", "k:", "x:scribble=1", "k:drawn=1", "k:scribble=", "k:scribble=a", "k:absent=1;"])
def test_malformed_roles_are_explained(text):
    with pytest.raises(InputError, match="LabelProp.Roles cannot be read at"):
        Roles.parse(text)


def test_roles_survive_saving(tmp_path):
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    roles = Roles(
        slices={"k": {"scribble": frozenset({2}), "absent": frozenset({4, 5})}, "i": {"ignored": frozenset({1})}}
    )
    write_roles(node.GetSegmentation().GetSegment("left"), roles)
    storage.save_segmentation(node, tmp_path / "roles.seg.nrrd")
    loaded = storage.load_segmentation(tmp_path / "roles.seg.nrrd")
    assert read_roles(loaded.GetSegmentation().GetSegment("left")) == roles
    assert read_roles(loaded.GetSegmentation().GetSegment("right")) == Roles()


def test_roles_that_are_none_leave_no_tag():
    segment = slicer.vtkSegment()
    write_roles(segment, Roles(background=True))
    write_roles(segment, Roles())
    assert tag(segment, "LabelProp.Roles") is None


def collect_with_roles(**slices):
    """The scan drawn on slices 2, 5, 9, with the roles given to slices along k of the segment 'left'."""
    volume = add_scan()
    masks = drawn_masks(planes=(2, 5, 9))
    node = add_segmentation(volume, masks)
    roles = Roles(slices={"k": {role: frozenset(indices) for role, indices in slices.items()}})
    write_roles(node.GetSegmentation().GetSegment("left"), roles)
    return scene.collect(volume, node), masks


def test_scribble_slice_gives_scribbles_and_is_not_complete():
    collected, masks = collect_with_roles(scribble={5})
    annotation = collected.annotation
    assert sorted(annotation.complete[1]) == [2, 9]
    assert sorted(annotation.complete[2]) == [2, 5, 9]
    assert 5 not in annotation.absent.get(1, ())
    strokes = np.zeros(SHAPE, bool)
    strokes[tuple(annotation.scribbles[1].T)] = True
    np.testing.assert_array_equal(strokes[5], masks["left"][5])
    assert strokes.sum() == masks["left"][5].sum()


def test_absent_slice():
    collected, _ = collect_with_roles(absent={7})
    assert 7 in collected.annotation.absent[1]
    assert 7 not in collected.annotation.absent[2]


def test_ignored_slice_is_not_read():
    collected, _ = collect_with_roles(ignored={5})
    assert sorted(collected.annotation.complete[1]) == [2, 9]
    assert 5 not in collected.annotation.absent.get(1, ())
    assert 1 not in collected.annotation.scribbles


def test_roles_choose_the_axis():
    volume = add_scan()
    mask = np.zeros(SHAPE, bool)
    mask[3:9, 10, 5:9] = True  # a plane across j, which also leaves no gaps along k
    mask[3:9, 15, 5:9] = True
    node = add_segmentation(volume, {"left": mask})
    write_roles(node.GetSegmentation().GetSegment("left"), Roles(slices={"i": {"absent": frozenset({1})}}))
    assert scene.collect(volume, node).annotation.axis == 2
    assert scene.collect(volume, node, axis="j").annotation.axis == 1


def test_roles_count_along_the_reference_geometry():
    masks = drawn_masks(planes=(2, 5, 9))
    volume = add_scan()
    node = add_segmentation(volume, masks)
    draw_beyond(node)
    write_roles(node.GetSegmentation().GetSegment("left"), Roles(slices={"k": {"ignored": frozenset({5})}}))
    collected = scene.collect(volume, node)
    assert sorted(collected.annotation.complete[1]) == [2 + 3, 9 + 3]


def test_background_segment():
    volume = add_scan()
    masks = drawn_masks()
    strokes = np.zeros(SHAPE, bool)
    strokes[6, 3, 2:20] = True
    node = add_segmentation(volume, {**masks, "not": strokes})
    write_roles(node.GetSegmentation().GetSegment("not"), Roles(background=True))
    for segment_ids in (None, ["left", "right"]):
        collected = scene.collect(volume, node, segment_ids)
        assert collected.annotation.labels == (1, 2)
        np.testing.assert_array_equal(collected.annotation.scribbles[BACKGROUND], np.argwhere(strokes))
    propagate(collected)
    np.testing.assert_array_equal(segment_array(node, "not", volume), strokes)


def test_scribbles_in_a_segmentation_of_their_own():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    node.GetSegmentation().GetSegment("right").SetName("Right muscle")
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[6, 3, 2:20], strokes[5, 2:9, 7], strokes[4, 4, 4:9] = 1, 2, 255
    scribbles = scene.writing.add_segmentation_of_scribbles(strokes, volume, "Scribbles", {1: "left", 2: "right"})
    scribbles.GetSegmentation().GetSegment("right").SetName("Right muscle")
    found = scene.collect(volume, node, scribbles_node=scribbles).annotation.scribbles
    assert found.keys() == {BACKGROUND, 1, 2}
    for label, value in ((1, 1), (2, 2), (BACKGROUND, 255)):
        np.testing.assert_array_equal(found[label], np.argwhere(strokes == value))


def test_strokes_belong_to_segments_by_name_whatever_the_ids():
    """Slicer calls the first segment of every segmentation Segment_1."""
    volume = add_scan()
    masks = drawn_masks()
    node = add_segmentation(volume, {"Segment_1": masks["left"], "Segment_2": masks["right"]})
    for name, organ in (("Segment_1", "spleen"), ("Segment_2", "liver")):
        node.GetSegmentation().GetSegment(name).SetName(organ)
    stroke = np.zeros(SHAPE, bool)
    stroke[6, 3, 2:20] = True
    scribbles = add_segmentation(volume, {"Segment_1": stroke})
    for name, expected in (("liver", {2}), ("spleen", {1})):
        scribbles.GetSegmentation().GetSegment("Segment_1").SetName(name)
        assert scene.collect(volume, node, scribbles_node=scribbles).annotation.scribbles.keys() == expected
    scribbles.GetSegmentation().GetSegment("Segment_1").SetName("kidney")
    with pytest.raises(InputError, match="Scribbles of 'kidney', which no slice bears"):
        scene.collect(volume, node, scribbles_node=scribbles)


def test_strokes_of_a_volume_belong_to_label_values_whatever_the_names():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    for name, other in (("left", "right"), ("right", "left")):
        node.GetSegmentation().GetSegment(name).SetName(other)
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[6, 3, 2:20] = 1
    scribbles = scene.writing.add_segmentation_of_scribbles(strokes, volume, "Scribbles", {1: "left", 2: "right"})
    assert scene.collect(volume, node, scribbles_node=scribbles).annotation.scribbles.keys() == {1}


@pytest.mark.parametrize("background", [False, True])
def test_all_strokes_of_a_segment_count(background):
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    strokes = np.zeros((2, *SHAPE), bool)
    strokes[0, 6, 3, 2:20] = strokes[1, 4, 3, 2:9] = True
    scribbles = add_segmentation(volume, {"one": strokes[0], "other": strokes[1]})
    for name in ("one", "other"):
        segment = scribbles.GetSegmentation().GetSegment(name)
        segment.SetName("right")
        write_roles(segment, Roles(background=background))
    found = scene.collect(volume, node, scribbles_node=scribbles).annotation.scribbles
    expected = np.argwhere(strokes.any(axis=0))
    np.testing.assert_array_equal(np.unique(found[BACKGROUND if background else 2], axis=0), expected)


# Bad input


def test_scribbles_of_an_unknown_segment():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    scribbles = add_segmentation(volume, {"stranger": drawn_masks()["left"]})
    with pytest.raises(InputError, match="Scribbles of 'stranger', which no slice bears"):
        scene.collect(volume, node, scribbles_node=scribbles)


def test_scribbles_of_a_segment_that_is_not_propagated():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    scribbles = add_segmentation(volume, {"right": drawn_masks()["left"]})
    with pytest.raises(InputError, match="Scribbles of 'right', which is not among the segments to propagate"):
        scene.collect(volume, node, ["left"], scribbles_node=scribbles)


def test_empty_scribbles_of_an_unknown_segment():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    scribbles = add_segmentation(volume, {"stranger": np.zeros(SHAPE, bool)})
    scribbles.GetSegmentation().AddEmptySegment("another")
    assert scene.collect(volume, node, scribbles_node=scribbles).annotation.scribbles == {}


def test_segments_of_the_same_name():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    node.GetSegmentation().GetSegment("right").SetName("left")
    strokes = add_segmentation(volume, {"strokes": drawn_masks()["left"]})
    strokes.GetSegmentation().GetSegment("strokes").SetName("left")
    message = "left, right of 'Segmentation' are all named 'left'.*: give each a name of its own"
    with pytest.raises(InputError, match=message):
        scene.collect(volume, node, scribbles_node=strokes)
    with pytest.raises(InputError, match=message):
        scene.collect(volume, node, atlases=[(volume, add_segmentation(volume, {"left": drawn_masks()["left"]}))])
    with pytest.raises(InputError, match=message):
        scene.collect(volume, node, ["left"], atlases=[(volume, node)])
    scene.collect(volume, node, ["left"], scribbles_node=strokes)


def test_scribbles_that_cannot_be_read():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    scribbles = add_segmentation(volume, drawn_masks())
    scribbles.SetAndObserveTransformNodeID(add_transform(shift(0, 0, 2)).GetID())
    with pytest.raises(InputError, match="under different transforms: put both under the same one"):
        scene.collect(volume, node, scribbles_node=scribbles)
    scribbles.SetAndObserveTransformNodeID(add_transform(np.eye(4)).GetID())
    scene.collect(volume, node, scribbles_node=scribbles)
    scribbles.CreateClosedSurfaceRepresentation()
    scribbles.GetSegmentation().SetSourceRepresentationName("Closed surface")
    with pytest.raises(InputError, match="binary labelmap"):
        scene.collect(volume, node, scribbles_node=scribbles)


def test_no_volume_or_segmentation():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    for bad in (None, empty):
        with pytest.raises(InputError, match="choose a volume"):
            scene.collect(bad, node)
    with pytest.raises(InputError, match="There is no segmentation"):
        scene.collect(volume, None)


def test_colour_volume():
    colours = slicer.util.addVolumeFromArray(
        np.zeros((*SHAPE, 3), np.uint8), STRAIGHT, nodeClassName="vtkMRMLVectorVolumeNode"
    )
    node = add_segmentation(add_scan(), drawn_masks())
    with pytest.raises(InputError, match="3 components"):
        scene.collect(colours, node)


def test_segmentation_of_surfaces():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    with pytest.raises(InputError, match="'Closed surface': make the binary labelmap"):
        scene.collect(volume, node)
    node.GetSegmentation().SetSourceRepresentationName("Fractional labelmap")
    with pytest.raises(InputError, match="'Fractional labelmap': make the binary labelmap"):
        scene.collect(volume, node)


def test_unknown_segment_and_axis():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    with pytest.raises(InputError, match="No segment middle .* it has left, right"):
        scene.collect(volume, node, ["left", "middle"])
    with pytest.raises(InputError, match="Unknown axis 'z'"):
        scene.collect(volume, node, axis="z")


def test_nothing_drawn():
    volume = add_scan()
    for masks in ({}, {"empty": np.zeros(SHAPE)}):
        with pytest.raises(InputError, match="No annotated slice"):
            scene.collect(volume, add_segmentation(volume, masks))


def test_volume_elsewhere():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    volume.SetAndObserveTransformNodeID(add_transform(shift(100, 0, 0)).GetID())
    with pytest.raises(InputError, match="lie apart in space"):
        scene.collect(volume, node)


def test_single_slice():
    volume = add_scan(noise((1, 20, 24)))
    with pytest.raises(InputError, match="single slice"):
        scene.collect(volume, add_segmentation(volume, drawn_masks((1, 20, 24), planes=(0,))))


def test_annotation_can_be_given_another_target():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    collected = scene.collect(volume, node)
    propagation = propagate_nearest(collected.annotation, Settings())
    preview = scene.add_segmentation(collected, propagation.label_maps, "Preview")
    before = segment_array(node, "left", volume)
    scene.write_segments(dataclasses.replace(collected, segmentation_node=preview), propagation.label_maps)
    np.testing.assert_array_equal(segment_array(node, "left", volume), before)


@GEOMETRIES
def test_second_volume_on_the_scans_grid(ijk_to_ras):
    volume, second = (add_scan(array, ijk_to_ras) for array in (noise(), noise()[::-1].copy()))
    collected = scene.collect(volume, add_segmentation(volume, drawn_masks()), second_volume_node=second)
    np.testing.assert_array_equal(collected.annotation.image, noise())
    np.testing.assert_array_equal(collected.annotation.second_image, noise()[::-1])


def test_second_volume_on_a_grid_of_its_own():
    """Intensities that are linear in space are the same on any grid, whatever transforms lie over both."""
    k, j, i = np.indices(SHAPE).astype(np.float32)
    volume = add_scan(ijk_to_ras=OBLIQUE)
    node = add_segmentation(volume, drawn_masks())
    coarse = OBLIQUE @ np.diag([2, 2, 2, 1.0])
    coarse[:3, 3] = (OBLIQUE @ (-2, -2, -2, 1))[:3]
    second = add_scan((2 * k + 3 * j - i)[:9, :14, :16], coarse, "Coarse")
    for transform in (None, add_transform(OBLIQUE)):
        for each in (volume, node, second):
            each.SetAndObserveTransformNodeID(transform.GetID() if transform else None)
        found = scene.collect(volume, node, second_volume_node=second).annotation.second_image
        np.testing.assert_allclose(found, ((2 * (k + 2) + 3 * (j + 2) - (i + 2)) / 2), atol=1e-3)


def test_second_volume_that_cannot_be_used():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    with pytest.raises(InputError, match="'Far away' and the segmentation 'Segmentation' lie apart"):
        scene.collect(
            volume, node, second_volume_node=add_scan(ijk_to_ras=shift(500, 0, 0) @ STRAIGHT, name="Far away")
        )
    with pytest.raises(InputError, match="no voxels|has voxels"):
        scene.collect(
            volume, node, second_volume_node=slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
        )
    with pytest.raises(InputError, match="The second image is constant"):
        scene.collect(volume, node, second_volume_node=add_scan(np.full(SHAPE, 5, np.int16)))


def add_atlas(names, ijk_to_ras=STRAIGHT, shape=SHAPE):
    """Volume node and segmentation node of another subject, its segments called `names`, and their masks."""
    volume = add_scan(noise(shape), ijk_to_ras, "Other subject")
    masks = dict(zip(names, drawn_masks(shape).values()))
    return volume, add_segmentation(volume, masks), list(masks.values())


@GEOMETRIES
def test_atlas_lies_as_its_nodes_do(ijk_to_ras):
    """Its matrix takes a voxel to where it is in the scan's grid, whichever way it is stored."""
    volume = add_scan(ijk_to_ras=OBLIQUE)
    node = add_segmentation(volume, drawn_masks())
    atlas_volume, atlas_node, (left, right) = add_atlas(("left", "right"), ijk_to_ras)
    (atlas,) = scene.collect(volume, node, atlases=[(atlas_volume, atlas_node)]).annotation.atlases
    np.testing.assert_array_equal(atlas.image, noise())
    np.testing.assert_array_equal(atlas.labels, 1 * left + 2 * right)
    voxel = np.array([3, 5, 7, 1])
    in_ras = ijk_to_ras @ voxel[[2, 1, 0, 3]]
    in_grid = (np.linalg.inv(OBLIQUE) @ in_ras)[[2, 1, 0]] * np.linalg.norm(OBLIQUE[:3, :3], axis=0)[::-1]
    np.testing.assert_allclose((atlas.matrix @ voxel)[:3], in_grid, atol=1e-4)


def test_segments_of_an_atlas_are_matched_by_name_else_by_label_value():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks(), one_layer=True)
    *swapped, (left, right) = add_atlas(("right", "left"))
    *numbered, _ = add_atlas(("first", "second"))
    numbered[1].GetSegmentation().CollapseBinaryLabelmaps(False)
    by_name, by_value = scene.collect(volume, node, atlases=[swapped, numbered]).annotation.atlases
    np.testing.assert_array_equal(by_name.labels, 2 * left + 1 * right)
    np.testing.assert_array_equal(by_value.labels, 1 * left + 2 * right)


def test_atlas_that_shares_no_segment():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    *other, _ = add_atlas(("heart", "lung"))
    for name, value in (("heart", 70), ("lung", 71)):
        other[1].GetSegmentation().GetSegment(name).SetLabelValue(value)
    with pytest.raises(InputError, match="shares no segment with 'Segmentation': give it segments of the same names"):
        scene.collect(volume, node, atlases=[other])


def test_atlas_under_a_warp():
    volume = add_scan()
    node = add_segmentation(volume, drawn_masks())
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    spline, points = vtk.vtkThinPlateSplineTransform(), vtk.vtkPoints()
    for corner in np.ndindex(2, 2, 2):
        points.InsertNextPoint(np.multiply(corner, 100.0))
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(points)
    spline.SetBasisToR()
    warp.SetAndObserveTransformToParent(spline)
    atlas, drawn = add_scan(), add_segmentation(volume, drawn_masks())
    for warped in ([atlas], [drawn], [atlas, drawn]):
        for moved in (atlas, drawn):
            moved.SetAndObserveTransformNodeID(warp.GetID() if moved in warped else None)
        with pytest.raises(InputError, match="a transform that is not linear: harden it"):
            scene.collect(volume, node, atlases=[(atlas, drawn)])


def test_a_label_value_of_background_is_no_label():
    node = add_segmentation(add_scan(), drawn_masks())
    node.GetSegmentation().GetSegment("left").SetLabelValue(0)
    assert scene.reading.choose_segments(node)[0] == {1: "left", 2: "right"}
