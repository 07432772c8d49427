"""From the weights of atlases to a score: the signed distances of those that bear the label are pooled, and rounded off
by the weight of those that do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..candidates import Atlas
from ..ends import round_off

ROUNDING = 1e-6  # by which weights that sum to one may miss it


def pool(atlases: Sequence[Atlas], weights: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    """Score (T, h, w) of `atlases`, at least one of which bears the label; at P pixels `where` (T, h, w) alone, (P,).

    weights: (N, T, h, w) or, constant over the planes, (N, T, 1, 1), and (N, P) at the pixels `where`. What they lack
    to one speaks for absence, as do the weights of atlases without the label. Pooling distances moves the contour
    between those of the atlases; pooling masks could only choose one of them.
    """
    bearing = [index for index, atlas in enumerate(atlases) if atlas.distances is not None]
    total = weights[bearing].sum(dim=0)
    total = torch.where((total - 1).abs() < ROUNDING, 1.0, total)
    shares = weights[bearing] / total.clamp(min=ROUNDING)
    there = ... if where is None else where
    distances = sum(share * atlases[index].distances[there] for share, index in zip(shares, bearing))
    depth = sum(share * atlases[index].depth for share, index in zip(shares, bearing))
    return round_off(distances, depth, 1 - total)


def same_source(atlases: Sequence[Atlas]) -> torch.Tensor:
    """(N, N) bool: whether two atlases stem from the same source."""
    return torch.tensor([[first.source == second.source for second in atlases] for first in atlases])


def copies(atlases: Sequence[Atlas]) -> list[int]:
    """How many atlases stem from the source of each: they share its weight."""
    return same_source(atlases).sum(dim=1).tolist()
