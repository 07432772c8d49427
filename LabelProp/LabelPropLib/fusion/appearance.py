"""Similarity weights, then the contour moved to where intensities speak for the label against what surrounds it."""

from __future__ import annotations

import torch

from ..candidates import INTENSITY_BINS, INTENSITY_RANGE, Arrivals, Candidate
from ..preprocessing import smooth
from . import similarity

WEIGHT = 0.5  # pixels of signed distance per unit of log-odds
MOST_ODDS = 2.0
REACH = 3.0  # pixels from the contour over which intensities have a say


def fuse(arrivals: Arrivals) -> torch.Tensor:
    """Score (T, h, w): the similarity rule's s + a R(I) exp(-(s / b)^2).

    R = log p(I | inside) - log p(I | around), from histograms of the label and its surround on the annotated
    planes: the region competition of Zhu & Yuille (IEEE TPAMI 1996), as one step within reach of the contour.
    """
    score = similarity.fuse(arrivals)
    rows, columns = arrivals.box
    odds = log_odds(arrivals.present, smooth(arrivals.crossing.targets[:, rows, columns], 0.7))
    return score + WEIGHT * odds.clamp(-MOST_ODDS, MOST_ODDS) * torch.exp(-((score / REACH) ** 2))


def log_odds(candidates: list[Candidate], images: torch.Tensor) -> torch.Tensor:
    """log p(I | inside) - log p(I | around) at the pixels of `images`, histograms smoothed and never empty."""
    inside, around = (
        smooth(torch.stack([getattr(candidate, region) for candidate in candidates]).sum(dim=0)[None], 1.5)[0] + 1
        for region in ("inside", "around")
    )
    table = (inside / inside.sum()).log() - (around / around.sum()).log()
    low, high = INTENSITY_RANGE
    position = ((images - low) / (high - low) * INTENSITY_BINS - 0.5).clamp(0, INTENSITY_BINS - 1)
    below = position.long().clamp(max=INTENSITY_BINS - 2)
    share = position - below
    return (1 - share) * table[below] + share * table[below + 1]
