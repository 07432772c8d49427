"""What the user gave: a scan, and per label the slices that were drawn, the scribbles, and the slices marked absent.

Per label a slice is *complete* (these voxels and no others), *absent* (the label is not on this slice) or *unknown*.
Unknown is never background. A *scribble* says only "these voxels are this label", or background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain, combinations

import numpy as np

from .errors import InputError
from .settings import MISSING_CHOICES

BACKGROUND = 0
SCRIBBLE_FILE_BACKGROUND = 255
NOTHING_DRAWN = "No annotated slice: draw at least one segment on at least one slice."
MOST_COVERED = 0.75  # share of a label on a plane that one which excludes it may cover without a message
FURTHEST = 1000  # most that intensities may lie from 0, in multiples of their range: float32 holds 7 digits
AXIS_NAMES = ("k", "j", "i")  # of the array axes: numpy arrays of medical images are (k, j, i), i fastest in the file


@dataclass(frozen=True)
class AtlasVolume:
    """A finished volume of another subject.

    image: (K, J, I) float32; labels: (K, J, I) integers, of the same values as the labels to be found, 0 elsewhere.
    matrix: (4, 4), from voxel indices (k, j, i) of the atlas to mm along the array axes of the annotated scan's grid,
    that is, its indices (k, j, i) times its spacing. Only directions and spacing count: no two subjects lie alike.

    Raises InputError when the image or the labels cannot be used.
    """

    image: np.ndarray
    labels: np.ndarray
    matrix: np.ndarray

    def __post_init__(self):
        check_image(self.image, "atlas image")
        if self.labels.shape != self.image.shape:
            raise InputError(
                f"The atlas labels have the size {self.labels.shape[::-1]}, the atlas image {self.image.shape[::-1]}:"
                " give the labels on the image's grid."
            )
        if not self.labels.any():
            raise InputError("The atlas bears no label: give a volume that is segmented on all its slices.")


@dataclass(frozen=True)
class SparseAnnotation:
    """A scan annotated on some of its slices.

    image: (K, J, I), see `intensities`; any of the three axes may be the stack's.
    spacing: mm along (K, J, I).
    axis: the array axis across which labels are carried; a *plane* is an index along it, its pixels are the two
        remaining axes in their order.
    complete: label -> plane index -> (H, W) bool, the label's voxels on that plane and no others. Labels are positive
        integers, need not be contiguous, and may overlap each other.
    absent: label -> plane indices on which the label is known not to be.
    scribbles: label (or BACKGROUND) -> (N, 3) int, (k, j, i) indices of scribbled voxels, in any plane.
    missing: how labels missing on annotated planes were read, 'absent' or 'unknown'; for the report.
    sparser, partial: labels and planes that were read as 'unknown' where others are 'absent', see `Reading`; for
        messages.
    some_missing: whether any label is missing on an annotated plane that the user has not marked for it.
    second_image: (K, J, I), another contrast of the same anatomy on the same grid, where there is one.
    atlases: finished volumes of other subjects.
    names: label -> name of its segment, where there are segments; for messages.

    Raises InputError when these contradict each other or cannot be propagated.
    """

    image: np.ndarray
    spacing: tuple[float, float, float]
    axis: int
    complete: Mapping[int, Mapping[int, np.ndarray]]
    absent: Mapping[int, frozenset[int]] = field(default_factory=dict)
    scribbles: Mapping[int, np.ndarray] = field(default_factory=dict)
    missing: str = "absent"
    sparser: tuple[int, ...] = ()
    partial: tuple[int, ...] = ()
    some_missing: bool = False
    second_image: np.ndarray | None = None
    atlases: tuple[AtlasVolume, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self):
        check_image(self.image)
        if self.second_image is not None:
            check_second_image(self.second_image, self.image)
        for atlas in self.atlases:
            if not np.isin(atlas.labels, self.labels).any():
                raise InputError(
                    f"An atlas shares no label with the annotations, which have {', '.join(map(str, self.labels))}:"
                    " give it the same label values or segment names, or leave it out."
                )
        flat = [name for name, size in zip(AXIS_NAMES, self.image.shape, strict=True) if size < 2]
        if flat:
            raise InputError(
                f"The volume of {' x '.join(map(str, self.image.shape[::-1]))} voxels has a single slice along axis"
                f" {' and '.join(flat)}: give a volume of several slices along every axis."
            )
        if not self.planes:
            raise InputError(NOTHING_DRAWN)
        if not self.unknown_planes:
            raise InputError(
                f"All {self.plane_count} slices along axis {AXIS_NAMES[self.axis]} are annotated, so there is nothing"
                " to propagate: choose another axis, or clear the slices that are to be found."
            )
        unborne = sorted(set(self.scribbles) - set(self.labels) - {BACKGROUND})
        if unborne:
            raise InputError(
                f"Scribbles of {', '.join(map(self.named, unborne))}, which no slice bears:"
                " draw the label on at least one slice, or remove its scribbles."
            )

    def named(self, label: int) -> str:
        """What to call the label in a message."""
        return f"'{self.names[label]}'" if label in self.names else f"label {label}"

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that at least one plane bears, ascending."""
        return tuple(sorted(label for label, planes in self.complete.items() if planes))

    @property
    def plane_count(self) -> int:
        """Number of planes along the axis."""
        return self.image.shape[self.axis]

    @property
    def planes(self) -> list[int]:
        """Planes that bear at least one label, ascending."""
        return sorted(set().union(*self.complete.values()))

    @property
    def unknown_planes(self) -> list[int]:
        """Planes on which at least one label is neither complete nor absent."""
        known = set(range(self.plane_count))
        for label in self.labels:
            known &= self.known_planes(label)
        return [plane for plane in range(self.plane_count) if plane not in known]

    @property
    def plane_spacing(self) -> tuple[float, float]:
        """mm along the two axes of a plane."""
        height, width = (s for a, s in enumerate(self.spacing) if a != self.axis)
        return height, width

    @property
    def slice_spacing(self) -> float:
        """mm from plane to plane."""
        return self.spacing[self.axis]

    def known_planes(self, label: int) -> set[int]:
        """Planes on which `label` is complete or absent."""
        return set(self.complete[label]) | set(self.absent.get(label, ()))

    def overlapping(self) -> set[tuple[int, int]]:
        """Pairs (smaller, larger) of labels that share voxels on some complete plane, so may do so elsewhere."""
        pairs = set()
        for plane in self.planes:
            masks = {label: planes[plane] for label, planes in self.complete.items() if plane in planes}
            if np.sum(list(masks.values()), axis=0, dtype=np.uint16).max() > 1:
                pairs |= {pair for pair in combinations(sorted(masks), 2) if (masks[pair[0]] & masks[pair[1]]).any()}
        return pairs

    def covered(self) -> list[tuple[int, int]]:
        """Pairs (inner, outer) of labels known together on no plane, so taken to exclude each other, though they lie
        over each other: where `inner` is drawn, most of it is `outer` on the next planes of that on both sides.
        """
        known = {label: self.known_planes(label) for label in self.labels}
        found = []
        for inner in self.labels:
            apart = [other for other in self.labels if other != inner and not known[inner] & known[other]]
            voxels = {plane: np.flatnonzero(mask) for plane, mask in self.complete[inner].items()} if apart else {}
            found += [(inner, outer) for outer in apart if covers(self.complete[outer], voxels)]
        return found


def covers(outer: Mapping[int, np.ndarray], inner: Mapping[int, np.ndarray]) -> bool:
    """Whether on a plane of `inner` most of it is `outer` on the next planes on both sides.

    outer: plane -> (H, W) bool; inner: plane -> (N,) its voxels there, counted row by row.
    """
    for plane, voxels in inner.items():
        below, above = [p for p in outer if p < plane], [p for p in outer if p > plane]
        if below and above:
            on_both = outer[max(below)].ravel()[voxels] & outer[min(above)].ravel()[voxels]
            if on_both.mean() > MOST_COVERED:
                return True
    return False


def stack_order(annotation: SparseAnnotation) -> tuple[int, int, int]:
    """The array axes of the volume as planes, rows, columns."""
    rows, columns = (axis for axis in range(3) if axis != annotation.axis)
    return annotation.axis, rows, columns


def exclude(label: int, other: int, overlapping: Collection[tuple[int, int]]) -> bool:
    """Whether no voxel can bear both labels; overlapping: pairs of labels, ascending, that may share voxels."""
    return (min(label, other), max(label, other)) not in overlapping


def annotate_from_planes(
    image: np.ndarray,
    complete: Mapping[int, Mapping[int, np.ndarray]],
    spacing: tuple[float, float, float],
    axis: int,
    missing: str = "auto",
    absent: Mapping[int, set[int]] | None = None,
    ignored: Mapping[int, set[int]] | None = None,
    scribbles: Mapping[int, np.ndarray] | None = None,
    second_image: np.ndarray | None = None,
    atlases: Iterable[AtlasVolume] = (),
    found: Mapping[int, set[int]] | None = None,
    names: Mapping[int, str] | None = None,
) -> SparseAnnotation:
    """Annotation from the drawn planes of each label, without those to be ignored; labels may overlap.

    image: (K, J, I); spacing: mm; axis: array axis. complete: label -> plane index -> (H, W) bool.
    missing: how a label that is missing on a plane annotated for other labels is read: 'absent', 'unknown', or
        'auto', see `read_missing`.
    absent, ignored: label -> planes that the user marked as without the label, or as not to be read. Those beyond the
        volume, as of a segmentation that has come to lie otherwise, say nothing.
    found: label -> planes that an earlier run found, to be ignored or corrected since: they do not tell how missing
        labels are meant.
    scribbles: label or BACKGROUND -> (N, 3) voxel indices.
    second_image: (K, J, I), another contrast of the same anatomy. atlases: finished volumes of other subjects.
    names: label -> name of its segment.

    Raises InputError.
    """
    if missing not in MISSING_CHOICES:
        raise InputError(f"Unknown way to read missing labels '{missing}': choose one of {', '.join(MISSING_CHOICES)}.")
    complete = {label: planes for label, planes in complete.items() if planes}
    there = frozenset(range(image.shape[axis]))
    marked = {label: there & set(planes) - set(complete.get(label, ())) for label, planes in (absent or {}).items()}
    found = {label: set((found or {}).get(label, ())) for label in complete}
    drawn = {label: set(planes) - found[label] for label, planes in complete.items()}
    unread = {label: set((ignored or {}).get(label, ())) - found[label] for label in complete}
    said = {label: set(planes) | marked.get(label, set()) | unread[label] for label, planes in complete.items()}
    reading = read_missing(drawn, said) if missing == "auto" else Reading(missing)
    annotated = frozenset().union(*complete.values())
    absences = {}
    for label, planes in complete.items():
        without = reading.absent(label, annotated - set(planes) - set((ignored or {}).get(label, ())))
        absences[label] = marked.get(label, frozenset()) | without
    return SparseAnnotation(
        image=intensities(image),
        spacing=spacing,
        axis=axis,
        complete=complete,
        absent=absences,
        scribbles=dict(scribbles or {}),
        missing=reading.missing,
        sparser=tuple(sorted(reading.sparser)),
        partial=tuple(sorted(reading.partial)),
        some_missing=any(set().union(*drawn.values()) - said[label] for label in complete),
        second_image=None if second_image is None else intensities(second_image),
        atlases=tuple(atlases),
        names=dict(names or {}),
    )


def annotate_from_label_volume(
    image: np.ndarray,
    labels: np.ndarray,
    spacing: tuple[float, float, float],
    axis: int | None = None,
    missing: str = "auto",
    scribbles: np.ndarray | None = None,
    second_image: np.ndarray | None = None,
) -> SparseAnnotation:
    """Annotation from a label volume: 0 is "not annotated", a plane that bears a label is complete for it.

    image, labels, scribbles, second_image: (K, J, I) on one grid; in `scribbles` 0 is nothing and 255 is background.
    Raises InputError.
    """
    if labels.shape != image.shape:
        raise InputError(
            f"The label volume has the size {labels.shape[::-1]}, the image {image.shape[::-1]}:"
            " resample the annotations to the image's grid."
        )
    if labels.min() < 0 or labels.dtype.kind == "f" and (labels % 1).any():
        raise InputError(
            f"The label volume has values from {labels.min():g} to {labels.max():g} that are no labels: give whole"
            " numbers from 0 (not annotated)."
        )
    if axis is None:
        axis = find_axis(labels)
    complete: dict[int, dict[int, np.ndarray]] = {}
    for index, plane in enumerate(np.moveaxis(labels, axis, 0)):
        for value in np.unique(plane[plane != 0]):
            complete.setdefault(int(value), {})[index] = plane == value
    complete = {value: complete[value] for value in sorted(complete)}
    strokes = None if scribbles is None else scribbles_from_volume(scribbles)
    return annotate_from_planes(image, complete, spacing, axis, missing, scribbles=strokes, second_image=second_image)


def placeholder(label: int | str) -> str:
    """What the segment of a label is called that has no name, like those of a label volume."""
    return f"Label_{label}"


def scribbles_from_volume(volume: np.ndarray) -> dict[int, np.ndarray]:
    """Label -> (N, 3) voxel indices of a (K, J, I) volume of strokes, in which 255 is background."""
    values = [int(value) for value in np.unique(volume) if value != 0]
    return {
        BACKGROUND if value == SCRIBBLE_FILE_BACKGROUND else value: np.argwhere(volume == value) for value in values
    }


@dataclass(frozen=True)
class Reading:
    """How a label that is missing on a plane annotated for other labels is read.

    missing: 'absent' or 'unknown'. Even if 'absent', labels of `sparser` are unknown wherever they are missing, and all
    labels that are missing on planes of `partial` are unknown there.
    """

    missing: str
    sparser: frozenset[int] = frozenset()
    partial: frozenset[int] = frozenset()

    def absent(self, label: int, planes: Set[int]) -> Set[int]:
        """Those of the annotated planes on which a label is missing that are taken to be without it."""
        return planes - self.partial if self.missing == "absent" and label not in self.sparser else frozenset()


def read_missing(drawn: Mapping[int, Set[int]], said: Mapping[int, Set[int]]) -> Reading:
    """'absent' if the annotated planes look drawn completely, else 'unknown'.

    They do unless labels are missing on half of the annotated planes between their own first and last one, all labels
    together: then they were drawn each on its own planes. Otherwise a label that is missing there may have been drawn
    on fewer planes than the others; and a plane on which most of the labels around it are missing, for a few alone.
    drawn: label -> its planes; said: those that are complete for it, or were marked as absent or to be ignored.
    """
    annotated = set().union(*drawn.values())
    around = {
        label: {plane for plane in annotated if min(planes) <= plane <= max(planes)}
        for label, planes in drawn.items()
        if planes
    }
    between = sum(len(planes - {min(planes), max(planes)}) for planes in around.values())
    lacking = {label: planes - said[label] for label, planes in around.items() if planes - said[label]}
    if lacking and 2 * sum(map(len, lacking.values())) >= between:
        return Reading("unknown")
    expected, missed = (Counter(chain.from_iterable(planes.values())) for planes in (around, lacking))
    partial = {plane for plane in missed if 2 * missed[plane] > expected[plane]}
    return Reading("absent", frozenset(lacking), frozenset(partial))


def find_axis(labels: np.ndarray) -> int:
    """The array axis across which the slices of a (K, J, I) label volume were drawn, see `run_length`.

    Raises InputError if it bears no label.
    """
    if not labels.any():
        raise InputError(NOTHING_DRAWN)
    return min(range(3), key=lambda axis: run_length(bearing_planes(labels, axis)))


def bearing_planes(labels: np.ndarray, axis: int) -> np.ndarray:
    """Indices of the planes of a (K, J, I) label volume across the array axis that bear a label, ascending."""
    return np.flatnonzero(labels.any(axis=tuple(other for other in range(3) if other != axis)))


def coarsest_axis(spacing: Sequence[float]) -> int:
    """The array axis of the largest spacing (mm); the first of several that are equal but for rounding in a header."""
    return int(np.argmax(np.round(np.array(spacing) / max(spacing), 3)))


def run_length(planes: np.ndarray) -> tuple[float, int]:
    """Mean length of the runs of consecutive indices in `planes`, ascending, and the number of `planes`.

    Least along the axis across which slices were drawn: drawn slices stand alone, with others in between, while
    structures fill many consecutive planes along the two axes within them.
    """
    runs = 1 + np.count_nonzero(np.diff(planes) > 1)
    return len(planes) / runs, len(planes)


def intensities(image: np.ndarray) -> np.ndarray:
    """The (K, J, I) image as it is if its numbers are float32 or take less memory than that, else as float32.

    Intensities that lie so far from 0 that float32 would hardly tell them apart are counted from the lowest one.
    """
    if image.dtype.kind in "iu" and image.dtype.itemsize <= 2:
        return image
    if image.dtype != np.float32:
        low, high = image.min().item(), image.max().item()
        if max(abs(low), abs(high)) > FURTHEST * (high - low) > 0:
            image = image - image.min()
    return np.asarray(image, np.float32)


def check_image(image: np.ndarray, name: str = "image"):
    """Raise InputError unless `image` is a scalar volume with finite, varying intensities."""
    if image.ndim != 3:
        raise InputError(
            f"The {name} has {image.ndim} dimensions: give a 3D scalar volume (one time point, one channel)."
        )
    low, high = image.min(), image.max()  # NaN if there is one: one look at every voxel tells all
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~np.isfinite(image)).sum())
        raise InputError(f"The {name} has {count} voxels that are NaN or infinite: replace them by a number first.")
    if low == high:
        raise InputError(f"The {name} is constant ({float(low):g} everywhere): choose the scan itself.")
    if float(high) - float(low) > float(np.finfo(np.float32).max):
        raise InputError(
            f"The {name} has intensities from {float(low):g} to {float(high):g}, too large to compute with:"
            " replace the values that mark voxels without data."
        )


def check_second_image(second: np.ndarray, image: np.ndarray):
    """Raise InputError unless `second` can be used beside `image`."""
    check_image(second, "second image")
    if second.shape != image.shape:
        raise InputError(
            f"The second image has the size {second.shape[::-1]}, the image {image.shape[::-1]}:"
            " resample it to the image's grid, or leave it out."
        )
