"""Scribbles: strokes in any plane change what was fused around them, and nothing further away than 15 mm.

A stroke says what is true of its voxels. Where the score says otherwise, a region around is wrong, too: each voxel has
a probability of belonging to it, see `surroundings`. From the likeliest on, voxels are given to the stroke's label
until most of what is expected to be wrong is put right, or until more Dice would be lost than can be answered for: a
stroke corrects large structures generously, and small ones with care. Only what hangs together with the stroke, or with
its label, is corrected. With the setting `graph_cut` the border of what is corrected runs along edges of the image,
where the image has any; where that would put right much less, it stays where the odds put it. A stroke that says what
the score says changes nothing, and none has a say beyond a plane on which the label is known. All of it happens after
fusion, so it is the same for every rule, and nothing is registered or fused again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from . import graph_cut
from .annotation import BACKGROUND, SparseAnnotation, stack_order
from .boxes import Box
from .labelmaps import FusedScore, LabelMaps
from .preprocessing import Stack
from .surroundings import NOT_SCRIBBLED, REACH, SIGHT, Surroundings, Window, around_strokes, at

SHARE = 0.9  # of all voxels that are expected to be wrong, to be put right
Risk = tuple[float, float]  # log-odds by which all voxels may be overrated; mean Dice over the labels to lose then
RISKS = ((0.2, 0.0007), (1.4, 0.006))  # so that few strokes cost more than 0.002
# Background takes from labels and gives to none: a stroke of it through a small one could take most of that.
RISK_OF_BACKGROUND = (np.inf, 0.015)
MOST_GIVEN_UP = 0.002  # mean Dice over the labels, of what can be expected at best
BAND = 3.0  # log-odds from the threshold, beyond which the image has no say
THRESHOLDS = (-1.5, 1.0)  # log-odds, from the lowest one chosen, between which that of the graph cut is sought
HALVINGS = 8  # of that range
LEAST_CORRECTED = 0.9  # share of what would be put right without the graph cut that the cut must correct
MOST_VOXELS = 20_000  # in a graph cut, so that a stroke takes less than a second
MARGIN = 0.5  # pixels by which what is corrected is put on its side of the contour


@dataclass(frozen=True)
class Region:
    """Strokes near each other, and the box of the volume with all that they may change and all that decides on it.

    strokes: (T, R, C) label of each voxel in the box, BACKGROUND or NOT_SCRIBBLED.
    """

    box: Box
    strokes: np.ndarray


def spread(
    annotation: SparseAnnotation,
    stack: Stack,
    fused: Sequence[FusedScore],
    maps: LabelMaps,
    follow_edges: bool,
):
    """Let the annotation's strokes correct the scores around them, and `maps` decide anew where they did.

    follow_edges: whether what is corrected ends along edges of the image, by a graph cut.
    """
    for region in regions(annotation, stack.pixel):
        window = Window(region.box, annotation, stack, fused)
        labels = [label for label in np.unique(region.strokes).tolist() if label != NOT_SCRIBBLED]
        wrong = {label: wrong_around(label, region.strokes, window, follow_edges) for label in labels}
        for label, voxels in wrong.items():
            hand_over(voxels, label, window)
        changed = np.any(list(wrong.values()), axis=0)
        if changed.any():
            maps.decide_again(region.box, window.scores, changed)


def regions(annotation: SparseAnnotation, pixel: float) -> list[Region]:
    """The strokes in groups so far apart that no voxel is within reach of two of them; pixel: mm of a working pixel."""
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
    margin = np.ceil((REACH + pixel * np.array([0, SIGHT, SIGHT])) / spacing).astype(int)
    found = []
    for group in range(1, count + 1):
        voxels = points[group_of == group]
        first = np.maximum(voxels.min(axis=0) - margin, 0)
        stop = np.minimum(voxels.max(axis=0) + margin + 1, shape)
        painted = np.full(stop - first, NOT_SCRIBBLED, np.int32)
        painted[tuple((voxels - first).T)] = labels[group_of == group]
        found.append(Region(tuple(slice(int(a), int(b)) for a, b in zip(first, stop, strict=True)), painted))
    return found


def wrong_around(label: int, strokes: np.ndarray, window: Window, follow_edges: bool) -> np.ndarray:
    """(T, R, C) bool: what is to be corrected around the strokes (T, R, C) of a label, or of BACKGROUND."""
    standing = window.standing(label)
    bearing = (strokes == label) | (standing.margin > 0)
    wrong = np.zeros(window.shape, bool)
    for around in around_strokes(standing, strokes, window):
        chosen = choose(around)
        if follow_edges and chosen.any():
            chosen = cut_along_edges(chosen, around, bearing | window.drawn(label), window)
        wrong[at(around.voxels[chosen])] = True
    pieces, count = ndimage.label(wrong | bearing)
    joined = np.zeros(count + 1, bool)
    joined[pieces[bearing]] = True
    return wrong & joined[pieces]


def choose(around: Surroundings) -> np.ndarray:
    """(N,) bool: the voxels around a stroke to be corrected: the likeliest, up to SHARE, a risk or the least Dice."""
    log_odds = around.log_odds()
    likeliest = np.argsort(-log_odds, kind="stable")
    probability = special.expit(log_odds[likeliest])
    missing = np.cumsum(probability)
    count = np.searchsorted(missing, SHARE * missing[-1]) + 1
    for loss, (_, most_lost) in zip(losses(around), risks(around), strict=True):
        count = min(count, np.count_nonzero(np.cumsum(loss[likeliest]) <= most_lost))
    dice = expected_dice(around, missing[-1], missing, np.arange(len(missing)) + 1)
    count = min(count, np.flatnonzero(dice >= least_dice(around, probability)).max(initial=-1) + 1)
    chosen = np.zeros(len(likeliest), bool)
    chosen[likeliest[:count]] = True
    return chosen


def risks(around: Surroundings) -> Sequence[Risk]:
    """RISKS, and RISK_OF_BACKGROUND for a stroke of that."""
    return (*RISKS, RISK_OF_BACKGROUND) if np.isinf(around.gaining) else RISKS


def losses(around: Surroundings) -> np.ndarray:
    """(R, N) Dice, mean over the labels, that is lost by correcting a voxel if its odds are overrated as in `risks`.

    Of a label of V voxels that misses W more the Dice D is 2 V / (2 V + W), and giving it a voxel that is its own with
    the probability p changes that by (2 p - D) / (2 V + W). Of a label that was found with F voxels and should have V
    the Dice D is at most 2 min(F, V) / (F + V), and taking the voxel from it changes that by (2 p + D - 2) / (F + V).
    The labels not concerned keep theirs. The voxels of a region are right or wrong together, so that the loss is
    limited in case that the odds of all are lower, in case that they are much lower, and of background in case that
    nothing around is wrong.
    """
    log_odds = around.log_odds()
    missing = special.expit(log_odds).sum()
    size, other_size = 2 * around.gaining + missing, around.losing_found + around.losing
    dice, other_dice = 1 - missing / size, 2 * np.minimum(around.losing_found, around.losing) / other_size
    probability = special.expit(log_odds - np.array(risks(around))[:, :1])
    gained, other_gained = (2 * probability - dice) / size, (2 * probability + other_dice - 2) / other_size
    return -(gained + other_gained) / around.label_count


def expected_dice(around: Surroundings, missing: float, right: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Dice to expect of a stroke's label, or 1 of BACKGROUND, once it was given voxels that are missing around.

    missing: how many of all are expected to be its own; right: how many of those given; count: how many were given.
    `losses` reckons with the label as it is, as if each voxel were the first. That overrates what many voxels gain: a
    label that misses much more than it has gains by whatever is likelier than half its Dice, which is little, but it
    has more with every voxel that it is given. With V voxels, W missing and n given of which P are right the Dice is
    2 (V + P) / (2 V + W + n).
    """
    return 1 - (missing + count - 2 * right) / (2 * around.gaining + missing + count)


def least_dice(around: Surroundings, probability: np.ndarray) -> float:
    """Dice to expect of a stroke's label at least, after its correction: what MOST_GIVEN_UP leaves of the best.

    probability: (N,) of each voxel to be wrong.
    """
    right = np.concatenate([[0], np.cumsum(np.sort(probability)[::-1])])
    return expected_dice(around, right[-1], right, np.arange(len(right))).max() - MOST_GIVEN_UP * around.label_count


def cut_along_edges(chosen: np.ndarray, around: Surroundings, bearing: np.ndarray, window: Window) -> np.ndarray:
    """(N,) bool: what is to be corrected, with a border along edges of the image; or what was chosen without it.

    chosen: (N,) bool, by `choose`; not empty. bearing: (T, R, C) bool, what bears the stroke's label.
    The log-odds less a threshold speak for a voxel in the graph cut. Of all thresholds the lowest is taken with which
    the region keeps within the same limits as in `choose`; found by halving, for a lower one gives a larger
    region. Where it would put right less than LEAST_CORRECTED of what the chosen voxels would, the image contradicts
    the odds, and has no say.
    """
    log_odds, loss = around.log_odds(), losses(around)
    probability = special.expit(log_odds)
    dice_to_keep = least_dice(around, probability)
    least = log_odds[chosen].min()
    band = in_question(log_odds, least)
    sure = ~band & (log_odds > least)
    region = bearing.copy()
    region[at(around.voxels[sure])] = True
    following = np.zeros(len(chosen), bool)
    lowest, highest = least + np.array(THRESHOLDS)
    for _ in range(HALVINGS):
        threshold = (lowest + highest) / 2
        found = sure.copy()
        unary = log_odds[band] - threshold
        found[band] = graph_cut.cut(unary, around.voxels[band], region, window.smoothed, window.spacing)
        if is_within_limits(found, around, probability, loss, dice_to_keep):
            following, highest = found, threshold
        else:
            lowest = threshold
    enough = probability[following].sum() >= LEAST_CORRECTED * probability[chosen].sum()
    return following if enough else chosen


def in_question(log_odds: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) bool: the voxels whose log-odds (N,) lie within BAND of a threshold; the MOST_VOXELS nearest to it."""
    distance = np.abs(log_odds - threshold)
    nearest = np.argsort(distance, kind="stable")[:MOST_VOXELS]
    band = np.zeros(len(log_odds), bool)
    band[nearest] = distance[nearest] < BAND
    return band


def is_within_limits(
    chosen: np.ndarray, around: Surroundings, probability: np.ndarray, loss: np.ndarray, dice_to_keep: float
) -> bool:
    """Whether correcting the chosen voxels (N,) bool keeps within SHARE, the least Dice to expect, and the risks.

    probability: (N,) of each voxel to be wrong. loss: (R, N), see `losses`.
    """
    lost, right, missing = loss[:, chosen].sum(axis=1), probability[chosen].sum(), probability.sum()
    return bool(
        right <= SHARE * missing
        and expected_dice(around, missing, right, chosen.sum()) >= dice_to_keep
        and all(risked <= most_lost for risked, (_, most_lost) in zip(lost, risks(around), strict=True))
    )


def hand_over(voxels: np.ndarray, label: int, window: Window):
    """Change scores so that the label, or BACKGROUND, is found at the voxels (T, R, C)."""
    others = [window.scores[other] for other in window.excluded_by(label)]
    if label == BACKGROUND:
        for score in others:
            score[voxels] = np.minimum(score[voxels], -MARGIN)
    else:
        best = np.max([score[voxels] for score in others], axis=0, initial=0)
        window.scores[label][voxels] = best + MARGIN


def contradictions(annotation: SparseAnnotation, maps: LabelMaps) -> list[str]:
    """Sentences for the user about scribbled voxels that another scribble or a slice keeps from bearing their label."""
    contradicted, twice = Counter(), 0
    for label, voxels in annotation.scribbles.items():
        lost = voxels[~maps.bears(label, voxels)]
        planes = lost[:, annotation.axis]
        known = [] if label == BACKGROUND else list(annotation.known_planes(label))
        contradicting = np.isin(planes, known) | drawn_at(annotation, lost)
        contradicted.update(planes[contradicting].tolist())
        twice += np.count_nonzero(~contradicting)
    said = [
        f"{count} scribbled voxels contradict slice {plane}, which is annotated completely: the slice was kept."
        for plane, count in sorted(contradicted.items())
    ]
    if twice:
        said.append(
            f"{twice} voxels are scribbled twice, with different labels: background wins, or else the larger label."
        )
    return said


def drawn_at(annotation: SparseAnnotation, voxels: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the voxels (N, 3) bear a label that was drawn there."""
    planes, pixels = voxels[:, annotation.axis], np.delete(voxels, annotation.axis, axis=1)
    drawn = np.zeros(len(voxels), bool)
    for plane in np.unique(planes):
        here = planes == plane
        for masks in annotation.complete.values():
            if plane in masks:
                drawn[here] |= masks[plane][tuple(pixels[here].T)]
    return drawn
