"""Graph cut: of all ways to draw a region, the one of least energy, whose border runs along edges of the image.

At each voxel i a number u_i speaks for the region, or against it; x_i is 1 in the region and 0 outside. The energy

    E(x) = - sum_i u_i x_i + sum_ij w_ij |x_i - x_j|,    w_ij = STRENGTH exp(-(I_i - I_j)^2 / (2 SIGMA^2)) a_ij / a

over the neighbours ij that share a face, of area a_ij (a: of the face of a cube of the same volume), makes a border
expensive where it is large and where intensities are alike on both sides. Its minimum is the minimum cut of a graph,
which can be found exactly (Boykov & Jolly, Interactive graph cuts for optimal boundary & region segmentation, ICCV
2001).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

STRENGTH = 0.4  # log-odds that a voxel's face of border costs within a homogeneous region
SIGMA = 0.1  # change of intensity from one voxel to the next that is an edge
RESOLUTION = 1000  # flow through a link is counted in whole numbers of 32 bits: of thousandths of log-odds


def cut(
    unary: np.ndarray, voxels: np.ndarray, region: np.ndarray, image: np.ndarray, spacing: Sequence[float]
) -> np.ndarray:
    """(N,) bool: which of the voxels belong to the region of least energy; of several such regions, to the smallest.

    unary: (N,) log-odds that speak for the region, up to a million. voxels: (N, 3) indices, each once. region:
    (T, R, C) bool, what belongs to it for certain; all other voxels that are not among `voxels` do not. image:
    (T, R, C), intensities about 0 to 1. spacing: mm along the three axes.
    """
    number = np.full(image.shape, -1)
    number[tuple(voxels.T)] = np.arange(len(voxels))
    unary = np.array(unary, float)
    links = []
    for own, others, weights in faces(voxels, image, spacing):
        neighbours = number[tuple(others.T)]
        free = neighbours >= 0
        links.append((own[free], neighbours[free], weights[free]))
        towards = np.where(region[tuple(others.T)], weights, -weights)
        unary += np.bincount(own[~free], towards[~free], len(voxels))
    return minimum_cut(unary, *(np.concatenate(parts) for parts in zip(*links, strict=True)))


def faces(
    voxels: np.ndarray, image: np.ndarray, spacing: Sequence[float]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each of the six directions: which of the voxels have a neighbour there (M,), it (M, 3), and w_ij (M,)."""
    edge = np.prod(spacing) ** (1 / 3)
    for axis in range(3):
        area = edge / spacing[axis]  # of the face across the axis, relative to that of a cube
        for step in (-1, 1):
            neighbours = voxels.copy()
            neighbours[:, axis] += step
            own = np.flatnonzero((neighbours[:, axis] >= 0) & (neighbours[:, axis] < image.shape[axis]))
            others = neighbours[own]
            change = image[tuple(voxels[own].T)] - image[tuple(others.T)]
            yield own, others, STRENGTH * area * np.exp(-(change**2) / (2 * SIGMA**2))


def minimum_cut(unary: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N,) bool: the x of least energy -sum u_i x_i + sum w_ij |x_i - x_j|, the smallest of several.

    unary: (N,). first, second, weights: (L,) i, j and w_ij >= 0 of each link, which is given in both directions.
    """
    source, sink, nodes = len(unary), len(unary) + 1, np.arange(len(unary))
    ends = [np.full(len(unary), end) for end in (source, sink)]
    tails, heads = np.concatenate([first, ends[0], nodes]), np.concatenate([second, nodes, ends[1]])
    capacities = np.concatenate([weights, np.maximum(unary, 0), np.maximum(-unary, 0)])
    whole = np.rint(RESOLUTION * capacities).astype(np.int32)
    graph = sparse.csr_matrix((whole, (tails, heads)), shape=(len(unary) + 2,) * 2)
    residual = graph - csgraph.maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    reached = np.zeros(len(unary) + 2, bool)
    reached[csgraph.breadth_first_order(residual, source, return_predecessors=False)] = True
    return reached[: len(unary)]
