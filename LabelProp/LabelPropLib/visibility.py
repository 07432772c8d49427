"""How plainly a slice shows the contour that was found on it.

A contour that lies on an edge of the image is likely right; one that crosses even ground was carried there, and nothing
on the slice confirms it.
"""

from __future__ import annotations

import torch

from .filters import NOISE_WINDOW, smooth

CONTOUR = 1.0  # pixels from the contour that count as on it
STEEPEST = 3.0  # highest score next to a contour: some rules are steeper than a distance
NEIGHBOURHOOD = 6.0  # pixels from the contour within which intensities are taken to vary
RIM = 3.0  # pixels inside the contour and outside it whose intensities are compared
LEAST_DEVIATION = 1e-3  # of normalised intensities, see `preprocessing`


def sharpness(score: torch.Tensor, slices: torch.Tensor) -> torch.Tensor:
    """(T, C) mean change of intensity across the contour, per pixel, in standard deviations of what is around it.

    score: (T, h, w), like a signed distance in pixels, positive inside; slices: (T, C, h, w).
    """
    down, along = slopes(score)
    steepness = torch.hypot(down, along).clamp(min=1e-6)
    change_down, change_along = slopes(smooth(slices, NOISE_WINDOW))
    edge = (change_down * (down / steepness)[:, None] + change_along * (along / steepness)[:, None]).abs()
    depth = score.abs()
    nearest = depth.amin(dim=(1, 2), keepdim=True).clamp(max=STEEPEST)
    on_contour = depth < (nearest + CONTOUR / 2).clamp(min=CONTOUR)  # where the score is steep, no pixel may be within
    return mean(edge, on_contour) / deviation(slices, depth < NEIGHBOURHOOD)


def slopes(values: torch.Tensor) -> list[torch.Tensor]:
    """Change per pixel of values (..., h, w) along rows and along columns; 0 along an axis of a single pixel."""
    return [
        torch.gradient(values, dim=axis)[0] if values.shape[axis] > 1 else torch.zeros_like(values) for axis in (-2, -1)
    ]


def contrast(score: torch.Tensor, slices: torch.Tensor) -> torch.Tensor:
    """(T, C) difference of the rims on both sides of the contour, in standard deviations of both; 0 where one is empty.

    2 for a clean edge between rims of one size, more the more their sizes differ. score, slices: see `sharpness`.
    """
    inner, outer = (score > 0) & (score < RIM), (score < 0) & (score > -RIM)
    both = (inner.flatten(1).any(dim=1) & outer.flatten(1).any(dim=1))[:, None]
    return both * (mean(slices, inner) - mean(slices, outer)).abs() / deviation(slices, inner | outer)


def mean(values: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """(T, C) of values (T, C, h, w) over a region (T, h, w); 0 where it is empty."""
    region = region[:, None].to(values)
    return (values * region).sum(dim=(2, 3)) / region.sum(dim=(2, 3)).clamp(min=1)


def deviation(values: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """(T, C) standard deviation of values (T, C, h, w) over a region (T, h, w), never quite zero."""
    variance = mean(values**2, region) - mean(values, region) ** 2
    return variance.clamp(min=LEAST_DEVIATION**2).sqrt()
