"""Similarity weights: the side whose carried image looks more like the slice counts more, pixel by pixel."""

from __future__ import annotations

import torch

from ..candidates import Arrivals
from .distance import distance_way, pool

SHARPNESS = 6.0
END_SHARPNESS = 2.0  # of a label that only one side bears: a wrong end costs more than a contour drawn from both sides
PRESENCE = (0.3, 0.7)  # log-odds, per log-odds of the intensities in such a label, and per likeness of what is in it


def fuse(arrivals: Arrivals) -> torch.Tensor:
    """Score (T, h, w): signed distances pooled with distance weights times local similarity.

    Weights w_s ~ d_s exp(-b D_s / mean(D_lower + D_upper)), d the distance weight, D the absolute difference of carried
    image and slice in a Gaussian window, the mean that over the label's box on the slice: spatially varying weighted
    voting (Artaechevarria et al., IEEE TMI 2009) on signed distances. Channels count as far as they can be trusted. A
    label that only one side bears ends, pixel by pixel, where the slice begins to look more like the other side; its
    growth (see `ends`) and what the slice shows in it as a whole (see `presence`) say how soon that is to be believed.
    """
    return pool(arrivals, similarity_way(arrivals))


def similarity_way(arrivals: Arrivals, vote: torch.Tensor | float = 0.0) -> torch.Tensor:
    """(T, h, w) weight of the upper side: the way from lower to upper plane, moved towards the more similar one.

    vote: what else speaks for the upper side, in log-odds.
    """
    crossing = arrivals.crossing
    way = distance_way(arrivals)
    if crossing.differences is None:
        return way
    rows, columns = arrivals.box
    lower, upper = crossing.differences[..., rows, columns]
    sharpness = SHARPNESS if arrivals.lower and arrivals.upper else END_SHARPNESS
    scale = sharpness / (lower + upper).mean(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return torch.sigmoid(torch.logit(way) + scale * (lower - upper) + vote + _persistence(arrivals))


def _persistence(arrivals: Arrivals) -> torch.Tensor | float:
    """(T, 1, 1) what speaks for the upper side if only one bears the label, log-odds: its growth, and its presence."""
    if arrivals.growth is None:
        return 0.0
    odds, likeness = arrivals.presence.unbind(dim=1)
    per_odds, per_likeness = PRESENCE
    persistence = arrivals.growth.persistence + (per_odds * odds + per_likeness * likeness)[:, None, None]
    return persistence if arrivals.lower is None else -persistence
