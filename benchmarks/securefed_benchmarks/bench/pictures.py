"""Which pictures a table has: scores over rounds with bands, ROC on logarithmic axes, bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from securefed_benchmarks.bench import svg
from securefed_benchmarks.bench.estimates import mean_interval
from securefed_benchmarks.bench.results import Line, axes_of, score_name
from securefed_benchmarks.bench.store import Row
from securefed_benchmarks.bench.svg import Axis, Point

SERIES = ("defence", "protection", "privacy")
"""The first of these that varies is told apart by colour; else the last axis that does."""
COURSES = ("accuracy", "perplexity", "attack_success")


@dataclass(frozen=True)
class Picture:
    """One picture: `names` are its key, in the order of its colours."""

    title: str
    names: Sequence[str]
    svg: str = field(repr=False)


@dataclass(frozen=True)
class Course:
    """A configuration's curves: name -> seed -> points."""

    labels: Mapping[str, Any]
    curves: Mapping[str, Mapping[int, Sequence[Sequence[float]]]]


def courses(rows: Sequence[Row]) -> list[Course]:
    """The curves of a grid's rows, by configuration."""
    found: dict[str, tuple[Mapping[str, Any], dict[str, dict[int, Sequence[Sequence[float]]]]]] = {}
    for row in rows:
        _, curves = found.setdefault(repr(sorted(row.labels.items())), (row.labels, {}))
        for name, points in row.curves.items():
            curves.setdefault(name, {})[row.seed] = points
    return [Course(labels, curves) for labels, curves in found.values()]


def pictures(rows: Sequence[Row], table: Sequence[Line]) -> Iterator[Picture]:
    """All pictures of one grid; a curve that its rows do not have gives none."""
    found, axes = courses(rows), axes_of(table)
    split = next((a for a in SERIES if a in axes), axes[-1] if axes else "")
    for name in COURSES:
        yield from _over_rounds(name, found, split)
    rocs = dict.fromkeys(n for c in found for n in c.curves if n.startswith("roc "))
    for name in rocs:
        yield from _roc(name, found, split)
    yield from _bytes(table, axes)


def _panels(found: Sequence[Course], split: str, name: str) -> Iterator[tuple[str, list[tuple[str, Course]]]]:
    """Configurations that differ on one axis only lie in one panel."""
    groups: dict[str, list[tuple[str, Course]]] = {}
    varied = {a for c in found for a in c.labels if len({str(o.labels.get(a)) for o in found}) > 1}
    for course in found:
        if name in course.curves:
            rest = ", ".join(f"{a} {v}" for a, v in course.labels.items() if a != split and a in varied)
            groups.setdefault(rest, []).append((_called(split, course.labels.get(split, "this job")), course))
    yield from groups.items()


def _called(axis: str, label: Any) -> str:
    """A label in a key; a bare number needs its axis."""
    if not isinstance(label, int | float):
        return str(label)
    return f"{'epsilon' if axis == 'privacy' else axis} {label:g}"


def _over_rounds(name: str, found: Sequence[Course], split: str) -> Iterator[Picture]:
    share = name in ("accuracy", "attack_success")
    values = [p[1] for c in found for runs in c.curves.get(name, {}).values() for p in runs]
    rounds = [p[0] for c in found for runs in c.curves.get(name, {}).values() for p in runs]
    if len(set(rounds)) < 2:
        return
    finite = [v for v in values if math.isfinite(v)]
    high = 100.0 if share else max(finite, default=1.0)
    x, y = (
        Axis("round", min(rounds), max(rounds), whole=True),
        Axis(score_name(name) + (", %" if share else ""), 0.0, high),
    )
    for rest, group in _panels(found, split, name):
        series = {label: list(_mean(c.curves[name], 100.0 if share else 1.0)) for label, c in group}
        title = f"{score_name(name)}{': ' + rest if rest else ''}"
        yield Picture(title, list(series), svg.chart(series, x, y, f"{title}, over rounds"))


def _mean(runs: Mapping[int, Sequence[Sequence[float]]], unit: float) -> Iterator[Point]:
    """Mean and interval over seeds at each round that was measured."""
    at: dict[float, list[float]] = {}
    for points in runs.values():
        for x, value in points:
            if math.isfinite(value):
                at.setdefault(x, []).append(unit * value)
    for x in sorted(at):
        e = mean_interval(at[x])
        yield Point(x, e.mean, e.low, e.high)


def _roc(name: str, found: Sequence[Course], split: str) -> Iterator[Picture]:
    rates = [p[0] for c in found for runs in c.curves.get(name, {}).values() for p in runs]
    low = 10.0 ** math.floor(math.log10(max(min(rates), 1e-5)) + 1e-9)
    x, y = Axis("false positive rate", low, 1.0, True), Axis("true positive rate", low, 1.0, True)
    attack = score_name(name.removeprefix("roc ") + "_auc").removesuffix(" AUC")
    for rest, group in _panels(found, split, name):
        series = {label: list(_mean_roc(c.curves[name], low)) for label, c in group}
        title = f"ROC, {attack}{': ' + rest if rest else ''}"
        yield Picture(title, list(series), svg.chart(series, x, y, title, diagonal=True))


def _mean_roc(runs: Mapping[int, Sequence[Sequence[float]]], low: float) -> Iterator[Point]:
    """Mean of the seeds' curves at rates that all of them resolve."""
    first = max(points[0][0] for points in runs.values())
    for k in range(41):
        x = low * (1 / low) ** (k / 40)
        if x < first * (1 - 1e-9):
            continue
        values = [
            max((p[1] for p in points if p[0] <= x * (1 + 1e-9)), default=0.0) for points in runs.values()
        ]
        e = mean_interval(values)
        yield Point(x, e.mean, max(e.low, low) if math.isfinite(e.low) else e.low, min(e.high, 1.0))


def _bytes(table: Sequence[Line], axes: Sequence[str]) -> Iterator[Picture]:
    """What a client sends in a round, where configurations differ in it."""
    split = next((a for a in ("protection", "model.adapter", "model.rank") if a in axes), None)
    if split is None:
        return
    means: dict[str, list[float]] = {}
    for line in table:
        for value in line.values.get("bytes_up", {}).values():
            means.setdefault(str(line.chosen.get(split, "–")), []).append(value)
    rows = [(name, statistics.fmean(v), _kib(statistics.fmean(v))) for name, v in means.items()]
    if rows:
        title = "bytes a client sends in a round"
        yield Picture(title, [], svg.bars(rows, title))


def _kib(value: float) -> str:
    return (
        f"{value:,.0f} B"
        if value < 4096
        else f"{value / 1024:,.1f} KiB"
        if value < 2**22
        else f"{value / 2**20:,.1f} MiB"
    )
