"""Fuses what arrives in every gap, label by label, each by the rule that suits it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import islice

import numpy as np
import torch

from . import atlases, confidence
from .annotation import SparseAnnotation
from .candidates import Arrivals, Chains, Crossing, arrivals
from .clock import Clock
from .evidence import Evidence, observe
from .fusion import appearance, deep, distance, joint, majority, outlines, similarity
from .fusion.choice import LeftOut, Rule, choose, on_plane
from .fusion.subnets import DeepLabelFusion
from .gaps import Gap, gaps, gaps_to_scribbles
from .label_planes import LabelPlanes
from .labelmaps import FusedScore, LabelMaps
from .parallel import side_by_side
from .preprocessing import Stack
from .settings import Settings

RULES: dict[str, Rule] = {
    "majority": majority.fuse,
    "distance": distance.fuse,
    "similarity": similarity.fuse,
    "appearance": appearance.fuse,
    "joint": joint.fuse,
}
DEEP = "deep"  # the rule that needs weights, and all labels of a gap at once
CHOICES = ("similarity", "appearance")  # of 'auto', in this order, after deep fusion where there are weights
CHOICE_MARGIN = 0.05  # Dice on hidden slices, over twice the usual gap, that a rule needs to replace one before it
REGISTRATION_SHARE = 0.75  # of the time, for the progress bar


@dataclass(frozen=True)
class Scan:
    """An annotated scan that has been registered."""

    annotation: SparseAnnotation
    stack: Stack
    planes: LabelPlanes
    chains: Chains

    @cached_property
    def overlapping(self) -> set[tuple[int, int]]:
        """Pairs of labels, ascending, that do not exclude each other."""
        return self.annotation.overlapping()


@dataclass(frozen=True)
class Fusion:
    """What was fused in all gaps, before scribbles correct it and what was given is put in.

    rules: label -> name; factors: see `choose_rules`; priors: see `atlases.helpful`. scores: of all labels and gaps, if
    kept.
    maps: their label maps; sides: with `settings.directions` those of what was carried up and down alone.
    image_weights: (C,) of the given images, the scan first, see `Chains`.
    """

    rules: Mapping[int, str]
    factors: Mapping[int, float]
    priors: Mapping[int, torch.Tensor]
    scores: list[FusedScore]
    maps: LabelMaps
    sides: Mapping[str, LabelMaps]
    evidence: list[Evidence]
    image_weights: torch.Tensor


def choose_rules(scan: Scan, networks: DeepLabelFusion | None, fusion: str) -> tuple[dict[int, str], dict[int, float]]:
    """The fusion rule of every label; with 'auto' the first choice, unless another finds hidden slices clearly better.

    Every slice that bears a label between two that do is hidden once and found from them, over twice the usual gap.
    Also returns factors of the labels' expected drift, from what was seen there; none if the rule was given.
    """
    if fusion != "auto":
        return dict.fromkeys(scan.annotation.labels, fusion), {}
    first, *others = (DEEP, *CHOICES) if networks else CHOICES
    hidden = hide_slices(scan)
    left_out = leave_one_out(scan, networks, hidden, [first], scan.annotation.labels)
    open_to_others = [label for label, results in left_out.items() if results[first].may_be_beaten(CHOICE_MARGIN)]
    for label, results in leave_one_out(scan, networks, hidden, others, open_to_others).items():
        left_out[label] |= results
    rules = {label: choose(results, CHOICE_MARGIN) for label, results in left_out.items()}
    return rules, confidence.scales({label: seen_drifts(scan, left_out[label][rule]) for label, rule in rules.items()})


def hide_slices(scan: Scan) -> list[list[Arrivals]]:
    """What arrives on annotated slices that are hidden, each from the next ones that bear the label.

    Only those between two others that bear the label: hiding the last one would favour rules that carry it far.
    """
    planes = scan.planes
    hidden: dict[Gap, list[int]] = {}
    for label in scan.annotation.labels:
        known = planes.known(label)
        for lower, plane, upper in zip(known[:-2], known[1:-1], known[2:], strict=True):
            if all(planes.bears(label, drawn) for drawn in (lower, plane, upper)):
                hidden.setdefault(Gap(lower, upper, plane, plane), []).append(label)
    return [arrive(labels, scan.chains.cross(gap), planes) for gap, labels in hidden.items()]


def leave_one_out(
    scan: Scan,
    networks: DeepLabelFusion | None,
    hidden: Sequence[Sequence[Arrivals]],
    rules: Sequence[str],
    labels: Sequence[int],
) -> dict[int, dict[str, LeftOut]]:
    """What each of the rules makes of hidden annotated slices, see `hide_slices`: label -> rule -> result."""
    results = {label: {rule: LeftOut() for rule in rules} for label in labels}
    for arrivals_there in hidden:
        arrived = [label for label in arrivals_there if label.label in results]
        if not arrived:
            continue
        for rule in rules:
            fused = scores(arrived, {label.label: rule for label in arrived}, networks, scan.overlapping)
            for label, score in zip(arrived, fused, strict=True):
                result = results[label.label][rule]
                result.add(*hidden_and_drawn(scan, label, score))
                result.found.append((label, score))
    return results


def hidden_and_drawn(scan: Scan, label: Arrivals, score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score (1, h, w) of a label on a hidden slice, and the signed distance drawn there: whole planes (H, W)."""
    drawn = scan.planes.distances(label.label, label.gap.first)
    return on_plane(score[0], label.box, drawn.shape), drawn


def seen_drifts(scan: Scan, result: LeftOut) -> list[confidence.SeenDrift]:
    """How far a label's contour was off on the hidden slices."""
    drifts = []
    for label, score in result.found:
        observed = observe(label, scan.stack, score)
        drifts += confidence.seen_drift(*hidden_and_drawn(scan, label, score), observed, scan.stack.pixel)
    return drifts


def rule_alone(rule: str, networks: DeepLabelFusion | None) -> Rule:
    """A rule for a label whose rivals are not known."""
    if rule == DEEP:
        return lambda arrived: deep.fuse([arrived], networks)[0]
    return RULES[rule]


def scores(
    arrived: Sequence[Arrivals],
    rules: Mapping[int, str],
    networks: DeepLabelFusion | None,
    overlapping: Collection[tuple[int, int]],
) -> list[torch.Tensor]:
    """Scores (T, h, w) of all labels of a gap, each by its own rule and in its own box, evened out.

    overlapping: pairs of labels, ascending, that do not exclude each other.
    """
    parts = [part for label in arrived for part in label.fused]
    is_deep = any(rules[label.label] == DEEP for label in arrived)
    corrected = deep.fuse(parts, networks, overlapping) if is_deep else []

    def score(index: int) -> torch.Tensor:
        rule = rules[parts[index].label]
        found = corrected[index] if rule == DEEP else RULES[rule](parts[index])
        return outlines.even_out(found, parts[index])

    found = iter(side_by_side(score, range(len(parts)), arrived[0].crossing.targets.device))
    return [reduce(torch.maximum, islice(found, len(label.fused))) for label in arrived]


def arrive(labels: Sequence[int], crossing: Crossing, planes: LabelPlanes) -> list[Arrivals]:
    """What reaches the planes of a gap for each of the labels that must cross it."""
    return side_by_side(lambda label: arrivals(label, crossing, planes), labels, crossing.targets.device)


def fuse_gaps(
    scan: Scan,
    networks: DeepLabelFusion | None,
    settings: Settings,
    clock: Clock,
    keep_scores: bool = True,
) -> Fusion:
    """Choose the rules and fuse what arrives in all gaps; what only leads to a scribble stays as it was carried.

    keep_scores: whether the scores are still needed once they are in the maps, as scribbles need them.
    """
    annotation, stack = scan.annotation, scan.stack
    with clock.stage("Choosing"):
        rules, factors = choose_rules(scan, networks, settings.fusion)
    priors: Mapping[int, torch.Tensor] = {}
    if annotation.atlases:
        with clock.stage("Aligning atlases"):
            chosen = {label: rule_alone(rule, networks) for label, rule in rules.items()}
            priors = atlases.helpful(annotation, stack, scan.planes, scan.chains, chosen)
    maps = LabelMaps(annotation, stack)
    sides = {name: LabelMaps(annotation, stack) for name in ("up", "down") if settings.directions}
    fused: list[FusedScore] = []
    evidence: list[Evidence] = []
    labels_of = gaps(annotation, stack, settings.extrapolate)

    def fuse_gap(gap: Gap, labels: Sequence[int]):
        """Fuse what arrives in a gap, and release it before anything arrives in the next one."""
        arrived = arrive(labels, scan.chains.cross(gap), scan.planes)
        found = with_priors(arrived, scores(arrived, rules, networks, scan.overlapping), priors, scan.planes)
        evidence.extend(observe_all(arrived, found, stack, settings.uncertainty))
        for own, values in zip(arrived, found, strict=True):
            score = FusedScore(own.label, gap.targets, own.box, values, own.votes if keep_scores else None)
            maps.enter(score)
            if keep_scores:
                fused.append(score)
        enter_sides(arrived, sides)

    with clock.stage("Fusing"):
        for number, (gap, labels) in enumerate(labels_of.items()):
            clock.tell(REGISTRATION_SHARE + (1 - REGISTRATION_SHARE) * number / len(labels_of))
            fuse_gap(gap, labels)
        for own, score in led_to_scribbles(scan, maps):
            fused.append(score)
            if not settings.extrapolate:  # else these planes have been observed
                evidence.append(observe(own, stack, score.values, settings.uncertainty))
    for result in (maps, *sides.values()):
        result.settle()
    image_weights = scan.chains.weights[[stack.order.index(image) for image in range(len(stack.order))]]
    return Fusion(rules, factors, priors, fused, maps, sides, evidence, image_weights)


def with_priors(
    arrived: Sequence[Arrivals], scores: Sequence[torch.Tensor], priors: Mapping[int, torch.Tensor], planes: LabelPlanes
) -> list[torch.Tensor]:
    """The labels' scores, blended with what atlases say of those that they help to find."""
    return [
        atlases.blend(score, own, priors[own.label], planes) if own.label in priors else score
        for own, score in zip(arrived, scores, strict=True)
    ]


def observe_all(
    arrived: Sequence[Arrivals], scores: Sequence[torch.Tensor], stack: Stack, keep_distances: bool
) -> list[Evidence]:
    """What tells how well each label of a gap was found."""
    return side_by_side(
        lambda scored: observe(scored[0], stack, scored[1], keep_distances),
        list(zip(arrived, scores, strict=True)),
        stack.images.device,
    )


def enter_sides(arrived: Sequence[Arrivals], sides: Mapping[str, LabelMaps]):
    """Enter what was carried up alone, and down alone, into the maps of that side, where they are asked for."""
    for own in arrived:
        for name, candidate in (("up", own.lower), ("down", own.upper)):
            if name in sides and candidate is not None:
                sides[name].enter(FusedScore(own.label, own.gap.targets, own.box, candidate.distances))


def led_to_scribbles(scan: Scan, maps: LabelMaps) -> Iterator[tuple[Arrivals, FusedScore]]:
    """Enter labels into the maps, as they were carried, up to scribbles beyond their outermost plane."""
    for gap, labels in gaps_to_scribbles(scan.annotation, scan.stack).items():
        crossing = scan.chains.cross(gap)
        for label in labels:
            if maps.bears(label, scribbled_within(scan, label, gap)).all():  # it was extrapolated to them
                continue
            own = arrivals(label, crossing, scan.planes)
            carried = own.lower or own.upper
            score = FusedScore(label, gap.targets, own.box, carried.distances.clone(), own.votes)
            maps.enter(score)
            yield own, score


def scribbled_within(scan: Scan, label: int, gap: Gap) -> np.ndarray:
    """(N, 3) voxels of the label's scribbles on the planes of a gap."""
    strokes = scan.annotation.scribbles[label]
    planes = strokes[:, scan.annotation.axis] - scan.stack.first
    return strokes[(gap.first <= planes) & (planes <= gap.last)]
