"""All the ways a label can reach a slice.

Coordinates are composed from slice to slice and the annotated slice is sampled once: its image, and per label its
signed distance. A mask interpolated anew at every hop would blur by 1/6 pixel^2 of variance each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch

from . import boxes
from .ends import Growth
from .filters import channel_weights, local_contrast_normalise, smooth
from .gaps import Gap
from .label_planes import LabelPlanes
from .parallel import processors, side_by_side
from .presence import intensity_odds, likeness_inside
from .registration.fields import compose, identity, integrate, resize, sample

SQUARINGS = 5
BOX_MARGIN = 12.0  # pixels around all that a label's candidates cover
CONTRAST = 0.2  # weight of local contrast against raw intensity, where carried images are compared with slices
COMPARED_WINDOW = 3.0  # pixels, standard deviation of the Gaussian window in which they are compared
LEAST_DEPTH = 2.0  # pixels from contour to middle, of components that are carried by themselves where they end
MOST_DEPTH = 1.5  # times the depth of what goes on; if the thickest component meets nothing, it was carried amiss
SHAPE_HOPS = 3  # hops of a chain that err as much as one hop of the interpolated shape, which ignores the images


@dataclass(frozen=True)
class Carried:
    """An annotated plane carried to the planes of a gap.

    source: its stack index. coordinates: (T, 2, H, W), the point of the source that each point of a target comes from,
    pixels. channels: (T, C, H, W), the source's images as they should look on the targets.
    """

    source: int
    coordinates: torch.Tensor
    channels: torch.Tensor

    @property
    def images(self) -> torch.Tensor:
        """(T, H, W) of the first channel."""
        return self.channels[:, 0]

    @cached_property
    def shifts(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The least and the most of (source - target), pixels, along rows and along columns."""
        size = self.coordinates.shape[-2:]
        shifts = (self.coordinates - identity(*size, device=self.coordinates.device)).transpose(0, 1).flatten(1)
        least, most = shifts.aminmax(dim=1)
        return tuple(zip(least.tolist(), most.tolist(), strict=True))


@dataclass(frozen=True)
class Crossing:
    """A gap with what crosses it from both sides.

    channels: (T, C, H, W), the images of its planes. weights: (C,) of mean 1, how far each channel can be trusted.
    differences: (2, T, H, W), local differences of the planes from what is carried there, from below and from above;
    None beyond the outermost annotated planes.
    carry: carries any other annotated plane to the planes of the gap; each only once, for all labels.
    """

    gap: Gap
    channels: torch.Tensor
    weights: torch.Tensor
    lower: Carried | None
    upper: Carried | None
    differences: torch.Tensor | None
    carry: Callable[[int], Carried]

    @property
    def targets(self) -> torch.Tensor:
        """(T, H, W) of the first channel."""
        return self.channels[:, 0]


@dataclass(frozen=True)
class Candidate:
    """A label of one annotated plane carried to the planes of a gap, within the label's box.

    source: stack index of the plane. distances: (T, h, w), signed distance to the carried contour in pixels, positive
    inside. depth: the largest one on the source. area: pixels of the label there, at least one. unevenness: of its
    outline there, see `preprocessing`. inside, around: (INTENSITY_BINS,) histograms of the source's intensities in the
    label and around it.
    """

    source: int
    distances: torch.Tensor
    depth: float
    area: float
    unevenness: float
    inside: torch.Tensor
    around: torch.Tensor


@dataclass(frozen=True)
class Atlas:
    """An annotated plane registered to the planes of a gap, image and label, as multi-atlas label fusion sees it.

    source: what it was made from; atlases of one source err together. hops: (T,) planes from its source to each target,
    by which its error grows. channels: (T, C, h, w), its image as it should look on the targets. distances: (T, h, w)
    signed distance to the carried contour in pixels, None where the label is absent on the source: such an atlas votes
    "not here".
    depth: the largest distance on the source.
    """

    source: Hashable
    hops: torch.Tensor
    channels: torch.Tensor
    distances: torch.Tensor | None
    depth: float = 0.0


@dataclass(frozen=True)
class Arrivals:
    """What reaches the planes of a gap for one label, within the label's box (rows, columns) of the working grid.

    lower, upper: the candidates from the two sides, None where the label is absent or nothing is known.
    nearest: the planes that bound the gap as atlases, also those without the label. growth: of a label that only one
    side bears. more: makes all other atlases, for the rules that ask for them.
    parts: of a label of several components some of which end in the gap, what goes on and what ends, from below and
    from above; each is fused as if it were a label.
    """

    label: int
    crossing: Crossing
    box: tuple[slice, slice]
    lower: Candidate | None
    upper: Candidate | None
    nearest: tuple[Atlas, ...]
    growth: Growth | None
    more: Callable[[], tuple[Atlas, ...]]
    parts: tuple[Arrivals, ...] = ()

    @property
    def fused(self) -> tuple[Arrivals, ...]:
        """What is fused by itself: the parts, or else the label as a whole."""
        return self.parts or (self,)

    @property
    def gap(self) -> Gap:
        return self.crossing.gap

    @property
    def present(self) -> list[Candidate]:
        """The candidates that bear the label, one or two."""
        return [candidate for candidate in (self.lower, self.upper) if candidate is not None]

    @cached_property
    def presence(self) -> torch.Tensor:
        """(T, 2) what speaks for a label that only one side bears: its intensities' log-odds, and the likeness inside.

        Found once, for the fusion rules and the confidence; see `presence`.
        """
        (candidate,) = self.present
        return torch.stack([look(candidate, self) for look in (intensity_odds, likeness_inside)], dim=1)

    @property
    def votes(self) -> torch.Tensor:
        """(2, T, h, w) bool: where the candidate from below votes for the label, and where the one from above.

        Where nothing is known on one side of the gap, the other side's candidate has both votes.
        """
        lower = self.upper if self.gap.lower is None else self.lower
        upper = self.lower if self.gap.upper is None else self.upper
        nowhere = torch.zeros_like((self.lower or self.upper).distances, dtype=torch.bool)
        return torch.stack([nowhere if side is None else side.distances > 0 for side in (lower, upper)])

    @cached_property
    def atlases(self) -> tuple[Atlas, ...]:
        """The nearest planes, the next ones behind them, and the shape between the nearest two."""
        return self.nearest + self.more()


class Chains:
    """Carries annotated planes along the velocity fields of neighbouring planes.

    weights: (C,) of mean 1, how far each channel of the images can be trusted.
    """

    def __init__(self, velocity: torch.Tensor, images: torch.Tensor, core: slice = slice(None)):
        """velocity: (Z - 1, 2, h, w), see `registration`; images: (Z, C, H, W).

        core: of the planes, those that decide on the weights; see `Stack.core`.
        """
        self._images = images
        self.weights = channel_weights(images[core])
        self._to_lower = integrate(velocity, SQUARINGS)
        self._to_upper = integrate(-velocity, SQUARINGS)

    def cross(self, gap: Gap) -> Crossing:
        """Carry the planes that bound `gap` to the planes in it."""
        bounds = [plane for plane in (gap.lower, gap.upper) if plane is not None]
        carried = side_by_side(lambda source: self.carry(source, gap.targets), bounds, self._images.device)
        sides = dict(zip(bounds, carried, strict=True))
        channels = self._images[gap.first : gap.last + 1]
        return Crossing(
            gap=gap,
            channels=channels,
            weights=self.weights,
            lower=sides.get(gap.lower),
            upper=sides.get(gap.upper),
            differences=self._differences(channels, *carried) if len(carried) == 2 else None,
            carry=cache(lambda source: self.carry(source, gap.targets)),
        )

    def _differences(self, channels: torch.Tensor, lower: Carried, upper: Carried) -> torch.Tensor:
        """(2, T, H, W) of slices (T, C, H, W) from both carried planes, found once for all labels.

        The absolute difference of intensities and of local contrast, averaged over channels by their weights and over a
        Gaussian window.
        """
        weights = self.weights[:, None, None]
        differences = channels.new_empty(2, len(channels), *channels.shape[-2:])

        def compare(part: slice):
            contrast = local_contrast_normalise(channels[part])
            for difference, carried in zip(differences, (lower, upper), strict=True):
                images = (carried.channels[part] - channels[part]).abs()
                contrasts = (local_contrast_normalise(carried.channels[part]) - contrast).abs()
                difference[part] = smooth((weights * (images + CONTRAST * contrasts)).mean(dim=1), COMPARED_WINDOW)

        share = math.ceil(len(channels) / processors(channels.device))
        side_by_side(compare, [slice(k, k + share) for k in range(0, len(channels), share)], channels.device)
        return differences

    def carry(self, source: int, targets: range) -> Carried:
        """Carry plane `source` to `targets`, all on one side of it, by all planes in between."""
        upwards = source < targets[0]
        path = range(source + 1, targets[-1] + 1) if upwards else range(source - 1, targets[0] - 1, -1)
        size = self._images.shape[-2:]
        displacement = self._images.new_zeros(1, 2, *size)
        displacements = {}
        for plane in path:
            hop = self._to_lower[plane - 1] if upwards else self._to_upper[plane]
            displacement = compose(resize(hop[None], size), displacement)
            displacements[plane] = displacement
        coordinates = torch.cat([displacements[target] for target in targets])
        coordinates = coordinates + identity(*self._images.shape[-2:], device=coordinates.device)
        source_image = self._images[source][None].expand(len(targets), -1, -1, -1)
        return Carried(source, coordinates, sample(source_image, coordinates))


def arrivals(label: int, crossing: Crossing, planes: LabelPlanes) -> Arrivals:
    """Sample the signed distances of `label` on the planes that bound the gap and bear it."""
    sides = [side for side in (crossing.lower, crossing.upper) if side is not None]
    bearing = [side for side in sides if planes.bears(label, side.source)]
    around = boxes.around([_within_reach(label, side, planes) for side in bearing])
    carried = {side.source: _candidate(label, side, around, planes) for side in bearing}
    nearest = torch.stack([candidate.distances.amax(dim=0) for candidate in carried.values()]).amax(dim=0)
    inner = bounding_box(nearest > -BOX_MARGIN)
    box = tuple(slice(outer.start + part.start, outer.start + part.stop) for outer, part in zip(around, inner))
    carried = {
        source: replace(candidate, distances=candidate.distances[:, inner[0], inner[1]])
        for source, candidate in carried.items()
    }
    whole = Arrivals(
        label,
        crossing,
        box,
        lower=carried.get(crossing.gap.lower),
        upper=carried.get(crossing.gap.upper),
        nearest=tuple(_atlas(side, carried.get(side.source), crossing.gap, box) for side in sides),
        growth=planes.growth(label, crossing.gap, bearing[0].source) if len(bearing) == 1 else None,
        more=lambda: (*_further(label, crossing, box, planes), *_shape(label, crossing.gap, box, planes)),
    )
    return replace(whole, parts=_parts(whole, planes))


def _parts(whole: Arrivals, planes: LabelPlanes) -> tuple[Arrivals, ...]:
    """See `Arrivals`; none where no component ends, or all do.

    A component ends where it meets nothing of the label that comes from the other side. There it is as far outside as
    distances go, so that pooled with the others it would vanish next to the plane on which it was drawn.
    """
    if len(whole.present) < 2:
        return ()
    meeting = (whole.lower.distances > 0) & (whole.upper.distances > 0)
    sides = ((whole.crossing.lower, whole.lower), (whole.crossing.upper, whole.upper))
    (lower, lower_end), (upper, upper_end) = (
        _divide(candidate, carried, meeting, whole, planes) for carried, candidate in sides
    )
    if lower_end is None and upper_end is None:
        return ()
    pairs = [(lower, upper), (lower_end, None), (None, upper_end)]
    return tuple(_part(whole, *pair, planes) for pair in pairs if any(pair))


def _divide(
    candidate: Candidate, carried: Carried, meeting: torch.Tensor, whole: Arrivals, planes: LabelPlanes
) -> tuple[Candidate, Candidate | None]:
    """What goes on of a label's candidate, and what ends: components with no pixel that is `meeting` (T, h, w)."""
    components = planes.components(whole.label, carried.source)
    if components.max() == 1:
        return candidate, None
    coordinates = carried.coordinates[..., whole.box[0], whole.box[1]]
    rows, columns = (
        (lines * ((native - 1) / (working - 1))).round().long().clamp(0, native - 1)[meeting].cpu().numpy()
        for lines, native, working in zip(
            coordinates.unbind(1), components.shape, carried.coordinates.shape[-2:], strict=True
        )
    )
    drawn, goes_on = components > 0, np.isin(components, components[rows, columns])
    found = []
    for mask in (drawn & goes_on, drawn & ~goes_on):
        if not mask.any():
            return candidate, None
        distances = planes.distances_of(mask)
        depth = float(distances.max())
        found.append(replace(candidate, distances=carried_distances(distances, carried, whole.box), depth=depth))
    rest, end = found
    return (rest, end) if LEAST_DEPTH <= end.depth <= MOST_DEPTH * rest.depth else (candidate, None)


def _part(whole: Arrivals, lower: Candidate | None, upper: Candidate | None, planes: LabelPlanes) -> Arrivals:
    """What arrives of some of a label's components, of those that go on or of those that end."""
    sides = ((whole.crossing.lower, lower), (whole.crossing.upper, upper))
    nearest = tuple(_atlas(carried, candidate, whole.gap, whole.box) for carried, candidate in sides)
    part = replace(whole, lower=lower, upper=upper, nearest=nearest)
    if len(part.present) == 2:
        return part
    growth = planes.growth(whole.label, whole.gap, part.present[0].source)
    return replace(part, growth=growth, more=lambda: ())


def _within_reach(label: int, carried: Carried, planes: LabelPlanes) -> tuple[slice, slice]:
    """Rows and columns outside which what is carried lies further than BOX_MARGIN from the label.

    A sample takes part of the margin if it lies less than a pixel beyond it. There is always a pixel in them.
    """
    distances = planes.distances(label, carried.source)
    reach = []
    for part, size, (least, most) in zip(
        bounding_box(distances > -BOX_MARGIN), distances.shape, carried.shifts, strict=True
    ):
        first = 0 if part.start == 0 else math.floor(part.start - 1 - most)
        last = size if part.stop == size else math.ceil(part.stop - least) + 1
        first = max(0, min(first, size - 1))
        reach.append(slice(first, max(first + 1, min(size, last))))
    return tuple(reach)


def _candidate(label: int, carried: Carried, box: tuple[slice, slice], planes: LabelPlanes) -> Candidate:
    distances = planes.distances(label, carried.source)
    inside, around = planes.histograms(label, carried.source)
    return Candidate(
        source=carried.source,
        distances=carried_distances(distances, carried, box),
        depth=float(distances.max()),
        area=float((distances > 0).sum().clamp(min=1)),
        unevenness=planes.unevenness(label, carried.source),
        inside=inside,
        around=around,
    )


def carried_distances(distances: torch.Tensor, carried: Carried, box: tuple[slice, slice]) -> torch.Tensor:
    """(T, h, w) signed distances (H, W) of the source plane, sampled where the targets' pixels in the box come from."""
    coordinates = carried.coordinates[..., box[0], box[1]]
    return sample(distances[None, None].expand(len(coordinates), -1, -1, -1), coordinates)[:, 0]


def _atlas(carried: Carried, candidate: Candidate | None, gap: Gap, box: tuple[slice, slice]) -> Atlas:
    hops = torch.tensor([abs(target - carried.source) for target in gap.targets])
    channels = carried.channels[..., box[0], box[1]]
    if candidate is None:
        return Atlas(carried.source, hops, channels, None)
    return Atlas(carried.source, hops, channels, candidate.distances, candidate.depth)


def _further(label: int, crossing: Crossing, box: tuple[slice, slice], planes: LabelPlanes) -> list[Atlas]:
    """The next known plane of the label on either side, carried on through the one that bounds the gap."""
    gap = crossing.gap
    below = [plane for plane in planes.known(label) if gap.lower is not None and plane < gap.lower]
    above = [plane for plane in planes.known(label) if gap.upper is not None and plane > gap.upper]
    atlases = []
    for source in below[-1:] + above[:1]:
        carried = crossing.carry(source)
        candidate = _candidate(label, carried, box, planes) if planes.bears(label, source) else None
        atlases.append(_atlas(carried, candidate, gap, box))
    return atlases


def _shape(label: int, gap: Gap, box: tuple[slice, slice], planes: LabelPlanes) -> list[Atlas]:
    """The contour between the two drawn ones, whatever the images say; none unless both planes bear the label.

    Both signed distances are moved onto the line between their centroids and averaged by the way (shape-based
    interpolation, Raya & Udupa, IEEE TMI 1990, with aligned centroids); the image is the nearer plane's.
    """
    if not (planes.bears(label, gap.lower) and planes.bears(label, gap.upper)):
        return []
    way = torch.tensor([(target - gap.lower) / (gap.upper - gap.lower) for target in gap.targets])[:, None]
    shift = planes.centroid(label, gap.upper) - planes.centroid(label, gap.lower)
    lower, lower_channels = planes.translated(label, gap.lower, -way * shift, box)
    upper, upper_channels = planes.translated(label, gap.upper, (1 - way) * shift, box)
    way = way.to(lower)[..., None]
    distances = (1 - way) * lower + way * upper
    channels = torch.where(way[..., None] < 0.5, lower_channels, upper_channels)
    hops = SHAPE_HOPS * torch.tensor([min(target - gap.lower, gap.upper - target) for target in gap.targets])
    depth = max(float(planes.distances(label, plane).max()) for plane in (gap.lower, gap.upper))
    return [Atlas(("shape", gap.lower, gap.upper), hops, channels, distances, depth)]


def bounding_box(mask: torch.Tensor) -> tuple[slice, slice]:
    """Rows and columns that hold all of an (H, W) mask; the whole plane if it is empty.

    The mask of a label that was carried out of the plane is empty.
    """
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    rows = np.flatnonzero(mask.any(dim=1).cpu().numpy())
    columns = np.flatnonzero(mask.any(dim=0).cpu().numpy())
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
