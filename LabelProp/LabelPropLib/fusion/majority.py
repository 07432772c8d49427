"""Every source counts alike, near or far, like the slice or not: majority voting on signed distances.

The least that other rules have to beat.
"""

from __future__ import annotations

import torch

from ..candidates import Arrivals
from . import distance
from .pooling import copies, pool


def fuse(arrivals: Arrivals) -> torch.Tensor:
    """Score (T, h, w): mean of the signed distances of all sources.

    Shape-based averaging (Rohlfing & Maurer, IEEE TIP 2007): a source far from its contour counts more than one near
    it, so a pixel may go to the label that fewer sources give it.

    Atlases of one source share its weight. Beyond the outermost annotated planes there is one source, and nothing to
    average: there the distance rule stands.
    """
    if arrivals.gap.lower is None or arrivals.gap.upper is None:
        return distance.fuse(arrivals)
    shares = 1 / torch.tensor(copies(arrivals.atlases)).to(arrivals.crossing.targets)
    return pool(arrivals.atlases, (shares / shares.sum())[:, None, None, None])
