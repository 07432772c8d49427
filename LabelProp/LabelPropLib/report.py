"""The report of a propagation, plain values: what went in, what took part, what came out, what the user should know."""

from __future__ import annotations

import math

import numpy as np
import torch

from . import planner
from .annotation import AXIS_NAMES, SparseAnnotation
from .gap_fusion import Fusion
from .memory import Update
from .preprocessing import scribbled_range
from .settings import Settings

LEAST_SHARE = 0.1  # of the second image, below which the user is told that it hardly counts


def of_input(annotation: SparseAnnotation, settings: Settings, device: torch.device) -> dict:
    """How the input was read, and what it was computed with: plain values."""
    return {
        "axis": AXIS_NAMES[annotation.axis],
        "annotated_slices": annotation.planes,
        "labels": list(annotation.labels),
        "missing": annotation.missing,
        "device": planner.describe_device(device),
        "preset": settings.preset,
    }


def of_fusion(fusion: Fusion) -> dict:
    """Which rules, images and atlases took part: plain values."""
    return {
        "fusion": {str(label): rule for label, rule in fusion.rules.items()},
        "image_shares": [round(w / len(fusion.image_weights), 3) for w in fusion.image_weights.tolist()],
        "atlases_used": sorted(fusion.priors),
    }


def volume_ml(annotation: SparseAnnotation, label_maps: list[np.ndarray]) -> dict[str, float]:
    """Volume of each label in label maps (K, J, I), ml; to six digits, because in the scan of a mouse it is tiny."""
    voxel = math.prod(annotation.spacing) / 1000
    return {
        str(label): float(f"{voxel * sum(np.count_nonzero(p == label) for planes in label_maps for p in planes):.6g}")
        for label in annotation.labels
    }


def messages(
    annotation: SparseAnnotation,
    settings: Settings,
    weights: torch.Tensor,
    kind: str | None = None,
    update: Update | None = None,
) -> list[str]:
    """Sentences for the user about how the input was read, and what was reused from the run before.

    weights: (C,) of the images, of mean 1. kind: the kind of network that a given file of weights is for, None without.
    """
    said = []
    if annotation.some_missing:
        reading = {
            "absent": "Labels missing on an annotated slice are read as absent there.",
            "unknown": "Labels missing on an annotated slice are read as not drawn there (unknown).",
        }
        said.append(reading[annotation.missing])
    if annotation.sparser:
        named = ", ".join(map(annotation.named, annotation.sparser))
        said.append(f"Missing between slices of their own, and read as not drawn where they are missing: {named}.")
    if annotation.partial:
        planes = ", ".join(map(str, annotation.partial))
        said.append(f"Read as drawn for a few labels alone, for most are missing that should be there: slice {planes}.")
    said += [
        f"Within {annotation.named(outer)} lies {annotation.named(inner)}, but no slice was drawn for both, so they are"
        " taken to exclude each other: if they overlap, draw both on one slice."
        for inner, outer in annotation.covered()
    ]
    said += unused_weights(settings, kind)
    only, last = annotation.planes[0], annotation.planes[-1]
    if not settings.extrapolate and only == last and scribbled_range(annotation, (only, last)) == (only, last):
        said.append(
            f"Only slice {only} is annotated and nothing lies between annotated slices:"
            " annotate a second slice, or extrapolate."
        )
    elif not settings.extrapolate and len(annotation.planes) == last - only + 1 > 1:
        said.append(
            f"Nothing lies between the annotated slices {only} to {last}: annotate another one, some slices away, or"
            " extrapolate."
        )
    if weights.min() < LEAST_SHARE * len(weights):
        weak, strong = ("image", "second image") if weights[0] < weights[1] else ("second image", "image")
        said.append(f"The {weak} varies like noise from slice to slice, so the {strong} decides almost alone.")
    if update is not None:
        said.append(
            f"The registration of the last run was reused: {len(update.pairs)} of {update.pair_count} pairs of"
            " neighbouring slices were registered again."
        )
    return said


def unused_weights(settings: Settings, kind: str | None) -> list[str]:
    """A sentence for the user if the chosen registration or fusion does not use the file of weights."""
    users = {"registration": ("network", "pretrained"), "fusion": ("auto", "deep")}
    if kind is None or getattr(settings, kind) in users[kind]:
        return []
    chosen = "instance" if settings.registration == "auto" and kind == "registration" else getattr(settings, kind)
    choices = " or ".join(users[kind])
    return [f"The weights of {settings.checkpoint} are not used by the {kind} '{chosen}': choose {choices}."]
