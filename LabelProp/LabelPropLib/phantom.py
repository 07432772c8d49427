"""A thigh that never was: an MR-like volume of twelve muscles whose truth is known in every voxel.

Each muscle is an ellipse that moves, turns, swells and tapers along the thigh, as a table of cross-sections says,
which follows textbook anatomy. A point belongs to the muscle whose ellipse it is deepest in, so neighbours press on
each other as they do in a real thigh, and the border is a formula: there is no segmentation to trust. The thigh's
taper, bend and twist and a smooth random deformation come on top, then what a T1-weighted scan adds: fat between and
within the muscles, partial volume, coil shading and noise. Muscles end (adductor longus), start (biceps femoris short
head) and split (adductor magnus) inside the volume, as they do in life.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage
from scipy.interpolate import PchipInterpolator

# Name: rows of (height, x, y, half width, half depth, turn). Height runs from 0 (knee) to 1 (hip); x mm towards medial
# and y mm towards posterior, from the thigh's axis; half axes in mm, 0 where the muscle ends; turn in degrees. A name
# that occurs twice but for the number after it is one muscle in two parts.
CROSS_SECTIONS = {
    "rectus femoris": [
        (0.02, 2, -52, 0, 0, 0), (0.25, -2, -50, 12, 6, 0),
        (0.55, -8, -48, 17, 11, -8), (1, -10, -45, 19, 14, -5),
    ],
    "vastus lateralis": [
        (0, -38, -20, 13, 20, 24), (0.3, -42, -14, 16, 31, 18),
        (0.65, -43, -4, 17, 35, 6), (1, -43, 8, 16, 34, -8),
    ],
    "vastus intermedius": [
        (0, -8, -32, 19, 11, 0), (0.4, -15, -22, 23, 18, -18),
        (0.8, -19, -15, 22, 19, -28), (1, -20, -12, 20, 17, -30),
    ],
    "vastus medialis": [
        (0, 29, -21, 21, 25, -24), (0.3, 24, -26, 19, 21, -24),
        (0.65, 11, -25, 12, 15, -20), (1, 5, -18, 6, 8, 0),
    ],
    "sartorius": [
        (0, 51, 19, 8, 14, 12), (0.3, 51, 4, 8, 15, -4),
        (0.6, 41, -24, 8, 15, -36), (1, 18, -51, 15, 8, 14),
    ],
    "gracilis": [
        (0, 44, 34, 8, 8, 0), (0.35, 52, 26, 7, 11, 20),
        (0.7, 55, 12, 7, 15, 6), (1, 54, 0, 8, 18, -6),
    ],
    "adductor longus": [
        (0.24, 26, 10, 0, 0, 0), (0.42, 29, 9, 9, 9, 30),
        (0.7, 35, -4, 13, 12, 20), (1, 36, -17, 15, 13, 30),
    ],
    "adductor magnus 1": [
        (0.1, 3, 16, 0, 0, 0), (0.3, 6, 18, 10, 9, 20),
        (0.6, 16, 20, 21, 14, 18), (1, 24, 18, 28, 19, 14),
    ],
    "adductor magnus 2": [
        (0.03, 37, 6, 0, 0, 0), (0.22, 35, 12, 9, 9, 0),
        (0.6, 32, 21, 15, 13, 10), (1, 34, 25, 19, 16, 10),
    ],
    "semimembranosus": [
        (0, 24, 40, 22, 17, -18), (0.35, 28, 43, 18, 14, -24),
        (0.75, 26, 48, 12, 9, -18), (1, 23, 50, 8, 6, 0),
    ],
    "semitendinosus": [
        (0, 12, 54, 7, 6, 0), (0.35, 7, 54, 12, 9, 0),
        (0.75, 5, 52, 16, 12, 8), (1, 3, 49, 17, 13, 12),
    ],
    "biceps femoris long head": [
        (0, -24, 44, 13, 14, 34), (0.4, -20, 46, 17, 14, 30),
        (0.75, -18, 46, 17, 15, 24), (1, -20, 45, 17, 14, 20),
    ],
    "biceps femoris short head": [
        (0, -29, 22, 13, 15, 28), (0.3, -23, 24, 12, 13, 22),
        (0.55, -15, 20, 7, 8, 10), (0.7, -11, 16, 0, 0, 0),
    ],
}  # fmt: skip

SPACING = (4.0, 1.0, 1.0)  # mm along (k, j, i), as muscle is scanned
SHAPE = (48, 192, 192)
DRAWN = [0, 24, 47]  # the first, the middle and the last slice, on which it is given
SUBSLICES = 3  # samples across a slice's thickness: a 4 mm slice blurs what runs obliquely through it
REACH = 1.42  # a point outside every ellipse by more than this factor is in no muscle
THINNEST_GAP = 0.4  # mm between two muscles where there is no fat to see: their fasciae, which no muscle owns

AIR, SKIN, FAT, FASCIA, MUSCLE = 0, 400, 860, 470, 350
CORTEX, MARROW, ARTERY, VEIN, NERVE = 70, 790, 70, 210, 460
NOISE = 20


@dataclass(frozen=True)
class Phantom:
    """image: (K, J, I) int16; labels: (K, J, I) uint8, 0 elsewhere; spacing: mm; names: label -> muscle.

    k runs from the knee up, j towards posterior, i towards medial: a right thigh in axial slices.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    names: dict[int, str]

    @property
    def ijk_to_ras(self) -> np.ndarray:
        """(4, 4) from voxel indices to mm: i runs to the left, j to the back and k to the head of the patient."""
        k, j, i = self.spacing
        return np.diag([-i, -j, k, 1.0])

    def drawn_on(self, slices: list[int]) -> np.ndarray:
        """(K, J, I) the labels on these slices alone."""
        drawn = np.zeros_like(self.labels)
        drawn[slices] = self.labels[slices]
        return drawn


def make_phantom(seed: int = 0) -> Phantom:
    """The thigh of this seed; the same voxels every time. Label n is the n-th muscle of `CROSS_SECTIONS`."""
    random = np.random.default_rng(seed)
    thigh = Thigh(random)
    image = np.zeros(SHAPE, np.float32)
    labels = np.zeros(SHAPE, np.uint8)
    for k in range(SHAPE[0]):
        for offset in (np.arange(SUBSLICES) - SUBSLICES // 2) / SUBSLICES:
            intensity, muscle = thigh.section(k + offset)
            image[k] += intensity / SUBSLICES
            if offset == 0:
                labels[k] = muscle
    image *= np.exp(0.14 * smooth_noise(random, (20, 50, 50)))  # the coil's shading
    real, imaginary = NOISE * random.standard_normal((2, *SHAPE), np.float32)
    image = np.hypot(image + real, imaginary).round().astype(np.int16)
    return Phantom(image, labels, SPACING, dict(enumerate(thigh.muscles, start=1)))


class Thigh:
    """One random thigh: what is where, and how bright, at any height.

    Coordinates x (towards medial) and y (towards posterior) are mm in the frame of `CROSS_SECTIONS`; depths and margins
    are mm, positive inside.
    """

    def __init__(self, random: np.random.Generator):
        owners = [name.rstrip(" 12") for name in CROSS_SECTIONS]
        self.muscles = list(dict.fromkeys(owners))
        self.owner = np.array([self.muscles.index(name) for name in owners])
        tables = [np.array(rows, float) for rows in CROSS_SECTIONS.values()]
        self.ellipses = [PchipInterpolator(table[:, 0], table[:, 1:]) for table in tables]
        self.shift = [
            3.5 * smooth_noise(random, (6, 22, 22)) + 0.7 * smooth_noise(random, (2.5, 7, 7)) for _ in range(2)
        ]
        self.fat_plane = np.maximum(0, 0.4 + 0.8 * smooth_noise(random, (3, 10, 10)))  # mm of fat between two muscles
        self.septa = smooth_noise(random, (4, 5, 5))
        self.fibres = smooth_noise(random, (4, 1.3, 1.3))
        self.streaks = smooth_noise(random, (5, 5, 0.8))
        self.infiltration = smooth_noise(random, (8, 9, 9))
        self.brightness = random.normal(0, 12, len(self.muscles))
        self.fattiness = random.uniform(0.15, 1, len(self.muscles))
        self.offset = random.uniform(0, SHAPE[1], (len(self.muscles), 2))
        self.phases = random.uniform(0, 2 * np.pi, 5)

    def section(self, k: float) -> tuple[np.ndarray, np.ndarray]:
        """(J, I) float32 intensity without noise, and (J, I) uint8 label, in the plane at slice position `k`."""
        height = np.clip(k / (SHAPE[0] - 1), 0, 1)
        x, y = self.anatomical_coordinates(k, height)
        angle = np.arctan2(y, x)
        depth = self.fascia_radius(angle) - np.hypot(x, y)  # under the fascia around all muscles
        fat_depth = depth + self.fat_thickness(angle, height)

        intensity = np.full(SHAPE[1:], AIR, np.float32)
        blend(intensity, SKIN, coverage(fat_depth + 1.5))
        blend(intensity, FAT - 130 * np.exp(-((plane(self.septa, k) / 0.09) ** 2)), coverage(fat_depth))
        blend(intensity, FASCIA, coverage(depth + 0.9))
        blend(intensity, FAT, coverage(depth - 0.9))

        within = depth > 0
        muscle, to_rival, to_rim, texture = self.muscle_at(x[within], y[within], k, height)
        to_rim = np.minimum(to_rim, depth[within] - 1)
        structures = list(self.other_structures(x, y, height))
        for _, structure_depth, sheath in structures:
            to_rim = np.minimum(to_rim, -structure_depth[within] - sheath)
        half_gap = plane(self.fat_plane, k)[within] / 2
        tissue = intensity[within]
        blend(tissue, MUSCLE + texture, coverage(to_rim) * (1 - band_coverage(to_rival, half_gap)))
        intensity[within] = tissue
        for brightness, structure_depth, _ in structures:
            blend(intensity, brightness, coverage(structure_depth))

        label = np.zeros(SHAPE[1:], np.uint8)
        margin = np.minimum(to_rim, to_rival - np.maximum(half_gap, THINNEST_GAP / 2))
        label[within] = np.where(margin > 0, muscle + 1, 0)
        return intensity, label

    def anatomical_coordinates(self, k: float, height: float) -> tuple[np.ndarray, np.ndarray]:
        """x and y of every pixel: the thigh tapers, leans, bends and twists, and is deformed at random."""
        j, i = np.indices(SHAPE[1:], dtype=np.float32)
        x = i - SHAPE[2] / 2 - 12 * (height - 0.5) + 5 * np.sin(3 * height)
        y = j - SHAPE[1] / 2 - 5 + 8 * height
        twist = np.deg2rad(20 * (height - 0.5))
        scale = 0.83 + 0.27 * height
        turned_x, turned_y = np.cos(twist) * x + np.sin(twist) * y, np.cos(twist) * y - np.sin(twist) * x
        return turned_x / scale + plane(self.shift[0], k), turned_y / scale + plane(self.shift[1], k)

    def muscle_at(
        self, x: np.ndarray, y: np.ndarray, k: float, height: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What muscle N points are in or next to.

        Returns its index, the mm to its border with the next muscle, those to its own rim (negative beyond it), and its
        texture.
        """
        ellipses = np.array([ellipse(height) for ellipse in self.ellipses], np.float32)
        present = ellipses[:, 2:4].min(axis=1) > 0.5
        ellipses, owner = ellipses[present], self.owner[present]
        distances = np.stack([np.hypot(*ellipse_coordinates(x, y, ellipse)) for ellipse in ellipses])
        best = distances.argmin(0)
        rival = np.where(owner[:, None] == owner[best], np.inf, distances).argmin(0)
        distance, slope, along, across = ellipse_distance(x, y, ellipses[best].T)
        rival_distance, rival_slope, _, _ = ellipse_distance(x, y, ellipses[rival].T)
        to_rival = (rival_distance - distance) / np.maximum(np.hypot(*(rival_slope - slope)), 1e-3)
        to_rim = (REACH - distance) / np.maximum(np.hypot(*slope), 1e-3)
        muscle = owner[best]
        return muscle, to_rival, to_rim, self.texture(muscle, along, across, k)

    def texture(self, muscle: np.ndarray, along: np.ndarray, across: np.ndarray, k: float) -> np.ndarray:
        """Brightness over `MUSCLE` of N points: of the muscle itself, its fibres, and the streaks of fat along it."""
        place = along + self.offset[muscle, 0], across + self.offset[muscle, 1]
        fibres, streaks, infiltration = (
            ndimage.map_coordinates(plane(field, k), place, order=1, mode="grid-wrap")
            for field in (self.fibres, self.streaks, self.infiltration)
        )
        share = np.clip(streaks - 0.7, 0, 1) * np.clip(infiltration, 0, 1) * self.fattiness[muscle]
        return self.brightness[muscle] + 13 * fibres + 0.6 * (FAT - MUSCLE) * share

    def fascia_radius(self, angle: np.ndarray) -> np.ndarray:
        """Distance of the fascia around all muscles from the thigh's axis."""
        a, b, c = self.phases[:3]
        return 62 + 2.2 * np.cos(2 * angle + a) + 1.2 * np.cos(3 * angle + b) + 0.6 * np.cos(5 * angle + c)

    def fat_thickness(self, angle: np.ndarray, height: float) -> np.ndarray:
        """Subcutaneous fat: more on the medial and posterior side, and towards the hip."""
        a, b = self.phases[3:]
        return 7 + 3 * height + 3.5 * np.cos(angle - 0.9) + np.cos(2 * angle + a) + 0.3 * np.cos(4 * angle + b)

    def other_structures(
        self, x: np.ndarray, y: np.ndarray, height: float
    ) -> Iterator[tuple[float, np.ndarray, float]]:
        """(brightness, depth, width of the fat around) of the femur and its marrow, vessels and nerve."""
        dx, dy = x + 7 - 3 * height, y + 6 - 4 * height
        flare = 1 - np.clip(height / 0.35, 0, 1)  # towards the condyles the shaft widens, its cortex thins
        linea_aspera = 1.8 * np.exp(-((np.arctan2(dx, dy) / 0.45) ** 2))
        femur = 13 + linea_aspera + 5 * flare**2 - np.hypot(dx, dy)
        yield CORTEX, femur, 0.4
        yield MARROW, femur - 4.6 + 2.4 * flare, 0.4
        artery_x = np.interp(height, (0, 0.25, 0.55, 1), (4, 20, 28, 24))
        artery_y = np.interp(height, (0, 0.25, 0.55, 1), (24, 14, -11, -34))
        yield ARTERY, 2.9 - np.hypot(x - artery_x, y - artery_y), 3.5
        yield VEIN, 3.4 - np.hypot((x - artery_x - 3.5) / 1.15, y - artery_y - 6), 2.5
        yield NERVE, 2.2 - np.hypot((x + 3) / 1.8, y - 35), 1.8
        yield VEIN, 1.7 - np.hypot(x - 66 + 3 * height, y - 22 + 34 * height), 0  # great saphenous, under the skin


def ellipse_coordinates(x: np.ndarray, y: np.ndarray, ellipse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N points in units of the half axes of an ellipse (x, y, half width, half depth, turn), or of one each (5, N)."""
    centre_x, centre_y, width, depth, turn = ellipse
    cosine, sine = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    dx, dy = x - centre_x, y - centre_y
    return (cosine * dx + sine * dy) / width, (cosine * dy - sine * dx) / depth


def ellipse_distance(x: np.ndarray, y: np.ndarray, ellipses: np.ndarray) -> tuple[np.ndarray, ...]:
    """How far each of N points is out in its ellipse (5, N), and where.

    Returns the distance from the centre, 1 on the ellipse; its gradient (2, N) per mm; and the point's place along and
    across the ellipse, in mm after the ellipse was made a disc of the same area.
    """
    along, across = ellipse_coordinates(x, y, ellipses)
    _, _, width, depth, turn = ellipses
    cosine, sine = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    distance = np.hypot(along, across)
    u, v = along / width, across / depth
    gradient = np.stack([cosine * u - sine * v, sine * u + cosine * v]) / np.maximum(distance, 1e-3)
    size = np.sqrt(width * depth)
    return distance, gradient, along * size, across * size


def smooth_noise(random: np.random.Generator, sigma: tuple[float, float, float]) -> np.ndarray:
    """(K, J, I) float32 Gaussian random field of unit variance, smooth over `sigma` voxels, periodic."""
    spectrum = fft.rfftn(random.standard_normal(SHAPE, np.float32))
    field = fft.irfftn(ndimage.fourier_gaussian(spectrum, sigma, SHAPE[-1]), SHAPE)
    return field / field.std()


def plane(field: np.ndarray, k: float) -> np.ndarray:
    """(J, I) of a periodic field at a slice position, between two slices too."""
    lower = int(np.floor(k))
    share = np.float32(k - lower)
    return (1 - share) * field[lower % len(field)] + share * field[(lower + 1) % len(field)]


def coverage(depth: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies in a structure whose straight edge is `depth` mm outside the pixel's centre."""
    return np.clip(depth / SPACING[1] + 0.5, 0, 1)


def band_coverage(distance: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies in a straight band whose middle is `distance` mm from the pixel's centre."""
    half_pixel = SPACING[1] / 2
    overlap = np.minimum(distance + half_pixel, half_width) - np.maximum(distance - half_pixel, -half_width)
    return np.clip(overlap / SPACING[1], 0, 1)


def blend(intensity: np.ndarray, tissue: float | np.ndarray, share: np.ndarray):
    """Replace that share of every pixel by a tissue, in place."""
    intensity += share * (tissue - intensity)
