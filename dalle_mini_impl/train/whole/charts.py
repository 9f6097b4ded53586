"""Line charts as SVG inside a page: no library, no script, colours that follow the page's."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 480, 220
"""Of the drawing; the page scales it."""
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 12, 34
"""Margins around the axes."""
POINTS = 200
"""Most points of a line; of more, neighbours are averaged."""
TICKS = 4
"""About so many labels on each axis."""

Line = Sequence[tuple[float, float]]
"""Points (x, y) from left to right."""


def line_chart(title: str, lines: Mapping[str, Line], unit: str) -> str:
    """A chart with one line for each name.

    Args:
        title: what a reader who cannot see the chart is told.
        lines: by name; the first colour is the first name's. Empty ones are left out.
        unit: of the y axis.

    Returns:
        An `svg` element with a legend; empty if no line has two points.
    """
    thinned = {name: thin(line) for name, line in lines.items() if len(line) > 1}
    if not thinned:
        return ""
    every = [point for line in thinned.values() for point in line]
    low_x, high_x = _range([x for x, _ in every])
    low_y, high_y = _range([y for _, y in every])

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)
        return round(right, 1), round(down, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for value in ticks(low_y, high_y):
        _, y = place(low_x, value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(low_x, high_x):
        x, _ = place(value, low_y)
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">steps</text>')
    parts.append(f'<text x="{LEFT - 6}" y="{HEIGHT - 4}" text-anchor="end">{html.escape(unit)}</text>')
    for number, line in enumerate(thinned.values()):
        path = "L".join(f"{x} {y}" for x, y in (place(*point) for point in line))
        parts.append(f'<path class="line line{number % 4}" d="M{path}"/>')
    legend = "".join(
        f'<span class="line{number % 4}">{html.escape(name)}</span>' for number, name in enumerate(thinned)
    )
    return "".join([*parts, f'</svg><p class="legend">{legend}</p>'])


def thin(line: Line) -> list[tuple[float, float]]:
    """At most `POINTS` points, each the mean of its neighbours."""
    size = math.ceil(len(line) / POINTS)
    parts = [line[start : start + size] for start in range(0, len(line), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others."""
    step = 10 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= TICKS + 1)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
