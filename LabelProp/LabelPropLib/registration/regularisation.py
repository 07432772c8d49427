"""Smoothness terms on velocity fields (N, 2, H, W); lower is smoother."""

from __future__ import annotations

import torch


def diffusion(velocity: torch.Tensor) -> torch.Tensor:
    """Mean squared forward difference along rows plus that along columns, |grad v|^2 / 2, per field: -> (N,).

    The H1 regulariser of diffusion registration (Fischer & Modersitzki, 2002) and of VoxelMorph.
    """
    along_rows = (velocity[..., 1:, :] - velocity[..., :-1, :]) ** 2
    along_columns = (velocity[..., 1:] - velocity[..., :-1]) ** 2
    return along_rows.mean(dim=(1, 2, 3)) + along_columns.mean(dim=(1, 2, 3))


def through_plane(velocity: torch.Tensor) -> torch.Tensor:
    """Mean squared difference |v_k - v_{k+1}|^2 of the fields of consecutive slice pairs: (N, 2, H, W) -> (N - 1,).

    Anatomy moves smoothly through the slices; pairs whose images say little follow their neighbours.
    """
    return ((velocity[1:] - velocity[:-1]) ** 2).mean(dim=(1, 2, 3))
