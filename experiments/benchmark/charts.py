"""Charts as SVG text, narrow enough for a phone; their colours are those of the page, so that they follow its dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 360, 44, 10, 10, 34
COLOURS = 10
"""``--c0`` to ``--c9`` of page.css; what comes after them begins again, so charts also number or label what they show."""


def scatter(points: Mapping[str, tuple[float, float, Sequence[float] | None]], x: str, y: str) -> str:
    """Numbered points with an interval each.

    Args:
        points: name -> place, and the interval of the second number.
        x, y: what the axes are.
    """
    xs = [point[0] for point in points.values()]
    ys = [end for _, value, interval in points.values() for end in (value, *(interval or ()))]
    height = 260
    # a point at 0 stays clear of what is written on the other axis
    to_x, x_ticks = _axis(xs, LEFT + 12, WIDTH - RIGHT - 8, from_zero=True)
    to_y, y_ticks = _axis(ys, height - BOTTOM, TOP + 8)
    parts = _frame(x_ticks, y_ticks, to_x, to_y, height, x, y)
    for number, (name, (across, value, interval)) in enumerate(points.items()):
        colour, at, up = f"var(--c{number % COLOURS})", to_x(across), to_y(value)
        ends = "" if interval is None else f" [{interval[0]:+.3g}, {interval[1]:+.3g}]"
        parts.append(f"<g><title>{escape(name)}: {escape(x)} {across:.3g}, {escape(y)} {value:+.3g}{ends}</title>")
        if interval is not None:
            parts.append(f'<path d="M{at:.1f} {to_y(interval[0]):.1f}V{to_y(interval[1]):.1f}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{up:.1f}" r="8" fill="{colour}"/>')
        parts.append(f'<text class="on" x="{at:.1f}" y="{up + 3.5:.1f}" text-anchor="middle">{number + 1}</text></g>')
    return _svg(parts, height, f"{y} against {x} of {len(points)} policies")


def forest(rows: Mapping[str, tuple[float, Sequence[float] | None]], x: str) -> str:
    """A line per name: a value with its interval."""
    values = [end for value, interval in rows.values() for end in (value, *(interval or ()))]
    left, step = 120, 24
    height = TOP + step * len(rows) + BOTTOM
    to_x, ticks = _axis([*values, 0.0], left, WIDTH - RIGHT - 8)
    parts = _frame(ticks, [], to_x, lambda value: value, height, x, "", left)
    for number, (name, (value, interval)) in enumerate(rows.items()):
        up, colour = TOP + step * (number + 0.5), f"var(--c{number % COLOURS})"
        parts.append(f"<g><title>{escape(name)}: {value:+.3f}</title>")
        parts.append(f'<text x="{left - 6}" y="{up + 4:.1f}" text-anchor="end">{escape(_short(name, 19))}</text>')
        if interval is not None:
            parts.append(f'<path d="M{to_x(interval[0]):.1f} {up}H{to_x(interval[1]):.1f}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<circle cx="{to_x(value):.1f}" cy="{up}" r="5" fill="{colour}"/></g>')
    return _svg(parts, height, f"{x} of {len(rows)} policies, with 95 % intervals")


def stacked(rows: Mapping[str, Mapping[str, float]], x: str, first: int = 1) -> str:
    """A bar per name, of parts that have the same colours in all bars, and numbers from ``first`` on."""
    left, step = 120, 24
    height = TOP + step * len(rows) + BOTTOM
    to_x, ticks = _axis([sum(parts.values()) for parts in rows.values()], left, WIDTH - RIGHT - 8, from_zero=True)
    parts = _frame(ticks, [], to_x, lambda value: value, height, x, "", left)
    for number, (name, values) in enumerate(rows.items()):
        up, start = TOP + step * number + 3, 0.0
        parts.append(f'<text x="{left - 6}" y="{up + 13}" text-anchor="end">{escape(_short(name, 19))}</text>')
        for index, (part, value) in enumerate(values.items()):
            if value > 0:
                width = to_x(start + value) - to_x(start)
                title = f"<title>{escape(name)}, {escape(part)}: {value:.3g}</title>"
                place = f'x="{to_x(start):.1f}" y="{up}" width="{width:.1f}" height="18"'
                parts.append(f'<rect {place} fill="var(--c{index % COLOURS})">{title}</rect>')
                if width > 14:
                    middle = to_x(start) + width / 2
                    parts.append(f'<text class="on" x="{middle:.1f}" y="{up + 13}" text-anchor="middle">{index + first}</text>')
            start += value
    return _svg(parts, height, f"{x}, by policy")


def lines(curves: Mapping[str, Sequence[tuple[float, float]]], x: str, title: str) -> str:
    """Curves over one axis; the caption says what they are."""
    height = 220
    points = [point for curve in curves.values() for point in curve]
    to_x, x_ticks = _axis([point[0] for point in points], LEFT, WIDTH - RIGHT - 8)
    to_y, y_ticks = _axis([point[1] for point in points], height - BOTTOM, TOP + 8)
    parts = _frame(x_ticks, y_ticks, to_x, to_y, height, x, "")
    for number, (name, curve) in enumerate(curves.items()):
        if not curve:
            continue
        path = "L".join(f"{to_x(across):.1f} {to_y(value):.1f}" for across, value in curve)
        colour = f"var(--c{number % COLOURS})"
        # round caps show a curve of one point, too
        parts.append(
            f'<path d="M{path}{"" if len(curve) > 1 else "h.01"}" fill="none" stroke="{colour}" stroke-width="2" stroke-linecap="round">'
        )
        parts.append(f"<title>{escape(name)}</title></path>")
    return _svg(parts, height, f"{title} over {x}, {len(curves)} curves")


def legend(names: Sequence[str], first: int = 1) -> str:
    """The names of numbered colours."""
    items = [
        f'<li><span class="swatch" style="background:var(--c{at % COLOURS})">{at + first}</span>{escape(name)}</li>'
        for at, name in enumerate(names)
    ]
    return f'<ol class="legend">{"".join(items)}</ol>'


def _axis(values: Sequence[float], start: float, end: float, from_zero: bool = False):
    """Function from a value to its place, and the values of round ticks."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if from_zero:
        low = min(0.0, low)
    if high - low < 1e-12:
        low, high = low - 0.5 * (not from_zero), high + 0.5
    raw = (high - low) / 4
    base = 10 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]
    return lambda value: start + (value - low) / (high - low) * (end - start), ticks


def _frame(x_ticks, y_ticks, to_x, to_y, height: int, x: str, y: str, left: int = LEFT) -> list[str]:
    bottom = height - BOTTOM
    parts = []
    for tick in x_ticks:
        parts.append(f'<path class="grid" d="M{to_x(tick):.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{to_x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{left} {to_y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{left - 5}" y="{to_y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{(left + WIDTH - RIGHT) / 2:.0f}" y="{height - 5}" text-anchor="middle">{escape(x)}</text>')
    if y:
        parts.append(f'<text class="axis" x="{left + 4}" y="{TOP + 6}">{escape(y)}</text>')
    return parts


def _svg(parts: Sequence[str], height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
