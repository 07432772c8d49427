"""propagate(): the whole story, read top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from .annotation import AXIS_NAMES, SparseAnnotation
from .candidates import Arrivals, Chains, LabelPlanes, arrivals, gaps
from .errors import Cancelled
from .fusion import distance, similarity
from .labelmaps import LabelMaps
from .planner import choose_device, thread_count
from .preprocessing import Stack, prepare
from .registration import instance
from .settings import Settings

Progress = Callable[[float, str], None]
FUSION_RULES = {"distance": distance.fuse, "similarity": similarity.fuse}


@dataclass
class Propagation:
    """What came out, on the grid of the annotation's image.

    label_maps: volumes (K, J, I) of label values, 0 elsewhere. One, unless annotated labels overlap each other: labels
        that may overlap lie in different maps. Every label lies in exactly one map.
    directions: 'up' and 'down' -> such label maps, each from the annotated slices of one side alone; on request.
    uncertainty: (K, J, I) float32, 0 sure to 1 a toss-up; on request.
    report: plain values (JSON): axis, annotated slices, labels, device, seconds by stage, messages, ...
    """

    label_maps: list[np.ndarray]
    directions: dict[str, list[np.ndarray]] = field(default_factory=dict)
    uncertainty: np.ndarray | None = None
    report: dict = field(default_factory=dict)

    def mask(self, label: int) -> np.ndarray:
        """(K, J, I) bool of one label."""
        return np.any([label_map == label for label_map in self.label_maps], axis=0)


def propagate(
    annotation: SparseAnnotation,
    settings: Settings = Settings(),
    progress: Progress | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Propagation:
    """Carry the annotated labels through the volume."""
    torch.set_num_threads(thread_count())
    device = choose_device(settings.device)
    stack = prepare(annotation, 200, settings.extrapolate)
    with torch.no_grad(), torch.device("cpu"):
        pass
    velocity = instance.register(stack.images.to(device))
    with torch.no_grad():
        chains = Chains(velocity, stack.images.to(device))
        planes = LabelPlanes(annotation, stack)
        maps = LabelMaps(annotation, stack)
        for gap, labels in gaps(annotation, stack, settings.extrapolate).items():
            crossing = chains.cross(gap)
            for label in labels:
                a = arrivals(label, crossing, planes)
                maps.enter(label, gap.targets, a.box, FUSION_RULES[settings.fusion](a))
        maps.keep_given()
    return Propagation(maps.volumes(), report={"labels": list(annotation.labels)})
