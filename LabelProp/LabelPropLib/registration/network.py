"""The registration network: two neighbouring planes in, the stationary velocity field between them out.

A small 2D U-Net (Ronneberger et al., MICCAI 2015) in the shape that VoxelMorph gave it for registration (Balakrishnan
et al., IEEE TMI 2019): strided convolutions down, skip connections up to half resolution, a flow head that starts at
rest. As in Dalca et al. (MedIA 2019) and LabelProp (Decaux et al., 2023) the flow is a stationary velocity field v, so
that exp(v) is smooth and exp(-v), its inverse, comes for free.

Neighbouring slices differ little, and what there is to learn from one scan is how to turn a small difference into a
motion. So the network is given the difference and the classical estimate of that motion, the demons force (Thirion,
MedIA 1998), beside the planes' mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

ENCODER = (16, 32, 32, 32)  # channels at 1/2, 1/4, 1/8 and 1/16 of the resolution
DECODER = (32, 32, 16)  # channels at 1/8, 1/4 and 1/2
SLOPE = 0.2  # of the leaky ReLU, as in VoxelMorph


class RegistrationNetwork(nn.Module):
    """Velocity fields of pairs of planes of any size; about 70,000 parameters."""

    def __init__(self, channels: int = 2):
        """channels: those of one plane, see `instance.appearance`."""
        super().__init__()
        widths = (4 * channels, *ENCODER)  # mean, difference, and the force along rows and columns
        self.down = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1) for inputs, outputs in zip(widths[:-1], widths[1:])
        )
        below = (ENCODER[-1], *DECODER[:-1])
        skips = ENCODER[-2::-1]
        self.up = nn.ModuleList(
            nn.Conv2d(under + skip, outputs, 3, padding=1) for under, skip, outputs in zip(below, skips, DECODER)
        )
        self.refine = nn.Conv2d(DECODER[-1], DECODER[-1], 3, padding=1)
        self.flow = nn.Conv2d(DECODER[-1], 2, 3, padding=1)
        nn.init.normal_(self.flow.weight, std=1e-3)
        nn.init.zeros_(self.flow.bias)

    def forward(self, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Velocity (N, 2, ceil(H / 2), ceil(W / 2)) of the pairs `lower`, `upper`, each (N, C, H, W).

        In pixels of its own grid, with the sign that `registration` states. Every strided convolution pads the border
        by one pixel and halves the size, rounded up; on the way back a level takes the size of its skip connection, so
        odd sizes need no cropping.
        """
        mean, difference = (lower + upper) / 2, upper - lower
        features = torch.cat([mean, difference, demons_force(mean, difference)], dim=1)
        levels = []
        for convolution in self.down:
            features = F.leaky_relu(convolution(features), SLOPE)
            levels.append(features)
        features = levels.pop()
        for convolution in self.up:
            skip = levels.pop()
            features = F.interpolate(features, size=skip.shape[-2:], mode="bilinear", align_corners=True)
            features = F.leaky_relu(convolution(torch.cat([features, skip], dim=1)), SLOPE)
        return self.flow(F.leaky_relu(self.refine(features), SLOPE))


def demons_force(mean: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """u = d grad m / (|grad m|^2 + d^2) in pixels, at most 1/2 long: two (N, C, H, W) -> (N, 2 C, H, W), rows first.

    The displacement that explains the difference d = upper - lower to first order: lower(x + u) = upper(x).
    """
    along_rows, along_columns = torch.gradient(mean, dim=(2, 3))
    scale = difference / (along_rows**2 + along_columns**2 + difference**2).clamp(min=1e-4)
    return torch.cat([scale * along_rows, scale * along_columns], dim=1)
