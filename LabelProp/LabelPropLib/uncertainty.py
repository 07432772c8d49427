"""The map of uncertainty: how likely a voxel's label is wrong, by how far contours drift and where labels may end."""

from __future__ import annotations

import numpy as np

from .annotation import BACKGROUND, stack_order
from .confidence import Confidence, Stretch, crop, remaining
from .preprocessing import Stack, around, signed_distance

REACH = 8.0  # drifts; further from a contour nothing is in doubt
LEAST_DRIFT = 0.05  # half pixels
LEAST_DEPTH = 1e-3  # mm inside the carried contour where a label was found


def uncertainty_map(confidence: Confidence) -> np.ndarray:
    """(K, J, I) float32, 0 sure to 1 a toss-up: twice the probability that a voxel's label is wrong.

    Needs evidence with its distances kept.
    """
    annotation, stack = confidence.annotation, confidence.stack
    wrong = np.zeros((len(stack.images), *stack.shape), np.float32)

    def planes_of(stretch: Stretch) -> tuple[np.ndarray, np.ndarray]:
        """(T, h, w) each: the label map that holds the stretch's label, and the probabilities so far."""
        planes = slice(stretch.evidence.planes.start - stack.first, stretch.evidence.planes.stop - stack.first)
        return confidence.layers[stretch.evidence.label][planes], wrong[planes]

    for stretch in confidence.stretches:
        _doubt_contours(stretch, *planes_of(stretch), annotation.plane_spacing)
    for stretch in confidence.stretches:
        doubt_planes = _doubt_loss if stretch.ends is None else _doubt_end
        doubt_planes(stretch, *planes_of(stretch), stack)
    for label, voxels in annotation.scribbles.items():
        _trust_scribbles(confidence, label, voxels, wrong)
    volume = np.zeros(annotation.image.shape, np.float32)
    crop(volume, annotation, stack)[:] = np.minimum(2 * wrong, 1)
    return volume


def _doubt_contours(stretch: Stretch, labels: np.ndarray, wrong: np.ndarray, plane_spacing: tuple[float, float]):
    """Enter the probabilities that the true contour lies beyond a voxel: it drifts by a Laplacian distance."""
    label, half = stretch.evidence.label, min(plane_spacing) / 2
    drifts = np.maximum(stretch.drift, LEAST_DRIFT * half)
    for plane, doubted, drift in zip(labels, wrong, drifts, strict=True):
        found = plane == label
        if found.any():
            window = around(found, REACH * drift, plane_spacing)
            distances = np.abs(signed_distance(found[window], plane_spacing))
            doubt = 0.5 * np.exp(-distances / drift) * np.sinh(half / drift) / (half / drift)  # mean over a pixel
            enter(doubt, label, plane[window], doubted[window])


def _doubt_loss(stretch: Stretch, labels: np.ndarray, wrong: np.ndarray, stack: Stack):
    """Enter a toss-up where either side brought a label of which nothing was found, though it is there."""
    lost = np.flatnonzero(stretch.found == 0)
    if not lost.size:
        return
    window, depths = stack.window_to_volume_grid(stretch.evidence.distances[lost], stretch.evidence.box)
    for index, depth in zip(lost, depths, strict=True):
        doubt = np.where(depth > 0, 0.5, 0.0)
        enter(doubt, stretch.evidence.label, labels[index][window], wrong[index][window])


def _doubt_end(stretch: Stretch, labels: np.ndarray, wrong: np.ndarray, stack: Stack):
    """Enter the probabilities that the label has ended before a voxel where it was found, or goes on elsewhere."""
    label, ending = stretch.evidence.label, stretch.evidence.ending
    window, depths = stack.window_to_volume_grid(stretch.evidence.distances, stretch.evidence.box)
    thresholds = ending.by_plane(ending.depth * (1 - remaining(ending)))
    for plane, doubted, depth, threshold in zip(labels, wrong, depths, thresholds, strict=True):
        found, drifted = plane[window] == label, doubted[window]
        there = reached(np.where(found, np.maximum(depth, LEAST_DEPTH), depth), threshold, stretch.ends)
        ended = np.where(found, 1 - there, there)
        enter(1 - (1 - ended) * (1 - np.where(found, drifted, 0)), label, plane[window], drifted)


def _trust_scribbles(confidence: Confidence, label: int, voxels: np.ndarray, wrong: np.ndarray):
    """Take the voxels (N, 3) that were scribbled and kept for right."""
    places = voxels[:, stack_order(confidence.annotation)] - [part.start for part in confidence.stack.crop]
    places = tuple(places[((0 <= places) & (places < wrong.shape)).all(axis=1)].T)
    if label == BACKGROUND:
        kept = np.all([layer[places] == 0 for layer in confidence.layers.values()], axis=0)
    else:
        kept = confidence.layers[label][places] == label
    wrong[places] = np.where(kept, 0, wrong[places])


def reached(depth: np.ndarray, thresholds: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(h, w) probability that a label is at a depth (h, w), mm inside the carried contour: that of ends beyond it.

    thresholds: (T + 1,) mm by which the contour has moved inwards if the label ends there, the less the further it goes
    on. ends: (T + 1,) probability of each end.
    """
    outlasted = np.searchsorted(thresholds[::-1], depth)  # counted from the furthest end
    return np.concatenate([[0], np.cumsum(ends[::-1])])[outlasted]


def enter(probability: np.ndarray, label: int, labels: np.ndarray, wrong: np.ndarray):
    """Raise `wrong` to `probability` where `label` or nothing was found; all (h, w)."""
    free = (labels == label) | (labels == 0)
    wrong[free] = np.maximum(wrong, probability)[free]
