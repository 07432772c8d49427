"""Where a label ends that only one of two neighbouring annotated planes bears, or that is carried beyond the last one.

Anatomy ends rounded off: the carried shape keeps its size first and closes faster and faster, along a superellipse.
Between two annotated planes it closes at a fixed way from the one that bears it to the one that does not; the fusion
rules may move that way by what the images say. Beyond the last one it closes where the carried image stops being
like the slices.

How a label came to the plane that bears it tells how far it goes on: one that was there before goes less far than one
of which that plane is the first there is, and one that grows goes further than one that shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .annotation import SparseAnnotation
from .filters import masked_correlation

EXTENT = 0.65  # share of the gap after which the shape has closed
EXPONENT = 4.0
FURTHEST = 0.999  # largest way: at 1 the shape would have no weight left, and there would be none to close
AROUND = 5.0  # pixels outside the label that count as around it
MOST_TREND = (-1.5, 2.3)  # lowest and highest trend; the highest is that of a label absent on the plane before
PERSISTENCE_OF_FIRST = 1.0  # log-odds, of a label with no known plane before
PERSISTENCE = (-0.4, 0.3)  # log-odds, of a label that does not grow, and per trend


@dataclass(frozen=True)
class Growth:
    """How a label came to the only one of the two planes around a gap that bears it.

    trend: log ratio of its area there to that on the known plane before it, seen from the gap, damped so that it is
    finite for a label that was absent before. known_before: whether there is such a plane; without, the trend is 0.
    """

    trend: float
    known_before: bool

    @classmethod
    def of(cls, annotation: SparseAnnotation, label: int, plane: int, upwards: bool) -> Growth:
        """The growth of a label up to a plane of the volume. upwards: whether the gap lies above it."""
        known = annotation.known_planes(label)
        before = [other for other in known if (other < plane if upwards else other > plane)]
        if not before:
            return cls(0.0, False)
        here = annotation.complete[label][plane].sum()
        drawn = annotation.complete[label].get(max(before) if upwards else min(before))
        there = 0 if drawn is None else drawn.sum()
        return cls(float(np.clip(np.log((here + 1) / (there + 0.1 * here + 1)), *MOST_TREND)), True)

    @property
    def persistence(self) -> float:
        """Log-odds that the label goes on, to be added to what the images say of it on each plane of the gap."""
        still, per_trend = PERSISTENCE
        return still + per_trend * self.trend if self.known_before else PERSISTENCE_OF_FIRST


def depth_left(way):
    """Share of its depth that a shape keeps where it has gone `way` of the way on which it closes: (1 - q^n)^(1/n).

    A superellipse; array or tensor, 0 from a way of 1 on.
    """
    return (1 - way.clip(max=1) ** EXPONENT) ** (1 / EXPONENT)


def round_off(distances: torch.Tensor, depth: float, way: torch.Tensor) -> torch.Tensor:
    """Signed distances of a carried shape that closes on its way to a plane without it.

    distances: (T, h, w) pixels, positive inside.

    The contour moves inwards by depth * (1 - (1 - q^n)^(1/n)), q = way / EXTENT; once closed, further by the way.
    """
    q = way / EXTENT
    shrunk = depth * (1 - depth_left(q)) + 2 * depth * (q - 1).clamp(min=0)
    return distances - shrunk


def way_to_dissimilarity(distances: torch.Tensor, carried: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(T,) way for `round_off` of a label carried beyond the last annotated plane, nearest plane first.

    distances: (T, h, w) pixels; carried, targets: (T, h, w), the carried image and the slices. The shape closes at the
    first slice whose correlation with the carried image, in and around the label, is below half that of the first one.
    """
    correlation = masked_correlation(carried[:, None], targets[:, None], distances > -AROUND)[:, 0]
    unlike = torch.nonzero(correlation < correlation[0] / 2).flatten()
    length = float(unlike[0]) + 1 if len(unlike) else len(correlation) + 1
    return (EXTENT * torch.arange(1, len(correlation) + 1).to(correlation) / length).clamp(max=FURTHEST)
