"""The audit's pictures, written as SVG by hand: they follow the page's light or dark ground and weigh little."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from securefed.tracking.plots import CLASSES
from securefed_attacks.statistics import Roc, clopper_pearson

WIDTH, HEIGHT = 560, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 46
MOST_POINTS = 400
"""Steps of a drawn curve; more cannot be told apart at this size."""


def roc_picture(curves: Sequence[tuple[str, Roc]], rates: Sequence[float]) -> str:
    """ROC curves on two logarithmic axes, the rates that the verdict asks for, and what the sample resolves."""
    if not curves:
        return ""
    fewest = min(c.nonmembers for _, c in curves)
    low = 10.0 ** math.floor(math.log10(min(1 / fewest, *rates, 0.01)))
    draw = [_grid(low), _line(low, low, 1, 1, low, "chance")]
    resolved = _x(1 / fewest, low)
    if 1 / fewest > low * 1.05:
        draw.append(
            f'<rect x="{LEFT}" y="{TOP}" width="{resolved - LEFT:.1f}" height="{HEIGHT - TOP - BOTTOM}" class="unseen"/>'
        )
    draw += [
        f'<line x1="{_x(r, low):.1f}" x2="{_x(r, low):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="asked"/>'
        for r in rates
    ]
    drawn: set[bytes] = set()
    for k, (_, curve) in enumerate(
        curves
    ):  # equal curves, one band: laid over each other they would look surer
        if (key := curve.tpr.tobytes() + curve.fpr.tobytes()) not in drawn:
            drawn.add(key)
            draw.append(_band(curve, low, CLASSES[k % len(CLASSES)]))
    draw += [_curve(curve, low, CLASSES[k % len(CLASSES)], name) for k, (name, curve) in enumerate(curves)]
    described = "True positive rate over false positive rate, both logarithmic: " + ", ".join(
        n for n, _ in curves
    )
    return _svg(WIDTH, HEIGHT, described, draw)


def _x(rate: float, low: float) -> float:
    share = 1 - math.log(max(rate, low)) / math.log(low)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(rate: float, low: float) -> float:
    share = 1 - math.log(max(rate, low)) / math.log(low)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _grid(low: float) -> str:
    parts = []
    for power in range(round(math.log10(low)), 1):
        rate = 10.0**power
        x, y, name = _x(rate, low), _y(rate, low), _percent(rate)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="grid"/>')
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        anchor = "end" if power == 0 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{name}</text>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">false positive rate</text>'
        f'<text transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">true positive rate</text>'
    )
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, low: float, kind: str) -> str:
    return (
        f'<line x1="{_x(x1, low):.1f}" y1="{_y(y1, low):.1f}" '
        f'x2="{_x(x2, low):.1f}" y2="{_y(y2, low):.1f}" class="{kind}"/>'
    )


def _steps(fpr: Sequence[float], tpr: Sequence[float], low: float) -> list[tuple[float, float]]:
    """Horizontal, then up: between two thresholds no other rates can be had."""
    points, before = [], tpr[0]
    for right, up in zip(fpr, tpr, strict=True):
        points += [(_x(right, low), _y(before, low)), (_x(right, low), _y(up, low))]
        before = up
    return points


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _kept(curve: Roc) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, len(curve.fpr) - 1, MOST_POINTS).astype(np.int64))


def _band(curve: Roc, low: float, colour: str) -> str:
    """The true positive rate's own 95 % interval at each threshold (Clopper-Pearson)."""
    keep = _kept(curve)
    hits, fpr = np.rint(curve.tpr[keep] * curve.members).astype(int), curve.fpr[keep].tolist()
    bounds = {int(h): clopper_pearson(int(h), curve.members, 0.95) for h in set(hits.tolist())}
    under, over = (_steps(fpr, [bounds[int(h)][side] for h in hits], low) for side in (0, 1))
    return f'<polygon points="{_path([*over, *reversed(under)])}" fill="{colour}" class="band"/>'


def _curve(curve: Roc, low: float, colour: str, name: str) -> str:
    keep = _kept(curve)
    path = _path(_steps(curve.fpr[keep].tolist(), curve.tpr[keep].tolist(), low))
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"><title>{escape(name)}</title></polyline>'


def token_picture(
    rows: Sequence[tuple[int, Sequence[bool]]], title: str, wholes: Collection[int] = (), most: int = 14
) -> str:
    """A line a record, a block a token: filled where it was named. The words themselves are not in it.

    Records that were read whole and in order, `wholes`, are underlined and come first.
    """
    rows = sorted(rows, key=lambda r: r[0] not in wholes)
    shown = rows[:most]
    if not shown:
        return ""
    widest = min(64, max(len(hits) for _, hits in shown))
    size, gap, side = 9, 2, 44
    width, height = side + max(widest, 12) * (size + gap), 6 + len(shown) * (size + gap + 3)
    draw = []
    for k, (row, hits) in enumerate(shown):
        y = 4 + k * (size + gap + 3)
        draw.append(f'<text x="{side - 8}" y="{y + size - 1}" text-anchor="end">{row + 1}</text>')
        draw += [
            f'<rect x="{side + i * (size + gap)}" y="{y}" width="{size}" height="{size}" rx="1.5" class="{"hit" if hit else "miss"}"/>'
            for i, hit in enumerate(hits[:widest])
        ]
        if row in wholes:
            draw.append(
                f'<line x1="{side}" x2="{side + min(len(hits), widest) * (size + gap) - gap}" y1="{y + size + 2.5}" y2="{y + size + 2.5}" class="whole"/>'
            )
    named = sum(sum(h) for _, h in rows)
    described = (
        f"{title}: {named} of {sum(len(h) for _, h in rows)} tokens of the members' records were named"
    )
    return _svg(width, height, described, draw, natural=True)


def grid_picture(rounds: Sequence[str], grid: Sequence[Mapping[str, float]]) -> str:
    """A row a layer, a column a round; the fuller the colour, the farther its AUC lies above chance."""
    layers = list(dict.fromkeys(layer for parts in grid for layer in parts))
    if not layers or len(grid) < 2:
        return ""
    side, size, gap = 150, max(14, min(64, 600 // len(grid))), 2
    width, height = side + len(grid) * (size + gap), 20 + len(layers) * 20
    draw = []
    for row, layer in enumerate(layers):
        y = 18 + row * 20
        draw.append(f'<text x="{side - 8}" y="{y + 13}" text-anchor="end">{escape(layer[-24:])}</text>')
        for column, (name, parts) in enumerate(zip(rounds, grid, strict=False)):
            if layer in parts:
                draw.append(_cell(side + column * (size + gap), y, size, f"{layer}, {name}", parts[layer]))
    ends = [(0, "start"), (len(grid) - 1, "end")]
    draw += [
        f'<text x="{side + k * (size + gap) + (size if anchor == "end" else 0)}" y="11" text-anchor="{anchor}">{escape(rounds[k])}</text>'
        for k, anchor in ends
    ]
    return _svg(width, height, "AUC of each layer in each round", draw, natural=True)


def _cell(x: float, y: float, size: float, name: str, auc: float) -> str:
    above = min(1.0, max(0.0, 2 * (auc - 0.5)))
    return (
        f'<rect x="{x:.0f}" y="{y}" width="{size}" height="18" rx="2" class="miss"/>'
        f'<rect x="{x:.0f}" y="{y}" width="{size}" height="18" rx="2" class="cell" fill-opacity="{above:.2f}">'
        f"<title>{escape(name)}: AUC {auc:.3f}</title></rect>"
    )


def epsilon_picture(claimed: float | None, bound: float | None, ceiling: float | None) -> str:
    """Where the bound lies between zero, the claim, and what could have been shown."""
    known = [v for v in (claimed, bound, ceiling) if v is not None and math.isfinite(v)]
    if not known or bound is None:
        return ""
    high = 1.15 * max(*known, 1e-9)
    width, y = WIDTH, 46

    def at(value: float) -> float:
        return 12 + value / high * (width - 40)

    draw = [
        f'<rect x="{at(0):.1f}" y="{y}" width="{at(ceiling or 0) - at(0):.1f}" height="12" rx="3" class="track"/>'
    ]
    draw.append(
        f'<rect x="{at(0):.1f}" y="{y}" width="{max(2.0, at(bound) - at(0)):.1f}" height="12" rx="3" class="hit"/>'
    )
    draw.append(_tick(at(bound), y + 12, f"refuted below {bound:.2f}", 18))
    if ceiling is not None:
        draw.append(_tick(at(ceiling), y + 12, f"ceiling {ceiling:.2f}", 36))
    if claimed is not None:
        x = at(claimed)
        draw.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 14}" y2="{y + 18}" class="claim"/>')
        draw.append(_tick(x, y - 34, f"claimed {claimed:g}", 14))
    return _svg(width, 104, "Epsilon: claimed, refuted, and what could have been refuted", draw)


def _tick(x: float, y: float, text: str, down: int) -> str:
    anchor = "start" if x < 90 else "end" if x > WIDTH - 110 else "middle"
    return f'<text x="{x:.1f}" y="{y + down}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, described: str, parts: Sequence[str], natural: bool = False) -> str:
    size = f' style="max-width:{width:.0f}px"' if natural else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(described)}"{size}>{"".join(parts)}</svg>'
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:g} %"
