"""From scores per label to label maps on the volume's grid; what was given is kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from . import boxes
from .annotation import BACKGROUND, SparseAnnotation, exclude
from .boxes import Box
from .label_planes import DISTANCE_LIMIT
from .preprocessing import Stack


@dataclass(frozen=True)
class FusedScore:
    """What the fusion rule made of one label on the planes of one gap.

    targets: stack indices of the planes. box: (rows, columns) of the working grid. values: (T, h, w) within the box,
    see `fusion`. votes: (2, T, h, w) bool, those of its candidates, see `Arrivals.votes`; scribbles need them.
    """

    label: int
    targets: range
    box: tuple[slice, slice]
    values: torch.Tensor
    votes: torch.Tensor | None = None

    def on_volume(self, stack: Stack, within: Box) -> tuple[Box, np.ndarray, np.ndarray]:
        """The part of a box of the volume that the score covers, its values there, bilinear, and the votes, bool.

        Boxes are planes, rows, columns; values (T, R, C), votes (2, T, R, C).
        """
        scored = (slice(self.targets.start + stack.first, self.targets.stop + stack.first), *self.box)
        working = boxes.overlap(scored, (within[0], *stack.working_box(within[1:])))
        inside = boxes.within(working, scored)
        values = self.values[inside]
        if not values.numel():
            return (slice(0, 0),) * 3, np.empty((0, 0, 0), np.float32), np.empty((2, 0, 0, 0), bool)
        votes = self.votes[(slice(None), *inside)].to(values)
        window, layers = stack.window_to_volume_grid(torch.cat([values, *votes]), working[1:])
        found = (working[0], *boxes.of_whole(window, stack.box))
        covered = boxes.overlap(found, within)
        values, *votes = (layer[boxes.within(covered, found)] for layer in np.split(layers, 3))
        return covered, values, np.stack(votes) > 0.5


def exclusive_layers(labels: tuple[int, ...], overlapping: set[tuple[int, int]]) -> list[list[int]]:
    """Labels in as few layers as a greedy choice gives, none of which holds two labels that may overlap."""
    layers: list[list[int]] = []
    for label in labels:
        for layer in layers:
            if all(exclude(label, other, overlapping) for other in layer):
                layer.append(label)
                break
        else:
            layers.append([label])
    return layers


class LabelMaps:
    """The best label so far of every voxel: one map for each layer of labels that exclude each other."""

    def __init__(self, annotation: SparseAnnotation, stack: Stack):
        self._axis = annotation.axis
        self._stack = stack
        overlapping = annotation.overlapping()
        self._layers = exclusive_layers(annotation.labels, overlapping)
        self._layer_of = {label: index for index, layer in enumerate(self._layers) for label in layer}
        self._rivals = {  # label -> other layer -> the labels there that exclude it all the same
            label: {
                index: [other for other in layer if exclude(label, other, overlapping)]
                for index, layer in enumerate(self._layers)
                if label not in layer
            }
            for label in annotation.labels
        }
        dtype = np.min_scalar_type(max(annotation.labels))
        self._volumes = [np.zeros(annotation.image.shape, dtype) for _ in self._layers]
        crop = (len(stack.images), *stack.shape)
        self._scores = [np.full(crop, -DISTANCE_LIMIT, np.float32) for _ in self._layers]

    def copy(self) -> LabelMaps:
        """Maps that may be corrected while these, which are settled, stay as they are."""
        twin = copy.copy(self)
        twin._volumes = [volume.copy() for volume in self._volumes]
        return twin

    def enter(self, fused: FusedScore):
        """Give a label the voxels in which its score is positive and above those of the labels entered before."""
        window, values = self._stack.window_to_volume_grid(fused.values, fused.box)
        index = (slice(fused.targets.start, fused.targets.stop), *window)
        maps = [self._planes(layer)[self._stack.crop][index] for layer in range(len(self._layers))]
        self._enter(fused.label, values, [scores[index] for scores in self._scores], maps)

    def settle(self):
        """Release the scores by which labels compete for a voxel, once all labels are entered."""
        self._scores.clear()

    def decide_again(self, box: Box, scores: Mapping[int, np.ndarray], where: np.ndarray):
        """Take back what was entered for the voxels of `box` in which `where` holds, and enter `scores` there.

        box: planes, rows, columns of the volume. scores: label -> score in the box.
        """
        best = [np.full(where.shape, -DISTANCE_LIMIT, np.float32) for _ in self._layers]
        found = [np.zeros(where.shape, volume.dtype) for volume in self._volumes]
        for label, values in scores.items():
            self._enter(label, values, best, found)
        for layer in range(len(self._layers)):
            np.copyto(self._planes(layer)[box], found[layer], where=where)

    def keep_given(self, annotation: SparseAnnotation):
        """Scribbled voxels bear their label, complete planes come back voxel for voxel, absent labels are absent.

        Where a scribble contradicts a complete or absent plane of its label, the plane wins.
        """
        for label in sorted(annotation.scribbles, key=lambda label: (label == BACKGROUND, label)):
            index = tuple(annotation.scribbles[label].T)
            for layer in range(len(self._layers)) if label == BACKGROUND else (self._layer_of[label],):
                self._volumes[layer][index] = label
            for layer, rivals in self._rivals.get(label, {}).items():
                self._volumes[layer][index] = _without(rivals, self._volumes[layer][index])
        for label in annotation.labels:
            planes = self._planes(self._layer_of[label])
            for plane in annotation.known_planes(label):
                planes[plane][planes[plane] == label] = 0
                if plane in annotation.complete[label]:
                    drawn = annotation.complete[label][plane]
                    planes[plane][drawn] = label
                    for layer, rivals in self._rivals[label].items():
                        others = self._planes(layer)[plane]
                        others[drawn] = _without(rivals, others[drawn])

    def bears(self, label: int, voxels: np.ndarray) -> np.ndarray:
        """(N,) bool: whether the voxels (N, 3), indices (k, j, i), bear the label; BACKGROUND: no label at all."""
        index = tuple(voxels.T)
        if label == BACKGROUND:
            return np.all([volume[index] == BACKGROUND for volume in self._volumes], axis=0)
        return self._volumes[self._layer_of[label]][index] == label

    def volumes(self) -> list[np.ndarray]:
        """The label maps (K, J, I) on the grid of the annotation's image."""
        return self._volumes

    def _enter(self, label: int, values: np.ndarray, best: Sequence[np.ndarray], labels: Sequence[np.ndarray]):
        """Give `label` the voxels in which its `values` are positive and above those of all that exclude it.

        best, labels: of every layer, the values of what was entered before, and what that is. A label of another layer
        that has to give way leaves its voxels empty.
        """
        own, rivals_of = self._layer_of[label], self._rivals[label]
        wins = values > best[own]
        if rivals_of:
            places = np.argwhere(wins & (values > 0))  # few, so that to look for rivals there costs little
            scores = values[tuple(places.T)]
            beaten = np.zeros(len(places), bool)
            for layer, rivals in rivals_of.items():
                there = tuple(places.T)
                beaten |= np.isin(labels[layer][there], rivals) & (best[layer][there] >= scores)
            wins[tuple(places[beaten].T)] = False
            for layer, rivals in rivals_of.items():
                won = places[~beaten]
                lost = tuple(won[np.isin(labels[layer][tuple(won.T)], rivals)].T)
                labels[layer][lost], best[layer][lost] = 0, -DISTANCE_LIMIT
        best[own][wins] = values[wins]
        labels[own][wins & (values > 0)] = label

    def _planes(self, layer: int) -> np.ndarray:
        """(planes, rows, columns) of the layer's volume, not copied."""
        return np.moveaxis(self._volumes[layer], self._axis, 0)


def _without(labels: Sequence[int], values: np.ndarray) -> np.ndarray:
    """The values, 0 for those that are one of the labels."""
    return np.where(np.isin(values, labels), 0, values)
