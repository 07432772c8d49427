"""From scores per label to label maps on the volume's grid; what was given is kept."""

from __future__ import annotations

import numpy as np
import torch

from .annotation import BACKGROUND, SparseAnnotation
from .candidates import DISTANCE_LIMIT
from .preprocessing import Stack


def exclusive_layers(labels: tuple[int, ...], overlapping: set[tuple[int, int]]) -> list[list[int]]:
    """Labels in as few layers as a greedy choice gives, none of which holds two labels that may overlap."""
    layers: list[list[int]] = []
    for label in labels:
        for layer in layers:
            if not any((min(label, other), max(label, other)) in overlapping for other in layer):
                layer.append(label)
                break
        else:
            layers.append([label])
    return layers


class LabelMaps:
    """The best label so far of every voxel of the crop, one map a layer of labels that exclude each other."""

    def __init__(self, annotation: SparseAnnotation, stack: Stack):
        self._annotation = annotation
        self._stack = stack
        self._layers = exclusive_layers(annotation.labels, annotation.overlapping())
        self._layer_of = {label: index for index, layer in enumerate(self._layers) for label in layer}
        size = (len(stack.images), *stack.shape)
        dtype = np.min_scalar_type(max(annotation.labels))
        self._labels = [np.zeros(size, dtype) for _ in self._layers]
        self._scores = [np.full(size, -DISTANCE_LIMIT, np.float32) for _ in self._layers]

    def enter(self, label: int, targets: range, box: tuple[slice, slice], scores: torch.Tensor):
        """Give `label` the voxels in which its score is positive and above those of the labels entered before.

        scores: (T, h, w) within `box` of the working grid.
        """
        window, values = self._stack.window_to_volume_grid(scores, box)
        index = (slice(targets.start, targets.stop), *window)
        layer = self._layer_of[label]
        best, labels = self._scores[layer][index], self._labels[layer][index]
        wins = values > best
        best[wins] = values[wins]
        labels[wins & (values > 0)] = label

    def keep_given(self):
        """Scribbled voxels bear their label, complete planes come back voxel for voxel, absent labels are absent.

        Where a scribble contradicts a complete or absent plane of its label, the plane wins.
        """
        rows, columns = self._stack.box
        for label, voxels in self._annotation.scribbles.items():
            self._keep_scribbles(label, voxels)
        for label in self._annotation.labels:
            labels = self._labels[self._layer_of[label]]
            for plane in self._annotation.known_planes(label):
                if not 0 <= plane - self._stack.first < len(labels):
                    continue  # marked absent beyond the stack, where nothing is found
                target = labels[plane - self._stack.first]
                target[target == label] = 0
                if plane in self._annotation.complete[label]:
                    target[self._annotation.complete[label][plane][rows, columns]] = label

    def _keep_scribbles(self, label: int, voxels: np.ndarray):
        axis = self._annotation.axis
        rows, columns = np.delete(voxels, axis, axis=1).T
        box_rows, box_columns = self._stack.box
        index = (voxels[:, axis] - self._stack.first, rows - box_rows.start, columns - box_columns.start)
        for layer in range(len(self._layers)) if label == BACKGROUND else (self._layer_of[label],):
            self._labels[layer][index] = label

    def uncertainty(self) -> np.ndarray:
        """(K, J, I) float32: 1 - |2 p - 1| with p = sigmoid(score) of the best label, 1 on a contour; 0 where given."""
        doubt = np.max([1 - np.abs(np.tanh(scores / 2)) for scores in self._scores], axis=0)
        unknown = [plane - self._stack.first for plane in self._annotation.unknown_planes]
        given = np.setdiff1d(np.arange(len(doubt)), unknown)
        doubt[given] = 0
        return self._on_image_grid(doubt)

    def volumes(self) -> list[np.ndarray]:
        """The label maps on the grid of the annotation's image."""
        return [self._on_image_grid(labels) for labels in self._labels]

    def _on_image_grid(self, crop: np.ndarray) -> np.ndarray:
        rows, columns = self._stack.box
        volume = np.zeros(self._annotation.image.shape, crop.dtype)
        planes = np.moveaxis(volume, self._annotation.axis, 0)
        planes[self._stack.first : self._stack.first + len(crop), rows, columns] = crop
        return volume
