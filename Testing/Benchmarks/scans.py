"""Volumes with references as arrays with the stack's axis first, read from the folder beside the benchmark's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from bench import ARRAY_AXIS

from LabelPropLib.annotation import SparseAnnotation, annotate_from_label_volume


@dataclass(frozen=True)
class Scan:
    """image: (Z, H, W) float32; labels: (Z, H, W), 0 elsewhere; spacing: mm along these axes."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]

    def annotate(self, slices: list[int]) -> SparseAnnotation:
        """The annotation that the reference is on these slices."""
        drawn = np.zeros_like(self.labels)
        drawn[slices] = self.labels[slices]
        return annotate_from_label_volume(self.image, drawn, self.spacing, axis=0)


def read_scan(entry: dict, data: Path) -> Scan:
    """The volume of an entry as in cases.json: name, data, axis; labels, step, range if it has them.

    From the first to the last slice that bears a label, as the benchmark's cases.
    """
    axis = ARRAY_AXIS[entry["axis"]]
    image = sitk.ReadImage(str(data / entry["data"] / "image.nii.gz"))
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(data / entry["data"] / "labels.nii.gz")))
    labels = np.moveaxis(labels, axis, 0).astype(np.uint16)
    if "labels" in entry:
        labels = np.where(np.isin(labels, entry["labels"]), labels, 0)
    used = np.flatnonzero(labels.any(axis=(1, 2)))
    first, last = entry.get("range", (0, len(labels) - 1))
    step = entry.get("step", 1)
    index = slice(max(first, used[0]), min(last, used[-1]) + 1, step)
    height, width = np.delete(image.GetSpacing()[::-1], axis)
    return Scan(
        name=entry["name"],
        image=np.ascontiguousarray(np.moveaxis(sitk.GetArrayFromImage(image), axis, 0)[index], np.float32),
        labels=np.ascontiguousarray(labels[index]),
        spacing=(image.GetSpacing()[2 - axis] * step, float(height), float(width)),
    )


def spread_slices(scan: Scan, count: int) -> list[int]:
    """So many slices spread evenly from the first to the last."""
    return sorted({int(round(plane)) for plane in np.linspace(0, len(scan.labels) - 1, count)})
