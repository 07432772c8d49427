"""Image terms: how unlike two batches of planes are. All take and return tensors; lower is more alike."""

from __future__ import annotations

import torch


def robust_difference(warped: torch.Tensor, fixed: torch.Tensor, width: float = 0.1) -> torch.Tensor:
    """Charbonnier penalty sqrt(d^2 + width^2) of the differences, averaged per plane: (N, C, H, W) -> (N,).

    On locally contrast normalised planes its quadratic part is, up to a constant, the negative local normalised
    cross-correlation; the linear tails keep structures that only one plane bears from dragging the others along
    (Charbonnier et al., ICIP 1994).
    """
    return _Charbonnier.apply(warped - fixed, width).mean(dim=(1, 2, 3))


class _Charbonnier(torch.autograd.Function):
    """sqrt(d^2 + width^2) and its derivative d / sqrt(d^2 + width^2), in half of autograd's passes over memory."""

    @staticmethod
    def forward(ctx, difference: torch.Tensor, width: float) -> torch.Tensor:
        penalty = (difference * difference).add_(width**2).sqrt_()
        ctx.save_for_backward(difference, penalty)
        return penalty

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        difference, penalty = ctx.saved_tensors
        return torch.div(difference, penalty).mul_(gradient), None


def soft_dice_loss(carried: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """1 - (2 sum ab + 1) / (sum a + sum b + 1), averaged over labels: two (N, L, H, W) of [0, 1] -> (N,).

    The Dice loss of Milletari et al. (3DV 2016) without their squares, as in VoxelMorph. In LabelProp (Decaux et al.,
    2023) it compares labels carried from one annotated slice to the next with the labels drawn there.
    """
    overlap = (carried * drawn).sum(dim=(2, 3))
    total = carried.sum(dim=(2, 3)) + drawn.sum(dim=(2, 3))
    return (1 - (2 * overlap + 1) / (total + 1)).mean(dim=1)
