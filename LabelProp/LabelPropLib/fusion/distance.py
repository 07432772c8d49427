"""Distance weights: the nearer annotated plane counts more."""

from __future__ import annotations

import torch

from ..candidates import Arrivals
from ..ends import round_off


def fuse(arrivals: Arrivals) -> torch.Tensor:
    """Score (T, h, w): the signed distances of both sides pooled with weights linear in the distance.

    For errors that accumulate independently from slice to slice, variance k s^2 from one side and (N - k) s^2 from the
    other, the weights (N - k) / N and k / N have the least variance. Pooling distances moves the contour between the
    two; pooling masks could only choose one of them. A label that only one side bears is rounded off (see `ends`).
    """
    way = arrivals.gap.positions.to(arrivals.crossing.targets.device)[:, None, None]
    if arrivals.lower is None:
        return round_off(arrivals.upper.distances, arrivals.upper.depth, 1 - way)
    if arrivals.upper is None:
        return round_off(arrivals.lower.distances, arrivals.lower.depth, way)
    return pool(arrivals.lower.distances, arrivals.upper.distances, way)


def pool(lower: torch.Tensor, upper: torch.Tensor, way: torch.Tensor) -> torch.Tensor:
    """Weighted mean of two signed distances (T, h, w), `way` the weight of the upper one."""
    return (1 - way) * lower + way * upper
