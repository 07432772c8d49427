"""A strip that shows on which slices the segments are annotated, and how; a click or drag on it chooses a slice."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import qt
from slicer.i18n import tr as _

from LabelPropLib.roles import ABSENT, COMPLETE, IGNORED, SCRIBBLE

ROLES = (COMPLETE, SCRIBBLE, ABSENT, IGNORED)

MARGIN = 8  # pixels left and right of the slices
HEADER = 7  # above the lanes, for the handle of the current slice
FOOTER = 2  # below them and above the slice numbers
LANE_GAP = 2
LANES_HEIGHT = 96  # what all lanes may take: the more there are, the lower they get
SELECTED_LANE, SUMMARY_LANE, HIGHEST_LANE, LOWEST_LANE = 14, 10, 12, 3
NARROWEST_MARK = 3
LARGEST_SYMBOL = 8  # a ring or a cross
ARROW = 6  # height of the arrow at the slice to draw next
SNAP = 5  # a click this near to a mark means its slice

# Colours of the expected Dice, and those in between; they differ in brightness too, for the colour-blind.
QUALITY_COLORS = ((0.6, (213, 94, 0)), (0.8, (240, 228, 66)), (0.95, (0, 158, 115)))
QUALITY_STEP = 0.02  # finer differences are not shown: neighbours of one colour are painted at once


def roleTitles():
    """Role -> what it is called in panels."""
    return {COMPLETE: _("Complete"), SCRIBBLE: _("Scribble"), ABSENT: _("Absent"), IGNORED: _("Ignored")}


@dataclass(frozen=True)
class Lane:
    """One segment's row: its name, colour (0..1 each), and slice -> role. `selected` is the one being edited.

    quality: slice -> expected Dice of what was found there.
    """

    name: str
    color: tuple[float, float, float]
    roles: Mapping[int, str]
    selected: bool = False
    quality: Mapping[int, float] = field(default_factory=dict)


class SliceStrip:
    """Paints into a label's pixmap: PythonQt widgets that are subclassed to be painted are fragile.

    `onSlice(index)` is called when the user chooses a slice. Slices are numbered as in the segmentation's geometry.
    """

    def __init__(self, onSlice):
        self.widget = qt.QLabel()
        self.widget.objectName = "SegmentEditorLabelPropSliceStrip"
        policy = qt.QSizePolicy()
        policy.setHorizontalPolicy(qt.QSizePolicy.Ignored)  # the pixmap must not hold the panel at its own width
        policy.setVerticalPolicy(qt.QSizePolicy.Fixed)
        self.widget.setSizePolicy(policy)
        self.widget.setMouseTracking(True)
        self.onSlice = onSlice
        self.slices = range(0)
        self.lanes = []
        self.current = None
        self.suggested = None
        self._rows = []  # (lane, top, height) of those that are painted
        self._lanesPixmap = None  # all but the current slice
        self._eventFilter = StripEventFilter()
        self._eventFilter.strip = weakref.ref(self)
        self.widget.installEventFilter(self._eventFilter)

    def cleanup(self):
        """Let go of the widget."""
        self.widget.removeEventFilter(self._eventFilter)

    def show(self, slices: range, lanes: list[Lane], current: int | None, suggested: int | None = None):
        """Show `lanes` over `slices`, which slice the views show, and which one to draw next."""
        if (slices, lanes, suggested) != (self.slices, self.lanes, self.suggested):
            self.slices, self.lanes, self.suggested = slices, lanes, suggested
            self._rows = self._layOut()
            self._lanesPixmap = None
        self.widget.setFixedHeight(self._bottom() + FOOTER + self.widget.fontMetrics().height())
        self.current = current
        self.paint()

    def marks(self) -> list[int]:
        """The slices that bear a mark other than 'ignored' for any segment, ascending."""
        return sorted({index for lane in self.lanes for index, role in lane.roles.items() if role != IGNORED})

    def sliceAt(self, x: int) -> int | None:
        """The slice at a horizontal position; that of a mark, if one is near."""
        if not self.slices:
            return None
        near = [index for index in self.marks() if abs(self._x(index) - x) <= SNAP]
        if near:
            return min(near, key=lambda index: abs(self._x(index) - x))
        position = (x - MARGIN) / self._pitch() - 0.5
        return self.slices[min(max(round(position), 0), len(self.slices) - 1)]

    def describe(self, index: int) -> str:
        """What is known of a slice, as text."""
        titles = roleTitles()
        known = [f"{lane.name}: {titles[lane.roles[index]]}" for lane in self.lanes if index in lane.roles]
        expected = [
            _("{name}: expected Dice {value}").format(name=lane.name, value=f"{lane.quality[index]:.2f}")
            for lane in self.lanes
            if index in lane.quality
        ]
        suggested = [_("Best slice to draw next")] if index == self.suggested else []
        return "\n".join([_("Slice {index}").format(index=index), *suggested, *known, *expected])

    def paint(self):
        """Draw the current slice anew, and the lanes if they have changed."""
        width, height = self.widget.width, self.widget.height
        if width < 4 * MARGIN or height <= 0:
            return
        ratio = self.widget.devicePixelRatioF()
        if self._lanesPixmap is None:  # painted once: there can be thousands of marks, and views scroll fast
            self._lanesPixmap = qt.QPixmap(int(width * ratio), int(height * ratio))
            self._lanesPixmap.setDevicePixelRatio(ratio)
            self._lanesPixmap.fill(transparent())
            self._paintOn(self._lanesPixmap, self._paintGround, self._paintLanes, self._paintSuggested)
        pixmap = qt.QPixmap(self._lanesPixmap)
        self._paintOn(pixmap, self._paintNumbers, self._paintCurrent)
        self.widget.setPixmap(pixmap)

    def repaint(self):
        """Draw anew all that there is, in a new size or other colours."""
        self._lanesPixmap = None
        self.paint()

    def _paintOn(self, pixmap, *parts):
        painter = qt.QPainter()
        painter.begin(pixmap)
        try:
            painter.setRenderHint(qt.QPainter.Antialiasing)
            for part in parts:
                part(painter, self.widget.width)
        finally:
            painter.end()

    def _paintGround(self, painter, width: int):
        painter.setPen(qt.QPen(self._color("Mid")))
        painter.setBrush(qt.QBrush(self._color("Base")))
        painter.drawRoundedRect(0, HEADER - 3, width - 1, self._bottom() - HEADER + 5, 3.0, 3.0)

    def _paintLanes(self, painter, width: int):
        line, ink, mark = self._color("Midlight"), self._color("Text"), self._markWidth()
        for lane, top, height in self._rows:
            if lane.selected:
                painter.fillRect(1, top - 1, width - 3, height + 2, self._color("Highlight", 50))
            painter.fillRect(MARGIN, top + height // 2, width - 2 * MARGIN, 1, line)
            color = qt.QColor.fromRgbF(*lane.color)
            roles = {index: role for index, role in lane.roles.items() if index in self.slices}
            for _role, first, last in runs({index: role for index, role in roles.items() if role == IGNORED}):
                left, right = int(self._left(first)), int(self._left(last + 1))
                paintRole(painter, IGNORED, left, top, max(NARROWEST_MARK, right - left), height, color, ink)
            self._paintQuality(painter, lane, top, height)
            if not lane.name:
                self._paintShares(painter, top, height)
            for index, role in roles.items():
                if role != IGNORED:
                    paintRole(painter, role, self._x(index) - mark // 2, top, mark, height, color, ink)

    def _paintQuality(self, painter, lane: Lane, top: int, height: int):
        """A band along the lane, in the colours of the expected quality; ignored slices are what it is about."""
        band = max(2, height // 3)
        shown = {
            index: round(value / QUALITY_STEP)
            for index, value in lane.quality.items()
            if index in self.slices and lane.roles.get(index, IGNORED) == IGNORED
        }
        for step, first, last in runs(shown):
            left, right = int(self._left(first)), int(self._left(last + 1))
            color = qualityColor(step * QUALITY_STEP)
            painter.fillRect(left, top + (height - band) // 2, max(1, right - left), band, color)

    def _paintShares(self, painter, top: int, height: int):
        """A bar for each slice, as high as the share of the segments that are known there."""
        width = self._markWidth()
        for index in self.marks():
            if index in self.slices:
                bar = max(2, round(height * self._share(index)))
                painter.fillRect(self._x(index) - width // 2, top + height - bar, width, bar, self._color("Text", 160))

    def _paintNumbers(self, painter, width: int):
        if not self.slices:
            return
        painter.setFont(self.widget.font)
        metrics = painter.fontMetrics()
        baseline = self._bottom() + FOOTER + metrics.ascent()
        occupied = []
        wanted = [self.current, self.suggested, self.slices[0], self.slices[-1], *self.marks()]
        for index in (index for index in wanted if index is not None and index in self.slices):
            text = str(index)
            textWidth = metrics.horizontalAdvance(text)
            left = min(max(self._x(index) - textWidth // 2, 0), width - textWidth)
            if all(left > right + 3 or left + textWidth < other - 3 for other, right in occupied):
                occupied.append((left, left + textWidth))
                painter.setPen(qt.QPen(self._color("Highlight" if index == self.current else "Text")))
                painter.drawText(left, baseline, text)

    def _paintSuggested(self, painter, _width: int):
        """An arrow that points down at the slice to draw next."""
        if self.suggested is not None and self.suggested in self.slices:
            x = self._x(self.suggested)
            painter.setPen(qt.QPen(qt.QColor(*QUALITY_COLORS[0][1])))
            for row in range(ARROW):
                painter.drawLine(x - ARROW + row + 1, row, x + ARROW - row - 1, row)

    def _paintCurrent(self, painter, _width: int):
        if self.current is not None and self.current in self.slices:
            x = self._x(self.current)
            pen = qt.QPen(self._color("Highlight"))
            pen.setWidth(2)
            painter.setPen(pen)
            painter.drawLine(x, 2, x, self._bottom() + 1)
            painter.setBrush(qt.QBrush(self._color("Highlight")))
            painter.drawEllipse(x - 2, 1, 4, 4)

    def _layOut(self) -> list[tuple[Lane, int, int]]:
        """Lanes with their top and height: one for all segments, and those that fit around the selected one."""
        if len(self.lanes) < 2:
            return [(lane, HEADER, SELECTED_LANE) for lane in self.lanes]
        room = LANES_HEIGHT - SUMMARY_LANE - SELECTED_LANE - 2 * LANE_GAP
        count = 1 + room // (LOWEST_LANE + LANE_GAP)
        selected = next((n for n, lane in enumerate(self.lanes) if lane.selected), 0)
        first = max(min(selected - count // 2, len(self.lanes) - count), 0)
        shown = self.lanes[first : first + count]
        height = min(room // (len(shown) - 1) - LANE_GAP, HIGHEST_LANE)
        rows, top = [(self._summary(), HEADER, SUMMARY_LANE)], HEADER + SUMMARY_LANE + LANE_GAP
        for lane in shown:
            rows.append((lane, top, SELECTED_LANE if lane.selected else height))
            top += rows[-1][2] + LANE_GAP
        return rows

    def _bottom(self) -> int:
        """Where the lanes end, pixels from the top."""
        *_, top, height = self._rows[-1] if self._rows else (HEADER, SELECTED_LANE)
        return top + height + LANE_GAP

    def _summary(self) -> Lane:
        """The lane of all segments together; what it shows of a slice is `_share`."""
        color = self._color("Dark")
        return Lane("", (color.redF(), color.greenF(), color.blueF()), {}, quality=self._meanQuality())

    def _share(self, index: int) -> float:
        """The share of the segments that are drawn, scribbled or absent on a slice."""
        return sum(lane.roles.get(index, IGNORED) != IGNORED for lane in self.lanes) / len(self.lanes)

    def _meanQuality(self) -> dict[int, float]:
        """Slice -> mean over the segments that are expected there."""
        found = {}
        for lane in self.lanes:
            for index, value in lane.quality.items():
                found.setdefault(index, []).append(value)
        return {index: sum(values) / len(values) for index, values in found.items()}

    def _pitch(self) -> float:
        """Pixels from slice to slice."""
        return (self.widget.width - 2 * MARGIN) / max(len(self.slices), 1)

    def _markWidth(self) -> int:
        return max(NARROWEST_MARK, int(0.8 * self._pitch()))

    def _left(self, index: int) -> float:
        """Where the slice begins."""
        return MARGIN + (index - self.slices.start) * self._pitch()

    def _x(self, index: int) -> int:
        """The middle of the slice."""
        return int(self._left(index) + 0.5 * self._pitch())

    def _color(self, role: str, alpha: int = 255):
        palette = self.widget.palette
        color = qt.QColor(palette.color(getattr(qt.QPalette, role)))
        color.setAlpha(alpha)
        return color


class StripEventFilter(qt.QObject):
    """Hands the label's mouse and resize events to the strip."""

    strip = None

    def eventFilter(self, watched, event):
        strip = self.strip() if self.strip else None
        if strip is None:
            return False
        kind = event.type()
        if kind in (qt.QEvent.Resize, qt.QEvent.PaletteChange):
            strip.repaint()
        elif kind in (qt.QEvent.MouseMove, qt.QEvent.MouseButtonPress):
            index = strip.sliceAt(event.pos().x())
            if index is None:
                return False
            strip.widget.setToolTip(strip.describe(index))
            stays = kind == qt.QEvent.MouseMove and index == strip.current
            if event.buttons() & qt.Qt.LeftButton and not stays:
                strip.onSlice(index)
        return False


def qualityColor(value: float):
    """The colour of an expected Dice, see QUALITY_COLORS."""
    steps = [value for value, color in QUALITY_COLORS]
    value = min(max(value, steps[0]), steps[-1])
    upper = next(n for n in range(1, len(steps)) if value <= steps[n])
    share = (value - steps[upper - 1]) / (steps[upper] - steps[upper - 1])
    low, high = QUALITY_COLORS[upper - 1][1], QUALITY_COLORS[upper][1]
    return qt.QColor(*(int(round(a + share * (b - a))) for a, b in zip(low, high)))


def transparent():
    """Neither outline nor filling."""
    return qt.QColor(0, 0, 0, 0)


def paintRole(painter, role: str, x: int, y: int, width: int, height: int, color, ink):
    """One mark: complete filled, scribble a ring, absent a cross in `ink`, ignored pale."""
    if role in (COMPLETE, IGNORED):
        inset = height // 4 if role == IGNORED else 0
        filling = qt.QColor(color)
        filling.setAlpha(255 if role == COMPLETE else 70)
        painter.fillRect(x, y + inset, width, height - 2 * inset, filling)
        return
    pen = qt.QPen(color if role == SCRIBBLE else ink)
    pen.setWidth(2 if height >= LARGEST_SYMBOL else 1)
    painter.setPen(pen)
    painter.setBrush(qt.QBrush(transparent()))
    size = min(height - 1, LARGEST_SYMBOL)
    left, top = x + width // 2 - size // 2, y + (height - size) // 2
    if role == SCRIBBLE:
        painter.drawEllipse(left, top, size, size)
    else:
        painter.drawLine(left, top, left + size, top + size)
        painter.drawLine(left, top + size, left + size, top)


def runs(values: Mapping[int, object]):
    """(value, first, last) of the runs of consecutive indices that have one value."""
    run = None
    for index in sorted(values):
        if run is not None and run[0] == values[index] and run[2] == index - 1:
            run = (*run[:2], index)
            continue
        if run is not None:
            yield run
        run = (values[index], index, index)
    if run is not None:
        yield run


def roleIcon(role: str, color, ink, ratio: float):
    """An icon of the mark that stands for a role on the strip, of `ratio` pixels of the screen in place of one."""
    pixmap = qt.QPixmap(int(16 * ratio), int(16 * ratio))
    pixmap.setDevicePixelRatio(ratio)
    pixmap.fill(transparent())
    painter = qt.QPainter()
    painter.begin(pixmap)
    try:
        painter.setRenderHint(qt.QPainter.Antialiasing)
        paintRole(painter, role, 4, 2, 8, 12, color, ink)
    finally:
        painter.end()
    return qt.QIcon(pixmap)
