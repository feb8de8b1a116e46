"""Small pictures as SVG that follow the page's colours and say their values on hover.

Colours are Okabe and Ito's, which colour-blind eyes tell apart; after eight a dash tells lines apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d4a", "#7a4fa3")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40


@dataclass(frozen=True)
class Point:
    """A mean at x, with its interval where there is one."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Axis:
    """A scale: what it is called, its ends, whether it is logarithmic, whether it counts."""

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1; outside it is put to the edge."""
        if self.log:
            value, low, high = (math.log10(max(v, 1e-300)) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low or 1.0)))

    def ticks(self) -> list[float]:
        """Round values, five or so."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**k for k in range(first, last + 1)]
        step = 10 ** math.floor(math.log10((self.high - self.low) or 1.0))
        while (self.high - self.low) / step < 4:
            step /= 2
        step = max(1.0, round(step)) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def colour(k: int) -> str:
    """The k-th line's."""
    return COLOURS[k % len(COLOURS)]


def chart(
    series: Mapping[str, Sequence[Point]], x: Axis, y: Axis, described: str, diagonal: bool = False
) -> str:
    """Lines with bands; a point's values appear when it is pointed at.

    Args:
        diagonal: draws y = x, which is what guessing gives on a ROC.
    """
    parts = [*_frame(x, y)]
    if diagonal:
        ends = [x.low + (x.high - x.low) * k / 60 for k in range(61)] if not x.log else _geometric(x)
        parts.append(_line([(_x(x, v), _y(y, v)) for v in ends], "var(--soft)", "3 4"))
    for k, (name, points) in enumerate(series.items()):
        band = [p for p in points if math.isfinite(p.low) and math.isfinite(p.high)]
        if len(band) > 1:
            outline = [(_x(x, p.x), _y(y, p.high)) for p in band] + [
                (_x(x, p.x), _y(y, p.low)) for p in reversed(band)
            ]
            corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in outline)
            parts.append(f'<polygon points="{corners}" fill="{colour(k)}" opacity=".15"/>')
        drawn = [(_x(x, p.x), _y(y, p.y)) for p in points]
        parts.append(_line(drawn, colour(k), DASHES[k // len(COLOURS) % len(DASHES)]))
        few = points if len(points) <= 40 else points[:: math.ceil(len(points) / 40)]
        parts += [_dot(name, p, x, y, colour(k)) for p in few]
    return _svg(parts, described)


def bars(rows: Sequence[tuple[str, float, str]], described: str) -> str:
    """Horizontal bars from zero, name, value and its text."""
    high = max((value for _, value, _ in rows), default=1.0) or 1.0
    left, step = 190, 26
    parts = []
    for k, (name, value, text) in enumerate(rows):
        y, width = TOP + k * step, (WIDTH - left - 90) * value / high
        parts.append(
            f'<g><title>{escape(name)}: {escape(text)}</title><text x="{left - 8}" y="{y + 14}" text-anchor="end">'
            f'{escape(_short(name))}</text><rect x="{left}" y="{y + 3}" width="{max(1.0, width):.1f}" height="15" rx="2" '
            f'fill="{COLOURS[0]}"/><text x="{left + width + 6:.1f}" y="{y + 14}" class="tick">{escape(text)}</text></g>'
        )
    return _svg(parts, described, TOP + len(rows) * step + 6)


def key(names: Sequence[str]) -> str:
    """Which colour is which line."""
    items = (
        f'<span><i style="background:{colour(k)}"></i>{escape(name)}</span>' for k, name in enumerate(names)
    )
    return f'<div class="key">{"".join(items)}</div>'


def standalone(svg: str, title: str, names: Sequence[str]) -> str:
    """The picture as a file of its own, on white, with its title and its key."""
    style = (
        "<style>svg{--line:#dfe3e8;--soft:#5b6472;color:#1f2937;background:#fff}"
        "text{font:12px system-ui,sans-serif;fill:currentColor}.axis{stroke:#dfe3e8}.tick{fill:#5b6472;font-size:11px}</style>"
    )
    start, inside = svg.split(">", 1)
    box = start.split('viewBox="0 0 ')[1].split('"')[0].split()
    height = int(float(box[1])) + 26 + 18 * len(names)
    start = start.replace(f"0 0 {box[0]} {box[1]}", f"0 -22 {box[0]} {height}")
    told = f'<text x="{LEFT}" y="-6" font-weight="600">{escape(title)}</text>'
    for k, name in enumerate(names):
        y = float(box[1]) + 12 + 18 * k
        told += f'<rect x="{LEFT}" y="{y - 5}" width="16" height="3" fill="{colour(k)}"/>'
        told += f'<text x="{LEFT + 22}" y="{y}">{escape(name)}</text>'
    return f'{start} xmlns="http://www.w3.org/2000/svg">{style}{told}{inside}\n'


def _svg(parts: Sequence[str], described: str, height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(described)}">{"".join(parts)}</svg>'


def _frame(x: Axis, y: Axis) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in y.ticks():
        at = _y(y, value)
        yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    for value in x.ticks():
        at = _x(x, value)
        yield f'<text class="tick" x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{value:.4g}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text class="tick" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.name)}</text>'
    middle = (TOP + bottom) / 2
    yield f'<text class="tick" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(y.name)}</text>'


def _line(points: Sequence[tuple[float, float]], stroke: str, dash: str) -> str:
    drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{drawn}" fill="none" stroke="{stroke}" stroke-width="1.8" stroke-linejoin="round"{dashed}/>'


def _dot(name: str, p: Point, x: Axis, y: Axis, fill: str) -> str:
    spread = f" ({p.low:.4g} to {p.high:.4g})" if math.isfinite(p.low) and p.low < p.high else ""
    told = escape(f"{name}, {x.name} {p.x:.4g}: {p.y:.4g}{spread}")
    at = f'cx="{_x(x, p.x):.1f}" cy="{_y(y, p.y):.1f}"'
    return f'<circle {at} r="2.2" fill="{fill}"/><circle {at} r="9" fill="transparent"><title>{told}</title></circle>'


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - BOTTOM - TOP)


def _geometric(axis: Axis) -> list[float]:
    return [axis.low * (axis.high / axis.low) ** (k / 60) for k in range(61)]


def _short(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"
