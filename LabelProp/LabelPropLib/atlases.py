"""Finished volumes of other subjects: a further opinion on every slice, as in multi-atlas segmentation.

An atlas is aligned with the scan once: the boxes of the labels that both bear, then affine on mutual information, then
diffeomorphic demons (SimpleITK). Its labels come along as signed distances. They never quite fit the drawn slices, so
what they are off by there is subtracted, interpolated linearly in between: what remains is how a shape changes from
slice to slice in another subject, where the scan's own slices may say little, as at the ends of a label.

Whether atlases count for a label is decided on annotated slices that are hidden: only if they help there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import SimpleITK as sitk
import torch

from .annotation import AtlasVolume, SparseAnnotation
from .candidates import Arrivals, Chains, arrivals
from .fusion.choice import LeftOut, Rule, on_plane
from .gaps import Gap
from .label_planes import DISTANCE_LIMIT, LabelPlanes
from .preprocessing import Stack

SHARE = 0.25  # of the atlases in the fused score, for the labels that they help to find
HELP = 0.01  # Dice on hidden slices that they must add, mean of all labels

MARGIN_MM = 15.0  # around the labels, of what is aligned
SHRINKING = (4, 2)  # of the affine alignment's levels
AFFINE_STEPS = 60
DEMONS_STEPS = 30
DEMONS_SIGMA = 2.0  # voxels, of the Gaussian that smooths the displacement in every step
ABSENT = -2.0  # pixels; highest distance that an atlas' label keeps on a plane known to be without the label


def helpful(
    annotation: SparseAnnotation, stack: Stack, planes: LabelPlanes, chains: Chains, rules: Mapping[int, Rule]
) -> dict[int, torch.Tensor]:
    """Label -> distances from `carry`, of the labels whose hidden annotated slices are found better with them.

    Every known slice between two others is hidden once and found from its neighbours by the label's rule, with the
    atlases and without. Slices without the label count too: what is found there is wrong. One hidden slice says little
    about one label, so all labels together must gain by HELP on average for any to be helped.
    """
    carried = carry(annotation, stack)
    gains = {
        label: _gain(stack, planes, chains, rules[label], label, distances) for label, distances in carried.items()
    }
    if sum(gains.values()) <= HELP * len(gains):
        return {}
    return {label: distances for label, distances in carried.items() if gains[label] > 0}


def _gain(stack: Stack, planes: LabelPlanes, chains: Chains, rule: Rule, label: int, distances: torch.Tensor) -> float:
    """How much Dice the distances from `carry` add on the label's hidden slices; 0 without one."""
    without, with_atlases = LeftOut(), LeftOut()
    known = planes.known(label)
    for lower, plane, upper in zip(known[:-2], known[1:-1], known[2:], strict=True):
        if planes.bears(label, lower) or planes.bears(label, upper):
            arrived = arrivals(label, chains.cross(Gap(lower, upper, plane, plane)), planes)
            score = rule(arrived)
            drawn = planes.distances(label, plane) if planes.bears(label, plane) else score.new_full(stack.size, -1.0)
            for result, scores in ((without, score), (with_atlases, blend(score, arrived, distances, planes))):
                result.add(on_plane(scores[0], arrived.box, stack.size), drawn)
    return with_atlases.dice - without.dice


def blend(score: torch.Tensor, arrivals: Arrivals, distances: torch.Tensor, planes: LabelPlanes) -> torch.Tensor:
    """A rule's score (T, h, w) and the label's distances (Z, H, W) from `carry`, weighed by SHARE."""
    rows, columns = arrivals.box
    prior = anchored(distances, arrivals.label, arrivals.gap, planes)[:, rows, columns]
    return (1 - SHARE) * score + SHARE * prior


def carry(annotation: SparseAnnotation, stack: Stack) -> dict[int, torch.Tensor]:
    """Label -> (Z, H, W) signed distances of the annotation's atlases on the stack's planes, their mean.

    In working pixels, positive inside, cut off at DISTANCE_LIMIT. Labels that no atlas bears are left out.
    """
    carried: dict[int, list[torch.Tensor]] = {}
    grid = _sitk_image(annotation.image, grid_matrix(annotation))
    for atlas in annotation.atlases:
        shared = sorted(set(annotation.labels) & set(np.unique(atlas.labels).tolist()))
        if shared:
            transform = align(annotation, atlas, shared)
            for label in shared:
                volume = signed_distances(atlas, label, transform, grid)
                carried.setdefault(label, []).append(_on_stack(volume, annotation, stack))
    return {label: torch.stack(volumes).mean(dim=0) for label, volumes in carried.items()}


def anchored(distances: torch.Tensor, label: int, gap: Gap, planes: LabelPlanes) -> torch.Tensor:
    """(T, H, W) an atlas' signed distances on the planes of a gap, made right on the planes that bound it.

    distances: (Z, H, W) of the label from `carry`. What they miss on either bounding plane is added with a weight that
    falls linearly to 0 at the other one; beyond the outermost known plane it is added in full.
    """
    found = distances[gap.first : gap.last + 1].clone()
    for own, other in ((gap.lower, gap.upper), (gap.upper, gap.lower)):
        if own is None:
            continue
        if planes.bears(label, own):
            missed = planes.distances(label, own) - distances[own]
        else:
            missed = (ABSENT - distances[own]).clamp(max=0)
        nearness = [1.0 if other is None else (plane - other) / (own - other) for plane in gap.targets]
        found += found.new_tensor(nearness)[:, None, None] * missed
    return found


def align(annotation: SparseAnnotation, atlas: AtlasVolume, labels: list[int]) -> sitk.Transform:
    """The transform from points of the annotation's grid to those of the atlas, mm, by the labels that both bear."""
    drawn = np.zeros(annotation.image.shape, bool)
    for label in labels:
        for plane, mask in annotation.complete[label].items():
            np.moveaxis(drawn, annotation.axis, 0)[plane] |= mask
    fixed, fixed_box = _surroundings(annotation.image, drawn, grid_matrix(annotation))
    moving, moving_box = _surroundings(atlas.image, np.isin(atlas.labels, labels), atlas.matrix)
    affine = _align_affinely(fixed, moving, _box_to_box(fixed_box, moving_box))
    warped = sitk.HistogramMatching(sitk.Resample(moving, fixed, affine), fixed, 256, 15)
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(DEMONS_STEPS)
    demons.SetStandardDeviations(DEMONS_SIGMA)
    field = sitk.Cast(demons.Execute(fixed, warped), sitk.sitkVectorFloat64)
    return sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])


def _align_affinely(fixed: sitk.Image, moving: sitk.Image, start: sitk.AffineTransform) -> sitk.AffineTransform:
    """Align by mutual information, which asks only that tissues differ, not how (Mattes et al., IEEE TMI 2003)."""
    affine = sitk.AffineTransform(start)
    registration = sitk.ImageRegistrationMethod()
    registration.SetNumberOfThreads(1)  # sums in the same order each time: the same voxels
    registration.SetMetricAsMattesMutualInformation(32)
    registration.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, AFFINE_STEPS)
    registration.SetOptimizerScalesFromPhysicalShift()
    registration.SetShrinkFactorsPerLevel(SHRINKING)
    registration.SetSmoothingSigmasPerLevel([factor / 2 for factor in SHRINKING])
    registration.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    registration.SetInitialTransform(affine, inPlace=True)
    try:
        registration.Execute(fixed, moving)
    except RuntimeError:  # ITK lost the overlap of two images that have little in common: the boxes have to do
        return start
    return affine


def _box_to_box(fixed: np.ndarray, moving: np.ndarray) -> sitk.AffineTransform:
    """The scaling and translation that takes one box to another, each (2, 3) mm, lowest and highest x, y, z."""
    scale = (moving[1] - moving[0]) / np.maximum(fixed[1] - fixed[0], 1.0)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.diag(scale).ravel().tolist())
    transform.SetCenter(fixed.mean(axis=0).tolist())
    transform.SetTranslation((moving.mean(axis=0) - fixed.mean(axis=0)).tolist())
    return transform


def _surroundings(image: np.ndarray, mask: np.ndarray, matrix: np.ndarray) -> tuple[sitk.Image, np.ndarray]:
    """The part of an image around a mask, intensities of mean 0 and deviation 1, and the mask's box (2, 3) in mm."""
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    found = np.argwhere(mask)
    margin = np.ceil(MARGIN_MM / spacing).astype(int)
    start = np.maximum(found.min(axis=0) - margin, 0)
    stop = np.minimum(found.max(axis=0) + 1 + margin, image.shape)
    part = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    moved = matrix.copy()
    moved[:3, 3] += matrix[:3, :3] @ start
    points = (found @ matrix[:3, :3].T + matrix[:3, 3])[:, ::-1]
    return sitk.Normalize(_sitk_image(image[part].astype(np.float32), moved)), np.stack(
        [points.min(axis=0), points.max(axis=0)]
    )


def signed_distances(atlas: AtlasVolume, label: int, transform: sitk.Transform, grid: sitk.Image) -> np.ndarray:
    """(K, J, I) float32 mm on the grid, positive inside the atlas' label as the transform brings it here."""
    inside, around = (
        sitk.SignedMaurerDistanceMap(
            _sitk_image((atlas.labels == label).astype(np.uint8) ^ inverted, atlas.matrix),
            insideIsPositive=True,
            squaredDistance=False,
            useImageSpacing=True,
        )
        for inverted in (0, 1)
    )
    distances = (inside - around) / 2  # each is 0 on the voxels along its own side of the contour
    outside = float(sitk.GetArrayViewFromImage(distances).min())
    return sitk.GetArrayFromImage(sitk.Resample(distances, grid, transform, sitk.sitkLinear, outside))


def _on_stack(volume: np.ndarray, annotation: SparseAnnotation, stack: Stack) -> torch.Tensor:
    """A (K, J, I) volume of mm on the working grid's planes, (Z, H, W) pixels."""
    planes = np.moveaxis(volume, annotation.axis, 0)[stack.crop]
    pixels = (torch.from_numpy(np.ascontiguousarray(planes)) / stack.pixel).clamp(-DISTANCE_LIMIT, DISTANCE_LIMIT)
    return stack.to_working_grid(pixels[:, None])[:, 0].to(stack.images)


def messages(annotation: SparseAnnotation, used: Iterable[int]) -> list[str]:
    """A sentence for the user about what became of the atlases."""
    if not annotation.atlases:
        return []
    if len(annotation.planes) < 3:
        return ["The atlases were not used: at least three annotated slices are needed to see whether they help."]
    if not used:
        return ["The atlases were not used: no label on a hidden annotated slice was found better with them."]
    return [f"The atlases were used for {', '.join(map(annotation.named, sorted(used)))}, found better with them."]


def grid_matrix(annotation: SparseAnnotation) -> np.ndarray:
    """(4, 4) matrix from the annotation's voxel indices (k, j, i) to mm along its array axes."""
    return np.diag([*annotation.spacing, 1.0])


def _sitk_image(array: np.ndarray, matrix: np.ndarray) -> sitk.Image:
    """An array (K, J, I) whose voxel (k, j, i) lies at `matrix` @ (k, j, i, 1), in the order x, y, z = i, j, k."""
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1].tolist())
    image.SetOrigin(matrix[2::-1, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing)[::-1, ::-1].ravel().tolist())
    return image
