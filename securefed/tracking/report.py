"""`report.html`: one self-contained page that a newcomer can read, built from the folder's files alone.

No script, no network, no private text. Everything that comes from the job or the data is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from securefed.tracking import plots, sections
from securefed.tracking.attack import attack
from securefed.tracking.files import RunFiles, read_run, write_text
from securefed.tracking.gains import gains
from securefed.tracking.guarantee import guarantee
from securefed.tracking.html import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DESCRIBED = {
    "accuracy": "The score on the global test set over rounds, with the baselines as lines",
    "epsilon": "Epsilon spent over rounds",
}


def write_report(folder: Path) -> Path:
    """Rebuilds the page and the pictures from the folder's files; returns the page's path.

    Raises:
        CheckpointError: the folder is not one of a run that has begun.
    """
    run = read_run(Path(folder))
    figures = draw(run)
    for name, figure in figures.items():
        plots.save_png(figure, run.folder / "plots" / f"{name}.png")
    inline = {
        name: plots.to_svg(figures[name], name, text) for name, text in _DESCRIBED.items() if name in figures
    }
    path = run.folder / "report.html"
    write_text(path, render(run, inline))
    return path


def draw(run: RunFiles) -> dict[str, Figure]:
    """The pictures for which there is something to draw, by file name."""
    names = {client: run.client_name(client) for client in run.client_metrics}
    found = {
        "accuracy": plots.scores(run.rounds, run.baselines),
        "epsilon": plots.epsilon(run.rounds, (run.facts["mechanism"] or {}).get("epsilon")),
        "clients": plots.clients(run.client_metrics, names),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def render(run: RunFiles, inline: Mapping[str, str]) -> str:
    """The page, section by section; a section with nothing to say is left out."""
    return page(
        f"{run.facts['name']}: SecureFed report",
        (
            sections.head(run),
            sections.what_ran(run),
            guarantee(run),
            attack(run),
            sections.scores(run, inline),
            sections.clients(run),
            gains(run),
            sections.data(run),
            sections.cost(run),
            sections.missing(run),
            sections.diagnostics(run),
            sections.again(run),
        ),
    )
