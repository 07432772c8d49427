"""Draw the icons: muscles on a stack of slices, outlined by hand on some and carried to those between.

Run `python Resources/draw_icons.py` to write
    LabelProp.png, for the Extensions Manager
    LabelProp/Resources/Icons/LabelProp.png, for the module selector
    LabelPropEffect/SegmentEditorLabelPropLib/SegmentEditorEffect.png, for the effect's button of 21 pixels
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

REPOSITORY = Path(__file__).resolve().parent.parent

TISSUE, FAT, BONE, PLATE, PLATE_EDGE = "#55606d", "#aab4bf", "#f3efe4", "#1d2733", "#8f9cab"
GREEN, ORANGE, BLUE = "#3ddc7c", "#ff9f2e", "#38a8f5"


def ellipse(centre, radii, degrees=0.0, dent=0.0, count=120):
    """(N, 2) outline in slice coordinates (-1 to 1); `dent` flattens one side, as neighbouring muscles do."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radius = 1 - dent * np.cos(angle - np.pi / 2) ** 3
    outline = np.stack([radii[0] * radius * np.cos(angle), radii[1] * radius * np.sin(angle)], axis=1)
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return outline @ rotation + centre


def muscles(level):
    """Colour and outline of each muscle at `level`, 0 at the lowest slice and 1 at the highest: bellies in between."""
    belly = 0.72 + 0.28 * np.sin(np.pi * level)
    return [
        (GREEN, ellipse((-0.38, 0.32 - 0.04 * level), (0.39 * belly, 0.44 * belly), 25, 0.15)),
        (ORANGE, ellipse((0.49, 0.24 - 0.08 * level), (0.30 + 0.05 * level, 0.47 * belly), -15, 0.15)),
        (BLUE, ellipse((0.08 - 0.26 * level, -0.55), (0.50 * belly, 0.29 * belly), 0, -0.12)),
    ]


def project(outline, height, shear=0.30, depth=0.40):
    """Slice coordinates to the picture: seen from above and from the front right."""
    return np.stack([outline[:, 0] + shear * outline[:, 1], depth * outline[:, 1] + height], axis=1)


def canvas(pixels, limits):
    """Square transparent axes, `pixels` wide, that show `limits` = (left, right, bottom, top)."""
    figure = Figure(figsize=(pixels / 100, pixels / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(limits[:2])
    axes.set_ylim(limits[2:])
    axes.axis("off")
    return figure, axes


def save(figure, path):
    """Write the picture below the repository's root."""
    figure.savefig(REPOSITORY / path, transparent=True, metadata={"Software": None})


def draw_extension_icon(path, pixels=256):
    """A thigh in three slices: muscles filled on the outer two, drawn by hand, and carried to the one between."""
    figure, axes = canvas(pixels, (-1.4, 1.4, -1.4, 1.4))
    point = 72 / 256 * pixels / 100  # strokes keep their share of the picture at any size
    plate = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])

    def add(outline, **style):
        axes.add_patch(Polygon(outline, joinstyle="round", **style))

    below = []
    for level, height in ((0.0, -0.95), (0.5, 0.0), (1.0, 0.95)):
        given = level != 0.5
        placed = [(colour, project(outline, height)) for colour, outline in muscles(level)]
        for (colour, lower), (_, upper) in zip(below, placed, strict=False):
            for side in (np.argmin, np.argmax):
                path_up = np.stack([lower[side(lower[:, 0])], upper[side(upper[:, 0])]])
                axes.plot(*path_up.T, color=colour, lw=2 * point, zorder=1)  # behind the slice above
        below = placed
        add(project(plate, height), fc=PLATE, ec=PLATE_EDGE, lw=3 * point)
        add(project(ellipse((0, 0), (0.90, 0.92)), height), fc=FAT, ec="none")
        add(project(ellipse((0, 0), (0.82, 0.84)), height), fc=TISSUE, ec="none")
        add(project(ellipse((0.06, -0.02), (0.11, 0.12)), height), fc=BONE, ec="none")
        for colour, outline in placed:
            add(outline, fc=colour, ec="none", alpha=1.0 if given else 0.30)
            add(outline, fc="none", ec="white" if given else colour, lw=(3 if given else 4) * point)
    save(figure, path)


def draw_small_icon(path, pixels):
    """Two given slices, filled, and the one between them that the outline is carried to, for 21 pixels."""
    figure, axes = canvas(pixels, (-10.5, 10.5, -10.5, 10.5))
    point = 72 / 100 * pixels / 21  # one pixel of 21
    corners = np.array([[-8.4, -3.0], [5.9, -3.0], [8.4, 3.0], [-5.9, 3.0]])
    for height, fill in ((-7, GREEN), (0, "none"), (7, GREEN)):
        axes.add_patch(Polygon(corners + (0, height), fc=PLATE, ec=PLATE_EDGE, lw=0.7 * point, joinstyle="round"))
        axes.add_patch(Polygon(ellipse((0, height), (4.9, 1.7)), fc=fill, ec=GREEN, lw=1.1 * point))
    save(figure, path)


if __name__ == "__main__":
    draw_extension_icon("LabelProp.png")
    draw_small_icon("LabelProp/Resources/Icons/LabelProp.png", pixels=128)
    draw_small_icon("LabelPropEffect/SegmentEditorLabelPropLib/SegmentEditorEffect.png", pixels=84)
