"""Similarity weights: the side whose carried image looks more like the slice counts more, pixel by pixel."""

from __future__ import annotations

import torch

from ..candidates import Arrivals
from ..ends import round_off
from ..preprocessing import smooth
from .distance import pool

WINDOW = 3.0  # pixels, standard deviation of the Gaussian window in which images are compared
SHARPNESS = 4.0


def fuse(arrivals: Arrivals) -> torch.Tensor:
    """Score (T, h, w): distance weights times the local similarity of the carried image to the slice.

    w_s ~ d_s exp(-b D_s / mean(D)), d the distance weight, D the mean absolute difference of carried image and slice in a
    Gaussian window: spatially varying weighted voting (Artaechevarria et al., IEEE TMI 2009) on signed distances. A label
    that only one side bears ends where the other side begins to look more like the slice.
    """
    way = similarity_way(arrivals)
    if arrivals.lower is None:
        return round_off(arrivals.upper.distances, arrivals.upper.depth, 1 - way)
    if arrivals.upper is None:
        return round_off(arrivals.lower.distances, arrivals.lower.depth, way)
    return pool(arrivals.lower.distances, arrivals.upper.distances, way)


def similarity_way(arrivals: Arrivals) -> torch.Tensor:
    """(T, h, w) weight of the upper side: the way from lower to upper plane, moved towards the more similar one."""
    crossing = arrivals.crossing
    way = arrivals.gap.positions.to(crossing.targets.device)[:, None, None]
    if crossing.lower is None or crossing.upper is None:
        return way.expand(-1, *crossing.targets[:, arrivals.box[0], arrivals.box[1]].shape[1:])
    lower, upper = (
        smooth((carried.images - crossing.targets).abs()[:, arrivals.box[0], arrivals.box[1]], WINDOW)
        for carried in (crossing.lower, crossing.upper)
    )
    scale = SHARPNESS / (lower + upper).mean(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    log_odds = torch.log(way / (1 - way)) + scale * (lower - upper)
    return torch.sigmoid(log_odds)
