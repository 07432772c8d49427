"""The registration network to and from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .filters import CONTRAST_WINDOW, LEAST_CONTRAST
from .registration.instance import INTENSITY_WEIGHT
from .registration.network import DECODER, ENCODER, RegistrationNetwork

KIND = "registration"
ARCHITECTURE = {
    "name": "RegistrationNetwork",
    "revision": 1,
    "encoder": list(ENCODER),
    "decoder": list(DECODER),
    "input": ["mean", "difference", "demons force"],
}
PREPROCESSING = {
    "intensity": "1st percentile at 0, 99th at 1, cut off at -0.2 and 1.2",
    "channels": [
        f"(I - mean) / sqrt(variance + {LEAST_CONTRAST}^2) in a Gaussian window of {CONTRAST_WINDOW:g} pixels",
        f"{INTENSITY_WEIGHT:g} I",
    ],
    "pixels": "square",
}


def load_network(choice: str) -> RegistrationNetwork | None:
    """The network of a checkpoint, None for none; choice: see `checkpoint.choose`. Raises InputError."""
    return checkpoint.load_network(RegistrationNetwork, choice, KIND, ARCHITECTURE, PREPROCESSING)


def save_network(
    path: Path, tensors: Mapping[str, torch.Tensor], training: Mapping[str, Any], licence: str, half: bool = False
):
    """Write the network's tensors as a checkpoint; training: the summary for its metadata; half: as float16."""
    metadata = {
        "kind": KIND,
        "architecture": ARCHITECTURE,
        "preprocessing": PREPROCESSING,
        "training": dict(training),
        "licence": licence,
    }
    checkpoint.save(path, {name: t.half() if half else t for name, t in tensors.items()}, metadata)
