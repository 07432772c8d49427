"""Fields on a batch of planes: warp, compose, integrate, Jacobian.

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
    height, width = planes.shape[-2:]
    normalised = coordinates * _scale(height, width, coordinates.device) - 1
    columns_and_rows = normalised.flip(1).permute(0, 2, 3, 1)
    return F.grid_sample(planes, columns_and_rows, mode="bilinear", padding_mode="border", align_corners=True)


@lru_cache(maxsize=16)
def _scale(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(1, 2, 1, 1), from pixels to twice the extent of a grid."""
    return torch.tensor([2 / max(n - 1, 1) for n in (height, width)], device=device)[None, :, None, None]


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
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement


def resize(field: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`field` (N, 2, h, w) on a grid of another size over the same extent, its pixels rescaled with it."""
    if tuple(field.shape[-2:]) == tuple(size):
        return field
    ratio = [(new - 1) / max(old - 1, 1) for new, old in zip(size, field.shape[-2:], strict=True)]
    resized = F.interpolate(field, size=size, mode="bilinear", align_corners=True)
    return resized * resized.new_tensor(ratio).view(1, 2, 1, 1)


def jacobian_determinant(displacement: torch.Tensor) -> torch.Tensor:
    """Determinant (N, H - 1, W - 1) of d(x + u(x))/dx by forward differences; not positive where the field folds."""
    along_rows = (displacement[:, :, 1:, :] - displacement[:, :, :-1, :])[..., :-1]
    along_columns = (displacement[:, :, :, 1:] - displacement[:, :, :, :-1])[:, :, :-1]
    return (1 + along_rows[:, 0]) * (1 + along_columns[:, 1]) - along_rows[:, 1] * along_columns[:, 0]
