"""The first page's picture of accuracy against epsilon, drawn from a table of docs/recipes.md.

The table stands behind the comment `<!-- figure: privacy-accuracy -->`: a row a curve, a column an epsilon and a last one for
"without privacy", in a cell the accuracy of each draw. Nothing is measured here.

    make figures
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE, FIGURE = ROOT / "docs" / "recipes.md", ROOT / "docs" / "figures" / "privacy-accuracy.svg"
MARK = "<!-- figure: privacy-accuracy -->"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#7a4fa3", "#c2185b", "#8c6d4a")
DASHES = ("12 5", "2 5", "8 4 2 4")
INK, SOFT, LINE = "#1f2933", "#52606d", "#d5dbe1"
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 64, 624, 96, 372
"""A page on a telephone shows the picture at 370 pixels: letters of 20 units are 11.5 there."""
STEP = 0.02


@dataclass(frozen=True)
class Curve:
    """A row of the table: epsilon -> the accuracy of each draw, or `level`, those of a way without privacy."""

    name: str
    points: dict[float, tuple[float, ...]]
    level: tuple[float, ...] = ()


def read(page: str) -> list[Curve]:
    """The curves of the marked table.

    Raises:
        ValueError: the page has no such table, or a row has no number.
    """
    table = page.partition(MARK)[2].strip().partition("\n\n")[0]
    lines = [line.strip()[1:-1] for line in table.splitlines() if line.startswith("|")]
    if len(lines) < 3:
        raise ValueError(f"no table behind {MARK}; the picture is drawn from one")
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    epsilons = [float(cell.removeprefix("epsilon")) for cell in head[1:-1]]
    return [_curve(name, cells, epsilons) for name, *cells in rows]


def _curve(name: str, cells: Sequence[str], epsilons: Sequence[float]) -> Curve:
    *draws, level = (tuple(float(text) for text in re.findall(r"\.\d+", cell)) for cell in cells)
    points = {e: d for e, d in zip(epsilons, draws, strict=True) if d}
    if not points and not level:
        raise ValueError(f"the row {name!r} of the picture's table has no accuracy in it")
    return Curve(name, points, level)


@dataclass(frozen=True)
class Frame:
    """Where things lie: `epsilons` ascending at equal steps, accuracy from `low` to `high`."""

    epsilons: tuple[float, ...]
    low: float
    high: float

    @classmethod
    def around(cls, curves: Sequence[Curve]) -> Frame:
        """The frame that holds every draw."""
        values = [v for c in curves for draws in (*c.points.values(), c.level) for v in draws]
        low, high = math.floor(min(values) / STEP) * STEP, math.ceil(max(values) / STEP) * STEP
        return cls(tuple(sorted({e for c in curves for e in c.points})), low, high)

    def x(self, epsilon: float) -> float:
        gap = (RIGHT - LEFT - 120) / max(1, len(self.epsilons) - 1)
        return LEFT + 60 + gap * self.epsilons.index(epsilon)

    def y(self, accuracy: float) -> float:
        return BOTTOM - (accuracy - self.low) / (self.high - self.low) * (BOTTOM - TOP)


def draw(curves: Sequence[Curve]) -> str:
    """The picture, SVG: a line a curve through the means, a bar from the worst draw to the best."""
    frame = Frame.around(curves)
    private, public = [c for c in curves if c.points], [c for c in curves if not c.points]
    height = BOTTOM + 80 + 30 * len(curves)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif" '
        f'font-size="20" fill="{INK}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(_told(private, public))}</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="14" y="34" font-weight="bold" font-size="23">What privacy costs in accuracy</text>',
        f'<text x="14" y="64" fill="{SOFT}">Test accuracy; the smaller epsilon, the stronger the privacy</text>',
        *_axes(frame),
    ]
    strokes = [f'stroke="{colour}" stroke-width="3"' for colour in COLOURS[: len(private)]]
    strokes += [f'stroke="{INK}" stroke-width="2.5" stroke-dasharray="{d}"' for d in DASHES[: len(public)]]
    for k, (curve, stroke) in enumerate(zip((*private, *public), strokes, strict=True)):
        shift = 9 * (k - (len(private) - 1) / 2)  # so that bars do not hide each other
        lines += (
            _line(curve, frame, COLOURS[k], shift, stroke) if curve.points else _level(curve, frame, stroke)
        )
        lines += _key(curve, stroke, BOTTOM + 94 + 30 * k)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _told(private: Sequence[Curve], public: Sequence[Curve]) -> str:
    """The picture in words, for those who do not see it."""
    means = [
        f"{c.name}: " + ", ".join(f"{statistics.fmean(d):.3f} at epsilon {e:g}" for e, d in c.points.items())
        for c in private
    ]
    means += [f"{c.name}, without privacy: {statistics.fmean(c.level):.3f}" for c in public]
    return "Test accuracy against epsilon. " + "; ".join(means)


def _axes(frame: Frame) -> Iterator[str]:
    for k in range(round((frame.high - frame.low) / STEP) + 1):
        value = frame.low + STEP * k
        y = frame.y(value)
        yield f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="{LINE}"/>'
        yield f'<text x="{LEFT - 9}" y="{y + 7:.1f}" text-anchor="end" fill="{SOFT}">{f"{value:.2f}"[1:]}</text>'
    for e in frame.epsilons:
        yield f'<text x="{frame.x(e):.1f}" y="{BOTTOM + 28}" text-anchor="middle">{e:g}</text>'
    middle, y = (LEFT + RIGHT) / 2, BOTTOM + 56
    yield f'<text x="{middle}" y="{y}" text-anchor="middle" fill="{SOFT}">epsilon for one record, delta 1e-5</text>'


def _level(curve: Curve, frame: Frame, stroke: str) -> Iterator[str]:
    yield f'<path d="M{LEFT} {frame.y(statistics.fmean(curve.level)):.1f}H{RIGHT}" {stroke}/>'


def _line(curve: Curve, frame: Frame, colour: str, shift: float, stroke: str) -> Iterator[str]:
    means = {e: statistics.fmean(d) for e, d in sorted(curve.points.items())}
    corners = " ".join(f"{frame.x(e) + shift:.1f},{frame.y(m):.1f}" for e, m in means.items())
    yield f'<polyline points="{corners}" fill="none" {stroke}/>'
    for e, mean in means.items():
        x, ends = frame.x(e) + shift, [frame.y(v) for v in (min(curve.points[e]), max(curve.points[e]))]
        yield f'<path d="M{x:.1f} {ends[0]:.1f}V{ends[1]:.1f}" stroke="{colour}" stroke-width="2"/>'
        yield f'<circle cx="{x:.1f}" cy="{frame.y(mean):.1f}" r="6" fill="{colour}"/>'


def _key(curve: Curve, stroke: str, y: int) -> Iterator[str]:
    yield f'<path d="M14 {y - 7}H62" {stroke}/>'
    yield f'<text x="76" y="{y}">{escape(curve.name)}</text>'


def main() -> None:
    """Writes the picture."""
    FIGURE.write_text(draw(read(PAGE.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
