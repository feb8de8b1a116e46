"""Who gains and who loses, as the report tells it: every client beside training alone and beside the global model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from securefed.tracking import html, numbers
from securefed.tracking.files import RunFiles
from securefed.tracking.sections import NEVER_SENT, PRIVATE_FLAG

SHOWN_ROWS = 24
WAYS = ("own", "alone", "global", "gain_over_alone", "gain_over_global")
WORDS = {"own": "its model here", "alone": "trained alone", "global": "global model"}


def gains(run: RunFiles) -> str:
    """The worst client and domain by name, how many gain, and a row for each; absent where it was not measured."""
    found = run.summary.get("gains")
    if not found:
        return ""
    ways = [w for w in WAYS if any(row[w] is not None for row in found["clients"])]
    head = [f"{WORDS.get(w, w.replace('_', ' '))}" for w in ways]
    clients = [[r["name"], r["test"], *(r[w] for w in ways)] for r in _ordered(found["clients"])]
    domains = [[r["domain"], len(r["clients"]), *(r[w] for w in ways)] for r in _ordered(found["domains"])]
    listed = html.table(["client", "test records", *head], clients)
    alone = "alone" in ways
    return html.section(
        "Who gains and who loses",
        html.cards(_cards(found)),
        html.paragraph(
            "Alone is the same local work in the same rounds, with nobody else and without noise; a gain above 0 says that "
            "the federation helped."
        )
        if alone
        else "",
        html.table(["domain", "clients", *head], domains),
        listed if len(clients) <= SHOWN_ROWS else html.details("client by client", listed),
        html.paragraph(NEVER_SENT, "soft small") if run.private else "",
        flag=PRIVATE_FLAG if run.private else "",
    )


def _cards(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    score, cards = found["score"], []
    for kind, name in (("client", "name"), ("domain", "domain")):
        row = found[f"worst_{kind}"]
        if row is not None:
            cards.append((numbers.score(row["own"]), f"{score} of the worst {kind}: {row[name]}"))
    if found["gain"] is not None:
        cards.append(
            (f"{found['gain']} / {found['lose']}", "clients that gain / lose against training alone")
        )
        cards.append((numbers.score(found["mean_gain_over_alone"]), "mean gain over training alone"))
    return cards


def _ordered(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that gain least over training alone (or over the global model) first."""
    key = "gain_over_alone" if rows and rows[0]["gain_over_alone"] is not None else "gain_over_global"
    return sorted(rows, key=lambda r: 0.0 if r[key] is None else r[key])
