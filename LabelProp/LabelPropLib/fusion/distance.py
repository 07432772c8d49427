"""Distance weights: the nearer annotated plane counts more."""

from __future__ import annotations

import torch

from ..candidates import Arrivals, Candidate, Carried
from ..ends import round_off, way_to_dissimilarity


def fuse(arrivals: Arrivals) -> torch.Tensor:
    """Score (T, h, w): the signed distances of both sides pooled with weights linear in the distance.

    For errors that accumulate independently from slice to slice, variance k s^2 from one side and (N - k) s^2 from the
    other, the weights (N - k) / N and k / N have the least variance. Pooling distances moves the contour between the
    two; pooling masks could only choose one of them. A label that only one side bears is rounded off (see `ends`).
    """
    return pool(arrivals, distance_way(arrivals))


def pool(arrivals: Arrivals, way: torch.Tensor) -> torch.Tensor:
    """Score (T, h, w): mean of the signed distances, or the only one rounded off; `way` is the upper side's weight."""
    lower, upper = arrivals.lower, arrivals.upper
    if lower is None:
        return round_off(upper.distances, upper.depth, 1 - way)
    if upper is None:
        return round_off(lower.distances, lower.depth, way)
    return (1 - way) * lower.distances + way * upper.distances


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
