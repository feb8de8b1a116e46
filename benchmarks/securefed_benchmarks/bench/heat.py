"""A table as a map of colours: rows and columns are axes, a cell is a mean that links to its runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from securefed_benchmarks.bench.results import SHARES, Line, axes_of, score_name, shown

COLUMNS = ("attack", "f", "privacy", "protection")
"""The first of these that varies is written across; `_across` knows the exceptions."""
MOST_COLUMNS = 10


def heats(table: Sequence[Line], score: str, href: Mapping[int, str]) -> Iterator[str]:
    """One map for each choice of the axes that are neither rows nor columns.

    Args:
        href: id of a line -> where its cell leads.
    """
    axes = axes_of(table)
    if not any(line.values.get(score) for line in table) or len(axes) < 1:
        return
    if score == "bytes_up" and len({round(e.mean) for li in table if (e := li.estimate(score))}) < 2:
        return  # one number, which the tables have
    across = _across(axes, table)
    down = _down([a for a in axes if a != across], table)
    rest = [a for a in axes if a not in (across, down)]
    values = [e.mean for line in table if (e := line.estimate(score)) and math.isfinite(e.mean)]
    low, high = _ends(score, values)
    for chosen in itertools.product(*(_labels(table, a) for a in rest)):
        mine = [li for li in table if all(li.chosen.get(a) == v for a, v in zip(rest, chosen, strict=True))]
        if mine:
            caption = ", ".join(f"{a} {v}" for a, v in zip(rest, chosen, strict=True))
            yield _map(mine, table, across, down, score, (low, high), caption, href)


def _ends(score: str, values: Sequence[float]) -> tuple[float, float]:
    """What is palest and what is deepest: all that a share can be, guessing to certainty for an AUC."""
    if score in SHARES:
        return 0.0, 1.0
    return (0.5, 1.0) if score.endswith("_auc") else (min(values, default=0.0), max(values, default=1.0))


def _across(axes: Sequence[str], table: Sequence[Line]) -> str:
    """Heterogeneity lies across where f lies down, privacy down where f lies across."""
    if "f" in axes and "heterogeneity" in axes:
        return "heterogeneity"
    if "f" in axes and "privacy" in axes:
        return "f"
    fits = [a for a in COLUMNS if a in axes and len(_labels(table, a)) <= MOST_COLUMNS]
    return fits[0] if fits else axes[-1]


def _down(axes: Sequence[str], table: Sequence[Line]) -> str:
    wanted = [a for a in ("f", "privacy") if a in axes] or [a for a in ("defence", "protection") if a in axes]
    return wanted[0] if wanted else (axes[0] if axes else "")


def _labels(table: Sequence[Line], axis: str) -> list[Any]:
    return list(dict.fromkeys(line.chosen.get(axis) for line in table))


def _map(
    mine: Sequence[Line],
    table: Sequence[Line],
    across: str,
    down: str,
    score: str,
    ends: tuple[float, float],
    caption: str,
    href: Mapping[int, str],
) -> str:
    columns, rows = _labels(table, across), _labels(table, down) if down else [None]
    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in columns)
    body = ""
    for row in rows:
        cells = "".join(
            _cell(
                [
                    li
                    for li in mine
                    if li.chosen.get(across) == c and (not down or li.chosen.get(down) == row)
                ],
                score,
                ends,
                href,
            )
            for c in columns
        )
        body += f'<tr><th scope="row">{escape(str(row)) if down else ""}</th>{cells}</tr>'
    corner = f"{escape(down)} \\ {escape(across)}" if down else escape(across)
    told = f"<caption>{escape(score_name(score))}{', ' + escape(caption) if caption else ''}</caption>"
    return (
        f'<div class="scroll"><table class="heat">{told}<thead><tr><th>{corner}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(lines: Sequence[Line], score: str, ends: tuple[float, float], href: Mapping[int, str]) -> str:
    estimate = lines[0].estimate(score) if lines else None
    if estimate is None:
        return '<td class="gap" title="not measured">·</td>'
    share = (estimate.mean - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    text, half = shown(score, estimate).partition(" ± ")[::2]
    small = f"<small>± {half}</small>" if half else ""
    hue = f"color-mix(in srgb,#0072b2 {8 + 62 * share:.0f}%,var(--mix))"
    chosen = ", ".join(f"{a} {v}" for a, v in lines[0].labels)
    told = escape(f"{chosen}: {shown(score, estimate)}, {estimate.seeds} seeds")
    return (
        f'<td style="background:{hue}" title="{told}"><a href="{href[id(lines[0])]}">{text}{small}</a></td>'
    )
