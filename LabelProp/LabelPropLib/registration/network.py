"""The registration network: two neighbouring planes in, the stationary velocity field between them out.

A small 2D U-Net (Ronneberger et al., MICCAI 2015) in the shape that VoxelMorph gave it for registration (Balakrishnan et
al., IEEE TMI 2019): strided convolutions down, skip connections up to half resolution, a flow head that starts at rest.
As in Dalca et al. (MedIA 2019) and LabelProp (Decaux et al., 2023) the flow is a stationary velocity field v, so that
exp(v) is smooth and exp(-v), its inverse, comes for free.
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
        widths = (2 * channels, *ENCODER)
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

        In pixels of its own grid, with the sign that `registration` states. Every strided convolution pads its border by
        one pixel and halves the size, rounded up; on the way back a level takes the size of its skip connection, so odd
        sizes need no cropping.
        """
        features = torch.cat([lower, upper], dim=1)
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
