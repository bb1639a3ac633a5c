"""The charts of the report as inline SVG, by hand: labelled axes, tooltips in <title>, colours from the style sheet.

Charts with text come in two widths, of which the style sheet shows the one that fits: text in a picture that is scaled
down to a phone would be too small to read.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from prunefast.report.svg import coordinate, element, log_ticks, picture, tick_text, ticks
from prunefast.report.text import number

WIDE = (960, 320)
NARROW = (358, 260)  # a phone of 390 px less its margins
LINE_STYLES = 6  # classes line0..line5 of the style sheet; more arms repeat them


def both_widths(draw: Callable[[int, int], Markup]) -> Markup:
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(*WIDE), draw(*NARROW))


# ---------------------------------------------------------------------------------------------------------- histogram


@dataclass(frozen=True)
class Histogram:
    """edges [B+1]; kept and dropped counts [B]; `below` and `above`: images outside the edges, in the end bars."""

    edges: NDArray[np.float64]
    kept: NDArray[np.int64]
    dropped: NDArray[np.int64]
    below: int
    above: int

    @property
    def total(self) -> NDArray[np.int64]:
        return self.kept + self.dropped


def make_histogram(
    values: NDArray[np.float64], keep: NDArray[np.bool_], bins: int = 48, limits: tuple[float, float] | None = None
) -> Histogram:
    """Counts of finite `values` [N] by `keep` [N]. limits: the outer edges (default: `robust_limits`)."""
    low, high = robust_limits(values) if limits is None else limits
    edges = np.linspace(low, high, bins + 1)
    clipped = np.clip(values, low, high)
    kept = np.histogram(clipped[keep], edges)[0]
    dropped = np.histogram(clipped[~keep], edges)[0]
    return Histogram(edges, kept, dropped, int((values < low).sum()), int((values > high).sum()))


def robust_limits(values: NDArray[np.float64], tail: float = 0.5) -> tuple[float, float]:
    """Where to end an axis: at the extremes, or at the `tail` percentiles where outliers would squash the rest."""
    low, high = float(values.min()), float(values.max())
    near_low, near_high = (float(p) for p in np.percentile(values, [tail, 100 - tail]))
    width = near_high - near_low
    if width > 0:
        low = low if near_low - low < 0.25 * width else near_low
        high = high if high - near_high < 0.25 * width else near_high
    if not high > low:  # one value only
        margin = max(abs(low) * 0.01, 0.5)
        return low - margin, high + margin
    return low, high


def histogram_chart(histogram: Histogram, cuts: Sequence[float], x_title: str, label: str) -> Markup:
    """Stacked bars, kept at the bottom; a dashed line per cut."""

    def draw(width: int, height: int) -> Markup:
        frame = Frame(width, height, float(histogram.edges[0]), float(histogram.edges[-1]), 0.0, _top(histogram))
        parts = [frame.axes(x_title, "images", x_count=max(3, width // 110))]
        for i, (low, high) in enumerate(zip(histogram.edges[:-1], histogram.edges[1:], strict=True)):
            kept, total = int(histogram.kept[i]), int(histogram.total[i])
            if total == 0:
                continue
            x0, x1 = frame.x(float(low)), frame.x(float(high))
            gap = min(1.0, 0.15 * (x1 - x0))
            bars = []
            for name, start, end in (("kept", 0, kept), ("dropped", kept, total)):
                if end > start:
                    top, bottom = frame.y(float(end)), frame.y(float(start))
                    bars.append(
                        element("rect", x=x0 + gap / 2, y=top, width=x1 - x0 - gap, height=bottom - top, class_=name)
                    )
            tip = f"{x_title} {number(float(low))} to {number(float(high))}: {kept:,} of {total:,} images kept"
            parts.append(element("g", element("title", tip), *bars))
        for cut in cuts:
            if histogram.edges[0] <= cut <= histogram.edges[-1]:
                x = frame.x(cut)
                line = element("line", x1=x, x2=x, y1=float(frame.top), y2=float(frame.bottom), class_="cut")
                right = x < width * 0.6
                text = element(
                    "text", f"cut {number(cut)}", x=x + (6.0 if right else -6.0), y=float(frame.top + 12),
                    text_anchor="start" if right else "end", class_="cut-text",
                )  # fmt: skip
                parts += [line, text]
        return picture(width, height, label, parts, "chart")

    return both_widths(draw)


def small_histogram(histogram: Histogram, cuts: Sequence[float], label: str) -> Markup:
    """A histogram without axes, for a row of many; the page writes the ends of the axis below it."""
    width, height = 240, 64
    top = max(1, int(histogram.total.max()))
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])
    step = width / len(histogram.kept)
    parts = []
    for name, start, end in (
        ("kept", np.zeros_like(histogram.kept), histogram.kept),
        ("dropped", histogram.kept, histogram.total),
    ):
        path = "".join(
            f"M{coordinate(i * step)} {coordinate(height - height * a / top)}h{coordinate(step * 0.9)}"
            f"V{coordinate(height - height * b / top)}h{coordinate(-step * 0.9)}z"
            for i, (a, b) in enumerate(zip(start.tolist(), end.tolist(), strict=True))
            if b > a
        )
        if path:
            parts.append(element("path", d=path, class_=name))
    parts.append(element("line", x1=0, x2=width, y1=height, y2=height, class_="axis-line"))
    for cut in cuts:
        if low <= cut <= high:
            x = width * (cut - low) / (high - low)
            parts.append(element("line", x1=x, x2=x, y1=0, y2=height, class_="cut"))
    return picture(width, height, label, parts, "small-chart")


def column_chart(total: NDArray[np.int64], kept: NDArray[np.int64], x_title: str, label: str) -> Markup:
    """One column a group: kept at the bottom, dropped above."""

    def draw(width: int, height: int) -> Markup:
        frame = Frame(width, height, 0.0, float(len(total)), 0.0, max(1.0, float(total.max())) * 1.06)
        parts = [frame.axes(x_title, "images", x_count=4)]
        step = (frame.right - frame.left) / len(total)
        for i, (all_, some) in enumerate(zip(total.tolist(), kept.tolist(), strict=True)):
            bars = []
            for name, start, end in (("kept", 0, some), ("dropped", some, all_)):
                if end > start:
                    top, bottom = frame.y(float(end)), frame.y(float(start))
                    x = frame.x(float(i)) + 0.1 * step
                    bars.append(element("rect", x=x, y=top, width=0.8 * step, height=bottom - top, class_=name))
            parts.append(element("g", element("title", f"{some:,} of {all_:,} images kept"), *bars))
        return picture(width, height, label, parts, "chart")

    return both_widths(draw)


def _top(histogram: Histogram) -> float:
    return max(1.0, float(histogram.total.max())) * 1.06


# -------------------------------------------------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Line:
    """One curve: x and y [n] finite; `name` is written at its end when there are several."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def line_chart(lines: Sequence[Line], x_title: str, y_title: str, label: str) -> Markup:
    """Measured values faint, their running mean strong. The y axis is logarithmic (and says so) over a wide range."""
    smooth = [running_mean(line.y) for line in lines]
    low = min(float(line.y.min()) for line in lines)
    high = max(float(line.y.max()) for line in lines)
    logarithmic = low > 0 and high / low > 10
    right = max(float(line.x.max()) for line in lines)
    left = min(0.0, *(float(line.x.min()) for line in lines))
    if logarithmic:
        low, high = low / 1.08, high * 1.08
    else:
        margin = (high - low) * 0.06 or max(abs(high) * 0.1, 0.1)
        low, high = (0.0 if low >= 0 and low < 0.4 * high else low - margin), high + margin

    def draw(width: int, height: int) -> Markup:
        frame = Frame(width, height, left, right if right > left else left + 1, low, high, logarithmic)
        scale = ", logarithmic" if logarithmic else ""
        parts = [frame.axes(x_title, y_title + scale, x_count=max(3, width // 130))]
        for number_, (line, mean) in enumerate(zip(lines, smooth, strict=True)):
            style = f"line{number_ % LINE_STYLES}"
            columns = frame.right - frame.left
            points = frame.path(*thin(line.x, line.y, columns * 2))
            parts.append(element("path", d=points, class_=f"measured {style}"))
            tip = f"{line.name}: {number(float(mean[-1]))} after {number(float(line.x[-1]))}"
            strong = element(
                "path", element("title", tip), d=frame.path(*thin(line.x, mean, columns)), class_=f"mean {style}"
            )
            parts.append(strong)
        return picture(width, height, label, parts, "chart")

    return both_widths(draw)


def running_mean(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over 5 % of the values around each one; over fewer at the steep beginning, half as many at the end."""
    position = np.arange(len(y))
    half = np.minimum(round(0.025 * len(y)), position // 4)
    total = np.concatenate([[0.0], np.cumsum(y)])
    start, end = position - half, np.minimum(position + half + 1, len(y))
    return (total[end] - total[start]) / (end - start)


def thin(x: NDArray[np.float64], y: NDArray[np.float64], most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most about `most` points of a curve: the smallest and largest y of each stretch, so that no spike is lost."""
    if len(x) <= most:
        return x, y
    chosen = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), max(1, most // 2)):
        chosen.add(int(stretch[np.argmin(y[stretch])]))
        chosen.add(int(stretch[np.argmax(y[stretch])]))
    index = np.array(sorted(chosen))
    return x[index], y[index]


# ---------------------------------------------------------------------------------------------------------------- map

MAP_WIDTH, MAP_HEIGHT = 960, 640
TILE = 56  # of the pictures on the map


@dataclass(frozen=True)
class MapPoint:
    """x, y in [0, 1] (y upwards); `group`: the class number, or -1; `image`: a data URI when it is a picture."""

    x: float
    y: float
    kept: bool
    group: int
    tip: str
    image: str | None = None


def scatter(points: Sequence[MapPoint], label: str) -> Markup:
    """Kept: a filled disc. Dropped: a ring, so that the two differ without colour. Drawn in the order given."""
    parts = []
    for point in points:
        parts.append(
            element(
                "circle",
                element("title", point.tip),
                cx=_map_x(point.x),
                cy=_map_y(point.y),
                r=3.6 if point.kept else 3.1,
                class_=f"{'k' if point.kept else 'd'} g{point.group}",
            )
        )
    return picture(MAP_WIDTH, MAP_HEIGHT, label, parts, "map-points")


def mosaic(points: Sequence[MapPoint], label: str) -> Markup:
    """The points as pictures, framed by what became of them."""
    parts = []
    for point in points:
        x, y = _map_x(point.x) - TILE / 2, _map_y(point.y) - TILE / 2
        frame = element("rect", x=x, y=y, width=TILE, height=TILE, rx=3, class_="k" if point.kept else "d")
        image = element(
            "image", href=point.image, x=x, y=y, width=TILE, height=TILE, preserveAspectRatio="xMidYMid slice"
        )
        parts.append(element("g", element("title", point.tip), image, frame, class_=f"g{point.group}"))
    return picture(MAP_WIDTH, MAP_HEIGHT, label, parts, "map-pictures")


def small_map(points: Sequence[MapPoint], label: str) -> Markup:
    """Every point faint, the kept ones strong on top: to compare selections side by side."""
    width, height = 480, 320
    paths = []
    for name, chosen in (("all", points), ("k", [p for p in points if p.kept])):
        path = "".join(
            f"M{coordinate(8 + (width - 16) * p.x)} {coordinate(8 + (height - 16) * (1 - p.y))}h0" for p in chosen
        )
        if path:
            paths.append(element("path", d=path, class_=name))
    return picture(width, height, label, paths, "small-map")


def _map_x(x: float) -> float:
    return TILE / 2 + 2 + (MAP_WIDTH - TILE - 4) * x


def _map_y(y: float) -> float:
    return TILE / 2 + 2 + (MAP_HEIGHT - TILE - 4) * (1 - y)


# --------------------------------------------------------------------------------------------------------------- axes


class Frame:
    """The plot area of a chart in pixels, and how values lie in it."""

    def __init__(
        self, width: int, height: int, x_low: float, x_high: float, y_low: float, y_high: float, log_y: bool = False
    ):
        self.left, self.right, self.top, self.bottom = 58, width - 22, 12, height - 46
        self.x_low, self.x_high, self.log_y = x_low, x_high, log_y
        self.y_values = (y_low, y_high)
        self.y_low, self.y_high = (math.log10(y_low), math.log10(y_high)) if log_y else (y_low, y_high)

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        level = math.log10(value) if self.log_y else value
        return self.bottom - (self.bottom - self.top) * (level - self.y_low) / (self.y_high - self.y_low)

    def path(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
        points = (
            f"{coordinate(self.x(a))} {coordinate(self.y(b))}" for a, b in zip(x.tolist(), y.tolist(), strict=True)
        )
        return "M" + "L".join(points)

    def axes(self, x_title: str, y_title: str, x_count: int) -> Markup:
        parts = []
        for value in log_ticks(*self.y_values) if self.log_y else ticks(*self.y_values, 5):
            y = self.y(value)
            parts.append(element("line", x1=self.left, x2=self.right, y1=y, y2=y, class_="grid"))
            parts.append(
                element("text", tick_text(value), x=self.left - 8, y=y + 4.0, text_anchor="end", class_="tick")
            )
        for value in ticks(self.x_low, self.x_high, x_count):
            x = self.x(value)
            parts.append(element("line", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 5, class_="axis-line"))
            parts.append(
                element("text", tick_text(value), x=x, y=self.bottom + 19, text_anchor="middle", class_="tick")
            )
        parts.append(element("line", x1=self.left, x2=self.right, y1=self.bottom, y2=self.bottom, class_="axis-line"))
        middle_x, middle_y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        parts.append(
            element("text", x_title, x=middle_x, y=self.bottom + 39, text_anchor="middle", class_="axis-title")
        )
        turn = f"rotate(-90 14 {coordinate(middle_y)})"
        parts.append(
            element("text", y_title, x=14, y=middle_y, text_anchor="middle", class_="axis-title", transform=turn)
        )
        return Markup("").join(parts)
