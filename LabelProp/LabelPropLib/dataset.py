"""A data set to train on: a table of files, and the volumes in them made ready.

The table is a CSV file with a header. Columns: image; annotations, a label volume on the image's grid, optional; axis
across the slices, i, j or k of the file, optional. Paths count from the table's folder. Other columns are not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import files
from .annotation import AXIS_NAMES, bearing_planes, check_image, coarsest_axis, find_axis, intensities
from .errors import InputError
from .preprocessing import normalise, percentiles, robust_range, square_grid
from .registration.pretraining import TrainingVolume
from .tables import read_records

COLUMNS = ("image", "annotations", "axis")
PIXELS = 256  # along the longer side of a plane, at most
FOREGROUND = 0.08  # of the way from the 1st percentile to the 99th, from where a pixel is more than air


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    axis: array axis across the slices, None to find it; folder: the table's, None for one of no table.
    """

    image: Path
    annotations: Path | None = None
    axis: int | None = None
    folder: Path | None = None

    @property
    def name(self) -> str:
        """A name for metadata that others may read: image and axis, but not where on this computer the image lies.

        The path from the table's folder where the image lies below it, else the last folder and the file.
        """
        image = Path(os.path.abspath(self.image))  # resolves '..', but no links
        folder = None if self.folder is None else Path(os.path.abspath(self.folder))
        below = folder is not None and image.is_relative_to(folder)
        short = image.relative_to(folder) if below else Path(image.parent.name, image.name)
        return short.as_posix() + ("" if self.axis is None else f" across {AXIS_NAMES[self.axis]}")


def read_table(path: Path, say: Callable[[str], None] = lambda text: None) -> list[Entry]:
    """The rows of the table. say: see `tables.read_records`.

    Raises InputError if it is no such table, or names a file that is not there.
    """
    records = read_records(path, COLUMNS, ("image",), say)
    return [read_row(record.cells, record.number, path) for record in records]


def read_row(row: dict[str, str], line: int, path: Path) -> Entry:
    """A row of the table at `path`. Raises InputError."""
    image, annotations, axis = (row[column] for column in COLUMNS)
    if not image:
        raise InputError(f"{path}, line {line}: no image: name a file, or remove the line.")
    if axis not in ("", "auto", *AXIS_NAMES):
        raise InputError(f"{path}, line {line}: unknown axis '{axis}': choose one of i, j, k, or leave it empty.")
    for name in filter(None, (image, annotations)):
        if not (path.parent / name).is_file():
            raise InputError(
                f"{path}, line {line}: {path.parent / name}: no such file: paths count from the table's folder."
            )
    return Entry(
        image=path.parent / image,
        annotations=path.parent / annotations if annotations else None,
        axis=AXIS_NAMES.index(axis) if axis in AXIS_NAMES else None,
        folder=path.parent,
    )


def load(entry: Entry) -> TrainingVolume:
    """The volume of a row: its foreground on square pixels, normalised, as float16. Raises InputError."""
    scan = files.read_volume(entry.image)
    image = intensities(files.voxels(scan)).astype(np.float32)
    spacing = scan.GetSpacing()[::-1]
    try:
        check_image(image)
    except InputError as error:
        raise InputError(f"{entry.image}: {error}") from error
    labels = None
    if entry.annotations:
        if files.is_segmentation(entry.annotations):
            raise InputError(f"{entry.annotations}: a segmentation of Slicer's: export it as a label volume.")
        labels = files.read_labels_on(files.Grid.of(scan), entry.image, entry.annotations)
        if not labels.any():
            raise InputError(f"{entry.annotations}: no labels: leave 'annotations' empty, or give another file.")
    axis = choose_axis(labels, spacing) if entry.axis is None else entry.axis
    if image.shape[axis] < 2:
        raise InputError(f"{entry.image}: a single slice across {AXIS_NAMES[axis]}: choose another axis.")
    plane_spacing = tuple(s for a, s in enumerate(spacing) if a != axis)
    planes, labels = np.moveaxis(image, axis, 0), None if labels is None else np.moveaxis(labels, axis, 0)
    return prepare(entry.name, planes, labels, plane_spacing)


def choose_axis(labels: np.ndarray | None, spacing: tuple[float, float, float]) -> int:
    """The array axis across the slices: that of sparse annotations, else that of the largest spacing."""
    if labels is not None:
        axis = find_axis(labels)
        bearing = bearing_planes(labels, axis)
        if len(bearing) <= (bearing[-1] - bearing[0] + 1) / 2:
            return axis
    return coarsest_axis(spacing)


def prepare(
    name: str, image: np.ndarray, labels: np.ndarray | None, plane_spacing: tuple[float, float]
) -> TrainingVolume:
    """Crop to the foreground, resample, normalise.

    image, labels: (Z, rows, columns); plane_spacing: mm along rows and columns.
    """
    low, high = percentiles(image, (0.01, 0.99))
    bright = (image >= low + FOREGROUND * (high - low)).any(axis=0)
    rows, columns = (
        slice(int(used[0]), int(used[-1]) + 1) for used in (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    )
    image = image[:, rows, columns]
    size, _ = square_grid(image.shape[1:], plane_spacing, PIXELS)
    images = normalise(image, size, *robust_range(image))[:, None].half()
    if labels is None:
        return TrainingVolume(name, images)
    labels = labels[:, rows, columns]
    numbers = np.searchsorted(np.unique(labels[labels != 0]), labels) + 1  # 1, 2, ... whatever the values
    numbers = torch.from_numpy(np.where(labels == 0, 0, numbers).astype(np.float32))
    numbers = F.interpolate(numbers[:, None], size=size, mode="nearest-exact")[:, 0].short()
    annotated = torch.nonzero(numbers.flatten(1).any(dim=1))[:, 0]
    return TrainingVolume(name, images, numbers, tuple(annotated.tolist()))


def hold_back(entries: Sequence[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Entries to train on and to validate with: `share` of the images, at least one if there are two, at random.

    Which ones, the seed and the order of the images in the table say, and not where they lie.
    """
    images = list(dict.fromkeys(entry.image for entry in entries))
    count = min(max(1, round(share * len(images))), len(images) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(images))[:count].tolist())
    held_back = {image for number, image in enumerate(images) if number in chosen}
    return [e for e in entries if e.image not in held_back], [e for e in entries if e.image in held_back]
