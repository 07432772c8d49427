"""Similarity weights, then the contour moved to where intensities speak for the label against what surrounds it."""

from __future__ import annotations

import torch

from ..candidates import Arrivals
from ..filters import NOISE_WINDOW, smooth
from ..presence import log_odds
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
    odds = log_odds(arrivals.present, smooth(arrivals.crossing.targets[:, rows, columns], NOISE_WINDOW))
    return score + WEIGHT * odds.clamp(-MOST_ODDS, MOST_ODDS) * torch.exp(-((score / REACH) ** 2))
