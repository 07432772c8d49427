"""Which rule for which label: decided by hiding annotated slices, one at a time, and finding them from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..candidates import Arrivals

FEWEST_SLICES = 2  # hidden ones; a single one, over twice the usual gap, misleads as often as it helps

Rule = Callable[[Arrivals], torch.Tensor]


@dataclass
class LeftOut:
    """What a rule made of hidden slices: overlapping and total pixels, for the Dice of all of them together.

    found: what had arrived on each, and the rule's score (1, h, w) of it.
    """

    overlap: float = 0.0
    total: float = 0.0
    slices: int = 0
    found: list[tuple[Arrivals, torch.Tensor]] = field(default_factory=list)

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

    def may_be_beaten(self, margin: float) -> bool:
        """Whether `choose` could prefer a rule after this one."""
        return self.slices >= FEWEST_SLICES and self.dice < 1 - margin


def on_plane(score: torch.Tensor, box: tuple[slice, slice], size: tuple[int, int]) -> torch.Tensor:
    """(H, W) plane of `size` with a score (h, w) in its box, and without the label outside of it."""
    plane = score.new_full(size, -1.0)
    plane[box] = score
    return plane


def choose(left_out: Mapping[str, LeftOut], margin: float) -> str:
    """The first rule that comes within `margin` of the best Dice on hidden slices.

    left_out: rule -> result, the preferred one first. Without FEWEST_SLICES hidden slices to judge by, that one.
    """
    if any(result.slices < FEWEST_SLICES for result in left_out.values()):
        return next(iter(left_out))
    best = max(result.dice for result in left_out.values())
    return next(rule for rule, result in left_out.items() if result.dice >= best - margin)
