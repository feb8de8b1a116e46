"""The pictures of a run: scores and epsilon over rounds, every client beside the mean.

Colours are Okabe and Ito's, which colour-blind eyes tell apart.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from securefed.tracking.files import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, GREY, BLUE, ORANGE, GREEN = "#1f2937", "#6b7280", "#0072b2", "#d55e00", "#009e73"
CLASSES = (BLUE, "#e69f00", GREEN, "#cc79a7", "#56b4e9", ORANGE, "#b8a800", "#7a4fa3", "#8c6d4a", GREY)
"""One colour a class; an eleventh class begins again, and the picture's names tell it apart."""

STYLE = {
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
IN_PAGE = {INK: "currentColor", GREY: "var(--soft)", BLUE: "var(--accent)", ORANGE: "var(--second)"}
"""Colours that follow the page's, so that a picture is readable on light and dark ground."""
SCORES = ("accuracy", "perplexity", "loss")


def _styled(draw: Callable[P, Figure | None]) -> Callable[P, Figure | None]:
    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure | None:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, height), layout="constrained")
    figure.add_subplot()
    return figure


def main_score(found: Sequence[Mapping[str, Any]]) -> str | None:
    """The score that is drawn, one that all have: accuracy where there is one, else perplexity, else loss."""
    return next((n for n in SCORES if found and all(s.get(n) is not None for s in found)), None)


@_styled
def scores(
    rounds: Sequence[Mapping[str, Any]], baselines: Mapping[str, Mapping[str, float]]
) -> Figure | None:
    """The global score over rounds with the baselines as lines; None before the second evaluation."""
    measured = [r for r in rounds if r["metrics"]]
    name = main_score([r["metrics"] for r in measured])
    if name is None or len(measured) < 2:
        return None
    figure = _figure(3.1)
    axes = figure.axes[0]
    values = [number(r["metrics"][name]) for r in measured]
    axes.plot(
        [r["round"] + 1 for r in measured], values, marker="o", markersize=3.5, color=BLUE, label="this run"
    )
    styles = ("--", ":", "-.", (0, (1, 3)))
    for (label, found), style in zip(baselines.items(), styles, strict=False):
        if found.get(name) is not None:
            axes.axhline(found[name], color=GREY, linestyle=style, linewidth=1.2, label=baseline_name(label))
    axes.set(xlabel="round", ylabel=f"{name}, global test set", xlim=(0, rounds[-1]["round"] + 1.5))
    _finish(figure)
    return figure


@_styled
def epsilon(rounds: Sequence[Mapping[str, Any]], target: float | None) -> Figure | None:
    """Epsilon spent over rounds, this run and all of the site's; None without DP or where it is infinite."""
    spent = [r for r in rounds if r["epsilon"] is not None and math.isfinite(number(r["epsilon"]))]
    if len(spent) < 2:
        return None
    figure = _figure(3.1)
    axes = figure.axes[0]
    turns = [r["round"] + 1 for r in spent]
    axes.plot(turns, [r["epsilon"] for r in spent], color=ORANGE, label="this run")
    site = [number(r["site_epsilon"]) for r in spent]
    if any(s > r["epsilon"] * 1.001 for s, r in zip(site, spent, strict=True)):
        axes.plot(turns, site, color=GREY, linestyle="--", label="all runs of this site on this data")
    if target:
        axes.axhline(target, color=INK, linewidth=1.2, linestyle=":", label="asked for")
    axes.set(xlabel="round", ylabel="epsilon spent", xlim=(0, turns[-1] + 0.5))
    axes.set_ylim(bottom=0)
    _finish(figure)
    return figure


@_styled
def clients(per_client: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Figure | None:
    """Every client's own test score, worst first, with the mean; None where none was measured."""
    name = main_score(list(per_client.values()))
    if name is None:
        return None
    ordered = sorted(per_client, key=lambda k: number(per_client[k][name]))
    values = [number(per_client[k][name]) for k in ordered]
    few = len(ordered) <= 40
    figure = _figure(0.26 * len(ordered) + 1.1 if few else 3.0)
    axes = figure.axes[0]
    if few:
        axes.barh([f"{_plain_text(names.get(k, k))} ({k})" for k in ordered], values, color=BLUE, height=0.7)
        axes.axvline(sum(values) / len(values), color=ORANGE, linestyle="--", linewidth=1.2, label="mean")
        axes.set(xlabel=f"{name}, the client's own test records", xlim=(0, 1 if name == "accuracy" else None))
        _finish(figure)
    else:
        axes.hist(values, bins=30, color=BLUE)
        axes.set(xlabel=f"{name}, the client's own test records", ylabel="clients")
    return figure


def by_class(table: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, list[float]]:
    """Class -> its count at every client; one column of all records where there are no classes."""
    counts = [_counts(s) for s in table]
    if not classes or any(len(c) != len(classes) for c in counts):
        return {"records": [float(s["train"]) for s in table]}
    return {str(name): [c[i] for c in counts] for i, name in enumerate(classes)}


def _counts(shard: Mapping[str, Any]) -> list[float]:
    found = shard.get("counts") or ()
    return [float(v) for v in (found.values() if isinstance(found, Mapping) else found)]


def baseline_name(name: str) -> str:
    """A baseline's name for people."""
    return "TF-IDF" if name == "tf_idf" else name.replace("_", " ")


def _plain_text(name: Any) -> str:
    """A name as matplotlib draws it literally: a dollar would begin a formula."""
    return str(name).replace("$", r"\$")


def _finish(figure: Figure) -> None:
    handles = figure.axes[0].get_legend_handles_labels()[0]
    if len(handles) > 1 or figure.axes[0].get_lines():
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def save_png(figure: Figure, path: Path) -> None:
    """Writes a picture for people who open the folder."""
    from matplotlib import rc_context

    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with rc_context(STYLE):
        figure.savefig(part, dpi=130, format="png")
    part.replace(path)


def to_svg(figure: Figure, name: str, described: str) -> str:
    """The picture as one inline SVG element; `name` keeps its ids apart from those of others on the page."""
    from html import escape

    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
            transparent=True,
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'((?<=\sid=")|(?<=href="#)|(?<=url\(#))', f"{name}-", text)
    for colour, variable in IN_PAGE.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(described)}"', 1)
