"""The page's sections on causes: which layer in which round leaks, and what would help."""

from __future__ import annotations

from securefed.tracking import html
from securefed.tracking.html import Bar
from securefed_attacks.audit.pictures import grid_picture
from securefed_attacks.audit.report import AuditReport


def attribution(report: AuditReport) -> str:
    """Layers, rounds, and each layer in each round; empty where nothing was measured."""
    if not report.layers:
        return ""
    known = [(k, a) for k, (a, _) in report.layers.items() if a is not None]
    share = [Bar(k, s, f"{s:.1%}") for k, (_, s) in report.layers.items()]
    parts = [
        "<h3>Each layer's part of the update cosine, AUC</h3>"
        + html.bars([Bar(k, a, f"{a:.3f}") for k, a in known], 1.0, 0.5, plain=True)
        + html.mark_legend("chance")
        if known
        else "",
        "<h3>Share of the update's squared norm</h3>" + html.bars(share, 1.0, plain=True),
    ]
    if len(report.rounds) > 1:
        named = zip(report.round_names, report.rounds, strict=False)
        rounds = [Bar(name, auc.value, str(auc)) for name, auc in named]
        parts.append(
            f"<h3>Round by round, AUC of the update cosine</h3>{html.bars(rounds, 1.0, 0.5, plain=True)}"
        )
        parts.append(
            "<h3>Each layer in each round</h3>"
            + grid_picture(report.round_names, report.grid)
            + html.paragraph(
                "AUC of the layer's part of that round's cosine; the darker, the farther above chance.",
                "soft small",
            )
        )
    return html.section("Where it leaks", *parts)


def mitigation(report: AuditReport) -> str:
    if not report.mitigation:
        return ""
    rows = [
        [t.name, t.measure, f"{t.leak_before:.3g}", f"{t.leak_after:.3g}", _loss(t.loss_before), _loss(t.loss_after), "yes" if t.enough else "no"]
        for t in report.mitigation
    ]  # fmt: skip
    head = ["change", "measured", "before", "after", "loss before", "loss after", "enough"]
    first = next((t.name for t in report.mitigation if t.enough), None)
    said = (
        f"The cheapest change that ended the finding here: {first}."
        if first
        else "None of the changes tried ended the finding."
    )
    note = (
        "Tried on this update, cheapest first; loss: of non-members with the update applied, what it costs. "
        "An experiment, no guarantee: only an accountant's epsilon is one."
    )
    return html.section(
        "What would help", html.paragraph(said), html.table(head, rows), html.paragraph(note, "soft small")
    )


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
