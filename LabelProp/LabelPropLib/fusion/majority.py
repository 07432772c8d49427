"""Majority voting: every source has one vote, near or far, alike or not. The least that other rules have to beat."""

from __future__ import annotations

import torch

from ..candidates import Arrivals
from . import distance
from .pooling import copies, pool


def fuse(arrivals: Arrivals) -> torch.Tensor:
    """Score (T, h, w): mean of the signed distances of all sources (Rohlfing et al., NeuroImage 2004, on distances).

    Atlases of one source share its vote. Beyond the outermost annotated planes there is one source, and nothing to
    vote on: there the distance rule stands.
    """
    if arrivals.gap.lower is None or arrivals.gap.upper is None:
        return distance.fuse(arrivals)
    votes = 1 / torch.tensor(copies(arrivals.atlases)).to(arrivals.crossing.targets)
    return pool(arrivals.atlases, (votes / votes.sum())[:, None, None, None])
