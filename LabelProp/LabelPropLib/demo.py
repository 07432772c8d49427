"""`labelprop demo`: the main job on a thigh that is made on the spot, beside what Slicer offers without LabelProp.

Needs no input and no network. Goes the way of every propagation, through the scene and `LabelPropLogic`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import slicer

from LabelProp import LabelPropLogic

from . import files, scene
from .baselines import copy_nearest, fill_between_slices
from .clock import Progress
from .errors import InputError
from .evaluation import Score, score_labels
from .machine import why_no_plots
from .phantom import DRAWN, Phantom, make_phantom
from .report_text import format_stages
from .scene import storage

STACK_AXIS = 0
VOLUMES = ("image", "annotations", "labelprop", "truth")  # that are written; the other files are named below
SEGMENTATION, PICTURE = "labelprop.seg.nrrd", "demo.png"


def run(output_folder: str | os.PathLike, progress: Progress | None = None):
    """Make the phantom, propagate three of its slices, print how that compares, write everything to `output_folder`.

    Writes image.nii.gz, truth.nii.gz, annotations.nii.gz (the drawn slices), labelprop.nii.gz (the result), the same as
    labelprop.seg.nrrd, and, where matplotlib can be loaded, demo.png. `progress` is told of the propagation.
    Raises InputError if the folder cannot be made or written to, or holds other files of these names.
    """
    folder = files.writable_folder(output_folder)
    check_free(folder)
    phantom = make_phantom()
    annotations = phantom.drawn_on(DRAWN)
    print(
        f"A thigh of {len(phantom.names)} muscles, {' x '.join(map(str, phantom.image.shape[::-1]))} voxels, drawn on"
        f" {len(DRAWN)} of its {len(phantom.labels)} slices."
    )

    volume_node, segmentation_node = add_to_scene(phantom, annotations)
    try:
        report = LabelPropLogic().propagate(volume_node, segmentation_node, progress=progress)
        found = scene.labels_on_volume(segmentation_node, phantom.names, volume_node, phantom.labels.dtype)
        print_comparison(phantom, annotations, found, report)
        write(folder, phantom, annotations, found, segmentation_node)
    finally:
        slicer.mrmlScene.RemoveNode(segmentation_node)
        slicer.mrmlScene.RemoveNode(volume_node)


def check_free(folder: Path):
    """Raise InputError if something else than an earlier demo has left files of these names in the folder."""
    names = (SEGMENTATION, *(f"{volume}.nii.gz" for volume in VOLUMES))
    if all((folder / name).exists() for name in names):
        return
    for name in (*names, PICTURE):
        if (folder / name).exists():
            raise InputError(
                f"{folder / name} would be replaced, but was not written by a demo: choose another folder with -o."
            )


def add_to_scene(phantom: Phantom, annotations: np.ndarray):
    """A volume node, and a segmentation node of the drawn slices; both have to be removed by the caller."""
    volume_node = slicer.util.addVolumeFromArray(phantom.image, phantom.ijk_to_ras, "Thigh")
    segmentation_node = scene.add_segmentation_of_labels(annotations, volume_node, "Thigh muscles", phantom.names)
    return volume_node, segmentation_node


def print_comparison(phantom: Phantom, annotations: np.ndarray, found: np.ndarray, report: dict):
    """Say how good the result is beside others, and how long it took."""
    results = {
        "copy the nearest slice": copy_nearest(annotations, STACK_AXIS),
        "Fill between slices": fill_between_slices(annotations),
        "LabelProp": found,
    }
    scores = {
        method: score_labels(labels, phantom.labels, phantom.spacing, STACK_AXIS, DRAWN)
        for method, labels in results.items()
    }
    print()
    print(format_comparison(scores, phantom.names))
    print()
    print(f"LabelProp took {sum(report['seconds'].values()):.1f} s ({format_stages(report['seconds'])}).")


def format_comparison(scores: dict[str, dict[int, Score]], names: dict[int, str]) -> str:
    """A table with a line for each method."""
    lines = [f"{'on the slices not drawn':24s} {'Dice':>6s} {'HD95 mm':>8s}   worst muscle"]
    for method, of_labels in scores.items():
        mean_dice = np.mean([score.dice for score in of_labels.values()])
        mean_hd95 = np.mean([score.hd95 for score in of_labels.values()])
        worst = min(of_labels, key=lambda label: of_labels[label].dice)
        lines.append(f"{method:24s} {mean_dice:6.3f} {mean_hd95:8.2f}   {of_labels[worst].dice:.3f} {names[worst]}")
    return "\n".join(lines)


def write(folder: Path, phantom: Phantom, annotations: np.ndarray, found: np.ndarray, segmentation_node):
    """Write all files, or none, and say so: the next demo would not replace some of them. Raises OSError."""
    arrays = zip(VOLUMES, (phantom.image, annotations, found, phantom.labels), strict=True)
    volumes = {folder / f"{name}.nii.gz": array for name, array in arrays}
    missing = why_no_plots()
    pictures = [] if missing else [folder / PICTURE]
    with files.replacing([*volumes, folder / SEGMENTATION, *pictures]) as staged:
        for path, array in volumes.items():
            files.write_volume(array, phantom.ijk_to_ras, staged[path])
        storage.save_segmentation(segmentation_node, staged[folder / SEGMENTATION])
        for path in pictures:
            draw_picture(staged[path], phantom, found)
    written = ", ".join(path.name for path in staged)
    print(f"Written to {folder}: {written}{f' (and no picture: {missing})' if missing else ''}.")


def draw_picture(path: Path, phantom: Phantom, found: np.ndarray):
    """Draw the result; needs matplotlib."""
    from .picture import save_picture

    save_picture(
        path,
        phantom.image,
        found,
        phantom.spacing,
        STACK_AXIS,
        DRAWN,
        truth=phantom.labels,
        names=phantom.names,
        title=f"LabelProp: {len(DRAWN)} slices drawn, {len(found) - len(DRAWN)} found",
    )
