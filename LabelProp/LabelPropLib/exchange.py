"""A SparseAnnotation or a Propagation as files of a folder: what goes to the background process and what comes back.

Plain `.npy` and `.npz` without pickles, so that reading a folder runs nothing that lies in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .annotation import AtlasVolume, SparseAnnotation
from .propagation import Propagation

PART_BYTES = 8 * 2**20  # takes a few milliseconds to write


def write_annotation_in_parts(folder: str | os.PathLike, annotation: SparseAnnotation) -> Iterator[None]:
    """Write `annotation` into the existing `folder`, with a break after every few milliseconds.

    In the breaks an event loop can run; all is written when the iterator ends.
    """
    folder = Path(folder)
    yield from save_in_parts(folder / "image.npy", annotation.image)
    if annotation.second_image is not None:
        yield from save_in_parts(folder / "second_image.npy", annotation.second_image)
    for number, atlas in enumerate(annotation.atlases):
        np.savez(folder / f"atlas {number}.npz", **vars(atlas))
    names = ("spacing", "axis", "missing", "sparser", "partial", "some_missing")
    arrays = {name: getattr(annotation, name) for name in names}
    for label, planes in annotation.complete.items():
        if planes:
            arrays[f"planes {label}"] = sorted(planes)
            arrays[f"masks {label}"] = np.stack([planes[plane] for plane in sorted(planes)])
    for label, planes in annotation.absent.items():
        arrays[f"absent {label}"] = np.array(sorted(planes), int)
    for label, voxels in annotation.scribbles.items():
        arrays[f"scribbles {label}"] = voxels
    for label, name in annotation.names.items():
        arrays[f"name {label}"] = name
    np.savez(folder / "annotation.npz", **arrays)


def save_in_parts(path: Path, array: np.ndarray) -> Iterator[None]:
    """As `np.save`, with breaks."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    count = max(1, PART_BYTES * len(array) // max(array.nbytes, 1))
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(array), count):
            stream.write(np.ascontiguousarray(array[start : start + count]).data)
            yield


def read_annotation(folder: str | os.PathLike) -> SparseAnnotation:
    """The annotation that was written into `folder`. Raises InputError where SparseAnnotation does."""
    folder = Path(folder)
    second_image = folder / "second_image.npy"
    with np.load(folder / "annotation.npz", allow_pickle=False) as arrays:
        planes, masks, absent, scribbles, names = (
            {int(name.split()[1]): arrays[name] for name in arrays.files if name.startswith(kind)}
            for kind in ("planes ", "masks ", "absent ", "scribbles ", "name ")
        )
        return SparseAnnotation(
            image=np.load(folder / "image.npy", allow_pickle=False),
            spacing=tuple(arrays["spacing"].tolist()),
            axis=int(arrays["axis"]),
            complete={label: dict(zip(planes[label].tolist(), masks[label], strict=True)) for label in planes},
            absent={label: frozenset(indices.tolist()) for label, indices in absent.items()},
            scribbles=scribbles,
            missing=str(arrays["missing"]),
            sparser=tuple(arrays["sparser"].tolist()),
            partial=tuple(arrays["partial"].tolist()),
            some_missing=bool(arrays["some_missing"]),
            second_image=np.load(second_image, allow_pickle=False) if second_image.exists() else None,
            atlases=tuple(_read_atlas(path) for path in sorted(folder.glob("atlas *.npz"))),
            names={label: str(name) for label, name in names.items()},
        )


def _read_atlas(path: Path) -> AtlasVolume:
    with np.load(path, allow_pickle=False) as arrays:
        return AtlasVolume(**arrays)


def write_propagation(folder: str | os.PathLike, propagation: Propagation):
    """Write `propagation` into the existing `folder`."""
    folder = Path(folder)
    np.save(folder / "label_maps.npy", np.stack(propagation.label_maps))
    for name, label_maps in propagation.directions.items():
        np.save(folder / f"direction {name}.npy", np.stack(label_maps))
    if propagation.uncertainty is not None:
        np.save(folder / "uncertainty.npy", propagation.uncertainty)
    (folder / "report.json").write_text(json.dumps(propagation.report), encoding="utf-8")


def read_propagation(folder: str | os.PathLike) -> Propagation:
    """The propagation that `write_propagation` left in `folder`."""
    folder = Path(folder)

    def load(path: Path) -> np.ndarray:
        return np.load(path, allow_pickle=False)

    uncertainty = folder / "uncertainty.npy"
    return Propagation(
        label_maps=list(load(folder / "label_maps.npy")),
        directions={path.stem.split()[1]: list(load(path)) for path in sorted(folder.glob("direction *.npy"))},
        uncertainty=load(uncertainty) if uncertainty.exists() else None,
        report=json.loads((folder / "report.json").read_text(encoding="utf-8")),
    )
