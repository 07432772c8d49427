"""Scribbles: strokes in any plane change what was fused around them, and nothing further away than 15 mm.

A stroke says what is true of its voxels. Where the fused score of a label says otherwise, the error at the stroke is
taken off the score around it, the less the longer the path to the stroke; differences of intensity make paths longer
(geodesic distance, Criminisi et al., GeoS, ECCV 2008). A stroke that says what the score says changes nothing, and none
has a say beyond a plane on which the label is known. All of it happens after fusion, so it is the same for every rule,
and nothing is registered or fused again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .annotation import BACKGROUND, SparseAnnotation
from .candidates import DISTANCE_LIMIT
from .labelmaps import Box, FusedScore, LabelMaps
from .preprocessing import Stack

REACH = 15.0  # mm of path from a stroke, beyond which nothing changes
REACH_SLICES = 6.0  # the same in slices, where these are thin: what is scanned finely is small
EDGE_LENGTH = 10.0  # mm of path that a change of intensity from black to white is worth
AVERAGING = 1 / 3  # of the reach: standard deviation of the Gaussian over which errors at strokes are averaged
EXCESS = 2.0  # times the error, to be added: a stroke runs through the middle of what is wrong, not along its far side
MOST_EXCESS = 4.0  # pixels
MARGIN = 0.5  # pixels by which a stroke's voxels are to be on their side of the contour
NOT_SCRIBBLED = -1


@dataclass(frozen=True)
class Region:
    """Strokes near each other, and the box of all that they may change.

    box: of the volume. strokes: (T, R, C) label of each voxel in the box, BACKGROUND or NOT_SCRIBBLED.
    """

    box: Box
    strokes: np.ndarray


@dataclass(frozen=True)
class Reach:
    """How far strokes have a say on some planes. strokes: (T, R, C) bool; weights: 1 there, 0 beyond their reach.

    sigma: voxels along each axis, over which errors are averaged.
    """

    strokes: np.ndarray
    weights: np.ndarray
    sigma: tuple[float, ...]

    def average(self, errors: np.ndarray) -> np.ndarray:
        """(T, R, C) mean of `errors` (N,) of the strokes' voxels, the nearer the more."""
        painted = np.zeros(self.strokes.shape, np.float32)
        painted[self.strokes] = errors
        total, share = (
            ndimage.gaussian_filter(array, self.sigma, mode="constant")
            for array in (painted, self.strokes.astype(np.float32))
        )
        return total / np.maximum(share, 1e-9)


def spread(annotation: SparseAnnotation, stack: Stack, fused: Sequence[FusedScore], maps: LabelMaps):
    """Let the annotation's strokes act on the scores around them, and `maps` decide anew where they did."""
    order = stack_order(annotation)
    spacing = [annotation.spacing[axis] for axis in order]
    image = annotation.image.transpose(order)
    overlapping = annotation.overlapping()
    for region in regions(annotation):
        normalised = stack.normalise(image[region.box])
        changed = np.zeros(region.strokes.shape, bool)
        reaches: dict[tuple[int, int], Reach] = {}  # most labels are known on the same planes
        scores = {label: score_within(region.box, label, fused, stack) for label in annotation.labels}
        for label, score in scores.items():
            said = what_strokes_say(label, region.strokes, overlapping)
            for planes in unknown_planes_within(annotation, label, region.box[0]):
                if not said[planes].any():
                    continue
                key = (planes.start, planes.stop)
                if key not in reaches:
                    reaches[key] = reach(region.strokes[planes] != NOT_SCRIBBLED, normalised[planes], spacing)
                correction = correct(score[planes], said[planes], reaches[key])
                score[planes] += correction
                changed[planes] |= correction != 0
        if changed.any():
            maps.decide_again(region.box, scores, changed)


def stack_order(annotation: SparseAnnotation) -> tuple[int, int, int]:
    """The array axes of the volume as planes, rows, columns."""
    rows, columns = (axis for axis in range(3) if axis != annotation.axis)
    return annotation.axis, rows, columns


def regions(annotation: SparseAnnotation) -> list[Region]:
    """The strokes in groups so far apart that no voxel is within reach of two of them."""
    strokes = [
        (label, voxels)
        for label, voxels in sorted(annotation.scribbles.items(), key=lambda item: (item[0] == BACKGROUND, item[0]))
        if len(voxels)
    ]
    if not strokes:
        return []
    order = stack_order(annotation)
    spacing = np.array([annotation.spacing[axis] for axis in order])
    shape = [annotation.image.shape[axis] for axis in order]
    points = np.concatenate([voxels for _, voxels in strokes])[:, order]
    labels = np.concatenate([np.full(len(voxels), label) for label, voxels in strokes])
    cells = (points * spacing // (2 * REACH)).astype(int)  # groups of cells that touch have an empty one in between
    occupied = np.zeros(cells.max(axis=0) + 1, bool)
    occupied[tuple(cells.T)] = True
    groups, count = ndimage.label(occupied, np.ones((3, 3, 3)))
    group_of = groups[tuple(cells.T)]
    margin = np.ceil(REACH / spacing).astype(int)
    found = []
    for group in range(1, count + 1):
        voxels = points[group_of == group]
        first = np.maximum(voxels.min(axis=0) - margin, 0)
        stop = np.minimum(voxels.max(axis=0) + margin + 1, shape)
        painted = np.full(stop - first, NOT_SCRIBBLED, np.int32)
        painted[tuple((voxels - first).T)] = labels[group_of == group]
        found.append(Region(tuple(slice(int(a), int(b)) for a, b in zip(first, stop, strict=True)), painted))
    return found


def score_within(box: Box, label: int, fused: Sequence[FusedScore], stack: Stack) -> np.ndarray:
    """(T, R, C) score of a label in a box of the volume, -DISTANCE_LIMIT where it has none."""
    score = np.full([part.stop - part.start for part in box], -DISTANCE_LIMIT, np.float32)
    for part in fused:
        if part.label == label:
            place, values = part.on_volume(stack, box)
            inside = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(place, box, strict=True))
            score[inside] = np.maximum(score[inside], values)
    return score


def what_strokes_say(label: int, strokes: np.ndarray, overlapping: set[tuple[int, int]]) -> np.ndarray:
    """(T, R, C) int8: 1 where the label is, -1 where it is not, 0 where strokes say nothing of it.

    A stroke of another label says that this one is not there, unless the two may overlap.
    """
    said = np.zeros(strokes.shape, np.int8)
    for other in np.unique(strokes):
        if other == label:
            said[strokes == other] = 1
        elif other != NOT_SCRIBBLED and (min(label, other), max(label, other)) not in overlapping:
            said[strokes == other] = -1
    return said


def unknown_planes_within(annotation: SparseAnnotation, label: int, planes: slice) -> Iterator[slice]:
    """Runs of planes between known ones of the label, counted from the first of `planes`."""
    known = sorted(annotation.known_planes(label))
    for before, after in zip([-1, *known], [*known, annotation.plane_count], strict=True):
        start, stop = max(before + 1, planes.start), min(after, planes.stop)
        if start < stop:
            yield slice(start - planes.start, stop - planes.start)


def reach(strokes: np.ndarray, image: np.ndarray, spacing: Sequence[float]) -> Reach:
    """How far the strokes (T, R, C) bool reach in an image (T, R, C) of intensities about 0 to 1; spacing: mm."""
    length = min(REACH, REACH_SLICES * spacing[0])
    weights = 1 - np.minimum(path_lengths(strokes, image, spacing, length) / length, 1)
    return Reach(strokes, weights, tuple(AVERAGING * length / step for step in spacing))


def path_lengths(strokes: np.ndarray, image: np.ndarray, spacing: Sequence[float], longest: float) -> np.ndarray:
    """(T, R, C) mm of the shortest path from each voxel to a stroke, where it is not longer than `longest`.

    An element ds of a path counts as ds sqrt(1 + (EDGE_LENGTH |grad I|)^2); by fast marching (Sethian, PNAS 1996).
    """
    slopes = [np.gradient(image, step, axis=axis) for axis, step in enumerate(spacing) if image.shape[axis] > 1]
    stretch = np.sqrt(1 + EDGE_LENGTH**2 * sum(slope**2 for slope in slopes))
    speed = sitk.GetImageFromArray((1 / stretch).astype(np.float32))
    speed.SetSpacing([float(step) for step in spacing[::-1]])
    rim = strokes & ~ndimage.binary_erosion(strokes)
    marching = sitk.FastMarchingImageFilter()
    marching.SetTrialPoints(np.argwhere(rim)[:, ::-1].tolist())
    marching.SetStoppingValue(longest)
    lengths = sitk.GetArrayFromImage(marching.Execute(speed))
    lengths[strokes] = 0
    return lengths


def correct(score: np.ndarray, said: np.ndarray, around: Reach) -> np.ndarray:
    """(T, R, C) what to add to a label's score; said: see `what_strokes_say`."""
    side = said[around.strokes].astype(np.float32)
    given = side * score[around.strokes]  # positive where the score says what the stroke says
    wrong = (side != 0) & (given <= 0)
    if not wrong.any():
        return np.zeros_like(score)
    error = np.where(wrong, side * (MARGIN - given + np.minimum(-EXCESS * given, MOST_EXCESS)), 0)
    return around.weights * around.average(error)


def contradictions(annotation: SparseAnnotation, maps: LabelMaps) -> list[str]:
    """Sentences for the user about scribbled voxels that do not bear their label, for what else was said of them."""
    lost = [voxels[~maps.bears(label, voxels)] for label, voxels in annotation.scribbles.items()]
    planes = np.concatenate([np.empty(0, int), *(voxels[:, annotation.axis] for voxels in lost)])
    drawn = set().union(*(annotation.known_planes(label) for label in annotation.labels))
    said = [
        f"{np.count_nonzero(planes == plane)} scribbled voxels contradict slice {plane}, which is annotated completely:"
        " the slice was kept."
        for plane in sorted(drawn & set(planes.tolist()))
    ]
    twice = np.count_nonzero(~np.isin(planes, list(drawn)))
    if twice:
        said.append(f"{twice} voxels are scribbled twice, differently: background counts, else the larger label.")
    return said
