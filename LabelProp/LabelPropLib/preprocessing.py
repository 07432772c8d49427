"""From the annotated volume to the stack of planes that is worked on.

Only what lies around the labels is read: the planes between the outermost annotated ones, cropped to the labels with a
margin, resampled to square pixels, intensities normalised robustly. The crop is remembered, so results find their way
back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from .annotation import BACKGROUND, SparseAnnotation
from .filters import channel_weights, smooth
from .registration.fields import sample

MARGIN_FRACTION = 0.15  # of the labels' extent
MARGIN_MM = 12.0
MOST_MARGIN = 40.0  # pixels, at most, for MARGIN_MM: in the scan of a mouse those would be the whole plane
LEAST_SIZE = 8  # pixels along a side of a working plane
ROUNDING = 1e-6  # of voxels, by which spacings from a matrix of directions may be off
INTENSITY_RANGE = (-0.2, 1.2)  # of normalised images
OUTLINE_WINDOW = 2.0  # pixels, standard deviation of the Gaussian that evens an outline


@dataclass(frozen=True)
class Stack:
    """The planes that are worked on.

    images: (Z, C, H, W) float32, about 0 to 1, square pixels; the most trustworthy channel first.
    order: which of the given images each channel is, 0 the scan, 1 the second image.
    intensities: those of the scan that became 0 and 1.
    first: plane index of images[0] in the volume.
    core: stack indices of the planes that are worked on whatever is scribbled; the others lead to scribbles beyond.
    box: the crop's slices (rows, columns) in a plane of the volume; shape: its (rows, columns).
    pixel: mm of a working pixel; slice_spacing: mm from plane to plane.
    """

    images: torch.Tensor
    order: tuple[int, ...]
    intensities: tuple[float, float]
    first: int
    core: range
    box: tuple[slice, slice]
    pixel: float
    slice_spacing: float

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the working grid."""
        height, width = self.images.shape[-2:]
        return height, width

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the crop on the volume's own grid."""
        rows, columns = (s.stop - s.start for s in self.box)
        return rows, columns

    @property
    def crop(self) -> tuple[slice, slice, slice]:
        """Planes, rows and columns of the volume that are worked on."""
        return slice(self.first, self.first + len(self.images)), *self.box

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """Intensities of the scan as in `images`, float32."""
        return _rescale(torch.from_numpy(np.ascontiguousarray(image, np.float32)), *self.intensities).numpy()

    def working_box(self, box: tuple[slice, slice]) -> tuple[slice, slice]:
        """The part of the working grid that holds a box (rows, columns) of the volume, as far as the crop goes."""
        found = []
        for part, crop, working, native in zip(box, self.box, self.size, self.shape, strict=True):
            first, last = ((line - crop.start) * (working - 1) for line in (part.start, part.stop - 1))
            start = max(0, first // (native - 1))  # the corners of both grids coincide
            found.append(slice(start, max(start, min(working, -(-last // (native - 1)) + 1))))
        return found[0], found[1]

    def window_to_volume_grid(
        self, planes: torch.Tensor, box: tuple[slice, slice]
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """`planes` (T, h, w) within `box` of the working grid on the volume's grid, bilinear.

        Returns the window (rows, columns) of the crop that lies within the box, and the values (T, rows, columns).
        """
        if self.size == self.shape:
            return box, planes.cpu().numpy()
        window, coordinates = [], []
        for part, working, native in zip(box, self.size, self.shape, strict=True):
            first, last = (
                line * (native - 1) for line in (part.start, part.stop - 1)
            )  # whole numbers: no line is lost
            window.append(slice(-(-first // (working - 1)), last // (working - 1) + 1))
            step = (working - 1) / (native - 1)  # the corners of both grids coincide
            coordinates.append(torch.arange(window[-1].start, window[-1].stop) * step - part.start)
        points = torch.stack(torch.meshgrid(*coordinates, indexing="ij"))[None].to(planes)
        return (window[0], window[1]), sample(planes[None], points)[0].cpu().numpy()

    def to_working_grid(self, planes: torch.Tensor) -> torch.Tensor:
        """(N, C, rows, columns) on the volume's grid to (N, C, H, W) on the working grid, bilinear."""
        return _resize(planes, self.size)


def prepare(
    annotation: SparseAnnotation,
    pixels: int,
    extrapolate: bool = False,
    device: torch.device | str = "cpu",
    box: tuple[slice, slice] | None = None,
) -> Stack:
    """Crop, resample and normalise.

    pixels: the most that the longer side of a working plane may have.
    extrapolate: keep the planes beyond the outermost annotated ones. device: where the stack's images go.
    box: rows and columns to crop to, `crop_box` by default.
    Scribbles only add planes, up to those scribbled beyond the annotated ones, and change nothing else.
    """
    core = (0, annotation.plane_count - 1) if extrapolate else (annotation.planes[0], annotation.planes[-1])
    first, last = scribbled_range(annotation, core)
    inner = slice(core[0] - first, core[1] - first + 1)
    box = box or crop_box(annotation)
    size, pixel = square_grid([part.stop - part.start for part in box], annotation.plane_spacing, pixels)
    channels, intensities = [], []
    for volume in filter(lambda volume: volume is not None, (annotation.image, annotation.second_image)):
        planes = np.moveaxis(volume, annotation.axis, 0)[first : last + 1, box[0], box[1]]
        intensities.append(robust_range(planes[inner]))
        channels.append(normalise(planes, size, *intensities[-1]))
    images = torch.stack(channels, dim=1)
    order = channel_weights(images[inner]).argsort(descending=True, stable=True).tolist()
    return Stack(
        images=images[:, order].to(device),
        order=tuple(order),
        intensities=intensities[0],
        first=first,
        core=range(inner.start, inner.stop),
        box=box,
        pixel=pixel,
        slice_spacing=annotation.slice_spacing,
    )


def square_grid(shape: Sequence[int], plane_spacing: tuple[float, float], pixels: int) -> tuple[tuple[int, int], float]:
    """(H, W) of a grid of square pixels over planes of `shape` (rows, columns), and mm of its pixels.

    Pixels are as large as the smaller of the plane's spacings (mm), or so large that at most `pixels` lie along the
    longer side.
    """
    extent = [count * mm for count, mm in zip(shape, plane_spacing, strict=True)]
    pixel = max(min(plane_spacing), max(extent) / pixels)
    height, width = (max(LEAST_SIZE, round(length / pixel)) for length in extent)
    return (height, width), pixel


def scribbled_range(annotation: SparseAnnotation, core: tuple[int, int]) -> tuple[int, int]:
    """The first and the last plane of `core`, moved out to the outermost scribbles of labels."""
    scribbled = [strokes[:, annotation.axis] for label, strokes in annotation.scribbles.items() if label != BACKGROUND]
    planes = np.concatenate([np.array(core), *scribbled])
    return int(planes.min()), int(planes.max())


def crop_box(annotation: SparseAnnotation, margin_share: float = 1.0) -> tuple[slice, slice]:
    """Rows and columns of a plane that hold all drawn labels with a margin.

    The margin is 15 % of their extent or, if that is more, 12 mm (but at most 40 pixels). margin_share: the part of it
    to be taken.
    """
    height, width = (n for a, n in enumerate(annotation.image.shape) if a != annotation.axis)
    marked = np.zeros((height, width), bool)
    for planes in annotation.complete.values():
        for mask in planes.values():
            marked |= mask
    least = min(MARGIN_MM, MOST_MARGIN * min(annotation.plane_spacing))
    box = []
    for lines, spacing in zip((marked.any(axis=1), marked.any(axis=0)), annotation.plane_spacing, strict=True):
        used = np.flatnonzero(lines)
        extent = (used[-1] - used[0] + 1) * spacing
        margin = math.ceil(margin_share * max(least, MARGIN_FRACTION * extent) / spacing - ROUNDING)
        box.append(slice(max(0, int(used[0]) - margin), min(len(lines), int(used[-1]) + 1 + margin)))
    return box[0], box[1]


def robust_range(planes: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of the intensities of all planes together.

    A lowest value that lies further below these than they lie apart marks voxels without data, as around a CT's field
    of view, and is left out.
    """
    low, high = percentiles(planes, (0.01, 0.99))
    least = planes.min()
    if low == least < high and hardly_any_between(planes, low, (low + high) / 2):
        low_of_rest, high_of_rest = percentiles(planes[planes > least], (0.01, 0.99))
        if low_of_rest - low > high_of_rest - low_of_rest > 0:
            return low_of_rest, high_of_rest
    return (low, high) if high > low else (float(least), float(planes.max()))


def normalise(planes: np.ndarray, size: tuple[int, int], low: float, high: float) -> torch.Tensor:
    """`planes` (Z, rows, columns) of any type as float32 (Z, h, w) of `size`, bilinear, `low` at 0 and `high` at 1.

    Works plane by plane: in a large scan the cropped planes are too many for copies of all of them in float32.
    """
    images = torch.empty(len(planes), *size)
    for image, plane in zip(images, planes, strict=True):
        intensities = torch.from_numpy(np.ascontiguousarray(plane, np.float32))
        image[:] = _resize(_rescale(intensities, low, high)[None, None], size)[0, 0]
    return images


def _rescale(intensities: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """`low` at 0 and `high` at 1, in whatever unit they are, cut off a little beyond; 0 where they are the same."""
    return ((intensities - low) / ((high - low) or 1.0)).clamp(*INTENSITY_RANGE)


def hardly_any_between(planes: np.ndarray, least: float, middle: float) -> bool:
    """Whether at most about 1 % of the intensities above `least` lie up to `middle`: a quick check before sorting."""
    rest = np.count_nonzero(planes > least)
    return rest - np.count_nonzero(planes > math.floor(middle)) <= math.ceil(0.01 * (rest - 1))


def percentiles(values: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """As `np.percentile`, sorting the values in their own type, and without overflow of small integers."""
    places = [share * (values.size - 1) for share in shares]
    neighbours = [(math.floor(place), math.ceil(place)) for place in places]
    ordered = np.partition(values, sorted({index for pair in neighbours for index in pair}), axis=None)
    lower, upper = ([float(ordered[pair[side]]) for pair in neighbours] for side in (0, 1))
    return [a + (b - a) * (place % 1) for a, b, place in zip(lower, upper, places, strict=True)]


def unevenness(masks: torch.Tensor) -> float:
    """How uneven outlines of masks (T, H, W) are: pixels that a Gaussian adds or removes, per pixel edge along them."""
    changed = (smooth(masks.float(), OUTLINE_WINDOW) > 0.5) != masks
    edges = (masks[:, 1:] != masks[:, :-1]).sum() + (masks[..., 1:] != masks[..., :-1]).sum()
    return float(changed.sum() / edges.clamp(min=1))


def signed_distance(mask: np.ndarray, pixel_spacing: tuple[float, float]) -> np.ndarray:
    """Signed Euclidean distance to the contour of a 2D mask, in the units of the spacing, positive inside, float32.

    inf where the mask fills the plane, -inf where it is empty: there is no contour.
    """
    if mask.all() or not mask.any():
        return np.full(mask.shape, np.inf if mask.any() else -np.inf, np.float32)
    half = min(pixel_spacing) / 2  # the contour runs between pixel centres
    inside = ndimage.distance_transform_edt(mask, sampling=pixel_spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=pixel_spacing)
    return np.where(mask, inside - half, half - outside).astype(np.float32)


def signed_distance_nearby(mask: np.ndarray, pixel_spacing: tuple[float, float], reach: float) -> np.ndarray:
    """`signed_distance` as far as `reach` around a mask that is not empty; further away it may be -inf, uncomputed."""
    window = around(mask, reach + max(pixel_spacing), pixel_spacing)  # the contour runs half a pixel beyond the mask
    distances = np.full(mask.shape, -np.inf, np.float32)
    distances[window] = signed_distance(mask[window], pixel_spacing)
    return distances


def around(mask: np.ndarray, margin: float, plane_spacing: tuple[float, float]) -> tuple[slice, slice]:
    """The rows and columns that hold a mask and `margin` mm around it."""
    window = []
    for lines, spacing in zip((mask.any(axis=1), mask.any(axis=0)), plane_spacing, strict=True):
        used = np.flatnonzero(lines)
        reach = int(np.ceil(margin / spacing))
        window.append(slice(max(0, used[0] - reach), used[-1] + 1 + reach))
    return window[0], window[1]


def _resize(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(planes.shape[-2:]) == tuple(size):
        return planes
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=True)
