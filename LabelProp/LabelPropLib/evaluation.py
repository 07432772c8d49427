"""How well a label volume agrees with a reference: Dice, mean surface distance and 95th percentile Hausdorff distance.

Surfaces are taken slice by slice, as 2D contours in mm across the stack's axis, because labels are carried from slice
to slice: a label that is missing on a slice, or is there without reason, costs the in-plane size of what is missing or
extra. Slices that were given are left out where the annotations are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from . import boxes, files
from .annotation import AXIS_NAMES, bearing_planes, coarsest_axis, find_axis
from .boxes import Box
from .errors import InputError
from .patches import patches_of_plane
from .roles import PROPAGATED_TAG

FEWEST_VOXELS = 30  # labels with fewer reference voxels say more about rounding than about the method: not scored
FEWEST_PIXELS = 10  # the same for the worst slice of a label


@dataclass(frozen=True)
class Score:
    """One label against its reference over a set of slices.

    dice: 2 |P and R| / (|P| + |R|) over all their voxels.
    assd, hd95: mean and 95th percentile of the distances (mm) of both contours to each other, slices pooled.
    worst_slice_dice: lowest Dice of a slice with at least `FEWEST_PIXELS` reference voxels; None if there is none.
    """

    dice: float
    assd: float
    hd95: float
    worst_slice_dice: float | None


def score_labels(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, float, float],
    axis: int,
    left_out: Sequence[int] = (),
) -> dict[int, Score]:
    """Score of every label that `reference` bears with at least `FEWEST_VOXELS` voxels.

    predicted, reference: (K, J, I) label volumes, 0 is background; spacing: mm along (K, J, I).
    axis: array axis of the stack; left_out: its slices that are not counted, usually the annotated ones.
    """
    predicted = np.delete(np.moveaxis(predicted, axis, 0), list(left_out), axis=0)
    reference = np.delete(np.moveaxis(reference, axis, 0), list(left_out), axis=0)
    plane_spacing = tuple(np.delete(spacing, axis))
    labels, voxels = np.unique(reference[reference != 0], return_counts=True)
    around = label_boxes(predicted, reference)
    return {
        label: score_mask(predicted[around[label]] == label, reference[around[label]] == label, plane_spacing)
        for label in labels[voxels >= FEWEST_VOXELS].tolist()
    }


def label_boxes(*volumes: np.ndarray) -> dict[int, Box]:
    """Label -> the box that holds all of it in each of the (slices, H, W) label volumes."""
    reached: dict[int, list[Box]] = {}
    for volume in volumes:
        for index, plane in enumerate(volume):
            for label, patch in patches_of_plane(plane, (0, 0)).items():
                reached.setdefault(label, []).append((slice(index, index + 1), *patch.box))
    return {label: boxes.around(parts) for label, parts in reached.items()}


def score_mask(predicted: np.ndarray, reference: np.ndarray, plane_spacing: tuple[float, float]) -> Score:
    """Score of one structure; predicted, reference: (slices, H, W) bool, `reference` not empty; plane_spacing: mm.

    Both are cut to the box that holds them: what is around it costs time and does not count.
    """
    distances = np.concatenate([contour_distances(*pair, plane_spacing) for pair in zip(predicted, reference)])
    sliced = [dice(p, r) for p, r in zip(predicted, reference) if r.sum() >= FEWEST_PIXELS]
    return Score(
        dice=dice(predicted, reference),
        assd=float(distances.mean()),
        hd95=float(np.percentile(distances, 95)),
        worst_slice_dice=min(sliced, default=None),
    )


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """2 |P and R| / (|P| + |R|) of two masks that are not both empty."""
    return float(2 * (predicted & reference).sum() / (predicted.sum() + reference.sum()))


def contour_distances(predicted: np.ndarray, reference: np.ndarray, plane_spacing: tuple[float, float]) -> np.ndarray:
    """Distances (mm) of each contour pixel of the one (H, W) mask to the contour of the other, both ways.

    Where one mask is empty, every contour pixel of the other is as far away as that one is thick (the radius of its
    largest inscribed disc). Empty if both are.
    """
    if not predicted.any() and not reference.any():
        return np.zeros(0)
    if not predicted.any() or not reference.any():
        mask = np.pad(predicted | reference, 1)
        radius = ndimage.distance_transform_edt(mask, sampling=plane_spacing).max()
        return np.full(contour(mask).sum(), radius)
    predicted, reference = contour(predicted), contour(reference)
    to_reference = ndimage.distance_transform_edt(~reference, sampling=plane_spacing)[predicted]
    to_predicted = ndimage.distance_transform_edt(~predicted, sampling=plane_spacing)[reference]
    return np.concatenate([to_reference, to_predicted])


def contour(mask: np.ndarray) -> np.ndarray:
    """The pixels of an (H, W) mask with a 4-neighbour outside it; outside the array is outside the mask."""
    return mask & ~ndimage.binary_erosion(mask)


def run(prediction: Path, reference: Path, annotations: Path | None = None):
    """`labelprop evaluate`: print the scores of the label volume `prediction` against `reference`.

    annotations: the label volume that `prediction` was made from; its slices are not counted, and its axis is the
    stack's. Without it all slices count, across the axis of the largest spacing.
    Raises InputError for files that cannot be read, are no label volumes, or lie on different grids, and for
    annotations that hold slices which were found.
    """
    reference_image = files.read_labels(reference)
    spacing = reference_image.GetSpacing()[::-1]

    def read_on_grid(path: Path, check: Callable[[sitk.Image, Path], None] = lambda image, path: None) -> sitk.Image:
        image = files.read_labels(path)
        check(image, path)
        files.check_same_grid(files.Grid.of(image), path, files.Grid.of(reference_image), reference)
        return image

    reference_labels = files.voxels(reference_image)
    axis, annotated = coarsest_axis(spacing), []
    if annotations is not None:
        axis, annotated = annotated_slices(files.voxels(read_on_grid(annotations, check_nothing_was_found)))
    predicted_image = read_on_grid(prediction)
    predicted = files.voxels(predicted_image)
    scores = score_labels(predicted, reference_labels, spacing, axis, annotated)
    if not scores:
        raise InputError(
            f"{reference}: no label has {FEWEST_VOXELS} voxels or more on the slices to be scored, so there is nothing"
            " to evaluate against: give the reference segmentation of the whole volume."
        )
    print(format_scores(scores, names_of_both(predicted_image, reference_image)))
    count = reference_labels.shape[axis]
    print(f"\n{count - len(annotated)} of {count} slices across {AXIS_NAMES[axis]}", end="")
    print(", without the annotated ones." if annotated else ".")
    unscored = sorted(set(np.unique(reference_labels).tolist()) - set(scores) - {0})
    if unscored:
        print(f"Not scored, under {FEWEST_VOXELS} voxels there: label {', '.join(map(str, unscored))}.")
    unknown = np.setdiff1d(predicted, reference_labels)
    if unknown.any():
        print(f"Not scored, in {prediction} only: label {', '.join(map(str, unknown[unknown != 0]))}.")


def check_nothing_was_found(image: sitk.Image, annotations: Path):
    """Raise InputError for a segmentation of Slicer's, read from a file, with slices which an earlier run has found."""
    tags = [image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.endswith("_Tags")]
    if any(PROPAGATED_TAG in text for text in tags):
        raise InputError(
            f"{annotations} holds slices that were found, not drawn, which would not be scored: give the annotations as"
            " they were before."
        )


def names_of_both(predicted: sitk.Image, reference: sitk.Image) -> dict[int, str]:
    """Label -> name of its segment, "one / other" where they differ: then two structures have the same label."""
    of_both = segment_names(predicted), segment_names(reference)
    labels = set().union(*of_both)
    return {label: " / ".join(dict.fromkeys(names[label] for names in of_both if label in names)) for label in labels}


def segment_names(labels: sitk.Image) -> dict[int, str]:
    """Label -> name of the segment, of a segmentation of Slicer's that was read from a file; else empty."""
    values = [key for key in labels.GetMetaDataKeys() if key.endswith("_LabelValue")]
    names = {value: value.removesuffix("LabelValue") + "Name" for value in values}
    return {
        int(labels.GetMetaData(value)): labels.GetMetaData(name)
        for value, name in names.items()
        if labels.HasMetaDataKey(name)
    }


def annotated_slices(annotations: np.ndarray) -> tuple[int, list[int]]:
    """Array axis of the stack and its slices that bear a label, of a (K, J, I) label volume. Raises InputError."""
    axis = find_axis(annotations)
    return axis, bearing_planes(annotations, axis).tolist()


def format_scores(scores: dict[int, Score], names: dict[int, str]) -> str:
    """A table with a line for each label, which ends with its name if it has one, and one for their means."""
    lines = [f"{'label':>6s} {'Dice':>8s} {'ASSD mm':>9s} {'HD95 mm':>9s} {'worst slice':>12s}"]
    for label, score in scores.items():
        worst = "-" if score.worst_slice_dice is None else f"{score.worst_slice_dice:.3f}"
        numbers = f"{label:6d} {score.dice:8.4f} {score.assd:9.2f} {score.hd95:9.2f} {worst:>12s}"
        lines.append(f"{numbers}  {names.get(label, '')}".rstrip())
    mean = {name: np.mean([getattr(score, name) for score in scores.values()]) for name in ("dice", "assd", "hd95")}
    lines.append(f"{'mean':>6s} {mean['dice']:8.4f} {mean['assd']:9.2f} {mean['hd95']:9.2f}")
    return "\n".join(lines)
