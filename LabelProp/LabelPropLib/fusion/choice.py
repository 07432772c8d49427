"""Which rule for which label: decided by hiding annotated slices, one at a time, and finding them from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..candidates import Arrivals

Rule = Callable[[Arrivals], torch.Tensor]


@dataclass
class LeftOut:
    """What a rule made of hidden slices: overlapping and total pixels, for the Dice of all of them together."""

    overlap: float = 0.0
    total: float = 0.0
    slices: int = 0

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|); 1 where both are empty."""
        return 2 * self.overlap / self.total if self.total else 1.0

    def add(self, score: torch.Tensor, drawn: torch.Tensor):
        """Count a hidden slice: score (h, w) of the rule, drawn (h, w) signed distance of what is there."""
        found, there = score > 0, drawn > 0
        self.overlap += float((found & there).sum())
        self.total += float(found.sum() + there.sum())
        self.slices += 1


def choose(left_out: Mapping[str, LeftOut], simplest_first: list[str], default: str, margin: float) -> str:
    """The rule with the best Dice on hidden slices; the simplest of those that come within `margin` of it.

    Without a hidden slice to judge by, the default.
    """
    if not any(result.slices for result in left_out.values()):
        return default
    best = max(result.dice for result in left_out.values())
    return next(rule for rule in simplest_first if left_out[rule].dice >= best - margin)
