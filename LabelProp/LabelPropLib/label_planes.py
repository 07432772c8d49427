"""What is known of the drawn labels on the working grid, plane by plane: contours, and intensities in and around."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np
import torch
from scipy import ndimage

from .annotation import SparseAnnotation
from .ends import Growth
from .filters import NOISE_WINDOW, smooth
from .gaps import Gap, known_planes, shared_gaps
from .parallel import side_by_side
from .preprocessing import INTENSITY_RANGE, Stack, around, signed_distance_nearby, unevenness
from .registration.consistency import FarEnds, averaged
from .registration.fields import identity, sample

DISTANCE_LIMIT = 24.0  # pixels; further from the contour only the side matters
SURROUND = 8.0  # pixels; how far around a label its surround goes
INTENSITY_BINS = 32  # of INTENSITY_RANGE
HISTOGRAM_SMOOTHING = 1.5  # bins, standard deviation of the Gaussian that smooths histograms of intensities


def computed_once(method: Callable) -> Callable:
    """A method that keeps what it returns for a label and a plane, in its instance's `_computed`."""

    @wraps(method)
    def kept(self: object, label: int, plane: int):
        key = method.__name__, label, plane
        if key not in self._computed:
            self._computed[key] = method(self, label, plane)
        return self._computed[key]

    return kept


class LabelPlanes:
    """What is computed once per drawn label and plane: its signed distances and intensities on the working grid."""

    def __init__(self, annotation: SparseAnnotation, stack: Stack):
        self._annotation = annotation
        self._stack = stack
        self._computed: dict[tuple[str, int, int], object] = {}  # see `computed_once`

    def bears(self, label: int, plane: int | None) -> bool:
        """Whether `label` is drawn on the stack's plane `plane`."""
        return plane is not None and plane + self._stack.first in self._annotation.complete[label]

    def known(self, label: int) -> list[int]:
        """The stack's planes on which `label` is drawn or absent, ascending."""
        return known_planes(label, self._annotation, self._stack)

    def growth(self, label: int, gap: Gap, plane: int) -> Growth:
        """How `label` came to `plane`, the one that bears it of the two around `gap`."""
        return Growth.of(self._annotation, label, plane + self._stack.first, upwards=plane == gap.lower)

    @computed_once
    def distances(self, label: int, plane: int) -> torch.Tensor:
        """(H, W) signed distance in working pixels, cut off at DISTANCE_LIMIT."""
        return self.distances_of(self._drawn(label, plane))

    def components(self, label: int, plane: int) -> np.ndarray:
        """(rows, columns) of the crop: number of the connected component of `label` on `plane`, 0 outside of it."""
        mask = self._drawn(label, plane)
        window = around(mask, 0.0, self._annotation.plane_spacing)
        components = np.zeros(mask.shape, np.int32)
        components[window], _ = ndimage.label(mask[window], np.ones((3, 3)))
        return components

    def _drawn(self, label: int, plane: int) -> np.ndarray:
        """(rows, columns) bool of the crop: where `label` is drawn on `plane`."""
        return self._annotation.complete[label][plane + self._stack.first][self._stack.box]

    def distances_of(self, mask: np.ndarray) -> torch.Tensor:
        """(H, W) signed distance of a mask (rows, columns) of the crop, as `distances`."""
        reach = DISTANCE_LIMIT * self._stack.pixel
        millimetres = torch.from_numpy(signed_distance_nearby(mask, self._annotation.plane_spacing, reach))
        pixels = (millimetres / self._stack.pixel).clamp(-DISTANCE_LIMIT, DISTANCE_LIMIT)
        return self._stack.to_working_grid(pixels[None, None])[0, 0].to(self._stack.images)

    @computed_once
    def unevenness(self, label: int, plane: int) -> float:
        """How uneven the outline of `label` is on `plane`, on the working grid; see `preprocessing`."""
        return unevenness(self.distances(label, plane)[None] > 0)

    @computed_once
    def histograms(self, label: int, plane: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Intensities of `plane` in `label` and around it, (INTENSITY_BINS,) each; the contour itself is left out."""
        distances = self.distances(label, plane)
        image = smooth(self._stack.images[plane, 0], NOISE_WINDOW)
        regions = (distances > 0.5, (distances < -0.5) & (distances > -SURROUND))
        return tuple(torch.histc(image[region].cpu(), INTENSITY_BINS, *INTENSITY_RANGE).to(image) for region in regions)

    def centroid(self, label: int, plane: int) -> torch.Tensor:
        """(2,) row and column of the middle of `label` on `plane`."""
        distances = self.distances(label, plane)
        inside = distances >= distances.max().clamp(max=0.0)  # on a coarse grid a thin label may have no pixel inside
        return torch.nonzero(inside).float().mean(dim=0).cpu()

    def translated(
        self, label: int, plane: int, moves: torch.Tensor, box: tuple[slice, slice]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances (T, h, w) and channels (T, C, h, w) in `box` as sampled `moves` (T, 2) pixels away on `plane`."""
        height, width = self._stack.size
        points = identity(height, width, self._stack.images.device)[..., box[0], box[1]]
        points = points + moves.to(points)[:, :, None, None]
        both = torch.cat([self.distances(label, plane)[None], self._stack.images[plane]])
        moved = sample(both[None].expand(len(moves), -1, -1, -1), points)
        return moved[:, 0], moved[:, 1:]


def far_ends(
    annotation: SparseAnnotation, stack: Stack, planes: LabelPlanes, size: tuple[int, int] | None = None
) -> FarEnds | None:
    """For every gap the labels drawn on both planes that bound it, see `shared_gaps`; None without any gap.

    Masks are softened over a pixel, sigmoid(signed distance), so that they have a gradient. size: of the grid that they
    are averaged onto, the working grid by default; with many labels they take most of the memory.
    """
    gaps = shared_gaps(annotation)
    if not gaps:
        return None
    moving = [plane - stack.first for bounds in gaps for plane in bounds]
    borne = [shared for shared in gaps.values() for _ in range(2)]
    masks = stack.images.new_zeros(len(moving), len(annotation.labels), *(size or stack.size))
    for drawn, plane, shared in zip(masks, moving, borne, strict=True):
        _enter_soft_masks(drawn, annotation.labels, shared, planes, plane)
    opposite = [number ^ 1 for number in range(len(moving))]  # the other plane of the same gap
    return FarEnds(tuple(moving), tuple(moving[number] for number in opposite), masks, masks[opposite])


def _enter_soft_masks(
    masks: torch.Tensor, labels: Sequence[int], shared: Sequence[int], planes: LabelPlanes, plane: int
):
    """Enter those of the labels on a plane that are shared into `masks` (L, h, w), zeros of any size."""

    def enter(label: int):
        mask = torch.sigmoid(planes.distances(label, plane))
        masks[labels.index(label)] = averaged(mask[None, None], masks.shape[-2:])[0, 0]

    side_by_side(enter, shared, masks.device)
