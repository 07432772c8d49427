"""Where a label ends that only one of two neighbouring annotated planes bears.

The rule without an image: anatomy ends rounded off, and beyond the middle more often than before it. The carried
shape keeps its size first and closes faster and faster, along a superellipse.
"""

from __future__ import annotations

import torch

EXTENT = 0.65  # of the gap, where the shape has closed
EXPONENT = 4.0


def round_off(distances: torch.Tensor, depth: float, way: torch.Tensor) -> torch.Tensor:
    """Signed distances of a carried shape that closes on its way to a plane without it.

    distances: (T, h, w) pixels, positive XX

    The contour moves inwards by depth * (1 - (1 - q^n)^(1/n)), q = way / EXTENT; once closed, further by the way.
    """
    q = way / EXTENT
    remaining = (1 - q.clamp(max=1) ** EXPONENT) ** (1 / EXPONENT)
    shrunk = depth * (1 - remaining) + 2 * depth * (q - 1).clamp(min=0)
    return distances - shrunk
