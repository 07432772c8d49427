"""Consistency across gaps: what is carried from one annotated plane to the next is compared with what is there.

The idea of LabelProp (Decaux et al., Pattern Recognition 2023): between two annotated planes the true displacement is
seen twice, by the labels and by the images at its far end, so drift that no neighbouring pair shows can be corrected.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

import torch
import torch.nn.functional as F

from .fields import compose, integrate, resize, warp
from .similarity import robust_difference, soft_dice_loss


@dataclass(frozen=True)
class FarEnds:
    """The two annotated planes of every gap, both ways: what is carried (moving) and what is there (fixed).

    moving, fixed: (G,) plane indices, each gap twice, once in each direction. labels_moving, labels_fixed:
    (G, L, h, w) soft masks of the labels on those planes, all zero for a label that is not on both.
    """

    moving: tuple[int, ...]
    fixed: tuple[int, ...]
    labels_moving: torch.Tensor
    labels_fixed: torch.Tensor

    @property
    def gaps(self) -> set[tuple[int, int]]:
        """(Lower, upper) plane of each."""
        return {tuple(sorted(bounds)) for bounds in zip(self.moving, self.fixed, strict=True)}

    @cached_property
    def hops(self) -> torch.Tensor:
        """(G,) pairs of neighbouring planes in each gap."""
        return (torch.tensor(self.moving) - torch.tensor(self.fixed)).abs().to(self.labels_moving.device)

    def of(self, gaps: Collection[tuple[int, int]], origin: int) -> FarEnds:
        """Some of the gaps, their indices counted from the plane `origin`."""
        bounds = zip(self.moving, self.fixed, strict=True)
        chosen = [number for number, ends in enumerate(bounds) if tuple(sorted(ends)) in gaps]
        part = slice(None) if len(chosen) == len(self.moving) else chosen  # all of them without a copy
        return FarEnds(
            tuple(self.moving[number] - origin for number in chosen),
            tuple(self.fixed[number] - origin for number in chosen),
            self.labels_moving[part],
            self.labels_fixed[part],
        )


def within(ends: FarEnds, planes: range, origin: int = 0) -> FarEnds | None:
    """The gaps that lie within `planes`, their indices counted from the plane `origin`; None where there are none."""
    gaps = {(lower, upper) for lower, upper in ends.gaps if lower in planes and upper in planes}
    return ends.of(gaps, origin) if gaps else None


def on_grid(ends: FarEnds | None, size: tuple[int, int]) -> FarEnds | None:
    """`ends` with label masks averaged onto a coarser grid (h, w): the label term costs as much as they have pixels."""
    if ends is None:
        return None
    moving, fixed = (averaged(masks, size) for masks in (ends.labels_moving, ends.labels_fixed))
    return replace(ends, labels_moving=moving, labels_fixed=fixed)


def averaged(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`masks` (N, L, H, W) on a coarser grid of `size`; as they are if they have it."""
    if masks.shape[-2:] == size:
        return masks
    # On the CPU: Apple's GPU does it for sizes that divide each other only.
    return F.interpolate(masks.cpu(), size=size, mode="area").to(masks.device)


def far_displacements(velocity: torch.Tensor, ends: FarEnds, squarings: int) -> torch.Tensor:
    """Composed displacements (G, 2, h, w) from the points of every fixed plane to its moving plane, by all in between.

    velocity: (Z - 1, 2, h, w), see `registration`. Shorter gaps wait, unmoved, for the longest.
    """
    to_lower, to_upper = (integrate(field, squarings).unbind() for field in (velocity, -velocity))
    still = torch.zeros_like(to_lower[0])
    paths = [
        [to_lower[k] for k in range(fixed - 1, moving - 1, -1)]
        if moving < fixed
        else [to_upper[k] for k in range(fixed, moving)]
        for moving, fixed in zip(ends.moving, ends.fixed, strict=True)
    ]
    hops = (torch.stack(hop) for hop in zip_longest(*paths, fillvalue=still))
    displacement = next(hops)
    for following in hops:
        displacement = compose(displacement, following)
    return displacement


def label_consistency(displacement: torch.Tensor, ends: FarEnds) -> torch.Tensor:
    """Soft Dice loss (G,) between the labels carried across each gap and those drawn at its far end."""
    displacement = resize(displacement, ends.labels_moving.shape[-2:])
    return soft_dice_loss(warp(ends.labels_moving, displacement), ends.labels_fixed)


def image_consistency(displacement: torch.Tensor, ends: FarEnds, planes: torch.Tensor) -> torch.Tensor:
    """Robust difference (G,) between the image carried across each gap and the image at its far end.

    planes: (Z, C, H, W).
    """
    carried = warp(planes[list(ends.moving)], resize(displacement, planes.shape[-2:]))
    return robust_difference(carried, planes[list(ends.fixed)])
