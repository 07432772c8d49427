"""Random shapes in random contrasts, after SynthMorph (Hoffmann et al., IEEE TMI 2022): volumes that show no anatomy.

What is learnt from these holds for any structure and any scanner, and no one's licence is touched.
"""

import numpy as np
from scipy import ndimage


def make_volume(seed: int, shape: tuple[int, int, int] = (32, 128, 128)) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) image, float32, and labels, uint8, of this seed.

    Labels are where one of several smooth random fields is the largest. Each label has a grey value of its own;
    texture, shading, blur and noise come on top. Slices follow each other as closely as in isotropic scans, or less so.
    """
    random = np.random.default_rng(seed)
    in_plane, through = random.uniform(5, 16), random.uniform(2, 10)
    count = int(random.integers(4, 16))
    fields = np.stack([smooth_field(random, shape, (through, in_plane, in_plane)) for _ in range(count)])
    labels = fields.argmax(axis=0)
    greys = random.uniform(0, 1, count)
    image = greys[labels].astype(np.float32)
    texture = random.uniform(0, 0.08) * smooth_field(random, shape, (through / 2, 2, 2))
    shading = np.exp(random.uniform(0, 0.3) * smooth_field(random, shape, (12, 40, 40)))
    image = ndimage.gaussian_filter(image + texture, (0, *[random.uniform(0.3, 1.2)] * 2)) * shading
    image += random.uniform(0, 0.06) * random.standard_normal(shape)
    return 1000 * image.astype(np.float32), (labels + 1).astype(np.uint8)


def smooth_field(random: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, ...]) -> np.ndarray:
    """Gaussian random field of unit variance, smooth over `sigma` voxels, float32."""
    field = ndimage.gaussian_filter(random.standard_normal(shape).astype(np.float32), sigma, mode="wrap")
    return field / field.std()
