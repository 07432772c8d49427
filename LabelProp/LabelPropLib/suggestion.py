"""Which slice to draw next: the one that takes away most expected error per length to trace, over all labels together.

A slice drawn in a gap splits it. What is expected in the halves follows from what is expected now: drift grows as a
random walk tied at both ends (see `confidence.bridge`), and a label that ends in the gap is afterwards known to end on
one side of the slice or on the other, each with its probability. So a label's end is looked for by bisecting the
probability of where it is, and a long way without anything doubtful on it is left alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .confidence import PRIOR, Confidence, Stretch, bridge, present

OVERHEAD = 1.0  # cost of going to a slice, in mean lengths to trace on one
LIKELY = 0.5  # probability from which a label is said to be on a slice
WORTHWHILE = 0.5  # gain per length of a label, relative to the slice's, from which it is worth drawing by itself


@dataclass(frozen=True)
class Suggestion:
    """plane: of the volume. gain: of the mean Dice, expected. boundary_mm: to trace. labels: those worth drawing."""

    plane: int
    gain: float
    boundary_mm: float
    labels: tuple[int, ...]

    def as_report(self) -> dict:
        """Plain values."""
        return {
            "plane": self.plane,
            "gain": round(self.gain, 5),
            "boundary_mm": round(self.boundary_mm, 1),
            "labels": list(self.labels),
        }


@dataclass(frozen=True)
class Span:
    """A label in a gap: T planes, in the order away from the side that bears it, or from the lower one of two.

    near, far: (T,) mm to the gap's two sides. drift: (T,) mm. perimeter: (T,) mm. ends, shapes: see
    `confidence.Stretch`, in this order too; None where both sides bear the label.
    """

    label: int
    planes: np.ndarray
    near: np.ndarray
    far: np.ndarray
    drift: np.ndarray
    perimeter: np.ndarray
    ends: np.ndarray | None
    shapes: np.ndarray | None

    @classmethod
    def of(cls, stretch: Stretch) -> Span:
        """As the propagation left it."""
        evidence = stretch.evidence
        upwards = evidence.ending is None or evidence.ending.upwards
        order = slice(None, None, 1 if upwards else -1)
        below, above = evidence.below[order], evidence.above[order]
        near, far = (below, above) if upwards else (above, below)
        drift, perimeter = stretch.drift[order], stretch.perimeter[order]
        planes = np.array(evidence.planes)[order]
        return cls(evidence.label, planes, near, far, drift, perimeter, stretch.ends, stretch.shapes)

    @property
    def presence(self) -> np.ndarray:
        """(T,) probability that the label is there."""
        return np.ones(len(self.planes)) if self.ends is None else present(self.ends)

    @property
    def error(self) -> float:
        """mm^2 that are expected to be wrong: by drift along the contour, and by the end being elsewhere."""
        drifted = float(self.drift @ self.perimeter)
        return drifted if self.ends is None else drifted + float(misplaced(self.shapes, self.ends).sum())

    def split(self, plane: int) -> list[tuple[float, list[Span]]]:
        """What remains once the label is drawn, or seen to be absent, on a plane of the span: (probability, spans)."""
        at = int(np.flatnonzero(self.planes == plane)[0])
        nearer, further = slice(0, at), slice(at + 1, None)
        to_plane = np.abs(self.near - self.near[at])
        if self.ends is None:
            return [(1.0, [self._part(nearer, self.near, to_plane), self._part(further, to_plane, self.far)])]
        likely = float(present(self.ends)[at])
        outcomes = []
        if likely > 0:
            ends = self.ends[at + 1 :] / likely
            beyond = self._part(further, to_plane, self.far, ends, self.shapes[further, at + 1 :])
            outcomes.append((likely, [self._part(nearer, self.near, to_plane), beyond]))
        if likely < 1:
            before = self._part(
                nearer, self.near, self.far, self.ends[: at + 1] / (1 - likely), self.shapes[nearer, : at + 1]
            )
            outcomes.append((1 - likely, [before]))
        return outcomes

    def _part(
        self, part: slice, near: np.ndarray, far: np.ndarray, ends: np.ndarray | None = None, shapes=None
    ) -> Span:
        before, after = (
            (nearest if probabilities is not None else bridge(nearest, furthest))[part]
            for nearest, furthest, probabilities in ((self.near, self.far, self.ends), (near, far, ends))
        )
        drift = self.drift[part] * (after / before) ** PRIOR.growth
        return Span(self.label, self.planes[part], near[part], far[part], drift, self.perimeter[part], ends, shapes)


def misplaced(shapes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(T,) mm^2 expected to be wrong on each plane if the area found is the median of those it may have."""
    order = np.argsort(shapes, axis=1)
    ordered = np.take_along_axis(shapes, order, axis=1)
    cumulative = np.cumsum(ends[order], axis=1)
    median = np.take_along_axis(ordered, np.argmax(cumulative >= 0.5 - 1e-9, axis=1)[:, None], axis=1)
    return np.abs(shapes - median) @ ends


class Outlook:
    """The error expected everywhere, and what a drawn slice would make of it."""

    def __init__(self, confidence: Confidence):
        self._alone = confidence.annotation.missing == "unknown"  # a slice may be drawn for some of its labels alone
        self._spans = [Span.of(stretch) for stretch in confidence.stretches]
        self._size = dict.fromkeys(confidence.annotation.labels, 0.0)
        for stretch in confidence.stretches:
            self._size[stretch.evidence.label] += float((stretch.found + stretch.there).sum())

    def suggestions(self) -> Iterator[Suggestion]:
        """The best slice, the best one after it has been drawn, and so on."""
        while best := self.best():
            yield best
            self._draw(best.plane)

    def best(self) -> Suggestion | None:
        """The slice with the largest gain per cost; None where no slice helps."""
        planes = sorted({int(plane) for span in self._spans for plane in span.planes[span.presence >= LIKELY]})
        options = [self.option(plane) for plane in planes]
        if not options:
            return None
        overhead = OVERHEAD * float(np.mean([option.boundary_mm for option in options]))
        best = max(options, key=lambda option: option.gain / (option.boundary_mm + overhead))
        return best if best.gain > 0 else None

    def option(self, plane: int) -> Suggestion:
        """What it takes and gives to draw a slice for all the labels on it."""
        gains, lengths = {}, {}
        for span in self._spans:
            at = np.flatnonzero(span.planes == plane)
            if len(at) == 0:
                continue
            after = sum(probability * sum(part.error for part in parts) for probability, parts in span.split(plane))
            gains[span.label] = (span.error - after) / max(self._size[span.label], 1e-6) / len(self._size)
            if span.presence[at[0]] >= LIKELY:
                lengths[span.label] = float(span.perimeter[at[0]])
        gain, length = sum(gains.values()), sum(lengths.values())
        least = WORTHWHILE * gain / max(length, 1e-6) if self._alone else -np.inf
        worthwhile = [label for label in lengths if gains[label] >= least * lengths[label]]
        return Suggestion(plane, gain, length, tuple(sorted(worthwhile, key=lambda label: -gains[label])))

    def _draw(self, plane: int):
        """Take the likeliest outcome of drawing a slice as the state of things."""
        spans = []
        for span in self._spans:
            if plane in span.planes:
                _, parts = max(span.split(plane), key=lambda outcome: outcome[0])
                spans += [part for part in parts if len(part.planes)]
            else:
                spans.append(span)
        self._spans = spans


def suggest(confidence: Confidence, count: int = 1) -> list[Suggestion]:
    """The slices to draw next, the best one first; fewer than `count` where no more help."""
    return list(itertools.islice(Outlook(confidence).suggestions(), count))


def report(suggestions: Sequence[Suggestion]) -> dict:
    """Plain values, keys of JSON."""
    values = [suggestion.as_report() for suggestion in suggestions]
    return {"suggested_slice": values[0] if values else None, "suggested_slices": values}
