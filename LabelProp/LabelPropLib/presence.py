"""Whether a label is on a slice, by what the slice shows where the label was carried to.

Two things speak for it: intensities like those in the label more than like those around it, and a pattern like the one
in the label more than like what lies there on the plane without it. Neither asks where the contour is, so both hold for
the label as a whole, which pixels by themselves do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .filters import NOISE_WINDOW, masked_correlation, smooth
from .label_planes import HISTOGRAM_SMOOTHING, INTENSITY_BINS
from .preprocessing import INTENSITY_RANGE

if TYPE_CHECKING:  # candidates import this module
    from .candidates import Arrivals, Candidate, Carried

MOST_ODDS = 3.0


def middles_of_bins(counts: torch.Tensor) -> torch.Tensor:
    """(INTENSITY_BINS,) the intensities that a histogram like `counts` counts."""
    low, high = INTENSITY_RANGE
    return low + (torch.arange(INTENSITY_BINS).to(counts) + 0.5) * (high - low) / INTENSITY_BINS


def log_odds(candidates: list[Candidate], images: torch.Tensor) -> torch.Tensor:
    """log p(I | inside) - log p(I | around) at the pixels of `images`, histograms smoothed and never empty."""
    inside, around = (
        smooth(sum(getattr(candidate, region) for candidate in candidates)[None], HISTOGRAM_SMOOTHING)[0] + 1
        for region in ("inside", "around")
    )
    table = (inside / inside.sum()).log() - (around / around.sum()).log()
    low, high = INTENSITY_RANGE
    position = ((images - low) / (high - low) * INTENSITY_BINS - 0.5).clamp(0, INTENSITY_BINS - 1)
    below = position.long().clamp(max=INTENSITY_BINS - 2)
    share = position - below
    return (1 - share) * table[below] + share * table[below + 1]


def intensity_odds(candidate: Candidate, arrivals: Arrivals) -> torch.Tensor:
    """(T,) mean log-odds of the intensities where the label was carried to; 0 is half-way between inside and around."""
    rows, columns = arrivals.box
    intensities = smooth(arrivals.crossing.targets[:, rows, columns], NOISE_WINDOW)
    odds = log_odds([candidate], intensities).clamp(-MOST_ODDS, MOST_ODDS)
    core = (candidate.distances > 0).float()
    mean = (odds * core).sum(dim=(1, 2)) / core.sum(dim=(1, 2)).clamp(min=1)
    table = log_odds([candidate], middles_of_bins(candidate.inside)).clamp(-MOST_ODDS, MOST_ODDS)
    inside, around = (
        (histogram * table).sum() / histogram.sum().clamp(min=1) for histogram in (candidate.inside, candidate.around)
    )
    return (mean - (inside + around) / 2).clamp(-MOST_ODDS, MOST_ODDS)


def likeness_inside(candidate: Candidate, arrivals: Arrivals) -> torch.Tensor:
    """(T,) how much more the slices are, in the label, like the plane that bears it than like the other one, -2 to 2.

    0 where there is no other plane.
    """
    this, other = arrivals.crossing.lower, arrivals.crossing.upper
    if this is None or other is None:
        return candidate.distances.new_zeros(len(candidate.distances))
    if other.source == candidate.source:
        this, other = other, this
    inside = candidate.distances > 0
    return correlation(this, arrivals, inside) - correlation(other, arrivals, inside)


def correlation(carried: Carried, arrivals: Arrivals, region: torch.Tensor) -> torch.Tensor:
    """(T,) correlation of carried images and slices over `region` (T, h, w), channels by their weights."""
    rows, columns = arrivals.box
    weights = arrivals.crossing.weights
    carried_here, slices = (images[..., rows, columns] for images in (carried.channels, arrivals.crossing.channels))
    by_channel = masked_correlation(carried_here, slices, region)
    return (by_channel * weights).sum(dim=1) / weights.sum()
