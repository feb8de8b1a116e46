"""A picture of the shards: how many records each client has, and of which classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from securefed.data.partition import Rows
from securefed.data.records import Shard
from securefed.data.shards import class_counts

NAMED_CLIENTS = 30
"""Up to here a client is a row with its name; more are narrow columns by number."""

NAMED_CLASSES = 12
"""Up to here classes have a legend; more have a colour bar."""


def plot_shards(shards: Sequence[Shard], classes: Sequence[str], path: str | Path) -> Path:
    """Draws training records per client, stacked by class, into a PNG, SVG or PDF file.

    Readable from 1 to about 200 clients. Like `shard_table`, a diagnostic of simulations.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = tuple(classes) if any(s.train.labels is not None for s in shards) else ()
    counts = np.array([_counts(shard, len(names)) for shard in shards]).T
    tall = len(shards) <= NAMED_CLIENTS
    figure = Figure(figsize=(8, 1.4 + 0.27 * len(shards)) if tall else (9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # a canvas of its own: no window, and no backend chosen for the process
    axes = figure.add_subplot()
    colours = _colours(len(counts))
    (_rows if tall else _columns)(axes, counts, colours, [shard.name for shard in shards])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(
        f"{int(counts.sum()):,} training records at {len(shards)} clients", loc="left", fontsize=11
    )
    if names:
        _explain(figure, axes, names, colours)
    figure.savefig(path, dpi=150)
    return Path(path)


def _counts(shard: Shard, classes: int) -> Rows:
    return class_counts(shard, classes) if classes else np.array([len(shard.train)], np.int64)


def _colours(classes: int) -> list[Any]:
    """Distinct for few (Okabe and Ito, safe for colour-blind readers), shades of one map for many."""
    few = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#555555"]
    if classes <= len(few):
        return few[:classes]
    import matplotlib

    shades = matplotlib.colormaps["tab20" if classes <= 20 else "viridis"]
    return [shades(i if classes <= 20 else i / (classes - 1)) for i in range(classes)]


def _rows(axes: Any, counts: Rows, colours: Sequence[Any], names: Sequence[str]) -> None:
    places, totals = np.arange(len(names)), counts.sum(0)
    for row, colour, left in zip(counts, colours, np.cumsum(counts, 0) - counts, strict=True):
        axes.barh(places, row, left=left, color=colour, height=0.8, linewidth=0)
    for place, total in zip(places, totals, strict=True):
        axes.text(total, place, f" {total:,}", va="center", fontsize=8)
    axes.set_yticks(places, [n if len(n) <= 24 else n[:23] + "…" for n in names], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max(1, totals.max(initial=0)))
    axes.set_xlabel("training records")


def _columns(axes: Any, counts: Rows, colours: Sequence[Any], names: Sequence[str]) -> None:
    from matplotlib.collections import PolyCollection

    places, tops = np.arange(len(names)), np.cumsum(counts, 0)
    for row, colour, top in zip(counts, colours, tops, strict=True):
        # one collection a class: a bar a client and class takes seconds for a hundred clients
        corners = [
            (places - 0.45, top - row),
            (places + 0.45, top - row),
            (places + 0.45, top),
            (places - 0.45, top),
        ]
        axes.add_collection(
            PolyCollection(list(np.array(corners).transpose(2, 0, 1)), facecolors=colour, linewidth=0),
            autolim=False,
        )
    axes.set_xlim(-0.8, len(names) - 0.2)
    axes.set_ylim(0, 1.05 * max(1, tops.max(initial=0)))
    axes.set_xlabel("client")
    axes.set_ylabel("training records")


def _explain(figure: Any, axes: Any, names: Sequence[str], colours: Sequence[Any]) -> None:
    """A legend for few classes, a colour bar for many."""
    if len(names) <= NAMED_CLASSES:
        from matplotlib.patches import Patch

        patches = [Patch(color=c, label=n) for c, n in zip(colours, names, strict=True)]
        figure.legend(handles=patches, loc="outside right upper", frameon=False, fontsize=8)
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    ticks = np.unique(np.linspace(0, len(names) - 1, 6).astype(int))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axes, ticks=ticks, label="class")
    bar.ax.set_yticklabels([names[i] for i in ticks])
