"""What is around a stroke, and the odds that it is wrong, too.

A stroke runs through a region that came out wrong, and nobody knows how far that goes. Each voxel around belongs to it
with

    log-odds = c0 + c1 log(depth) + c2 log(depth of the stroke) + c3 log(depth) log(depth of the stroke)
             + c4 log(distance + 1/2) + c5 log(length of the stroke + 1)
             + c6 slices + c7 log(bridge / bridge of the stroke) + c8 voted + c9 outvoted at the stroke only
             + c10 log p(I | label) / p(I | found) + c11 |I - I of the stroke| + c12 log sharpness.

The score is a signed distance: depth is how far a voxel lies on the wrong side of the contour. A stroke runs through
the middle of what is wrong, so depth speaks against a voxel the less the deeper the stroke lies itself; and a long one
through a large region, which ends some slices away. Slices far from known ones err more, as a random walk does that is
tied at both ends. A label that one of the candidates voted for may have been outvoted wrongly; one that was outvoted at
the stroke, but has no vote here, ends in between. Intensities are more like those of the label, or of what was found;
and like what the stroke runs through, or not. Where the contour lies on an edge of the image, it is right sooner than
where it crosses even ground.

The coefficients are those of a logistic regression on strokes simulated on many scans with a reference, by
Testing/Benchmarks/fit_scribbles.py. Lengths are pixels of the working grid.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from scipy import ndimage, spatial

from . import boxes
from .annotation import BACKGROUND, SparseAnnotation, exclude, stack_order
from .boxes import Box
from .confidence import bridge
from .label_planes import DISTANCE_LIMIT, HISTOGRAM_SMOOTHING, INTENSITY_BINS, SURROUND, computed_once
from .labelmaps import FusedScore
from .preprocessing import INTENSITY_RANGE, Stack
from .visibility import LEAST_DEVIATION

REACH = 15.0  # mm of path from a stroke, beyond which nothing changes
EDGE_LENGTH = 10.0  # mm of path that a change of intensity from black to white is worth
LEAST_DEPTH, LEAST_STROKE_DEPTH = 0.1, 0.5  # pixels
SMOOTHING = 0.7  # voxels, of intensities within planes
NEIGHBOURHOOD = 4.0  # pixels, standard deviation of the Gaussian within which the contour near a voxel is looked at
CUT_OFF = 2.0  # deviations, where that Gaussian ends
SIGHT = CUT_OFF * NEIGHBOURHOOD + 4.0  # pixels, beyond which nothing matters to a voxel: slopes and SMOOTHING see 4
LEAST_SLOPE = 0.01  # of a margin, per pixel; where it is less, there is no contour
LEAST_CONTOUR, USUAL_SHARPNESS = 1e-4, 0.1  # share of the neighbourhood below which the usual sharpness is assumed
LEAST_SHARPNESS = 0.005
BREAK = 4  # voxels that a stroke may be interrupted for
NOT_SCRIBBLED = -1


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of the log-odds that a voxel is wrong as the stroke is."""

    constant: float
    depth: float
    stroke_depth: float
    both_depths: float
    distance: float
    length: float
    slices: float
    bridge: float
    voted: float
    outvoted: float
    likelihood: float
    dissimilarity: float
    sharpness: float


TERMS = tuple(field.name for field in fields(Coefficients) if field.name != "constant")  # in the columns of `terms`

COEFFICIENTS = Coefficients(
    constant=-0.850,
    depth=-1.153,
    stroke_depth=0.377,
    both_depths=0.153,
    distance=-0.888,
    length=0.576,
    slices=-0.309,
    bridge=0.912,
    voted=0.842,
    outvoted=-0.479,
    likelihood=0.295,
    dissimilarity=-5.663,
    sharpness=-0.320,
)


@dataclass(frozen=True)
class Surroundings:
    """The voxels around one stroke that do not bear its label, and what tells whether they should.

    voxels: (N, 3) indices in the window. terms: (N, 12), those of the log-odds, as in `Coefficients`. gaining: volume
    of the stroke's label as it was drawn, voxels. losing: (N,) that of the label that was found, as it was drawn, and
    losing_found: as it was found. What was drawn of background is infinite. label_count: of the scan.
    """

    voxels: np.ndarray
    terms: np.ndarray
    gaining: float
    losing: np.ndarray
    losing_found: np.ndarray
    label_count: int

    def log_odds(self) -> np.ndarray:
        """(N,) that a voxel is wrong, too."""
        return COEFFICIENTS.constant + self.terms @ np.array([getattr(COEFFICIENTS, name) for name in TERMS])


def around_strokes(standing: Standing, strokes: np.ndarray, window: Window) -> Iterator[Surroundings]:
    """What is around each stroke of a label, or of BACKGROUND, where the score says otherwise.

    strokes: (T, R, C) label of each voxel of the window, BACKGROUND or NOT_SCRIBBLED.
    """
    wrong, voxels, nearest = voxels_around(standing, strokes, window)
    if not len(voxels):
        return
    sharpness = window.sharpness(standing.margin)[at(voxels)]
    cube = np.ones((3, 3, 3))
    parts, _ = ndimage.label(ndimage.binary_dilation(wrong, cube, BREAK // 2), cube)
    rivals, rival_of = np.unique(standing.rival[at(voxels)], return_inverse=True)
    losing = np.array([drawn_volume(rival, window.annotation) for rival in rivals.tolist()])[rival_of]
    losing_found = np.array([window.found_volume(rival) for rival in rivals.tolist()])[rival_of]
    for part in np.unique(parts[at(nearest)]):
        own = parts[at(nearest)] == part
        length = length_of(np.argwhere(wrong & (parts == part)) * window.spacing)
        yield Surroundings(
            voxels[own],
            terms_of(voxels[own], nearest[own], length, sharpness[own], standing, window),
            gaining=drawn_volume(standing.label, window.annotation),
            losing=losing[own],
            losing_found=losing_found[own],
            label_count=len(window.annotation.labels),
        )


def voxels_around(standing: Standing, strokes: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where strokes say otherwise than the score (T, R, C), bool; the voxels around (N, 3), and their nearest there.

    A voxel is around the stroke that is nearest to it, and around none if that one says what the score says. It does
    not bear the label, and on no plane from one to the other the label is known; for background the label that was
    found instead, at the voxel as at the stroke: one of background says nothing of another label's contour. None lies
    beyond the outermost planes of the label, to which it was carried.
    """
    scribbled = np.argwhere(strokes != NOT_SCRIBBLED)
    otherwise = (strokes[at(scribbled)] == standing.label) & (standing.margin[at(scribbled)] <= 0)
    missed = standing.missed
    otherwise &= window.unknown_between(missed[at(scribbled)], scribbled[:, 0], scribbled[:, 0])
    wrong = np.zeros(window.shape, bool)
    wrong[at(scribbled[otherwise])] = True
    if not wrong.any():
        return wrong, np.empty((0, 3), int), np.empty((0, 3), int)
    reached = path_lengths(wrong, window.image, window.spacing, REACH) < REACH
    if standing.label != BACKGROUND:
        carried = {*window.carried(standing.label), *scribbled[strokes[at(scribbled)] == standing.label, 0].tolist()}
        reached[: max(0, min(carried))], reached[max(carried) + 1 :] = False, False
    voxels = np.argwhere(reached & (standing.margin <= 0) & (strokes == NOT_SCRIBBLED))
    distance, index = spatial.cKDTree(scribbled * window.spacing).query(voxels * window.spacing)
    around = otherwise[index] & (distance < REACH)
    around &= missed[at(voxels)] == missed[at(scribbled[index])]
    around &= window.unknown_between(missed[at(voxels)], voxels[:, 0], scribbled[index, 0])
    return wrong, voxels[around], scribbled[index[around]]


def terms_of(
    voxels: np.ndarray, nearest: np.ndarray, length: float, sharpness: np.ndarray, standing: Standing, window: Window
) -> np.ndarray:
    """(N, 12) terms of the log-odds of voxels (N, 3).

    nearest: (N, 3), of a stroke; length: of the stroke, mm; sharpness: (N,) of the contour, see `Window.sharpness`.
    """
    here, there = at(voxels), at(nearest)
    way = (voxels - nearest) * window.spacing / window.stack.pixel
    depth = np.log(np.maximum(-standing.margin[here], LEAST_DEPTH))
    stroke_depth = np.log(np.maximum(-standing.margin[there], LEAST_STROKE_DEPTH))
    bridged, stroke_bridged = (window.bridge(standing.missed[place], place[0]) for place in (here, there))
    terms = {
        "depth": depth,
        "stroke_depth": stroke_depth,
        "both_depths": depth * stroke_depth,
        "distance": np.log(np.hypot(way[:, 1], way[:, 2]) + 0.5),
        "length": np.full(len(voxels), np.log(length / window.stack.pixel + 1)),
        "slices": np.abs(voxels[:, 0] - nearest[:, 0]),
        "bridge": np.log(bridged / stroke_bridged),
        "voted": standing.voted[here],
        "outvoted": standing.voted[there] & ~standing.voted[here],
        "likelihood": window.log_likelihood_ratio(standing.label, standing.rival[here], here, nearest[:, 0]),
        "dissimilarity": np.abs(window.smoothed[here] - window.smoothed[there]),
        "sharpness": np.log(sharpness + LEAST_SHARPNESS),
    }
    return np.stack([terms[name] for name in TERMS], axis=1)


@dataclass(frozen=True)
class Standing:
    """How a label, or BACKGROUND, stands against those that exclude it, in a window: all (T, R, C).

    margin: pixels by which its score is above theirs and above the background, positive where it was found.
    rival: the best of them, BACKGROUND for none. voted: bool, whether a candidate votes for it.
    """

    label: int
    margin: np.ndarray
    rival: np.ndarray
    voted: np.ndarray

    @cached_property
    def missed(self) -> np.ndarray:
        """The label whose contour is wrong where this one is wrongly missing: itself, for background the rival."""
        return self.rival if self.label == BACKGROUND else np.full_like(self.rival, self.label)


class Window:
    """A box of the volume and what was fused in it; arrays (T, R, C), planes first.

    image: intensities about 0 to 1. scores: by label, in pixels, -DISTANCE_LIMIT where it has none.
    """

    def __init__(self, box: Box, annotation: SparseAnnotation, stack: Stack, fused: Sequence[FusedScore]):
        order = stack_order(annotation)
        self.box = box
        self.annotation = annotation
        self.stack = stack
        self.spacing = np.array([annotation.spacing[axis] for axis in order])  # mm
        self.image = stack.normalise(annotation.image.transpose(order)[box])
        self.smoothed = ndimage.gaussian_filter(self.image, (0, SMOOTHING, SMOOTHING), mode="nearest")
        self.scores = {label: np.full(self.shape, -DISTANCE_LIMIT, np.float32) for label in annotation.labels}
        self._votes = {label: np.zeros((2, *self.shape), bool) for label in annotation.labels}
        self._fused = fused
        self._overlapping = annotation.overlapping()
        self._computed: dict[tuple[str, int, int], object] = {}  # see `computed_once`
        for part in fused:
            place, values, votes = part.on_volume(stack, box)
            inside = boxes.within(place, box)
            score = self.scores[part.label][inside]
            np.maximum(score, values, out=score)
            self._votes[part.label][(slice(None), *inside)] |= votes

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, R, C)"""
        return self.image.shape

    def standing(self, label: int) -> Standing:
        """How the label, or BACKGROUND, stands."""
        rivals = self.excluded_by(label)
        best = np.full(self.shape, -np.inf if label == BACKGROUND else 0, np.float32)
        rival = np.full(self.shape, BACKGROUND, np.int32)
        for other in rivals:
            better = self.scores[other] > best
            best[better] = self.scores[other][better]
            rival[better] = other
        if label == BACKGROUND:
            votes = ~np.any([self._votes[other] for other in rivals], axis=0)
            return Standing(label, -best, rival, votes.any(axis=0))
        return Standing(label, self.scores[label] - best, rival, self._votes[label].any(axis=0))

    def found_volume(self, label: int) -> float:
        """Voxels of the whole scan that were drawn or found of a label, whatever else was found there; 0 of BACKGROUND.

        What was drawn counts by its masks, what was found by the pixels of the working grid with a positive score.
        """
        if label == BACKGROUND:
            return 0.0
        drawn = sum(np.count_nonzero(mask) for mask in self.annotation.complete[label].values())
        pixels = sum(int((part.values > 0).sum()) for part in self._fused if part.label == label)
        return float(drawn + pixels * self.stack.pixel**2 / np.prod(self.spacing[1:]))

    def excluded_by(self, label: int) -> list[int]:
        """The labels that are not where this one is: background excludes all, a label those it shares no voxel with."""
        others = (other for other in self.annotation.labels if other != label)
        return [other for other in others if exclude(label, other, self._overlapping)]

    def drawn(self, label: int) -> np.ndarray:
        """(T, R, C) bool: where the label, or BACKGROUND, was drawn, on planes on which all is known of it."""
        labels = self.excluded_by(label) if label == BACKGROUND else [label]
        annotation, (planes, *plane_box) = self.annotation, self.box
        found = np.zeros(self.shape, bool)
        for plane in set(range(planes.start, planes.stop)).intersection(*map(annotation.known_planes, labels)):
            masks = [annotation.complete[other].get(plane) for other in labels]
            inside = [mask[tuple(plane_box)] for mask in masks if mask is not None]
            found[plane - planes.start] = np.any(inside, axis=0) != (label == BACKGROUND)
        return found

    def carried(self, label: int) -> set[int]:
        """The planes on which the label is known or was fused, counted from the window's first."""
        fused = {self.stack.first + plane for part in self._fused if part.label == label for plane in part.targets}
        return {plane - self.box[0].start for plane in self.annotation.known_planes(label) | fused}

    def unknown_between(self, labels: np.ndarray, planes: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(N,) whether each label is known on no plane from one to the other, both counted from the window's first."""
        lowest, highest = (np.asarray(f(planes, others)) + self.box[0].start for f in (np.minimum, np.maximum))
        unknown = np.zeros(len(labels), bool)
        for label in set(np.unique(labels).tolist()) - {BACKGROUND}:
            own, known = labels == label, sorted(self.annotation.known_planes(label))
            unknown[own] = np.searchsorted(known, lowest[own]) == np.searchsorted(known, highest[own], side="right")
        return unknown

    def bridge(self, labels: np.ndarray, planes: np.ndarray) -> np.ndarray:
        """(N,) bridge over the slices to the label's next known planes, or to those beyond the volume's ends."""
        planes = planes + self.box[0].start
        bridged = np.ones(len(labels))
        for label in np.unique(labels):
            known = np.array([-1, *sorted(self.annotation.known_planes(label)), self.annotation.plane_count])
            own = labels == label
            above = np.searchsorted(known, planes[own])
            bridged[own] = bridge(planes[own] - known[above - 1], known[above] - planes[own])
        return bridged

    def sharpness(self, margin: np.ndarray) -> np.ndarray:
        """(T, R, C) how sharp the contour of a margin (T, R, C) is around each voxel, within planes.

        The change of intensity across it, per pixel, in standard deviations of what is around, see `visibility`.
        """
        steps = self.spacing[1:] / self.stack.pixel

        def around(values: np.ndarray) -> np.ndarray:
            return ndimage.gaussian_filter(values, (0, *(NEIGHBOURHOOD / steps)), mode="nearest", truncate=CUT_OFF)

        slope, change = (np.stack(np.gradient(planes, *steps, axis=(1, 2))) for planes in (margin, self.smoothed))
        steepness = np.linalg.norm(slope, axis=0)
        across = np.abs((slope * change).sum(axis=0)) / np.maximum(steepness, LEAST_SLOPE)
        on_contour = np.exp(-0.5 * margin**2) * (steepness > LEAST_SLOPE)
        edge, contour = around(across * on_contour), around(on_contour)
        variance = around(self.smoothed**2) - around(self.smoothed) ** 2
        deviation = np.sqrt(np.maximum(variance, LEAST_DEVIATION**2))
        return (edge / deviation + LEAST_CONTOUR * USUAL_SHARPNESS) / (contour + LEAST_CONTOUR)

    def log_likelihood_ratio(
        self, label: int, rivals: np.ndarray, voxels: tuple[np.ndarray, ...], planes: np.ndarray
    ) -> np.ndarray:
        """(N,) log p(I | label) - log p(I | rival), by the drawn planes next to `planes`, those of strokes."""
        first, last = (self.box[0].start + int(end) for end in (planes.min(), planes.max()))
        intensities = self.smoothed[voxels]
        centres = np.linspace(*INTENSITY_RANGE, 2 * INTENSITY_BINS + 1)[1::2]
        ratio = np.interp(intensities, centres, self._log_histogram(label, first, last))
        for rival in np.unique(rivals):
            own = rivals == rival
            ratio[own] -= np.interp(intensities[own], centres, self._log_histogram(rival, first, last))
        return ratio

    def _log_histogram(self, label: int, first: int, last: int) -> np.ndarray:
        """(INTENSITY_BINS,) log frequency of intensities in the label on the drawn planes next to a range or in it."""
        drawn = self.annotation.planes if label == BACKGROUND else self.annotation.complete[label]
        counts = 1 + sum(self._histogram(label, plane) for plane in next_to(drawn, first, last))
        return np.log(counts / counts.sum())

    @computed_once
    def _histogram(self, label: int, plane: int) -> np.ndarray:
        """(INTENSITY_BINS,) intensities in the label on a drawn plane.

        Background is what lies within SURROUND pixels of the labels and in none of them.
        """
        annotation, crop = self.annotation, self.stack.box
        if label == BACKGROUND:
            labels = [planes[plane] for planes in annotation.complete.values() if plane in planes]
            away = ndimage.distance_transform_edt(~np.any(labels, axis=0), sampling=annotation.plane_spacing)[crop]
            mask = (away > 0) & (away < SURROUND * self.stack.pixel)
        else:
            mask = annotation.complete[label][plane][crop]
        image = self.stack.normalise(np.moveaxis(annotation.image, annotation.axis, 0)[plane][crop])
        smoothed = ndimage.gaussian_filter(image, SMOOTHING, mode="nearest")
        counts = np.histogram(smoothed[mask], INTENSITY_BINS, INTENSITY_RANGE)[0].astype(float)
        return ndimage.gaussian_filter1d(counts, HISTOGRAM_SMOOTHING, mode="nearest")


def at(voxels: np.ndarray) -> tuple[np.ndarray, ...]:
    """An index of arrays for voxels (N, 3)."""
    return tuple(voxels.T)


def length_of(points: np.ndarray) -> float:
    """Length of a stroke (N, 3) from end to end, mm: four standard deviations along its main direction."""
    offsets = points - points.mean(axis=0)
    return 4 * float(np.sqrt(np.linalg.eigvalsh(offsets.T @ offsets / len(points)).max().clip(0)))


def drawn_volume(label: int, annotation: SparseAnnotation) -> float:
    """Voxels between the outermost planes on which the label is known, by its areas there; infinite of BACKGROUND."""
    if label == BACKGROUND:
        return np.inf
    areas = {plane: mask.sum() for plane, mask in annotation.complete[label].items()}
    known = sorted(annotation.known_planes(label))
    steps = zip(known[:-1], known[1:], strict=True)
    between = sum((upper - lower) * (areas.get(lower, 0) + areas.get(upper, 0)) / 2 for lower, upper in steps)
    return float(max(between, *areas.values(), 1))


def next_to(planes: Collection[int], first: int, last: int) -> list[int]:
    """Those of the planes that are next to a range or within it, ascending; a stroke may cross drawn planes."""
    lowest = max((plane for plane in planes if plane <= first), default=first)
    highest = min((plane for plane in planes if plane >= last), default=last)
    return sorted(plane for plane in planes if lowest <= plane <= highest)


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
