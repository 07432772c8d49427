"""A picture of a propagation: the stack seen from the side, before and after, and some of its slices with outlines.

Needs matplotlib, which Slicer does not bundle: nothing that has to run inside Slicer may need this.
"""

from __future__ import annotations

import colorsys
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from scipy import ndimage

from .annotation import AXIS_NAMES, SparseAnnotation, bearing_planes
from .evaluation import dice
from .preprocessing import robust_range

PAPER, INK, QUIET = "#0e1116", "#f2f4f8", "#9aa4b2"
DRAWN, TRUTH = "#ffd166", "#ffffff"
ROWS, COLUMNS = 2, 4  # of slices
SIDE = 1.2  # width of the view from the side, in columns
MARGIN = 12  # mm around the labels
HEADING, LINE = 0.075, 0.048  # of a small picture, for what is expected of its slice, and of each label named there
NAMED, LONGEST = 4, 28  # labels that are named there, and letters of a name
GOLDEN = 0.618034  # of a turn from hue to hue: any number of colours, all apart

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """What all panels share: image (K, J, I), spacing (mm), array axis of the stack, grey window, colour per label."""

    image: np.ndarray
    spacing: tuple[float, float, float]
    axis: int
    window: tuple[float, float]
    colours: Mapping[int, Colour]


def save_picture(
    path: str | os.PathLike,
    image: np.ndarray,
    found: np.ndarray,
    spacing: tuple[float, float, float],
    axis: int,
    drawn: Sequence[int],
    truth: np.ndarray | None = None,
    names: Mapping[int, str] | None = None,
    title: str = "",
):
    """Write a picture of the label volume `found` on `image`, both (K, J, I), to `path` (.png, .svg, .pdf).

    spacing: mm along (K, J, I); axis: array axis of the stack; drawn: its slices that were given, shown among up to
    8 slices. truth: label volume to compare with; its outlines and the mean Dice of the slices are shown.
    names: label -> name, for the legend.
    """
    labels = np.unique(found) if truth is None else np.union1d(found, truth)
    colours = {int(label): colour(n) for n, label in enumerate(labels[labels > 0])}
    low, high = np.percentile(image, (1, 99.5))
    view = View(image, spacing, axis, (float(low), float(high)), colours)

    figure = Figure(figsize=(3.2 * (COLUMNS + SIDE), 3.2 * ROWS + 1.55), facecolor=PAPER, dpi=110)
    inch = 1 / figure.get_figheight()
    sides = figure.add_gridspec(
        2, 1, left=0.012, right=SIDE / (COLUMNS + SIDE), bottom=0.7 * inch, top=1 - 0.85 * inch, hspace=0.14
    )
    slices = figure.add_gridspec(
        ROWS,
        COLUMNS,
        left=SIDE / (COLUMNS + SIDE) + 0.012,
        right=0.988,
        bottom=0.7 * inch,
        top=1 - 0.85 * inch,
        wspace=0.03,
        hspace=0.04,
    )
    before, after = (figure.add_subplot(cell) for cell in sides)
    draw_side(before, view, only_planes(found, axis, drawn), found)
    before.set_title(f"{len(drawn)} of {found.shape[axis]} slices drawn", color=DRAWN, fontsize=12)
    draw_side(after, view, found, found)
    after.set_title("the volume found", color=INK, fontsize=12)
    box = box_in_plane(found, spacing, axis)
    for cell, index in zip(slices, choose_slices(found, axis, drawn, ROWS * COLUMNS)):
        panel = figure.add_subplot(cell)
        compared = None if index in drawn else truth
        draw_slice(panel, view, index, box, found, compared)
        annotate_slice(panel, f"{AXIS_NAMES[axis]} = {index}", index in drawn, slice_dice(found, compared, axis, index))
    figure.text(0.014, 1 - 0.32 * inch, title, color=INK, fontsize=16, weight="bold", va="center")
    draw_legends(figure, colours, names or {}, truth is not None)
    figure.savefig(path, facecolor=PAPER)


def save_doubtful_slice(
    path: str | os.PathLike,
    annotation: SparseAnnotation,
    label_maps: Sequence[np.ndarray],
    report: Mapping,
    against_view: tuple[bool, bool],
):
    """Write a small square picture (.png) of the slice that most needs a look, with the outlines found on it.

    On it the Dice that is expected there, the mean and that of the labels for which it is least.
    label_maps, report: of a propagation, see `Propagation`; the report may name the labels.
    against_view: whether rows and columns follow each other upwards and leftwards, see `lines_against_view`.
    """
    found = np.max(label_maps, axis=0)
    index = most_doubtful_slice(report, found, annotation.axis, annotation.planes)
    expected = expected_on_slices(report).get(index, {})
    colours = {label: colour(n) for n, label in enumerate(annotation.labels)}
    box = box_in_plane(found, annotation.spacing, annotation.axis)
    window = robust_range(np.take(annotation.image, index, annotation.axis)[box])
    view = View(annotation.image, annotation.spacing, annotation.axis, window, colours)
    figure = Figure(figsize=(2.56, 2.56), facecolor=PAPER, dpi=100)
    bottom = HEADING + LINE * min(NAMED, len(expected)) if expected else 0.0
    panel = figure.add_axes((0, bottom, 1, 1 - bottom))
    for label_map in label_maps:
        draw_slice(panel, view, index, box, label_map, None)
    panel.yaxis.set_inverted(not against_view[0])
    panel.xaxis.set_inverted(against_view[1])
    is_drawn = index in annotation.planes and index not in annotation.unknown_planes
    annotate_slice(panel, f"{AXIS_NAMES[annotation.axis]} = {index}", is_drawn, None)
    draw_expected(figure, colours, report.get("segments", {}), expected)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a script that the font lacks
        figure.savefig(path, facecolor=PAPER)


def most_doubtful_slice(report: Mapping, found: np.ndarray, axis: int, drawn: Sequence[int]) -> int:
    """The slice of the least expected Dice, averaged over its labels.

    Without expectations in the report: of the slices that bear a label, one that is furthest from the drawn ones.
    """
    expected = expected_on_slices(report)
    if expected:
        return min(expected, key=lambda index: np.mean(list(expected[index].values())))
    borne = bearing_planes(found, axis)
    return int(max(borne, key=lambda index: min(abs(index - other) for other in drawn)))


def expected_on_slices(report: Mapping) -> dict[int, dict[int, float]]:
    """Slice -> label -> Dice that is expected, empty without expectations in the report."""
    expected: dict[int, dict[int, float]] = {}
    for label, slices in report.get("expected_dice", {}).items():
        for index, value in slices.items():
            expected.setdefault(int(index), {})[int(label)] = value
    return expected


def colour(n: int) -> Colour:
    """RGB of the n-th label."""
    return colorsys.hls_to_rgb((0.02 + GOLDEN * n) % 1, 0.62, 0.9)


def only_planes(labels: np.ndarray, axis: int, planes: Sequence[int]) -> np.ndarray:
    """A copy of the label volume with these planes alone."""
    kept = np.zeros_like(labels)
    np.moveaxis(kept, axis, 0)[planes] = np.moveaxis(labels, axis, 0)[planes]
    return kept


def choose_slices(found: np.ndarray, axis: int, drawn: Sequence[int], wanted: int) -> list[int]:
    """Up to `wanted` slices, ascending: the outermost that bear a label, the drawn ones, and then the middle of the
    widest gap between the chosen, again and again."""
    borne = bearing_planes(found, axis)
    chosen = sorted({int(borne[0]), int(borne[-1]), *drawn})
    if len(chosen) > wanted:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, wanted).round().astype(int)]
    while len(chosen) < wanted and max(np.diff(chosen), default=0) > 1:
        gap = int(np.argmax(np.diff(chosen)))
        chosen.insert(gap + 1, (chosen[gap] + chosen[gap + 1]) // 2)
    return chosen


def box_in_plane(found: np.ndarray, spacing: tuple[float, float, float], axis: int) -> tuple[slice, ...]:
    """The part of the planes that bears labels, with a margin, and square as far as there is image."""
    (tight,) = ndimage.find_objects(found.any(axis=axis).astype(np.uint8))
    plane_spacing = np.delete(spacing, axis)
    reach = max((extent.stop - extent.start) * mm for extent, mm in zip(tight, plane_spacing)) / 2 + MARGIN
    centres = [(extent.start + extent.stop) / 2 for extent in tight]
    return tuple(
        slice(max(0, round(centre - reach / mm)), round(centre + reach / mm))
        for centre, mm in zip(centres, plane_spacing)
    )


def draw_side(panel: Axes, view: View, labels: np.ndarray, found: np.ndarray):
    """The stack from the side with `labels` filled in, where `found` bears most."""
    across = 1 if view.axis == 0 else 0
    others = tuple(other for other in range(3) if other != across)
    index = int((found != 0).sum(axis=others).argmax())
    background = show_plane(panel, view, np.take(view.image, index, across), across)
    plane = np.take(labels, index, across)
    overlay = np.zeros((*plane.shape, 4))
    for label, rgb in view.colours.items():
        overlay[plane == label] = (*rgb, 0.7)
    panel.imshow(overlay, extent=background.get_extent(), origin=background.origin, interpolation="nearest")


def draw_slice(
    panel: Axes, view: View, index: int, box: tuple[slice, ...], found: np.ndarray, truth: np.ndarray | None
):
    """A slice with the outlines of its labels, and those of the truth beneath them, seen where the two differ."""
    show_plane(panel, view, np.take(view.image, index, view.axis)[box], view.axis)
    plane_spacing = np.delete(view.spacing, view.axis)
    if truth is not None:
        plane = np.take(truth, index, view.axis)[box]
        for label in view.colours:
            draw_outline(panel, plane == label, plane_spacing, TRUTH, 1.1)
    plane = np.take(found, index, view.axis)[box]
    for label, rgb in view.colours.items():
        draw_outline(panel, plane == label, plane_spacing, rgb, 1.8)


def show_plane(panel: Axes, view: View, plane: np.ndarray, across: int):
    """A grey plane across an array axis, in mm; in an unrotated scan superior is up, on axial planes anterior."""
    height, width = plane.shape * np.delete(view.spacing, across)
    panel.set_axis_off()
    low, high = view.window
    upwards = across != 0
    return panel.imshow(
        plane,
        cmap="gray",
        vmin=low,
        vmax=high,
        extent=(0, width, 0, height) if upwards else (0, width, height, 0),
        origin="lower" if upwards else "upper",
        interpolation="bicubic",
    )


def draw_outline(panel: Axes, mask: np.ndarray, plane_spacing: Sequence[float], line: str | Colour, width: float):
    """The outline of an (H, W) mask, its pixel stairs smoothed by less than a pixel."""
    if not mask.any():
        return
    smooth = ndimage.gaussian_filter(np.pad(mask, 1).astype(np.float32), 0.6)
    y, x = ((np.arange(-1, count + 1) + 0.5) * mm for count, mm in zip(mask.shape, plane_spacing))
    panel.contour(x, y, smooth, levels=[0.5], colors=[line], linewidths=width)


def annotate_slice(panel: Axes, name: str, is_drawn: bool, score: float | None):
    """The name of a slice, and whether it was drawn or how well it was found."""
    shade = withStroke(linewidth=2.5, foreground=PAPER)
    style = {"transform": panel.transAxes, "fontsize": 10.5, "va": "top", "path_effects": [shade]}
    panel.text(0.03, 0.97, name, color=QUIET, **style)
    if is_drawn:
        panel.text(0.97, 0.97, "drawn", color=DRAWN, weight="bold", ha="right", **style)
        panel.add_patch(Rectangle((0, 0), 1, 1, transform=panel.transAxes, fill=False, edgecolor=DRAWN, linewidth=3.5))
    elif score is not None:
        panel.text(0.97, 0.97, f"Dice {score:.3f}", color=INK, weight="bold", ha="right", **style)


def slice_dice(found: np.ndarray, truth: np.ndarray | None, axis: int, index: int) -> float | None:
    """Mean Dice over the labels that the slice bears in either volume; None without truth, or without labels."""
    if truth is None:
        return None
    found, truth = np.take(found, index, axis), np.take(truth, index, axis)
    labels = [label for label in np.union1d(found, truth) if label]
    return float(np.mean([dice(found == label, truth == label) for label in labels])) if labels else None


def draw_legends(figure: Figure, colours: Mapping[int, Colour], names: Mapping[int, str], with_truth: bool):
    """Above, what the lines mean; below, which colour is which label, where names are known."""
    style = {"frameon": False, "labelcolor": INK, "handlelength": 1.4, "columnspacing": 1.8, "borderpad": 0}
    lines = [
        Line2D([], [], color=DRAWN, linewidth=3, label="drawn"),
        Line2D([], [], color=QUIET, linewidth=2, label="found, in its label's colour"),
    ]
    if with_truth:
        lines.append(Line2D([], [], color=TRUTH, linewidth=1.1, label="truth, where it differs"))
    top = 1 - 0.2 / figure.get_figheight()
    figure.legend(handles=lines, loc="upper right", bbox_to_anchor=(0.988, top), ncols=3, fontsize=11, **style)
    patches = [Patch(color=colours[label], label=name) for label, name in names.items() if label in colours]
    if patches:
        columns = min(len(patches), 6)
        by_column = [patch for column in range(columns) for patch in patches[column::columns]]
        bottom = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.015), "ncols": columns, "fontsize": 10}
        take_literally(figure.legend(handles=by_column, **bottom, **style))


def draw_expected(
    figure: Figure, colours: Mapping[int, Colour], names: Mapping[str, str], expected: Mapping[int, float]
):
    """Below the slice, the expected Dice on the slice: its mean, and the least ones; names: label as text -> name."""
    lines = []
    for label in sorted(expected, key=expected.get)[:NAMED]:
        name = shortened(names.get(str(label), str(label)))
        lines.append(Line2D([], [], color=colours[label], linewidth=2, label=f"{name} {expected[label]:.2f}"))
    if lines:
        title = f"expected Dice {np.mean(list(expected.values())):.3f}"
        look = {"frameon": False, "labelcolor": INK, "fontsize": 6.5, "title_fontsize": 8}
        space = {"handlelength": 1, "borderpad": 0.3, "borderaxespad": 0.2, "labelspacing": 0.2, "alignment": "left"}
        legend = figure.legend(handles=lines, loc="lower left", title=title, **look, **space)
        legend.get_title().set_color(INK)
        take_literally(legend)


def shortened(name: str) -> str:
    """The name, its middle cut out if it is too long: names often differ at their ends, as left and right."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[1 - half :]}"


def take_literally(legend: Legend):
    """Names of segments may hold what matplotlib would read as formulas."""
    for text in legend.get_texts():
        text.set_parse_math(False)
