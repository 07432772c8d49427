"""Which planes are to be found for which labels: the gaps between those on which a label is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from .annotation import SparseAnnotation
from .preprocessing import Stack


@dataclass(frozen=True)
class Gap:
    """Consecutive planes on which labels are unknown, and the known planes that bound them, in stack indices.

    lower, upper: the bounding planes, None beyond the outermost known one. first, last: the planes between them.
    """

    lower: int | None
    upper: int | None
    first: int
    last: int

    @property
    def targets(self) -> range:
        """The planes to be found."""
        return range(self.first, self.last + 1)


def gaps(annotation: SparseAnnotation, stack: Stack, extrapolate: bool) -> Mapping[Gap, list[int]]:
    """The gaps in the order of their planes, each with the labels that must cross it.

    A label's gaps lie between its own consecutive known planes at least one of which bears it; beyond its outermost
    known planes only with `extrapolate`, and only if that plane bears it.
    """
    labels_of: dict[Gap, list[int]] = {}
    for label in annotation.labels:
        known = known_planes(label, annotation, stack)
        bounds: list[tuple[int | None, int | None]] = list(zip(known[:-1], known[1:], strict=True))
        if extrapolate:
            bounds += [(None, known[0]), (known[-1], None)]
        for lower, upper in bounds:
            first = 0 if lower is None else lower + 1
            last = len(stack.images) - 1 if upper is None else upper - 1
            bearing = [p for p in (lower, upper) if p is not None and p + stack.first in annotation.complete[label]]
            if bearing and first <= last:
                labels_of.setdefault(Gap(lower, upper, first, last), []).append(label)
    return dict(sorted(labels_of.items(), key=lambda item: (item[0].first, item[0].last)))


def gaps_to_scribbles(annotation: SparseAnnotation, stack: Stack) -> Mapping[Gap, list[int]]:
    """Gaps from a label's outermost known plane, if it is drawn there, to its scribbles beyond; see `gaps`."""
    labels_of: dict[Gap, list[int]] = {}
    for label in annotation.labels:
        scribbled = annotation.scribbles.get(label)
        if scribbled is None or not len(scribbled):
            continue
        planes = scribbled[:, annotation.axis] - stack.first
        known = known_planes(label, annotation, stack)
        lowest, highest = int(planes.min()), int(planes.max())
        for plane, gap in (
            (known[0], Gap(None, known[0], lowest, known[0] - 1)),
            (known[-1], Gap(known[-1], None, known[-1] + 1, highest)),
        ):
            if plane + stack.first in annotation.complete[label] and gap.first <= gap.last:
                labels_of.setdefault(gap, []).append(label)
    return labels_of


def shared_gaps(annotation: SparseAnnotation) -> dict[tuple[int, int], list[int]]:
    """(Lower, upper) planes of the volume -> the labels that both bear and that are to be found in between, in order.

    They are consecutive ones of those on which the label is known, whatever is drawn of others.
    """
    labels_of: dict[tuple[int, int], list[int]] = {}
    for label in annotation.labels:
        drawn = annotation.complete[label]
        for lower, upper in pairwise(sorted(annotation.known_planes(label))):
            if lower in drawn and upper in drawn and upper - lower > 1:
                labels_of.setdefault((lower, upper), []).append(label)
    return dict(sorted(labels_of.items()))


def known_planes(label: int, annotation: SparseAnnotation, stack: Stack) -> list[int]:
    """The stack's planes on which `label` is drawn or absent, ascending; marks of absence beyond it say nothing."""
    known = (plane - stack.first for plane in annotation.known_planes(label))
    return sorted(plane for plane in known if 0 <= plane < len(stack.images))
