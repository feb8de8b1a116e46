"""The pictures of a run: scores over rounds, epsilon over rounds, every client beside the mean."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, GREEN = (
    "#0072b2",
    "#d55e00",
    "#6b7280",
    "#009e73",
)  # Okabe-Ito, safe for colour-blind eyes
FONT = {"font.size": 10, "svg.fonttype": "none"}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.add_subplot().spines[["top", "right"]].set_visible(False)
    return figure


def score_name(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    """The score that is drawn: accuracy where there is one, else perplexity, else loss."""
    for name in ("accuracy", "perplexity", "loss"):
        if any((r["metrics"] or {}).get(name) is not None for r in rounds):
            return name
    return None


def scores(
    rounds: Sequence[Mapping[str, Any]], baselines: Mapping[str, Mapping[str, float]]
) -> Figure | None:
    """The global score over rounds with the baselines as lines; None before the first evaluation."""
    name = score_name(rounds)
    if name is None:
        return None
    points = [(r["round"] + 1, r["metrics"][name]) for r in rounds if r["metrics"]]
    figure = _figure(6.4, 3.2)
    axes = figure.axes[0]
    axes.plot(*zip(*points, strict=True), marker="o", color=BLUE, label="federated")
    for (label, found), style in zip(baselines.items(), ("--", ":", "-.", (0, (1, 3))), strict=False):
        if name in found:
            axes.axhline(found[name], color=GREY, linestyle=style, linewidth=1, label=label.replace("_", " "))
    axes.set(xlabel="round", ylabel=name, xlim=(0, rounds[-1]["round"] + 1.5))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def epsilon(rounds: Sequence[Mapping[str, Any]], target: float | None) -> Figure | None:
    """Epsilon spent over rounds, this run and all of the site's; None without DP."""
    spent = [r for r in rounds if r["epsilon"] is not None]
    if not spent:
        return None
    figure = _figure(6.4, 3.0)
    axes = figure.axes[0]
    turns = [r["round"] + 1 for r in spent]
    axes.plot(turns, [r["epsilon"] for r in spent], color=ORANGE, label="this run")
    site = [r["site_epsilon"] for r in spent]
    if any(s is not None and s > r["epsilon"] * 1.001 for s, r in zip(site, spent, strict=True)):
        axes.plot(turns, site, color=GREY, linestyle="--", label="all runs of this site on this data")
    if target:
        axes.axhline(target, color=GREEN, linewidth=1, linestyle=":", label="target")
    axes.set(xlabel="round", ylabel="epsilon", ylim=(0, None), xlim=(0, turns[-1] + 0.5))
    axes.legend(frameon=False, fontsize=8)
    return figure


def clients(per_client: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> Figure | None:
    """Every client's own test score, worst first, with the mean; None where none was measured."""
    name = next(
        (n for n in ("accuracy", "perplexity", "loss") if all(n in s for s in per_client.values())), None
    )
    if name is None or not per_client:
        return None
    ordered = sorted(per_client, key=lambda k: per_client[k][name])
    values = [per_client[k][name] for k in ordered]
    shown = len(ordered) <= 40
    figure = _figure(6.4, max(2.0, 0.26 * len(ordered) + 0.8) if shown else 3.0)
    axes = figure.axes[0]
    if shown:
        axes.barh([names.get(k, k) for k in ordered], values, color=BLUE, height=0.7)
        axes.axvline(sum(values) / len(values), color=ORANGE, linestyle="--", linewidth=1, label="mean")
        axes.set(
            xlabel=f"{name} on the client's own test set",
            xlim=(0, max(1.0, *values) if name == "accuracy" else None),
        )
    else:
        axes.hist(values, bins=30, color=BLUE)
        axes.set(xlabel=f"{name} on the client's own test set", ylabel="clients")
    axes.legend(frameon=False, fontsize=8) if shown else None
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Writes a picture for people who open the folder."""
    from matplotlib import rc_context

    path.parent.mkdir(exist_ok=True)
    with rc_context(FONT):
        figure.savefig(path, dpi=130)


def to_svg(figure: Figure, name: str) -> str:
    """The picture as one inline SVG element; `name` keeps its ids apart from those of others on the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({**FONT, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
