"""Deep label fusion: the similarity rule corrected by two small networks trained on other scans.

Xie et al., "Deep label fusion", Medical Image Analysis 2023, with candidates that come from the same scan: a voting
subnet moves the weights of the candidates, a fine-tuning subnet corrects the consensus, and a label mask keeps the
result near the candidates' votes. Both see thick labels reduced and thin ones enlarged, because they work best on
labels of medium size. What the networks say is added to what the similarity rule says, so networks that say nothing
leave that rule as it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from .. import boxes, checkpoint
from ..annotation import exclude
from ..candidates import Arrivals, bounding_box
from ..errors import InputError
from ..label_planes import DISTANCE_LIMIT
from ..parallel import side_by_side
from ..presence import log_odds, middles_of_bins
from . import similarity
from .distance import distance_way, pool
from .similarity import similarity_way
from .subnets import DeepLabelFusion, resized

DISTANCE_SCALE = 4.0  # pixels; the networks see distances in this unit
MOST_DISTANCE = 3.0  # of these units
MOST_DEVIATIONS = 4.0  # of intensities from those in and around the label
ADDED_DEVIATION = 0.02  # of normalised intensities, so that the deviation is never zero
ODDS_SCALE = 2.0  # log-odds; the networks see those of intensities in this unit
MOST_ODDS = 2.0  # of these units
LENGTH_SCALE = 3.0  # by which the log of the hops across a gap is divided
LABEL_DEPTH = 8.0  # of the networks' pixels, to which a label's depth from contour to middle is scaled
SCALES = (0.8, 1.4)  # least and most of the networks' pixels along a pixel
LEAST_SIZE = 8  # of the networks' pixels along a window
TIP_DEPTH = 3.0  # of the networks' pixels; what is thinner on its only drawn plane tells them too little
MASK_MARGIN = 6.0  # pixels beyond the union of the votes that a label may go


@dataclass(frozen=True)
class LabelWindow:
    """The part of a label's box that the networks look at: rows, columns, and the label mask (T, h, w) in it.

    The mask is the union of the candidates' votes and MASK_MARGIN pixels around them; no label leaves it.
    """

    rows: slice
    columns: slice
    mask: torch.Tensor

    def of(self, planes: torch.Tensor) -> torch.Tensor:
        """The window's part of planes (T, H, W) in the label's box; a view."""
        return planes[:, self.rows, self.columns]


@dataclass(frozen=True)
class Features:
    """What the networks are told of a label on T planes of a gap, within its window: all (T, h, w).

    scale: of the grid's pixels along a pixel. lower, upper: signed distances of the candidates in pixels of the grid,
    -DISTANCE_LIMIT times the scale where the label is absent.
    target, lower_image, upper_image: the slices and the carried images, intensities relative to those in and around the
    label. odds: of the slices' intensities, see `presence`, in units of ODDS_SCALE. way: distance weight of the upper
    side. length: see `gap_length`.
    """

    scale: float
    lower: torch.Tensor
    upper: torch.Tensor
    target: torch.Tensor
    lower_image: torch.Tensor
    upper_image: torch.Tensor
    odds: torch.Tensor
    way: torch.Tensor
    length: torch.Tensor

    def of_lower(self) -> torch.Tensor:
        """(T, 5, h, w), the voting subnet's view of the lower candidate."""
        return self._of_candidate(self.lower, self.lower_image, 1 - self.way)

    def of_upper(self) -> torch.Tensor:
        """(T, 5, h, w), the voting subnet's view of the upper candidate."""
        return self._of_candidate(self.upper, self.upper_image, self.way)

    def _of_candidate(self, distances: torch.Tensor, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.stack([bounded(distances), image, self.target, (image - self.target).abs(), weight], dim=1)

    def of_label(self, consensus: torch.Tensor, way: torch.Tensor, rivals: torch.Tensor) -> torch.Tensor:
        """(T, 11, h, w), the fine-tuning subnet's view.

        consensus: scores after voting; way: the voted weight of the upper side; rivals: best score of a label that
        excludes this one.
        """
        distances = [bounded(planes) for planes in (consensus, self.lower, self.upper, rivals)]
        images = [self.target, self.lower_image, self.upper_image]
        return torch.stack([*distances, *images, self.odds, way, self.way, self.length], dim=1)


@dataclass(frozen=True)
class Votes:
    """The candidates of a label, voted on: what the networks were told, within a window of the label's box.

    way: (T, h, w) voted weight of the upper side; consensus: (T, h, w) the score with it; both in the whole box.
    """

    window: LabelWindow
    features: Features
    way: torch.Tensor
    consensus: torch.Tensor

    def corrected(self, rivals: torch.Tensor, networks: DeepLabelFusion) -> torch.Tensor:
        """(T, h, w) score, by the fine-tuning subnet; rivals: (T, h, w), see `Features.of_label`."""
        window, scale = self.window, self.features.scale
        size = self.features.way.shape[-2:]
        consensus, way, rivals = resized(
            torch.stack([window.of(planes) for planes in (self.consensus, self.way, rivals)]), size
        )
        view = self.features.of_label(scale * consensus, way, scale * rivals)
        correction = resized(networks.correction(view)[None], window.mask.shape[-2:])[0] / scale
        score = self.consensus - DISTANCE_LIMIT
        corrected = window.of(self.consensus) + correction.masked_fill(~window.mask, -DISTANCE_LIMIT)
        window.of(score).copy_(corrected)
        return score


ARCHITECTURE = {"name": "DeepLabelFusion", "revision": 1}
PREPROCESSING = {
    "candidates": "the nearest annotated plane on either side, pooled by the similarity rule",
    "distances": f"pixels / {DISTANCE_SCALE}, cut off at {MOST_DISTANCE:g}",
    "intensity": f"relative to mean and standard deviation in and around the label, cut off at {MOST_DEVIATIONS:g}",
    "pixels": "square",
}


def load(choice: str, needed: bool, device: torch.device) -> DeepLabelFusion | None:
    """The networks of a checkpoint on a device, chosen as `checkpoint.choose` does; None for none.

    Raises InputError if the checkpoint cannot be used, or if there is none although deep fusion is `needed`.
    """
    networks = checkpoint.load_network(DeepLabelFusion, choice, "fusion", ARCHITECTURE, PREPROCESSING)
    if networks is None:
        if needed:
            raise InputError("Deep fusion needs weights: choose the checkpoint 'auto' or a file, or another fusion.")
        return None
    return networks.eval().to(device, memory_format=torch.channels_last)


def fuse(
    arrivals: Sequence[Arrivals], networks: DeepLabelFusion, overlapping: Collection[tuple[int, int]] = ()
) -> list[torch.Tensor]:
    """Scores (T, h, w) of all labels of one gap, one for each of `arrivals`, in its box.

    All labels of the gap are needed, because where one may go depends on the others; overlapping: pairs of labels,
    ascending, that do not exclude each other. The similarity rule stands beyond the outermost annotated planes, where
    there is nothing to vote on, and for a label of which only a tip was drawn.
    """
    crossing = arrivals[0].crossing
    if crossing.lower is None or crossing.upper is None:
        return [similarity.fuse(arrived) for arrived in arrivals]
    device = crossing.targets.device
    voted = side_by_side(lambda arrived: vote(arrived, networks), arrivals, device)
    consensus = [votes.consensus for votes in voted]

    def correct(index: int) -> torch.Tensor:
        if is_tip(arrivals[index]):
            return similarity.fuse(arrivals[index])
        rivals = best_rival(index, arrivals, consensus, overlapping)
        return voted[index].corrected(rivals, networks)

    return side_by_side(correct, range(len(arrivals)), device)


def vote(arrivals: Arrivals, networks: DeepLabelFusion) -> Votes:
    """What the voting subnet makes of one label's candidates."""
    window = look(arrivals)
    told = features(arrivals, window, scale(arrivals))
    upper, lower = networks.voting(torch.cat([told.of_upper(), told.of_lower()])).chunk(2)
    votes = torch.zeros_like(arrivals.crossing.targets[:, arrivals.box[0], arrivals.box[1]])
    window.of(votes).copy_(resized((upper - lower)[None], window.mask.shape[-2:])[0])
    way = similarity_way(arrivals, votes)
    return Votes(window, told, way, pool(arrivals, way))


def is_tip(arrivals: Arrivals) -> bool:
    """Whether one plane alone bears the label, and bears little of it."""
    candidates = arrivals.present
    return len(candidates) == 1 and candidates[0].depth * scale(arrivals) < TIP_DEPTH


def scale(arrivals: Arrivals) -> float:
    """The networks' pixels along a pixel, with which the label would be LABEL_DEPTH deep where it was drawn."""
    depths = [candidate.depth for candidate in arrivals.present]
    least, most = SCALES
    return min(most, max(least, LABEL_DEPTH * len(depths) / max(sum(depths), 1.0)))


def look(arrivals: Arrivals) -> LabelWindow:
    """The window that holds the label mask of all planes."""
    candidates = [candidate.distances for candidate in arrivals.present]
    mask = torch.stack(candidates).amax(dim=0) > -MASK_MARGIN
    rows, columns = bounding_box(mask.any(dim=0))
    return LabelWindow(rows, columns, mask[:, rows, columns])


def features(arrivals: Arrivals, window: LabelWindow, scale: float) -> Features:
    """What the networks are told of one label's arrivals."""
    crossing, (rows, columns) = arrivals.crossing, arrivals.box
    slices = window.of(crossing.targets[:, rows, columns])
    size = [max(LEAST_SIZE, round(scale * extent)) for extent in slices.shape[-2:]]
    intensity = label_intensity(arrivals)
    absent = slices.new_full((len(slices), *size), -scale * DISTANCE_LIMIT)
    lower, upper = (
        absent if candidate is None else scale * resized(window.of(candidate.distances)[None], size)[0]
        for candidate in (arrivals.lower, arrivals.upper)
    )
    carried = (window.of(images[:, rows, columns]) for images in (crossing.lower.images, crossing.upper.images))
    images = torch.stack([relative(planes, intensity) for planes in (slices, *carried)])
    target, lower_image, upper_image = resized(images, size)
    return Features(
        scale=scale,
        lower=lower,
        upper=upper,
        target=target,
        lower_image=lower_image,
        upper_image=upper_image,
        odds=resized((log_odds(arrivals.present, slices)[None] / ODDS_SCALE).clamp(-MOST_ODDS, MOST_ODDS), size)[0],
        way=distance_way(arrivals).expand_as(target),
        length=torch.full_like(target, gap_length(len(slices))),
    )


def best_rival(
    index: int,
    arrivals: Sequence[Arrivals],
    consensus: Sequence[torch.Tensor],
    overlapping: Collection[tuple[int, int]],
) -> torch.Tensor:
    """(T, h, w) highest consensus of the labels that exclude `arrivals[index]`, in its box; else -DISTANCE_LIMIT."""
    label, box = arrivals[index].label, arrivals[index].box
    best = torch.full_like(consensus[index], -DISTANCE_LIMIT)
    for arrived, score in zip(arrivals, consensus, strict=True):
        if arrived.label == label or not exclude(label, arrived.label, overlapping):
            continue
        shared = boxes.overlap(box, arrived.box)
        here = best[(slice(None), *boxes.within(shared, box))]
        there = score[(slice(None), *boxes.within(shared, arrived.box))]
        torch.maximum(here, there, out=here)
    return best


def bounded(distances: torch.Tensor) -> torch.Tensor:
    """Distances in units of DISTANCE_SCALE, clipped to MOST_DISTANCE of them."""
    return (distances / DISTANCE_SCALE).clamp(-MOST_DISTANCE, MOST_DISTANCE)


def relative(images: torch.Tensor, intensity: tuple[float, float]) -> torch.Tensor:
    """Intensities relative to their mean and standard deviation in and around the label."""
    mean, deviation = intensity
    return ((images - mean) / deviation).clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)


def gap_length(planes: int) -> float:
    """Log of the hops across a gap of so many planes, in units of LENGTH_SCALE."""
    return math.log(planes + 1) / LENGTH_SCALE


def label_intensity(arrivals: Arrivals) -> tuple[float, float]:
    """Mean and standard deviation of the intensities in and around the label, the latter with ADDED_DEVIATION."""
    counts = torch.stack([candidate.inside + candidate.around for candidate in arrivals.present]).sum(dim=0)
    values = middles_of_bins(counts)
    total = counts.sum().clamp(min=1)
    mean = (counts * values).sum() / total
    deviation = ((counts * (values - mean) ** 2).sum() / total).sqrt()
    return float(mean), float(deviation) + ADDED_DEVIATION
