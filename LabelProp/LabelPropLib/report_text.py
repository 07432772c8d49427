"""A report in words for the user."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .annotation import AXIS_NAMES, SparseAnnotation, placeholder

MOST_NAMED = 5  # labels in a line that sums up


def format_suggestions(report: dict) -> str:
    """What is expected, and a line for each slice to draw."""
    return "\n".join([*format_mean(report), *format_slices(report)])


def format_mean(report: dict) -> list[str]:
    """The Dice that is expected over all."""
    mean = report["expected_mean_dice"]
    return [] if mean is None else [f"Expected Dice on the slices that labels were carried to: {mean:.3f}."]


def format_weakest(report: dict) -> list[str]:
    """The labels of the least expected Dice, mean over the slices on which they were found."""
    means = {label: float(np.mean(list(planes.values()))) for label, planes in found_dice(report).items()}
    chosen = sorted(means, key=means.get)[:MOST_NAMED]
    said = ", ".join(f"{means[label]:.3f} for {named(report, label)}" for label in chosen)
    return [f"Lowest by label, on average over its slices: {said}."] if len(means) > 1 else []


def format_slices(report: dict, most: int | None = None) -> list[str]:
    """A line for each slice to draw, with `most` of the labels on it, None for all."""
    if report["expected_mean_dice"] is None and not any(np.diff(report["annotated_slices"]) > 1):
        return ["No slice to suggest: none lies between annotated ones."]
    if not report["suggested_slices"]:
        return ["No slice to suggest: none of those in between is likely to bear a label."]
    lines = []
    for number, suggested in enumerate(report["suggested_slices"]):
        which = "Then" if number else "Best slice to draw next"
        labels = ", ".join(named(report, label) for label in suggested["labels"][:most])
        more = f" and {len(suggested['labels']) - most} more" if most and len(suggested["labels"]) > most else ""
        lines.append(
            f"{which}: {suggested['plane']} across {report['axis']}, for an expected Dice higher by"
            f" {suggested['gain']:.4f}, with {suggested['boundary_mm']:.0f} mm to trace of labels {labels}{more}."
        )
    return lines


def named(report: dict, label: int | str) -> str:
    """The label and its segment's name, if it has one."""
    name = report["segments"][str(label)]
    return str(label) if name == placeholder(label) else f"{label} ({name})"


def format_summary(annotation: SparseAnnotation, report: dict, **more_seconds: float) -> str:
    """What was done, how good it is expected to be, and in how much time and memory it was done."""
    lines = [
        *report["messages"],
        f"Labels {', '.join(map(str, annotation.labels))}: {annotation.plane_count} slices across"
        f" {AXIS_NAMES[annotation.axis]}, annotated on {', '.join(map(str, annotation.planes))}.",
    ]
    if report["expected_mean_dice"] is not None:
        lines += [*format_mean(report), *format_weakest(report), *format_slices(report, MOST_NAMED)]
    lines.append(f"Time: {format_stages({**report['seconds'], **more_seconds})}.")
    if report["peak_memory_gb"] is not None:
        lines.append(f"Peak memory: {report['peak_memory_gb']:.2f} GB.")
    return "\n".join(lines)


def format_stages(seconds: Mapping[str, float]) -> str:
    """Seconds, stage by stage."""
    return ", ".join(f"{stage} {spent:.1f} s" for stage, spent in seconds.items())


def found_dice(report: dict) -> dict[str, dict[str, float]]:
    """Label -> slice -> expected Dice, of the slices on which the label was not drawn; those on which it was have 1."""
    found = {
        label: {plane: dice for plane, dice in planes.items() if dice < 1}
        for label, planes in report["expected_dice"].items()
    }
    return {label: planes for label, planes in found.items() if planes}
