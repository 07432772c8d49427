"""Distance weights: the nearer annotated plane counts more."""

from __future__ import annotations

import torch

from ..candidates import Arrivals, Candidate, Carried
from ..ends import way_to_dissimilarity
from . import pooling


def fuse(arrivals: Arrivals) -> torch.Tensor:
    """Score (T, h, w): the signed distances of both sides pooled with weights linear in the distance.

    For errors that accumulate independently from slice to slice, variance k s^2 from one side and (N - k) s^2 from the
    other, the weights (N - k) / N and k / N have the least variance. Pooling distances moves the contour between the
    two; pooling masks could only choose one of them. A label that only one side bears is rounded off (see `ends`).
    """
    return pool(arrivals, distance_way(arrivals))


def pool(arrivals: Arrivals, way: torch.Tensor) -> torch.Tensor:
    """Score (T, h, w) of the nearest planes alone; `way`: weight of the upper side, (T, h, w) or (T, 1, 1)."""
    weight = {arrivals.gap.lower: 1 - way, arrivals.gap.upper: way}
    sides = [weight[atlas.source] / copies for atlas, copies in zip(arrivals.nearest, pooling.copies(arrivals.nearest))]
    return pooling.pool(arrivals.nearest, torch.stack(sides))


def distance_way(arrivals: Arrivals) -> torch.Tensor:
    """(T, 1, 1) weight of the upper side: the way from the lower (0) to the upper (1) plane.

    Beyond the last annotated plane: the way to where the carried image stops being like the slices.
    """
    gap, targets = arrivals.gap, arrivals.crossing.targets
    if gap.upper is None:
        way = _way_outwards(arrivals.lower, arrivals.crossing.lower, arrivals, range(len(targets)))
    elif gap.lower is None:
        way = 1 - _way_outwards(arrivals.upper, arrivals.crossing.upper, arrivals, range(len(targets))[::-1])
    else:
        way = torch.tensor([(target - gap.lower) / (gap.upper - gap.lower) for target in gap.targets])
    return way.to(targets)[:, None, None]


def _way_outwards(candidate: Candidate, carried: Carried, arrivals: Arrivals, outwards: range) -> torch.Tensor:
    rows, columns = arrivals.box
    order = list(outwards)
    way = way_to_dissimilarity(
        candidate.distances[order],
        carried.images[order][:, rows, columns],
        arrivals.crossing.targets[order][:, rows, columns],
    )
    return way[order]
