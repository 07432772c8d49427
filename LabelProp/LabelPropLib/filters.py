"""Filters of planes, and how alike two are: what registration, fusion and confidence look at images through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy import ndimage

NOISE_WINDOW = 0.7  # pixels, standard deviation of the Gaussian that takes noise off intensities looked at one by one
CONTRAST_WINDOW = 4.0  # pixels, standard deviation of the Gaussian within which contrast is local
LEAST_CONTRAST = 0.05  # of normalised intensities; less is as good as none


def smooth(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian of `sigma` pixels over the last two axes."""
    axes = (images.ndim - 2, images.ndim - 1)
    filtered = ndimage.gaussian_filter(images.cpu().numpy(), sigma, mode="nearest", axes=axes, truncate=3)
    return torch.from_numpy(filtered).to(images.device)


def local_contrast_normalise(images: torch.Tensor) -> torch.Tensor:
    """(I - mean) / sqrt(variance + LEAST_CONTRAST^2) in a Gaussian window of CONTRAST_WINDOW pixels, last two axes.

    The mean squared difference of two such images is, for small deformations, an affine function of their local
    normalised cross-correlation, at the cost of two filters once instead of five in every step.
    """
    mean = smooth(images, CONTRAST_WINDOW)
    variance = smooth((images - mean) ** 2, CONTRAST_WINDOW)
    return (images - mean) / (variance + LEAST_CONTRAST**2).sqrt()


def noise(images: torch.Tensor) -> float:
    """Standard deviation of the noise in images (Z, H, W), the median over them; 0 where most of them is even.

    From the second differences along both axes at once, of which edges and slopes have little and anatomy but a few
    (Immerkaer, CVIU 1996), by their median, which these few do not change.
    """
    rough = [image.diff(n=2, dim=0).diff(n=2, dim=1).abs().median() for image in images]
    return float(torch.stack(rough).median()) / (6 * 0.6745)


def channel_weights(images: torch.Tensor) -> torch.Tensor:
    """How far each channel of `images` (Z, C, H, W) can be trusted: weights (C,) of mean 1.

    The ratio of signal to noise r / (1 - r), where r is the median correlation of the local contrast of neighbouring
    planes: anatomy goes on from plane to plane, noise does not. Inverse-variance weights, therefore. On a single plane
    all count the same.
    """
    if len(images) == 1 or images.shape[1] == 1:
        return images.new_ones(images.shape[1])
    contrast = local_contrast_normalise(images)
    contrast = F.normalize((contrast - contrast.mean(dim=(2, 3), keepdim=True)).flatten(2), dim=2)
    correlation = (contrast[1:] * contrast[:-1]).sum(dim=2).median(dim=0).values.clamp(0.0, 0.99)
    ratio = correlation / (1 - correlation) + 1e-6
    return ratio / ratio.mean()


def masked_correlation(first: torch.Tensor, second: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """(T, C) correlation of two (T, C, h, w) over a region (T, h, w) bool; 0 where it is empty or one is constant."""
    region = region[:, None].float()
    count = region.sum(dim=(2, 3), keepdim=True).clamp(min=1)

    def centred(images: torch.Tensor) -> torch.Tensor:
        return region * (images - (region * images).sum(dim=(2, 3), keepdim=True) / count)

    first, second = centred(first), centred(second)
    norm = ((first**2).sum(dim=(2, 3)) * (second**2).sum(dim=(2, 3))).sqrt().clamp(min=1e-6)
    return (first * second).sum(dim=(2, 3)) / norm
