"""What tells how well a label was carried to the planes of a gap; `confidence` makes of it what to expect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .candidates import Arrivals, Carried
from .ends import AROUND, Growth
from .preprocessing import Stack
from .presence import correlation
from .visibility import contrast, sharpness

BAND = 2.0  # pixels from the contour where the two sides are compared
LEAST_DISAGREEMENT, MOST_DISAGREEMENT = 0.2, 12.0  # pixels


@dataclass(frozen=True)
class Evidence:
    """What tells how well a label was carried to the planes of a gap.

    planes: T planes of the volume. below, above: (T,) mm to the annotated planes that bound the gap, infinite where
    there is none. unlikeness: (T,) 1 - correlation of the carried image with the slice, in and around the label.
    disagreement: (T,) mm between the contours from both sides, and area: (T,) mm^2 of the two that were drawn, their
    mean by the way; None where one side alone bears the label. ending: where one side alone bears it. found: what came
    of it. pixel: mm, of the working grid. box: the label's, there.
    distances: (T, h, w) mm, in the box, to what the sides that bear the label brought, positive inside any; if kept.
    """

    label: int
    planes: range
    below: np.ndarray
    above: np.ndarray
    unlikeness: np.ndarray
    disagreement: np.ndarray | None
    area: np.ndarray | None
    ending: Ending | None
    found: Found
    pixel: float
    box: tuple[slice, slice]
    distances: torch.Tensor | None = None


@dataclass(frozen=True)
class Ending:
    """What is known of a label that only one side of a gap bears; planes in the order away from that side.

    upwards: whether that side is the lower one. steps: (T,) mm from it. length: mm from it to the plane without the
    label. presence: (T, 2), log-odds of the intensities where the label was carried to, and how much more the slice is
    there like this side than like the other. area: (T,) mm^2 of the carried label. depth: mm, radius of its largest
    disc; log_depth: log(1 + it in pixels). growth: how it came to the side that bears it.
    """

    upwards: bool
    steps: np.ndarray
    length: float
    presence: np.ndarray
    area: np.ndarray
    depth: float
    log_depth: float
    growth: Growth

    def by_plane(self, values: np.ndarray) -> np.ndarray:
        """Values (T, ...) from this order to that of the planes, or back."""
        return values if self.upwards else values[::-1]


@dataclass(frozen=True)
class Found:
    """What tells how good a contour is, once it was found on the planes of a gap, (T,) each.

    implied_dice: what its scores imply. sharpness, contrast: of the slices there, see `visibility`.
    """

    implied_dice: np.ndarray
    sharpness: np.ndarray
    contrast: np.ndarray


def observe(
    arrivals: Arrivals,
    stack: Stack,
    score: torch.Tensor,
    keep_distances: bool = False,
) -> Evidence:
    """The evidence for the planes of a gap and one label.

    score: (T, h, w) of the label in its box. keep_distances: for maps of uncertainty.
    """
    gap, crossing = arrivals.gap, arrivals.crossing
    targets = np.array(gap.targets)
    below, above = (
        np.full(len(targets), np.inf) if plane is None else np.abs(targets - plane) * stack.slice_spacing
        for plane in (gap.lower, gap.upper)
    )
    sides = arrivals.present
    nearest = torch.stack([candidate.distances for candidate in sides]).amax(dim=0)

    def likeness(carried: Carried) -> np.ndarray:
        return as_array(correlation(carried, arrivals, nearest > -AROUND))

    if len(sides) == 2:
        way = below / (below + above)
        unlikeness = 1 - (1 - way) * likeness(crossing.lower) - way * likeness(crossing.upper)
        disagreement = stack.pixel * disagreement_between(*(candidate.distances for candidate in sides))
        lower, upper = (candidate.area * stack.pixel**2 for candidate in sides)
        area = (1 - way) * lower + way * upper
        ending = None
    else:
        unlikeness = 1 - likeness(crossing.lower if arrivals.upper is None else crossing.upper)
        disagreement = area = None
        ending = observe_ending(arrivals, stack)
    return Evidence(
        label=arrivals.label,
        planes=range(gap.first + stack.first, gap.last + stack.first + 1),
        below=below,
        above=above,
        unlikeness=unlikeness,
        disagreement=disagreement,
        area=area,
        ending=ending,
        found=judge(arrivals, score),
        pixel=stack.pixel,
        box=arrivals.box,
        distances=nearest * stack.pixel if keep_distances else None,
    )


def observe_ending(arrivals: Arrivals, stack: Stack) -> Ending:
    """What is known of the end of a label that one side of a gap bears."""
    gap = arrivals.gap
    upwards = arrivals.upper is None
    candidate, bound = (arrivals.lower, gap.upper) if upwards else (arrivals.upper, gap.lower)
    order = slice(None, None, 1 if upwards else -1)
    steps = np.arange(1, len(gap.targets) + 1) * stack.slice_spacing
    length = steps[-1] + stack.slice_spacing if bound is None else abs(bound - candidate.source) * stack.slice_spacing
    area = as_array((candidate.distances > 0).sum(dim=(1, 2))) * stack.pixel**2
    return Ending(
        upwards=upwards,
        steps=steps,
        length=float(length),
        presence=as_array(arrivals.presence)[order],
        area=area[order],
        depth=candidate.depth * stack.pixel,
        log_depth=float(np.log1p(max(candidate.depth, 0.0))),
        growth=arrivals.growth,
    )


def judge(arrivals: Arrivals, score: torch.Tensor) -> Found:
    """What was found of a label, by its score (T, h, w) in its box; channels count as far as they can be trusted."""
    rows, columns = arrivals.box
    slices, weights = arrivals.crossing.channels[..., rows, columns], arrivals.crossing.weights

    def over_channels(values: torch.Tensor) -> np.ndarray:
        return as_array((values * weights).sum(dim=1) / weights.sum())

    return Found(implied_dice(score), over_channels(sharpness(score, slices)), over_channels(contrast(score, slices)))


def as_array(values: torch.Tensor) -> np.ndarray:
    """`values` on the processor, float64."""
    return values.cpu().numpy().astype(float)


def implied_dice(score: torch.Tensor) -> np.ndarray:
    """(T,) expected Dice of what is found, score > 0, if a score (T, h, w) is the log-odds of each pixel by itself."""
    probability, found = torch.sigmoid(score), (score > 0).float()
    overlap, total = ((probability * found).sum(dim=(1, 2)), (probability + found).sum(dim=(1, 2)))
    return as_array(2 * overlap / total.clamp(min=1))


def disagreement_between(lower: torch.Tensor, upper: torch.Tensor) -> np.ndarray:
    """(T,) pixels that two signed distances (T, h, w) differ by, in the mean within BAND of the contour half-way.

    LEAST_DISAGREEMENT is added, so that it has a logarithm. Without a contour they differ by MOST_DISAGREEMENT.
    """
    band = (((lower + upper) / 2).abs() < BAND).float()
    difference = (lower - upper).abs().clamp(max=MOST_DISAGREEMENT)
    count = band.sum(dim=(1, 2))
    mean = (band * difference).sum(dim=(1, 2)) / count.clamp(min=1)
    return LEAST_DISAGREEMENT + as_array(torch.where(count > 0, mean, MOST_DISAGREEMENT))
