"""The two networks of deep label fusion: one weighs the candidates, one corrects what they agree on.

After Xie et al., "Deep label fusion", Medical Image Analysis 2023, reduced to what runs on a laptop's processor within
a second: planes instead of volumes, one binary problem for each label with weights shared by all labels (so any number
of labels, in any order), most of the work at half the resolution. Both end in a convolution that starts at zero: before
training they change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

VOTING_CHANNELS = 5  # of a candidate, see `deep.Features.of_lower`
CORRECTION_CHANNELS = 11  # of a label, see `deep.Features.of_label`
VOTING_WIDTHS = (16, 24)  # channels, from half the resolution to a quarter
CORRECTION_WIDTHS = (24, 32, 48)  # channels, from half the resolution to an eighth
REFINING_WIDTH = 12  # channels at the full resolution


class DeepLabelFusion(nn.Module):
    """The weights of both subnets, as they are trained and stored together."""

    def __init__(self):
        super().__init__()
        self.voting = VotingSubnet()
        self.correction = CorrectionSubnet()


class VotingSubnet(nn.Module):
    """(N, VOTING_CHANNELS, h, w), one candidate each, -> (N, h, w), log of the factor on its weight."""

    def __init__(self):
        super().__init__()
        fine, coarse = VOTING_WIDTHS
        self.reduce = nn.Conv2d(VOTING_CHANNELS, fine, 4, stride=2, padding=1)
        self.encoder = ConvolutionBlock(fine, fine)
        self.bottom = ConvolutionBlock(fine, coarse)
        self.decoder = ConvolutionBlock(coarse + fine, fine)
        self.out = zeroed(nn.Conv2d(fine, 1, 3, padding=1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        height, width = features.shape[-2:]
        features = to_even(features)
        skip = self.encoder(self.reduce(features))
        bottom = self.bottom(F.avg_pool2d(skip, 2, ceil_mode=True))
        logits = self.out(self.decoder(torch.cat([resized(bottom, skip.shape[-2:]), skip], dim=1)))
        return resized(logits, features.shape[-2:])[:, 0, :height, :width]


class CorrectionSubnet(nn.Module):
    """(N, CORRECTION_CHANNELS, h, w), one label each, -> (N, h, w), what to add to its score, in pixels of distance."""

    def __init__(self):
        super().__init__()
        first, second, third = CORRECTION_WIDTHS
        self.reduce = nn.Conv2d(CORRECTION_CHANNELS, first, 4, stride=2, padding=1)
        self.encoders = nn.ModuleList([ConvolutionBlock(first, first), ConvolutionBlock(first, second)])
        self.bottom = ConvolutionBlock(second, third)
        self.decoders = nn.ModuleList(
            [ConvolutionBlock(third + second, second), ConvolutionBlock(second + first, first)]
        )
        self.expand = nn.Conv2d(first, 16, 3, padding=1)
        self.refine = nn.Conv2d(CORRECTION_CHANNELS + 4, REFINING_WIDTH, 3, padding=1)
        self.out = zeroed(nn.Conv2d(REFINING_WIDTH, 1, 3, padding=1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        height, width = features.shape[-2:]
        features = to_even(features)
        x = self.reduce(features)
        skips = []
        for encoder in self.encoders:
            skips.append(encoder(x))
            x = F.avg_pool2d(skips[-1], 2, ceil_mode=True)
        x = self.bottom(x)
        for decoder in self.decoders:
            skip = skips.pop()
            x = decoder(torch.cat([resized(x, skip.shape[-2:]), skip], dim=1))
        x = F.pixel_shuffle(self.expand(x), 2)
        return self.out(F.leaky_relu(self.refine(torch.cat([x, features], dim=1)), 0.1))[:, 0, :height, :width]


class ConvolutionBlock(nn.Sequential):
    """Two 3x3 convolutions with leaky ReLU; no normalisation, whose statistics would depend on the size of the box."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
        )


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """`layer` with all weights and biases zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def to_even(planes: torch.Tensor) -> torch.Tensor:
    """`planes` with even height and width, the last row or column repeated.

    With the channels last in memory, in which convolutions with few channels are fastest on a processor.
    """
    height, width = planes.shape[-2:]
    padded = F.pad(planes, (0, width % 2, 0, height % 2), mode="replicate")
    return padded.contiguous(memory_format=torch.channels_last)


def resized(planes: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`planes` (N, C, h, w) on a grid of another size, bilinear."""
    return F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
