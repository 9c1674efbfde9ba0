"""Line charts as inline SVG. Colours are CSS variables of the page, so that one drawing reads in light and in dark."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from upslope.views.numbers import short
from upslope.views.safe_text import clean, clean_html

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 26
MOST_POINTS = 400
SMOOTHED_FROM = 40  # points from which a mean line is drawn over the raw one
SMOOTHING = "Thin lines: each step. Thick lines: the mean of the tenth of the run around it."
COLORS = 8  # c0 .. c7 in the style sheet

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line. ``points``: (step, value), steps rising, values finite. ``color`` counts runs. ``marked`` draws each
    point and dashes the line, for numbers that are measured now and then. ``band``: (step, low, high) shaded behind."""

    name: str
    points: tuple[Point, ...]
    color: int = 0
    marked: bool = False
    band: tuple[tuple[float, float, float], ...] = ()


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) inside ``low .. high``, about ``count`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = min((power * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [index * size for index in range(first, last + 1)]


def moving_mean(points: Sequence[Point], window: int) -> list[Point]:
    """At each point the mean of the ``window`` (odd) points around it, of fewer at the ends."""
    half, sums = window // 2, [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    ends = ((max(index - half, 0), min(index + half + 1, len(points))) for index in range(len(points)))
    return [(points[index][0], (sums[b] - sums[a]) / (b - a)) for index, (a, b) in enumerate(ends)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points, each the mean of neighbours."""
    if len(points) <= most:
        return list(points)
    parts = [points[k * len(points) // most : (k + 1) * len(points) // most] for k in range(most)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def smoothing(points: int) -> int:
    """Width of the mean line's window: about a tenth of the points, odd; 1 (no mean line) for short runs."""
    return 1 if points < SMOOTHED_FROM else 2 * (points // 20) + 1


def _tick(value: float, gap: float) -> str:
    """A tick's number with as many decimals as the gap between ticks needs."""
    if abs(value) < gap * 1e-6:
        return "0"
    if abs(value) >= 1e6 or gap < 1e-4:
        return f"{value:.3g}"
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    decimals += 0 if abs(gap * 10**decimals - round(gap * 10**decimals)) < 1e-6 else 1
    return f"{value:,.{decimals}f}"


@dataclass(frozen=True, slots=True)
class _Frame:
    """From data to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> str:
        across = 0.5 if self.x[0] == self.x[1] else (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"


def _frame(series: Sequence[Series], share: bool, steps: tuple[float, float] | None) -> _Frame:
    xs = [x for line in series for x, _ in line.points] + list(steps or ())
    ys = [y for line in series for _, y in line.points] + [y for line in series for _, *ends in line.band for y in ends]
    low, high = min(ys), max(ys)
    if share:
        low, high = min(low, 0.0), max(high, min(1.0, 1.2 * high), 0.05)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        pad = abs(high) * 0.1 or 1.0
    else:
        pad = 0.0 if share else 0.06 * (high - low)
    # A quantity that is never negative does not get an axis that is.
    bottom = low - pad if low < 0 else max(low - pad, 0.0)
    return _Frame((min(xs), max(xs)), (bottom, high + (pad or 0.03 * (high - low))))


def _path(frame: _Frame, points: Sequence[Point]) -> str:
    return "M" + "L".join(frame.at(x, y) for x, y in points)


def _drawn(frame: _Frame, line: Series) -> str:
    color = f"c{line.color % COLORS}"
    # Beyond the eighth run colours repeat, and dashes tell the lines apart.
    dash = ' stroke-dasharray="5 3"' if line.marked or line.color >= COLORS else ""
    parts = []
    if line.band:
        edge = [frame.at(x, high) for x, _, high in line.band] + [frame.at(x, low) for x, low, _ in line.band[::-1]]
        parts.append(f'<path class="band {color}" d="M{"L".join(edge)}Z"/>')
    points = line.points if line.marked else tuple(thin(line.points))
    window = 1 if line.marked else smoothing(len(line.points))
    if window > 1:
        mean = thin(moving_mean(line.points, window))
        parts.append(f'<path class="raw {color}" d="{_path(frame, points)}"/>')
        parts.append(f'<path class="line {color}" d="{_path(frame, mean)}"{dash}/>')
    elif len(points) > 1:
        parts.append(f'<path class="line {color}" d="{_path(frame, points)}"{dash}/>')
    if line.marked or len(points) == 1:
        for x, y in points:
            across, down = frame.at(x, y).split(",")
            parts.append(f'<circle class="dot {color}" cx="{across}" cy="{down}" r="3"/>')
    return "".join(parts)


def line_chart(
    title: str, note: str, series: Sequence[Series], share: bool = False, steps: tuple[float, float] | None = None
) -> str:
    """A ``<figure>`` with the lines of ``series``, or the empty string where no series has a point.

    ``steps`` are the first and last step that the axis must reach, so that charts side by side agree. ``share``
    keeps 0 in view and tops the axis at about 1 for numbers between 0 and 1. Long lines are drawn raw and faint with a
    mean over them (``SMOOTHING`` says so). Non-finite values must have been left out; values beyond 1e300 are dropped,
    as no axis can hold them.
    """
    kept = [
        replace(
            line,
            points=tuple((x, y) for x, y in line.points if abs(y) < 1e300),
            band=tuple(part for part in line.band if max(abs(part[1]), abs(part[2])) < 1e300),
        )
        for line in series
    ]
    lines = [line for line in kept if line.points]
    if not lines:
        return ""
    frame = _frame(lines, share, steps)
    body = [*_axes(frame), *(_drawn(frame, line) for line in lines)]
    data = [[clean(line.name, 60), _key(line), [[x, short(y)] for x, y in thin(line.points)]] for line in lines]
    hover = html.escape(json.dumps({"x": frame.x, "px": [LEFT, WIDTH - RIGHT], "lines": data}), quote=True)
    label = clean_html(f"{title}: " + ", ".join(f"{line.name} last {short(line.points[-1][1])}" for line in lines))
    heading = f"<b>{clean_html(title, 80)}</b> <span>{clean_html(note)}</span>"
    return (
        f'<figure class="chart"><figcaption>{heading}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" data-chart="{hover}">{"".join(body)}'
        f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/></svg>'
        f'<output class="readout">{_lasts(lines)}</output></figure>'
    )


def _lasts(lines: Sequence[Series]) -> str:
    """The last value of each line, where the pointer's reading will stand."""
    return "<span>last</span>" + "".join(
        f'<span class="{_key(line)}">{clean_html(line.name, 60)} {short(line.points[-1][1])}</span>' for line in lines
    )


def _key(line: Series) -> str:
    """Classes of a line's mark in a legend: a square, or a ring where points are drawn as rings."""
    return f"k c{line.color % COLORS}{' ring' if line.marked else ''}"


def _axes(frame: _Frame) -> list[str]:
    parts = []
    marks = ticks(*frame.y)
    gap = marks[1] - marks[0] if len(marks) > 1 else max(abs(marks[0]), 1.0)
    for value in marks:
        _, down = frame.at(frame.x[0], value).split(",")
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{float(down) + 4:.1f}" text-anchor="end">{_tick(value, gap)}</text>')
    steps = [round(value) for value in ticks(*frame.x, count=6) if abs(value - round(value)) < 1e-6]  # whole steps only
    for step in steps or [round(frame.x[0])]:
        across, _ = frame.at(step, frame.y[0]).split(",")
        parts.append(f'<text x="{across}" y="{HEIGHT - 8}" text-anchor="middle">{step:,}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    return parts
