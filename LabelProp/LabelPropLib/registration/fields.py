"""Fields on a batch of planes: sample, warp, compose, integrate, resize.

Conventions. A plane is (H, W). A displacement or velocity field is (N, 2, H, W) in pixels of its own grid, channel 0
along H (rows) and channel 1 along W (columns). A displacement u maps the point x of the fixed plane to x + u(x) in the
moving plane, so `warp(moving, u)` looks like the fixed plane. Samples beyond the border take the border's value.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F


@lru_cache(maxsize=16)
def identity(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Pixel coordinates (1, 2, H, W) of a grid, float32; the same tensor each time, which is not to be changed."""
    rows = torch.arange(height, dtype=torch.float32, device=device)
    columns = torch.arange(width, dtype=torch.float32, device=device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


def sample(planes: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Values of `planes` (N, C, H, W) at `coordinates` (N, 2, h, w) in pixels, bilinear, as (N, C, h, w)."""
    return _at(planes, _to_half_extents(coordinates, planes.shape[-2:]) - 1)


def warp(moving: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """`moving` (N, C, H, W) seen from the fixed plane: moving(x + u(x))."""
    return sample(moving, identity(*displacement.shape[-2:], device=displacement.device) + displacement)


def compose(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Displacement of x -> first(x), then second: u(x) = u1(x) + u2(x + u1(x)), each (N, 2, H, W)."""
    return first + warp(second, first)


def integrate(velocity: torch.Tensor, squarings: int) -> torch.Tensor:
    """Displacement exp(v) of a stationary velocity field by scaling and squaring (Arsigny et al., MICCAI 2006).

    exp(v) = (exp(v / 2^n))^(2^n), the innermost exponential approximated by its first order, x + v / 2^n.
    exp(-v) is its inverse.
    """
    size = velocity.shape[-2:]
    return _to_pixels(_integrate(_to_half_extents(velocity, size), squarings), size)


def warp_along(moving: torch.Tensor, velocity: torch.Tensor, squarings: int) -> torch.Tensor:
    """`moving` (N, C, H, W) seen from the fixed plane, exp(v) away: warp(moving, resize(integrate(v), (H, W))).

    velocity: (N, 2, h, w) in pixels of its own grid, of any size over the same extent. In half extents a displacement
    is the same on both grids: a third less to compute than with pixels, forwards and backwards.
    """
    displacement = _integrate(_to_half_extents(velocity, velocity.shape[-2:]), squarings)
    if displacement.shape[-2:] != moving.shape[-2:]:
        displacement = F.interpolate(displacement, size=moving.shape[-2:], mode="bilinear", align_corners=True)
    return _warp(moving, displacement)


def _integrate(velocity: torch.Tensor, squarings: int) -> torch.Tensor:
    """`integrate` in half extents."""
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = displacement + _warp(displacement, displacement)
    return displacement


def _warp(moving: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """`warp` by a displacement in half extents, as F.grid_sample wants them: channel 0 along columns, 1 along rows."""
    points = _identity_in_half_extents(*displacement.shape[-2:], displacement.device) + displacement
    return _at(moving, points)


def _at(planes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """`sample` at points (N, 2, h, w) in half extents from the middle, columns first."""
    points = points.permute(0, 2, 3, 1)
    return F.grid_sample(planes, points, mode="bilinear", padding_mode="border", align_corners=True)


@lru_cache(maxsize=16)
def _identity_in_half_extents(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(1, 2, H, W), columns first, -1 to 1; the same tensor each time, which is not to be changed."""
    rows, columns = (torch.linspace(-1, 1, n, device=device) for n in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1])[None]


@lru_cache(maxsize=16)
def _half_extents(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(1, 2, 1, 1) half extents that a pixel of a grid is, along rows and along columns."""
    return torch.tensor([2 / max(n - 1, 1) for n in (height, width)], device=device)[None, :, None, None]


def _to_half_extents(field: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A field in pixels of a grid of `size`, channel 0 along rows, in half extents of it, channel 0 along columns."""
    return (field * _half_extents(*size, field.device)).flip(1)


def _to_pixels(field: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The inverse of `_to_half_extents`."""
    return field.flip(1) / _half_extents(*size, field.device)


def resize(field: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`field` (N, 2, h, w) on a grid of another size over the same extent, its pixels rescaled with it."""
    if tuple(field.shape[-2:]) == tuple(size):
        return field
    ratio = [(new - 1) / max(old - 1, 1) for new, old in zip(size, field.shape[-2:], strict=True)]
    resized = F.interpolate(field, size=size, mode="bilinear", align_corners=True)
    return resized * resized.new_tensor(ratio).view(1, 2, 1, 1)
