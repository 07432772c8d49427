"""Patches to train deep label fusion on: labelled volumes annotated on a few planes, and carried as by the product.

    python Training/fusion_patches.py Training/fusion_stacks.csv DATA -o PATCHES

Every row of the table is a stack of planes of a volume under DATA. In each episode some labels are drawn on a few
planes of a part of the stack, the planes between are registered, and patches are taken where the similarity rule is
unsure or wrong. The same is done with volumes of synthetic shapes. For each row, and for each group of such volumes, a
file named after it is written to the folder PATCHES.
"""

from __future__ import annotations

import argparse
import csv
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from synthetic_shapes import make_shapes

from LabelPropLib.annotation import AXIS_NAMES, annotate_from_label_volume
from LabelPropLib.candidates import Arrivals, Chains, arrivals
from LabelPropLib.fusion import deep, similarity
from LabelPropLib.fusion.similarity import similarity_way
from LabelPropLib.gaps import gaps
from LabelPropLib.label_planes import LabelPlanes, far_ends
from LabelPropLib.parallel import choose_kernels
from LabelPropLib.preprocessing import Stack, prepare
from LabelPropLib.registration import instance

SIZE = 56  # of a patch, pixels
SPAN = 44  # most planes of an episode
EPISODES = 5  # of a stack
PATCHES = 420  # of an episode
PIXELS = 200  # along the longer side of a plane, with which the weights were made; the preset 'balanced' has 256 now
COARSE = instance.Schedule(levels=(instance.Level(4, 60), instance.Level(2, 30)))
FINE = instance.Schedule(levels=(instance.Level(1, 20, rate=0.1),))


@dataclass
class Patches:
    """Patches of labels on planes between annotated ones.

    planes: (N, 9, SIZE, SIZE) float16, see `raw_planes`. numbers: (N, 3) float32, depth of the lower and the upper
    candidate (0: absent), and length of the gap as in `deep.Features`. truth: (N, SIZE, SIZE) bool, whether a pixel is
    of the label. valid: (N, SIZE, SIZE) bool, false beyond the label's box.
    """

    planes: torch.Tensor
    numbers: torch.Tensor
    truth: torch.Tensor
    valid: torch.Tensor


def main():
    """Make the patches of all rows."""
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("table", type=Path)
    command.add_argument("data", type=Path)
    command.add_argument("-o", "--output", type=Path, required=True)
    command.add_argument("--shapes", type=int, default=25, help="files of patches of synthetic shapes")
    command.add_argument("--seed", type=int, default=0, help="another seed, other episodes")
    options = command.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    choose_kernels()
    with options.table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for number in range(len(rows) + options.shapes):
        random = np.random.default_rng(1000 * options.seed + number)
        started = time.perf_counter()
        if number < len(rows):
            row = rows[number]
            name = f"{Path(row['image']).parent.name}-{row['axis']}{row['step']}s{options.seed}"
            patches = patches_of_stack(options.data, row, random)
        else:
            name = f"shapes-{number - len(rows)}s{options.seed}"
            patches = patches_of_shapes(random)
        torch.save(vars(patches), options.output / f"{name}.pt")
        print(f"{name}: {len(patches.planes)} patches, {time.perf_counter() - started:.0f} s", flush=True)


def patches_of_stack(data: Path, row: dict[str, str], generator: np.random.Generator) -> Patches:
    """The patches of all episodes of one row."""
    image, labels, spacing = load_stack(data / row["image"], data / row["labels"], row["axis"], int(row["step"]))
    taken = []
    for _ in range(EPISODES):
        span = min(len(image), int(generator.integers(SPAN // 2, SPAN + 1)))
        first = int(generator.integers(0, len(image) - span + 1))
        taken += episode(image[first : first + span], labels[first : first + span], spacing, generator)
    return stacked(taken)


def patches_of_shapes(generator: np.random.Generator) -> Patches:
    """The patches of some volumes of synthetic shapes, one episode each."""
    taken = []
    while len(taken) < EPISODES * PATCHES // 4:
        image, labels, spacing = make_shapes(generator)
        taken += episode(image, labels, spacing, generator)
    return stacked(taken)


def stacked(taken: list[tuple]) -> Patches:
    """Patches from what `episode` gives."""
    planes, numbers, truth, valid = (torch.stack(part) for part in zip(*taken))
    return Patches(planes, numbers, truth, valid)


def load_stack(image: Path, labels: Path, axis: str, step: int) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Image and labels (Z, H, W) with every `step`-th plane across `axis`, and the spacing in mm."""
    scan = sitk.ReadImage(str(image))
    array_axis = AXIS_NAMES.index(axis)
    in_plane = list(scan.GetSpacing()[::-1])
    between = in_plane.pop(array_axis)
    drawn = np.moveaxis(sitk.GetArrayFromImage(sitk.ReadImage(str(labels))).astype(np.int32), array_axis, 0)
    used = np.flatnonzero(drawn.any(axis=(1, 2)))
    chosen = slice(used[0], used[-1] + 1, step)
    planes = np.moveaxis(sitk.GetArrayFromImage(scan).astype(np.float32), array_axis, 0)
    return np.ascontiguousarray(planes[chosen]), np.ascontiguousarray(drawn[chosen]), (between * step, *in_plane)


def episode(image: np.ndarray, labels: np.ndarray, spacing: tuple, generator: np.random.Generator) -> list[tuple]:
    """Patches of one simulated annotation of (Z, H, W) planes: raw planes, numbers, truth, valid."""
    step = int(np.clip(np.exp(generator.uniform(np.log(3), np.log(len(image) - 1))), 3, len(image) - 1))
    drawn = np.arange(int(generator.integers(0, min(step, len(image) - step))), len(image), step)
    present = [int(value) for value in np.unique(labels[drawn]) if value]
    share = generator.choice([0.15, 0.5, 1.0])
    kept = [label for label in present if generator.random() < share] or present[:1]
    if not kept:
        return []
    sparse = np.zeros_like(labels)
    sparse[drawn] = np.where(np.isin(labels[drawn], kept), labels[drawn], 0)
    annotation = annotate_from_label_volume(image, sparse, spacing, axis=0, missing="absent")
    stack = prepare(annotation, PIXELS)
    planes = LabelPlanes(annotation, stack)
    ends = far_ends(annotation, stack, planes)
    velocity = instance.register(stack.images, None, COARSE)
    velocity = instance.register(stack.images, ends, FINE, start=velocity)
    truth = nearest_on_working_grid(labels, stack)
    with torch.no_grad():
        chains = Chains(velocity, stack.images)
        found = []
        for gap, borne in gaps(annotation, stack, extrapolate=False).items():
            crossing = chains.cross(gap)
            gathered = [arrivals(label, crossing, planes) for label in borne]
            consensus = [similarity.fuse(arrived) for arrived in gathered]
            for index, arrived in enumerate(gathered):
                rivals = deep.best_rival(index, gathered, consensus, ())
                found += [(arrived, consensus[index], rivals, plane) for plane in range(len(gap.targets))]
        chosen = generator.choice(len(found), size=min(len(found), PATCHES // 2), replace=False)
        return [
            patch
            for index in chosen
            for patch in patches_of_plane(*found[index], truth, generator, 1 + PATCHES // 2 // len(chosen))
        ]


def nearest_on_working_grid(labels: np.ndarray, stack: Stack) -> torch.Tensor:
    """(Z, H, W) labels of the stack's planes on the working grid, nearest neighbour."""
    rows, columns = stack.box
    crop = labels[stack.first : stack.first + len(stack.images), rows, columns]
    index = [np.rint(np.linspace(0, n - 1, m)).astype(int) for n, m in zip(stack.shape, stack.size, strict=True)]
    return torch.from_numpy(crop[:, index[0][:, None], index[1][None]])


def patches_of_plane(
    arrived: Arrivals,
    consensus: torch.Tensor,
    rivals: torch.Tensor,
    plane: int,
    truth: torch.Tensor,
    generator: np.random.Generator,
    count: int,
) -> list[tuple]:
    """At most `count` patches of one label on one plane, where the consensus is unsure or wrong."""
    rows, columns = arrived.box
    right = truth[arrived.gap.first + plane, rows, columns] == arrived.label
    score = consensus[plane]
    places = ((score.abs() < 3) | ((score > 0) != right)).nonzero()
    if len(places) == 0:
        return []
    raw = raw_planes(arrived, rivals, plane)
    depths = [0.0 if candidate is None else candidate.depth for candidate in (arrived.lower, arrived.upper)]
    numbers = torch.tensor([*depths, deep.gap_length(len(arrived.gap.targets))])
    patches = []
    for place in places[torch.from_numpy(generator.integers(len(places), size=count))]:
        window = []
        for position, extent in zip(place.tolist(), score.shape):
            start = int(np.clip(position - generator.integers(8, SIZE - 8), 0, max(0, extent - SIZE)))
            window.append(slice(start, start + SIZE))
        patches.append(padded(raw[:, window[0], window[1]], right[window[0], window[1]], numbers))
    return patches


def padded(raw: torch.Tensor, right: torch.Tensor, numbers: torch.Tensor) -> tuple:
    """A patch filled up to SIZE at its lower and right edges, and where it is not filled up."""
    height, width = right.shape
    missing = (0, SIZE - width, 0, SIZE - height)
    filled = torch.nn.functional.pad(raw[None], missing, mode="replicate")[0] if any(missing) else raw
    valid = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    valid[:height, :width] = True
    return filled.half(), numbers, torch.nn.functional.pad(right, missing), valid


def raw_planes(arrived: Arrivals, rivals: torch.Tensor, plane: int) -> torch.Tensor:
    """(9, h, w) of one plane.

    Distances of the lower and the upper candidate, the slice, the images carried from below and from above, the best
    rival's score, log-odds of the intensities, the similarity rule's way as log-odds, and the way by distance.
    """
    whole = deep.LabelWindow(slice(None), slice(None), torch.ones(len(arrived.gap.targets), 1, 1, dtype=torch.bool))
    told = deep.features(arrived, whole, scale=1.0)
    similarity_odds = torch.logit(similarity_way(arrived), eps=1e-4)
    planes = (told.lower, told.upper, told.target, told.lower_image, told.upper_image, rivals, told.odds)
    return torch.stack([part[plane] for part in (*planes, similarity_odds, told.way)])


if __name__ == "__main__":
    main()
