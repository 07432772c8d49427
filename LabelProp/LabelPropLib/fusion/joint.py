"""Joint label fusion: atlases that are likely to err together share their weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..candidates import CONTRAST, Arrivals, Atlas, Crossing
from ..filters import local_contrast_normalise
from . import distance
from .pooling import pool, same_source

BAND = 2.0  # pixels around the contours of the atlases in which weights matter
RIDGE = 1e-4  # of the mean of M's diagonal, so that duplicates do not make M singular
BATCH = 2**14  # pixels whose patches are held at once


@dataclass(frozen=True)
class Parameters:
    """Parameters of joint label fusion, in the notation of its paper.

    alpha: error of a source that images do not show, relative to the mean of M's diagonal; with large values weights
    go with 1 / hops alone. beta: exponent of the expected joint errors; large values make weights sharp. patch_radius:
    of the patches in which atlases are compared with the slice, pixels.
    """

    alpha: float = 0.3
    beta: float = 1.0
    patch_radius: int = 3


def fuse(arrivals: Arrivals, parameters: Parameters = Parameters()) -> torch.Tensor:
    """Score (T, h, w): signed distances pooled with the weights of joint label fusion (Wang et al., IEEE TPAMI 2013).

    Weights are found where the atlases disagree or are near a contour; elsewhere, and beyond the outermost annotated
    planes, the distance rule stands.
    """
    score = distance.fuse(arrivals)
    if arrivals.gap.lower is None or arrivals.gap.upper is None:
        return score
    band = disagreement(arrivals.atlases)
    if band.any():
        crossing, (rows, columns) = arrivals.crossing, arrivals.box
        target = features(crossing.channels[..., rows, columns], crossing)
        shares = joint_weights(arrivals.atlases, target, crossing, torch.nonzero(band), parameters)
        score[band] = pool(arrivals.atlases, shares.to(score), band)
    return score


def features(channels: torch.Tensor, crossing: Crossing) -> torch.Tensor:
    """(T, 2 C, h, w) what is compared: intensities and local contrast, each channel as far as it can be trusted."""
    trust = crossing.weights[:, None, None]
    return torch.cat([trust * channels, CONTRAST * trust * local_contrast_normalise(channels)], dim=1)


def disagreement(atlases: Sequence[Atlas]) -> torch.Tensor:
    """(T, h, w) bool: where atlases differ on whether the label is there, or the contour of one is within BAND."""
    distances = torch.stack([atlas.distances for atlas in atlases if atlas.distances is not None])
    inside = distances > 0
    unanimous = inside.all(dim=0) & (len(distances) == len(atlases))
    return (inside.any(dim=0) & ~unanimous) | (distances.abs() < BAND).any(dim=0)


def joint_weights(
    atlases: Sequence[Atlas], target: torch.Tensor, crossing: Crossing, pixels: torch.Tensor, parameters: Parameters
) -> torch.Tensor:
    """(N, P) float64 weights of the atlases at pixels (P, 3) (plane, row, column); they sum to one."""
    residuals = [(features(atlas.channels, crossing) - target).abs() for atlas in atlases]
    errors = joint_errors(torch.stack(residuals, dim=1), pixels, parameters)
    hops = torch.stack([atlas.hops for atlas in atlases], dim=1).to(pixels.device)[pixels[:, 0]]
    return weights(with_prior(errors, hops, same_source(atlases).to(pixels.device), parameters)).T


def joint_errors(residuals: torch.Tensor, pixels: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """(P, N, N) (mean over a patch of |A_i - T| |A_j - T| / s)^beta, s the mean of the diagonal's over all pixels.

    residuals: (T, N, C, h, w) of N atlases; pixels: (P, 3) plane, row and column of the patches' centres.
    """
    radius = parameters.patch_radius
    size = 2 * radius + 1
    padded = F.pad(residuals.flatten(0, 1), (radius,) * 4, mode="replicate").unflatten(0, residuals.shape[:2])
    windows = padded.unfold(-2, size, 1).unfold(-2, size, 1)  # (T, N, C, h, w, size, size)
    products = []
    for planes, rows, columns in (part.unbind(dim=1) for part in pixels.split(BATCH)):
        patches = windows[planes, :, :, rows, columns].flatten(2)
        products.append(patches @ patches.transpose(1, 2) / patches.shape[2])
    errors = torch.cat(products)
    scale = errors.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-12)
    return (errors / scale) ** parameters.beta


def with_prior(
    errors: torch.Tensor, hops: torch.Tensor, same_source: torch.Tensor, parameters: Parameters
) -> torch.Tensor:
    """(P, N, N) float64: M_ij = (errors_ij + alpha [i and j of one source]) sqrt(hops_i hops_j), with a small ridge.

    The error of a chain grows with its hops, all else being equal: two atlases that look like the slice get the
    distance rule's weights. hops: (P, N); same_source: (N, N) bool, so that duplicates get no more weight than one of
    them would.
    """
    if errors.device.type == "mps":  # which has no float64
        errors, hops, same_source = errors.cpu(), hops.cpu(), same_source.cpu()
    errors, hops = errors.double(), hops.double()
    ridge = RIDGE * torch.eye(errors.shape[1], dtype=errors.dtype, device=errors.device)
    growth = (hops[:, :, None] * hops[:, None, :]).sqrt()
    return (errors + parameters.alpha * same_source + ridge) * growth


def weights(matrices: torch.Tensor) -> torch.Tensor:
    """(P, N) weights M^-1 1 / (1' M^-1 1) of matrices M (P, N, N), none negative.

    An atlas whose weight would be negative is left out and the others are solved for again: a negative weight would
    push the contour away from what that atlas says.
    """
    kept = torch.ones(matrices.shape[:2], dtype=torch.bool, device=matrices.device)
    found = _solve(matrices, kept)
    for _ in range(matrices.shape[1] - 1):
        rows = (found < 0).any(dim=1)
        if not rows.any():
            break
        kept[rows] &= found[rows] > 0
        found[rows] = _solve(matrices[rows], kept[rows])
    return found


def _solve(matrices: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The weights of the atlases that are kept, 0 for the others."""
    both = kept[:, :, None] & kept[:, None, :]
    reduced = torch.where(both, matrices, torch.eye(matrices.shape[1]).to(matrices))
    found = torch.linalg.solve(reduced, kept.to(matrices)[..., None])[..., 0]
    return found / found.sum(dim=1, keepdim=True)
