"""How good each label probably is on each slice, without a reference to compare with.

Two things go wrong between annotated slices. The contour *drifts* from the true one: the more, the further it was
carried, the more what came from the two sides disagrees, the less the carried image is like the slice, and the less
there is of an edge where the contour was found. And a label that only one of the two annotated slices bears *ends*
somewhere in between: where, is a probability for every slice, from what labels do in general and from what the images
say. Both together give the Dice and the surface distance to expect, and the probability that a voxel's label is wrong.
Where a label ends, what was found tells more, and the Dice to expect is blended with it: the fused scores say how sure
they are, and the slice how much of the label it shows.

The few coefficients of `PRIOR` were fitted to many scans with a reference, by Testing/Benchmarks/fit_confidence.py; the
drift is then scaled a little towards what was seen of it on this very scan, on annotated slices that were hidden and
found again: they lie further apart than the slices to be found, and the fit trusts them by a few per cent only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from .annotation import SparseAnnotation
from .ends import depth_left
from .evidence import Ending, Evidence
from .preprocessing import Stack

LEAST_SHARPNESS = 0.02  # of a contour
INSET = 1.5  # area goes with depth to the power of this: 2 for a disc, 1 for a band
FINEST_PIXEL = 0.75  # mm; `PRIOR` was fitted to scans with larger ones
LEAST_DICE, HIGHEST_DICE = 0.01, 0.995  # to which Dice and probabilities are clipped
CROFTON = np.pi / 4  # length of a contour per length of its pixels' edges, for contours of all directions


@dataclass(frozen=True)
class Prior:
    """Coefficients of what to expect, from scans with a reference.

    drift: of log mm where both sides bear the label: 1, log bridge, log disagreement (mm), unlikeness, log
        sharpness.
    drift_of_one: where one does: 1, log distance (mm), unlikeness.
    end: mean of the logit of the way to a label's end: 1, trend, known before, log(1 + depth in pixels), the same of
        the end that was found; and the log of its spread.
    presence: log-odds that a label is on a slice: 1, intensities in it, and there likeness to this side more than to
        the other.
    own: how much the hidden slices of the label count in scaling its drift.
    growth: exponent of the drift over the bridge alone, for gaps that are not there yet.
    surface: mean surface distance per drift.
    dice_of_one: of the logit of the Dice to expect where one side bears the label: 1, and what `terms_of_one` gives.
    """

    drift: tuple[float, ...]
    drift_of_one: tuple[float, ...]
    end: tuple[float, ...]
    presence: tuple[float, ...]
    own: float
    growth: float
    surface: float
    dice_of_one: tuple[float, ...]


PRIOR = Prior(
    drift=(-1.506, 0.219, 0.636, 1.355, -0.498),
    drift_of_one=(-1.087, 0.149, 2.926),
    end=(0.237, 0.180, -2.116, 1.576, 1.883, 0.592),
    presence=(-0.061, 0.137, 0.220),
    own=0.036,
    growth=1.292,
    surface=1.324,
    dice_of_one=(-0.450, 0.457, 1.423, 1.042, 0.856, 0.469, -0.068, -0.586, 1.256),
)


@dataclass(frozen=True)
class SeenDrift:
    """A slice that was hidden and found again: the evidence for it, one plane, and the drift, mm, that it showed."""

    evidence: Evidence
    drift: float


@dataclass(frozen=True)
class Contours:
    """area (mm^2) and perimeter (mm) of what was found of a label on the planes of a gap, (T,) each."""

    area: np.ndarray
    perimeter: np.ndarray


@dataclass(frozen=True)
class Stretch:
    """What to expect of a label in one gap: T planes, (T,) arrays.

    drift: mm. dice, surface (mm): expected; dice is 0 where nothing was found. found, there: mm^2 that were found, and
    that are expected to be there truly. perimeter: mm of what is expected there. ends: (T + 1,) probability that the
    label is on the first n planes away from the side that bears it, and shapes: (T, T + 1), its area (mm^2) in each
    case; None where both sides bear it.
    """

    evidence: Evidence
    drift: np.ndarray
    dice: np.ndarray
    surface: np.ndarray
    found: np.ndarray
    there: np.ndarray
    perimeter: np.ndarray
    ends: np.ndarray | None = None
    shapes: np.ndarray | None = None

    @property
    def presence(self) -> np.ndarray:
        """(T,) probability that the label is there."""
        if self.ends is None:
            return np.ones(len(self.found))
        return self.evidence.ending.by_plane(present(self.ends))


def bridge(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """sqrt(a b / (a + b)), sqrt(mm) of mm: standard deviation, up to a factor, of a random walk tied at both ends."""
    return np.sqrt(below * above / (below + above))


def drift_mm(prior: Prior, evidence: Evidence) -> np.ndarray:
    """(T,) mean distance, mm, of the found contour from the true one where the label is there.

    A scan with smaller pixels than those that were fitted to is treated as if its pixels had FINEST_PIXEL.
    """
    enlarged = max(1.0, FINEST_PIXEL / evidence.pixel)
    if evidence.ending is not None:
        distance = enlarged * evidence.ending.by_plane(evidence.ending.steps)
        return np.exp(linear(prior.drift_of_one, np.log(distance), evidence.unlikeness)) / enlarged
    bridged = bridge(enlarged * evidence.below, enlarged * evidence.above)
    terms = np.log(bridged), np.log(enlarged * evidence.disagreement), evidence.unlikeness, edge(evidence)
    return np.exp(linear(prior.drift, *terms)) / enlarged


def edge(evidence: Evidence) -> np.ndarray:
    """(T,) log sharpness of the contour that was found."""
    return np.log(LEAST_SHARPNESS + evidence.found.sharpness)


def linear(coefficients: Sequence[float], *terms: np.ndarray) -> np.ndarray:
    """The first coefficient plus the others times their terms."""
    return coefficients[0] + sum(c * term for c, term in zip(coefficients[1:], terms, strict=True))


def end_probabilities(prior: Prior, ending: Ending, found: np.ndarray) -> np.ndarray:
    """(T + 1,) probability that the label is on the first n planes away from the side that bears it, and no further.

    A logit-normal prior on the way to the end, around where it was found to end, times the odds of presence on each
    plane up to it: the posterior of a change point, with planes independent of each other given where it is.
    found: (T,) mm^2 that were found, in the order of the planes.
    """
    count = len(ending.steps)
    way = special.logit((np.arange(count + 1) + 0.5) / (count + 1))
    growth, found_way = ending.growth, way[np.count_nonzero(found)]
    mean = linear(prior.end[:5], growth.trend, float(growth.known_before), ending.log_depth, found_way)
    odds = linear(prior.presence, *ending.presence.T)
    logarithm = -0.5 * ((way - mean) / np.exp(prior.end[5])) ** 2
    return special.softmax(logarithm + np.concatenate([[0], np.cumsum(odds)]))


def present(ends: np.ndarray) -> np.ndarray:
    """(T,) probability that the label is on each plane, from those (T + 1,) of its end."""
    return 1 - np.cumsum(ends)[:-1]


def remaining(ending: Ending) -> np.ndarray:
    """(T, T + 1) share of the label's depth that is left on each plane for each end: a superellipse, see `ends`."""
    count = len(ending.steps)
    extent = (np.arange(count + 1) + 0.5) * ending.length / (count + 1)
    return depth_left(ending.steps[:, None] / extent)


def expect(prior: Prior, evidence: Evidence, contours: Contours, scale: float = 1.0) -> Stretch:
    """What to expect of what was found. scale: of the drift, from what was seen on this scan."""
    drift = scale * drift_mm(prior, evidence)
    found, perimeter = contours.area, contours.perimeter
    kept = left_by_drift(drift, contours)
    if evidence.ending is None:
        there = np.where(found > 0, found, evidence.area)  # what both sides bear is there, found or not
        surface = prior.surface * drift
        return Stretch(evidence, drift, kept, surface, found, there, outline(found, perimeter, there))
    ending = evidence.ending
    ends, left = end_probabilities(prior, ending, found), remaining(ending)
    shapes = ending.area[:, None] * left**INSET
    own = ending.by_plane(found)[:, None]
    nested = 2 * np.minimum(own, shapes) / np.maximum(own + shapes, 1e-6)
    own_left = np.clip(own / np.maximum(ending.area[:, None], 1e-6), 0, 1) ** (1 / INSET)
    moved = ending.depth * np.abs(left - own_left) @ ends
    there = ending.by_plane(shapes @ ends)
    terms = terms_of_one(evidence, kept, kept * ending.by_plane(nested @ ends), ends)
    return Stretch(
        evidence,
        drift,
        dice=np.where(found > 0, special.expit(linear(prior.dice_of_one, *terms)), 0),
        surface=prior.surface * drift + ending.by_plane(moved),
        found=found,
        there=there,
        perimeter=outline(found, perimeter, there),
        ends=ends,
        shapes=shapes,
    )


def terms_of_one(evidence: Evidence, kept: np.ndarray, nested: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, ...]:
    """(T,) each: what the Dice of a label that one side bears depends on, in the order of `Prior.dice_of_one`.

    Logit of the Dice that drift and end give; log of what drift alone leaves; logit of what the scores imply; contrast;
    likeness to this side more than to the other; log-odds that the label is there; log(1 + depth in pixels);
    unlikeness.
    kept: (T,) Dice that drift leaves. nested: (T,) Dice that drift and end give. ends: (T + 1,) see `Stretch`.
    """
    ending, found = evidence.ending, evidence.found
    return (
        logit(nested),
        np.log(np.maximum(kept, LEAST_DICE)),
        logit(found.implied_dice),
        found.contrast,
        ending.by_plane(ending.presence[:, 1]),
        ending.by_plane(logit(present(ends))),
        np.full(len(kept), ending.log_depth),
        evidence.unlikeness,
    )


def logit(dice: np.ndarray) -> np.ndarray:
    """Logit of Dice or probabilities, clipped to LEAST_DICE and HIGHEST_DICE."""
    return special.logit(np.clip(dice, LEAST_DICE, HIGHEST_DICE))


def left_by_drift(drift: np.ndarray, contours: Contours) -> np.ndarray:
    """(T,) Dice where the label is there but its contour drifted by so many mm; 0 where nothing was found."""
    return np.where(contours.area > 0, np.exp(-drift * thinness(contours)), 0)


def thinness(contours: Contours) -> np.ndarray:
    """(T,) perimeter / (2 area), 1/mm: the Dice that a small drift of 1 mm costs."""
    return contours.perimeter / (2 * np.maximum(contours.area, 1e-6))


def outline(found: np.ndarray, perimeter: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Perimeter, mm, of shapes like those found but of the area `there`, mm^2; of discs where nothing was found."""
    roundness = perimeter / np.maximum(2 * np.sqrt(np.pi * found), 1e-6)
    return np.where(found > 0, roundness, 1) * 2 * np.sqrt(np.pi * there)


def seen_drift(score: torch.Tensor, drawn: torch.Tensor, evidence: Evidence, pixel: float) -> list[SeenDrift]:
    """The drift on a hidden slice of a label that both sides bear; none where what was found lies elsewhere altogether.

    score, drawn: (h, w), positive where the label was found and where it was drawn; pixel: mm.
    """
    found, there = (score > 0).cpu().numpy(), (drawn > 0).cpu().numpy()
    overlap = (found & there).sum()
    if not overlap:
        return []
    contours = measure(found[None].astype(np.uint8), (1,), (pixel, pixel))[1]
    dice = min(2 * overlap / (found.sum() + there.sum()), HIGHEST_DICE)
    return [SeenDrift(evidence, float(-np.log(dice) * 2 * contours.area[0] / contours.perimeter[0]))]


def scales(hidden: Mapping[int, Sequence[SeenDrift]], prior: Prior = PRIOR) -> dict[int, float]:
    """Factor of each label's drift, from what its hidden slices showed of it."""
    return {label: float(np.exp(prior.own * excess_drift(slices, prior))) for label, slices in hidden.items()}


def excess_drift(slices: Sequence[SeenDrift], prior: Prior) -> float:
    """Median log(seen / expected drift) on n hidden slices, times n / (n + 1), 0 without any.

    One slice says little, so what few say is shrunk towards nothing.
    """
    ratios = [np.log(hidden.drift / drift_mm(prior, hidden.evidence)[0]) for hidden in slices]
    return len(ratios) / (len(ratios) + 1) * float(np.median(ratios)) if ratios else 0.0


def measure(planes: np.ndarray, labels: Sequence[int], plane_spacing: tuple[float, float]) -> dict[int, Contours]:
    """Label -> area and perimeter on each of the planes (T, H, W) of label values."""
    height, width = plane_spacing
    ordered = np.sort(labels)
    areas, perimeters = np.zeros((2, len(planes), len(ordered)))

    def count(values: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(ordered, values[values > 0]), minlength=len(ordered))[: len(ordered)]

    for plane, area, perimeter in zip(planes, areas, perimeters, strict=True):
        padded = np.pad(plane, 1)
        area += height * width * count(plane)
        for first, second, edge in ((padded[1:], padded[:-1], width), (padded[:, 1:], padded[:, :-1], height)):
            differ = first != second
            perimeter += CROFTON * edge * (count(first[differ]) + count(second[differ]))
    return {int(label): Contours(areas[:, n], perimeters[:, n]) for n, label in enumerate(ordered)}


def assess(
    annotation: SparseAnnotation,
    stack: Stack,
    evidence: Sequence[Evidence],
    label_maps: Sequence[np.ndarray],
    factors: Mapping[int, float],
) -> Confidence:
    """What to expect of a propagation. label_maps: its result, volumes (K, J, I); factors: see `scales`."""
    contours: dict[int, Contours] = {}
    layers: dict[int, np.ndarray] = {}
    for label_map in label_maps:
        planes = crop(label_map, annotation, stack)
        there = np.intersect1d(planes, annotation.labels)
        contours |= measure(planes, there, annotation.plane_spacing)
        layers |= dict.fromkeys(there.tolist(), planes)
    stretches = []
    for seen in evidence:
        index = slice(seen.planes.start - stack.first, seen.planes.stop - stack.first)
        own = contours[seen.label]
        within = Contours(own.area[index], own.perimeter[index])
        stretches.append(expect(PRIOR, seen, within, factors.get(seen.label, 1.0)))
    return Confidence(annotation, stack, stretches, layers)


def crop(volume: np.ndarray, annotation: SparseAnnotation, stack: Stack) -> np.ndarray:
    """The planes of a volume (K, J, I) that the stack holds, (Z, rows, columns)."""
    return np.moveaxis(volume, annotation.axis, 0)[stack.crop]


@dataclass(frozen=True)
class Confidence:
    """What to expect of every label in every gap.

    layers: label -> the label map that holds it, cropped to the stack, (Z, h, w).
    """

    annotation: SparseAnnotation
    stack: Stack
    stretches: list[Stretch]
    layers: Mapping[int, np.ndarray]

    def expected_dice(self) -> dict[int, dict[int, float]]:
        """Label -> plane -> expected Dice: 1 where the label was drawn, else for planes on which it was found.

        It is 0 where nothing was found although the drawn planes on both sides bear the label. Planes to which the
        label was not carried, so that a stroke alone says that it is there, are left out.
        """
        return self._by_plane("dice", 1.0, lambda stretch: (stretch.found > 0) | (stretch.ends is None))

    def expected_surface_distance(self) -> dict[int, dict[int, float]]:
        """Label -> plane -> mean distance of the contours to expect, mm, for the planes on which there are contours."""
        return self._by_plane("surface", 0.0, lambda stretch: stretch.found > 0)

    def _by_plane(self, name: str, drawn: float, told: Callable[[Stretch], np.ndarray]) -> dict[int, dict[int, float]]:
        values = {label: dict.fromkeys(self.annotation.complete[label], drawn) for label in self.annotation.labels}
        for stretch in self.stretches:
            expected = zip(stretch.evidence.planes, getattr(stretch, name), told(stretch), strict=True)
            values[stretch.evidence.label] |= {
                plane: round(float(value), 4) for plane, value, is_told in expected if is_told
            }
        return {label: dict(sorted(planes.items())) for label, planes in values.items()}

    def expected_mean_dice(self) -> float | None:
        """Expected Dice over all planes that labels were carried to, mean over the labels; None if there is nothing.

        A label that is known on all its planes does not count. One of which nothing was found counts by the probability
        that it is on any of these planes: where it is on none, there is nothing to find.
        """
        overlap, total, found = Counter(), Counter(), Counter()
        nowhere = dict.fromkeys(self.annotation.labels, 1.0)
        for stretch in self.stretches:
            label, size = stretch.evidence.label, stretch.found + stretch.there
            overlap[label] += float((stretch.dice * size).sum())
            total[label] += float(size.sum())
            found[label] += float(stretch.found.sum())
            nowhere[label] *= 0.0 if stretch.ends is None else float(stretch.ends[0])
        shares = {label: 1.0 if found[label] else 1.0 - nowhere[label] for label, size in total.items() if size}
        if not sum(shares.values()):
            return None
        return sum(share * overlap[label] / total[label] for label, share in shares.items()) / sum(shares.values())

    def report(self) -> dict:
        """Plain values, keys of JSON."""
        dice, surface = (
            {str(label): {str(plane): value for plane, value in planes.items()} for label, planes in values.items()}
            for values in (self.expected_dice(), self.expected_surface_distance())
        )
        mean = self.expected_mean_dice()
        return {
            "expected_dice": dice,
            "expected_surface_distance_mm": surface,
            "expected_mean_dice": None if mean is None else round(mean, 4),
        }
