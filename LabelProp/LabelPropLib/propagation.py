"""The result of the pipeline, in a module of its own so that code that only reads a result need not load PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Propagation:
    """The result of a propagation, on the grid of the annotation's image.

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
