"""Volumes in files: read with a check of what would make them unusable, written whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import re
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .annotation import bearing_planes
from .errors import InputError
from .interruptions import uninterrupted

SEGMENTATION_SUFFIX = ".seg.nrrd"
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")  # one file each, which keep place in space and any label
LARGEST_LABEL = 2**31 - 1  # of a segment in Slicer
GRID_TOLERANCE = 0.1  # voxels by which two volumes on one grid may lie apart: headers are rounded
MOST_STEPS = 0.25  # of neighbouring voxels of a label volume, see `share_of_steps`
FEWEST_INTENSITIES = 64  # different ones, that a scan has
MOST_DRAWN = 0.75  # of the slices from the first drawn one to the last
NIFTI_HEADER_LENGTHS = (348, 540)
NIFTI_ENDINGS = re.compile(r"(\.(nii|hdr|img)(\.gz)?)+$", re.IGNORECASE)  # ITK drops these before another one
NOT_ORTHOGONAL = "only supports orthonormal direction cosines"  # ITK's words
NIFTI_FLOATS = {"16": "f4", "64": "f8"}  # data types of NIfTI that may hold NaN -> as numpy names them

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_segmentation(path: Path) -> bool:
    """Whether the name is that of a segmentation of Slicer's, which keeps names, colours and overlaps."""
    return path.name.lower().endswith(SEGMENTATION_SUFFIX)


def read_volume(path: Path) -> sitk.Image:
    """The 3D scalar volume in a file. Raises InputError."""
    check_readable(path)
    try:
        with without_twin(path) as alone:
            image = sitk.ReadImage(str(alone))
    except RuntimeError as error:
        raise InputError(f"{path}: the file is damaged: copy or export it again.") from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise InputError(f"{path}: {image.GetDimension()} dimensions: give a 3D volume, of one time point.")
    components = image.GetNumberOfComponentsPerPixel()
    if components != 1 and is_segmentation(path):
        raise InputError(f"{path}: a segmentation in {components} layers: export it as a label volume.")
    if components != 1:
        raise InputError(f"{path}: {components} components a voxel (colour or vectors): give a scalar volume.")
    return image


@contextlib.contextmanager
def without_twin(path: Path) -> Iterator[Path]:
    """A path to read: the same, or that of a link to x.nii.gz if x.nii lies beside it, whose voxels ITK would take."""
    if not (path.name.lower().endswith(".nii.gz") and path.with_name(path.name[:-3]).exists()):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="labelprop-") as folder:
        alone = Path(folder, "volume.nii.gz")
        try:
            alone.symlink_to(path.resolve())
        except OSError:  # Windows does not let everybody
            shutil.copyfile(path, alone)
        yield alone


def read_labels(path: Path) -> sitk.Image:
    """The 3D label volume in a file, of an integer type. Raises InputError."""
    image = read_volume(path)
    labels = sitk.GetArrayViewFromImage(image)
    lowest, highest = labels.min(), labels.max()
    whole = labels.dtype.kind in "iu" or (labels % 1 == 0).all()
    if not (lowest >= 0 and highest <= LARGEST_LABEL and whole):
        raise InputError(
            f"{path}: values from {lowest:g} to {highest:g} that are no labels, but perhaps a scan's: give in its place"
            f" a volume of whole numbers from 0 (not annotated) to {LARGEST_LABEL}."
        )
    if labels.dtype.kind in "iu":
        return image
    integers = sitk.GetImageFromArray(labels.astype(np.min_scalar_type(int(highest))))
    integers.CopyInformation(image)
    return integers


def check_is_file(path: Path):
    """Raise InputError unless the path leads to a file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file.")
    if not path.is_file():
        raise InputError(f"{path}: no such file: check the path.")


def check_readable(path: Path):
    """Raise InputError unless the file is there, is an image, and is whole as far as can be told without its voxels."""
    check_is_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with path.open("rb"):
            reader.ReadImageInformation()
        if reader.HasMetaDataKey("vox_offset"):
            check_nifti_voxels(path, reader)
    except PermissionError as error:
        raise InputError(f"{path}: you may not read this file: change its permissions.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the file is damaged or cut off: copy or export it again.") from error
    except RuntimeError as error:
        if NOT_ORTHOGONAL in str(error):
            raise InputError(
                f"{path}: the axes are not at right angles, as of a tilted gantry, which ITK does not read from NIfTI:"
                " resample the volume, or give it as .nrrd."
            ) from error
        raise InputError(f"{path}: not an image that ITK can read: give {', '.join(VOLUME_SUFFIXES)}.") from error


def check_nifti_voxels(path: Path, header: sitk.ImageFileReader):
    """Raise where ITK would silently put zeros: for voxels that are NaN or infinite, and those of a missing end.

    Of a pair of files, x.hdr and x.img, the second is looked at, in which the voxels are.
    Raises InputError for the former, EOFError, BadGzipFile or zlib.error for the latter.
    """
    count = math.prod(int(header.GetMetaData(f"dim[{n}]")) for n in range(1, 1 + int(header.GetMetaData("dim[0]"))))
    missing = count * int(header.GetMetaData("bitpix")) // 8
    number = np.dtype(nifti_byte_order(path) + NIFTI_FLOATS.get(header.GetMetaData("datatype"), "u1"))
    path = of_pair(path, "img")
    unusable = 0
    with open_unpacked(path) as stream:
        stream.read(int(float(header.GetMetaData("vox_offset"))))
        while block := stream.read(2**20):
            if number.kind == "f" and missing > 0:
                values = np.frombuffer(block, number, min(len(block), missing) // number.itemsize)
                unusable += np.count_nonzero(~np.isfinite(values))
            missing -= len(block)
    if missing > 0:
        raise EOFError
    if unusable:
        raise InputError(f"{path}: {unusable} voxels that are NaN or infinite: replace them by a number first.")


def nifti_byte_order(path: Path) -> str:
    """'<' or '>', as the header's first number, its own length, tells; of a pair of files it lies in x.hdr."""
    with open_unpacked(of_pair(path, "hdr")) as stream:
        (length,) = struct.unpack("<i", stream.read(4))
    return "<" if length in NIFTI_HEADER_LENGTHS else ">"


def of_pair(path: Path, kind: str) -> Path:
    """Of a pair of files, x.hdr and x.img, the one of this kind; any other file as it is."""
    pair = re.fullmatch(r"(.*)\.(hdr|img)(\.gz)?", path.name, re.IGNORECASE)
    if pair is None or pair[2].lower() == kind:
        return path
    candidates = (path.with_name(f"{pair[1]}.{kind}{end}") for end in ("", ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), path)


def open_unpacked(path: Path):
    """The file as a binary stream to read, unpacked if it is packed."""
    return (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb")


def check_not_the_same(labels_path: Path, image_path: Path):
    """Raise InputError if a scan was given as its own annotations."""
    if resolved(labels_path) == resolved(image_path):
        raise InputError(
            f"{labels_path} was given as the scan and as its labels: give the scan first, then the labels."
        )


def check_not_swapped(labels: np.ndarray, labels_path: Path, image: np.ndarray, image_path: Path):
    """Raise InputError if the labels are many, fill all slices and vary from voxel to voxel, and the image does not."""
    steps = share_of_steps(labels)
    varies = steps > MOST_STEPS and share_of_steps(image) < steps / 2
    if varies and fills_slices(labels) and len(np.unique(labels)) > FEWEST_INTENSITIES:
        raise InputError(
            f"{image_path} and {labels_path} look swapped, for in the latter {steps:.0%} of neighbouring voxels differ,"
            " as in a scan: give the scan first, then the labels."
        )


def fills_slices(labels: np.ndarray) -> bool:
    """Whether along every axis several slices bear a label, and hardly any is left out from the first to the last."""
    borne = [bearing_planes(labels, axis) for axis in range(3)]
    return all(len(planes) > max(1, MOST_DRAWN * (planes[-1] - planes[0] + 1)) for planes in borne)


def share_of_steps(voxels: np.ndarray) -> float:
    """Of neighbours along the last axis of (K, J, I), neither of them 0, the share that differ; 0 if there are none.

    In 20 scans it was 0.3 to 1, in 20 label volumes up to 0.1.
    """
    first, second = voxels[..., :-1], voxels[..., 1:]
    borne = (first != 0) & (second != 0)
    return np.count_nonzero(borne & (first != second)) / max(1, np.count_nonzero(borne))


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie. size: (i, j, k); spacing: mm; corners: index -> mm of four of its corners."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    corners: dict[tuple[int, int, int], tuple[float, float, float]]

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """The grid of an image, which is not kept."""
        last = [size - 1 for size in image.GetSize()]
        indices = ((0, 0, 0), (last[0], 0, 0), (0, last[1], 0), (0, 0, last[2]))
        corners = {index: image.TransformIndexToPhysicalPoint(index) for index in indices}
        return cls(image.GetSize(), image.GetSpacing(), corners)


def check_same_grid(grid: Grid, path: Path, reference: Grid, reference_path: Path):
    """Raise InputError unless both images have the same size and place in space."""
    advice = "resample one to the other's grid."
    if is_segmentation(path) or is_segmentation(reference_path):  # which Slicer may have cropped as it saved it
        advice = "export the segmentation as a label volume on the other's grid."
    if grid.size != reference.size:
        raise InputError(f"{path} has {size_text(grid)} voxels, {reference_path} {size_text(reference)}: {advice}")
    tolerance = GRID_TOLERANCE * min(reference.spacing)
    for corner, there in reference.corners.items():
        here = grid.corners[corner]
        if np.abs(np.subtract(here, there)).max() > tolerance:
            raise InputError(
                f"Voxel {corner} of {path} lies at {place_text(here)} mm, of {reference_path} at {place_text(there)} mm"
                f" (spacing, origin or direction differ): {advice}"
            )


def read_labels_on(grid: Grid, grid_path: Path, path: Path) -> np.ndarray:
    """(K, J, I) of the label volume in a file, which lies on the grid of the image in another. Raises InputError."""
    labels = read_labels(path)
    check_same_grid(Grid.of(labels), path, grid, grid_path)
    return voxels(labels)


def voxels(image: sitk.Image) -> np.ndarray:
    """The (K, J, I) array of an image, a copy."""
    return sitk.GetArrayFromImage(image)


def size_text(grid: Grid) -> str:
    """The size of an image for the user."""
    return " x ".join(map(str, grid.size))


def place_text(point: Iterable[float]) -> str:
    """A point in mm for the user."""
    return f"({', '.join(f'{coordinate:.2f}' for coordinate in point)})"


def ijk_to_ras(image: sitk.Image) -> np.ndarray:
    """(4, 4) matrix from voxel indices to mm, as Slicer has it: right, anterior and superior are positive."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ matrix


def write_volume(array: np.ndarray, ijk_to_ras: np.ndarray, path: Path):
    """Write a (K, J, I) array, compressed where the format can. Raises OSError if ITK notices, see `check_whole`."""
    matrix = LPS_TO_RAS @ ijk_to_ras
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise not_written(path) from error


def check_whole(path: Path):
    """Raise OSError unless all voxels of a file that was just written are in it.

    On a full disk ITK ends a NIfTI file where it is, and others within their last few kilobytes, and says nothing.
    """
    try:
        check_readable(path)
        if not path.name.lower().endswith((".nii", ".nii.gz")):  # of these `check_readable` has read all voxels
            sitk.ReadImage(str(path))
    except (InputError, RuntimeError) as error:
        raise not_written(path) from error


def not_written(path: Path) -> OSError:
    """What to raise where a file was not written, or not all of it."""
    return OSError(f"{path.name} could not be written: free some space on its disk.")


def write_json(content: dict, path: Path):
    """Write plain values as JSON, to be read by people, too."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]):
    """Raise InputError unless all `outputs` can be written, and none takes the place of another file of the job."""
    outputs = list(outputs)
    clash = first_clash(outputs, inputs)
    if clash:
        raise InputError(f"{clash} is in use as another file of this job: give it another name.")
    for path in outputs:
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file.")
        if path.exists() and not os.access(path, os.W_OK):
            raise InputError(f"{path} is write-protected: give another name, or change its permissions.")
        folder = resolved(path).parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder: create it first.")
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror}): choose another folder.") from error


def first_clash(outputs: Iterable[Path], inputs: Iterable[Path]) -> Path | None:
    """The first of `outputs` that would replace an input or an output before it."""
    taken = {place_of(path) for path in inputs}
    for path in outputs:
        if place_of(path) in taken:
            return path
        taken.add(place_of(path))
    return None


def place_of(path: Path) -> Path:
    """A path that is the same for all names of a file, on macOS also in whatever case, which its disks ignore."""
    place = resolved(path)
    return Path(str(place).casefold()) if sys.platform == "darwin" else place  # Windows' paths ignore case anyway


def resolved(path: Path) -> Path:
    """Where links lead. One that leads to itself stands for itself; `Path.resolve` raises, before Python 3.13."""
    return Path(os.path.realpath(path))


def writable_folder(path: str | os.PathLike) -> Path:
    """The folder, made if need be. Raises InputError."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made ({error.strerror}): choose another one.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"The folder {folder} is read-only: choose another one.")
    return folder


def check_suffix(path: Path, suffixes: Iterable[str]):
    """Raise InputError unless the name ends in one of the suffixes."""
    if not path.name.lower().endswith(tuple(suffixes)):
        raise InputError(f"{path}: cannot write this kind of file: choose one of {', '.join(suffixes)}.")


def with_ending(path: Path, ending: str) -> Path:
    """The path with `ending` added to the name, before its suffix: out.nii.gz -> out_up.nii.gz."""
    stem, suffix = split_suffix(path.name)
    if not suffix:
        raise ValueError(path)
    return path.with_name(stem + ending + suffix)


def split_suffix(name: str) -> tuple[str, str]:
    """A file's name without its suffix, and the suffix, both parts of .nii.gz; empty if it is of no kind we write."""
    suffixes = (SEGMENTATION_SUFFIX, *VOLUME_SUFFIXES)
    length = next((len(suffix) for suffix in suffixes if name.lower().endswith(suffix)), 0)
    return name[: len(name) - length], name[len(name) - length :]


@contextlib.contextmanager
def replacing(paths: Iterable[Path]):
    """Path -> temporary file to write in its stead; at the end all take their places, or on an error all vanish.

    Raises OSError if a volume or a segmentation among them is not whole, see `check_whole`. A KeyboardInterrupt that
    came after the files had begun to take their places says so.
    """
    with contextlib.ExitStack() as cleanup:
        staged = {}
        for path in paths:
            folder = tempfile.TemporaryDirectory(prefix=".labelprop-", dir=resolved(path).parent)
            stem, suffix = split_suffix(path.name)
            name = NIFTI_ENDINGS.sub("", stem) + suffix.lower()  # ITK writes no .NII.GZ, and no .nii.nii.gz
            staged[path] = Path(cleanup.enter_context(folder), name)
        yield staged
        for path, temporary in staged.items():
            if split_suffix(temporary.name)[1]:
                check_whole(temporary)
            with contextlib.suppress(OSError):  # there is none yet, or its disk knows no permissions
                shutil.copymode(path, temporary)
        try:
            with uninterrupted():
                for path, temporary in staged.items():
                    os.replace(temporary, resolved(path))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"cancelled, but written: {', '.join(map(str, staged))}") from None
