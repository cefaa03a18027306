"""Line charts as inline SVG, with the data that `report.js` shows at the pointer."""

import html
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 68, 24, 10, 46

Point = tuple[float, float]


class Series(NamedTuple):
    """A line of a chart."""

    label: str
    color: str
    dashes: str  # of SVG, such as `6 4`
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high
    thin: Sequence[Sequence[Point]] = ()  # lines of the seeds


class Scale(NamedTuple):
    """A linear map from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` of them.

    Example:
        >>> ticks(-41.0, -2.0)
        [-40.0, -30.0, -20.0, -10.0]
    """
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(size for factor in (1, 2, 5, 10, 20) if span / (size := factor * power) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)][:most]


def brief(value: float) -> str:
    """A number for a tick or a tooltip.

    Example:
        >>> [brief(x) for x in (1_500_000, 20_000, -3.25, 0.001)]
        ['1.5 M', '20 k', '-3.25', '0.001']
    """
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == ' k' else size):.4g}{letter}"
    return f"{value:.4g}"


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """A figure in HTML with all series that have points; nothing if there are none."""
    series = [one for one in series if one.points]
    if not series:
        return ""
    xs = [x for one in series for line in (one.points, *one.thin) for x, _ in line]
    ys = [y for one in series for y in (*(y for _, y in one.points), *(e for b in one.band for e in b[1:]))]
    ys += [y for one in series for line in one.thin for _, y in line]
    x = Scale(*_widen(min(xs), max(xs), 0.0), LEFT, WIDTH - RIGHT)
    y = Scale(*_widen(min(ys), max(ys), 0.04), HEIGHT - BOTTOM, TOP)
    parts = [*_axes(x, y, x_label, y_label), *(part for one in series for part in _draw(one, x, y))]
    data = [
        {
            "label": one.label,
            "color": one.color,
            "points": [[round(x(a), 2), round(y(b), 2), brief(a), brief(b)] for a, b in one.points],
        }
        for one in series
    ]
    frame = (
        f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>'
    )
    return (
        f'<figure class="chart" data-series="{html.escape(json.dumps(data))}" data-x="{html.escape(x_label)}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(f"{y_label} against {x_label}")}">'
        f'{"".join(parts)}{frame}<line class="at" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg></figure>'
    )


def _widen(low: float, high: float, share: float) -> tuple[float, float]:
    """The ends with some space, and never equal."""
    space = share * (high - low) if high > low else max(1e-9, 0.5 * abs(low)) or 1.0
    return low - space, high + space


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for value in ticks(x.low, x.high, 5):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{brief(value)}</text>')
    for value in ticks(y.low, y.high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{brief(value)}</text>')
    center = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{center}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x_label)}</text>')
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" {turned}>{html.escape(y_label)}</text>')
    return parts


def _draw(one: Series, x: Scale, y: Scale) -> list[str]:
    """The band, the thin lines, the line and its markers, clipped by nothing: the scales hold them all."""
    parts = []
    if len(one.band) > 1:
        upper = [(a, high) for a, _, high in one.band]
        lower = [(a, low) for a, low, _ in reversed(one.band)]
        parts.append(f'<polygon points="{_path([*upper, *lower], x, y)}" fill="{one.color}" opacity="0.13"/>')
    how = f'fill="none" stroke="{one.color}" stroke-dasharray="{one.dashes}"'
    parts += [f'<polyline points="{_path(line, x, y)}" {how} stroke-width="0.7" opacity="0.45"/>' for line in one.thin]
    parts.append(f'<polyline points="{_path(one.points, x, y)}" {how} stroke-width="2"/>')
    if len(one.points) <= 12:
        dots = "".join(f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>' for a, b in one.points)
        parts.append(f'<g fill="{one.color}">{dots}</g>')
    return parts


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
