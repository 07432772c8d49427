"""Volumes of random shapes in random contrasts, after SynthMorph (Hoffmann et al., IEEE TMI 2022): no data needed.

Boxy and round bodies, single or in a row like vertebrae, begin and end among tissues of random shape; some are cut in
two as atlases cut structures. Every region has an intensity of its own, some bodies have a rim; texture, blur, a bias
field and noise come on top.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

SHAPE = (44, 120, 120)


def make_shapes(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Image (Z, H, W) float32, labels (Z, H, W) int32 and spacing in mm of a volume that `random` draws."""
    spacing = (float(random.uniform(1, 3)), 1.0, 1.0)
    depth = body_depths(random, spacing)
    labels = np.where(depth.max(axis=0) > 0, depth.argmax(axis=0) + 1, 0).astype(np.int32)
    tissues = np.stack([smooth_noise(random, random.uniform(6, 16)) for _ in range(4)]).argmax(axis=0)
    intensity = random.uniform(0, 1, 4)[tissues]
    body_intensity = random.uniform(0, 1, len(depth) + 1)
    if random.random() < 0.5:  # all bodies of one kind
        body_intensity[:] = body_intensity[0]
    intensity = np.where(labels > 0, body_intensity[labels], intensity)
    if random.random() < 0.5:  # a rim, as of cortical bone, or a capsule
        surface = np.abs(depth.max(axis=0)) < random.uniform(0.5, 1.5)
        intensity[surface] = random.uniform(0, 1)
    if random.random() < 0.3:
        labels = cut_in_two(random, labels)
    intensity += random.uniform(0.02, 0.1) * smooth_noise(random, random.uniform(1, 3))
    intensity = ndimage.gaussian_filter(intensity, (random.uniform(0.2, 0.6), *[random.uniform(0.4, 1.2)] * 2))
    intensity *= np.exp(random.uniform(0, 0.3) * smooth_noise(random, 30))
    intensity += random.uniform(0.01, 0.08) * random.standard_normal(SHAPE)
    return (1000 * intensity).astype(np.float32), labels, spacing


def body_depths(random: np.random.Generator, spacing: tuple[float, float, float]) -> np.ndarray:
    """(B, Z, H, W), about the depth in mm below the surface of each of some superellipsoids, deformed together."""
    extent = np.array(SHAPE) * spacing
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(SHAPE, spacing)), indexing="ij"))
    grid = grid + np.stack([random.uniform(2, 6) * smooth_noise(random, 12) for _ in range(3)])
    count = int(random.integers(1, 8))
    in_a_row = random.random() < 0.5
    size = random.uniform(0.08, 0.25, 3) * extent
    exponent = random.choice([2.0, 2.5, 4.0, 8.0])
    centre, step = random.uniform(0.35, 0.65, 3) * extent, random.normal(size=3)
    step *= 2.3 * size.mean() / np.linalg.norm(step)
    depths = []
    for body in range(count):
        if in_a_row:
            middle = centre + (body - count / 2) * step * random.uniform(0.9, 1.1)
            half = size * random.uniform(0.85, 1.15, 3)
        else:
            middle, half = random.uniform(0.15, 0.85, 3) * extent, random.uniform(0.05, 0.3, 3) * extent
        rotation = Rotation.random(random_state=random).as_matrix()
        turned = np.tensordot(rotation, grid - middle[:, None, None, None], axes=1)
        radius = (np.abs(turned / half[:, None, None, None]) ** exponent).sum(axis=0) ** (1 / exponent)
        depths.append((1 - radius) * half.min())
    return np.stack(depths)


def cut_in_two(random: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """`labels`, every body cut by one plane of any direction through the middle of all, the other halves renumbered."""
    direction = random.normal(size=3)
    position = np.tensordot(direction, np.stack(np.indices(labels.shape)), axes=1)
    beyond = position > np.median(position[labels > 0]) if labels.any() else False
    return np.where((labels > 0) & beyond, labels + labels.max(), labels)


def smooth_noise(random: np.random.Generator, sigma: float) -> np.ndarray:
    """(Z, H, W) of zero mean and unit variance, smooth over `sigma` pixels in the plane and half as many planes."""
    noise = ndimage.gaussian_filter(random.standard_normal(SHAPE), (sigma / 2, sigma, sigma), mode="wrap")
    return (noise - noise.mean()) / noise.std()
