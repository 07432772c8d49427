"""Outlines as even as the drawn ones.

What is carried over many planes frays, for every hop and every weight adds noise to the contour. How even a label's
outline should be is known from where it was drawn: where what was found is less even than that, its score is smoothed.
A Gaussian takes corners off, and all of a thin label is corners: thick labels are smoothed more, thin ones not at all.
"""

from __future__ import annotations

from statistics import fmean

import torch

from ..candidates import Arrivals
from ..filters import smooth
from ..preprocessing import unevenness

THIN = 5.0  # pixels from contour to middle, up to which a label is not smoothed
SMOOTHING = 0.15  # pixels, standard deviation of the Gaussian, per pixel that a label is deeper than that
REACH = 6.0  # pixels from the contour within which scores are smoothed


def even_out(score: torch.Tensor, arrivals: Arrivals) -> torch.Tensor:
    """`score` (T, h, w) of a label, smoothed if its outline is less even than where the label was drawn."""
    drawn = arrivals.present
    depth = fmean(candidate.depth for candidate in drawn)
    if depth <= THIN or unevenness(score > 0) <= fmean(candidate.unevenness for candidate in drawn):
        return score
    near = score.clamp(-REACH, REACH)
    return score + smooth(near, SMOOTHING * (depth - THIN)) - near
