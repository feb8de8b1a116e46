"""Who is guaranteed what: the ledger's statement, fact by fact, and what the server sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from securefed.tracking import html, numbers
from securefed.tracking.files import RunFiles

KINDS = {
    "central": "Gaussian",
    "skellam": "Skellam, added by the clients",
    "discrete-gaussian": "discrete Gaussian, added by the clients",
    "local": "Gaussian, each client's own",
    "correlated": "Gaussian, correlated over rounds",
    "gaussian": "Gaussian, in shares that the clients encrypt",
}


def seen(reveals: str, algorithm: str) -> str:
    """What the server gets to see, in words. `algorithm`: its short name, which says what clients send."""
    whole, one = {"distill": ("answers", "answers"), "fedsgd": ("gradients", "sum of clipped gradients")}.get(
        algorithm, ("updates", "update")
    )
    words = {
        "updates": f"each client's {one}, one by one",
        "sum": f"only the sum of the clients' {whole}",
        "group sums": "only the sums of groups of clients",
    }
    return words.get(reveals, reveals)


def guarantee(run: RunFiles) -> str:
    """The ledger's statement, named fact by named fact and as text; and what the server saw."""
    protection = run.facts["protection"]
    server = (
        f"The server sees {seen(protection['reveals'], run.algorithm)} (protection: {protection['name']})."
    )
    carried = html.paragraph(server) + html.facts(_protection(run))
    statement = run.summary.get("statement")
    if not run.private:
        nothing = "No differential privacy: nothing bounds what an update or the model tells about a record."
        return html.section("Who is guaranteed what", html.paragraph(nothing), carried)
    if not statement:
        later = "The run has not ended. The command securefed epsilon (last section) reads what it has spent so far."
        planned = html.facts(_planned(run.facts["mechanism"]))
        return html.section("Who is guaranteed what", html.paragraph(later), planned, carried)
    text = run.summary["statement_text"]
    folded = html.details("the same, as securefed epsilon prints it", html.preformatted(text))
    return html.section("Who is guaranteed what", html.facts(_statement(statement)), carried, folded)


def _protection(run: RunFiles) -> list[tuple[str, str | Sequence[str]]]:
    """What the protection assumes, and what its rounds met."""
    found: list[tuple[str, str | Sequence[str]]] = list(run.facts["protection"].get("facts", {}).items())
    dropped = sum(len(r.get("dropped") or {}) for r in run.rounds)
    if dropped:
        found.append(("Dropped out", f"{numbers.count(dropped, 'client')} over all rounds"))
    clipped = [r["clipped_share"] for r in run.rounds if r.get("clipped_share") is not None]
    if clipped:
        found.append(("Clipped", f"at most {max(clipped):.2%} of a round's coordinates"))
    return found


def _planned(m: Mapping[str, Any]) -> list[tuple[str, str | Sequence[str]]]:
    asked = f"epsilon {m['epsilon']:g}" if m["epsilon"] is not None else "what the noise gives"
    return [
        (
            "Asked for",
            f"{asked} at delta {numbers.small(m['delta'])}, per {'record' if m['unit'] == 'example' else 'client'}",
        ),
        (
            "Mechanism",
            f"{KINDS[m.get('noise', 'central')]}, noise multiplier {m['noise_multiplier']:.4g}, sample rate {m['sample_rate']:.4g}",
        ),
        (
            "Planned",
            f"{numbers.count(m['rounds'], 'round')} of {numbers.count(m['steps_per_round'], 'step')}",
        ),
    ]


_LATER = (("Trust", "trust"), ("Amplification", "amplification"), ("Search for settings", "tuning"))
"""Lines that statements of older folders lack."""


def _statement(s: Mapping[str, Any]) -> list[tuple[str, str | Sequence[str]]]:
    delta = numbers.small(s["delta"])
    unfinished = (
        f"; charged in full: {numbers.count(s['unfinished'], 'unfinished attempt')}"
        if s["unfinished"]
        else ""
    )
    return [
        (
            "Guarantee",
            f"epsilon at most {numbers.spent(s['epsilon'])} at delta {delta}, by {s['accountant'].upper()}",
        ),
        ("Hides", f"one {'record' if s['unit'] == 'example' else 'client'}; neighbours: {s['relation']}"),
        ("From whom", str(s["adversary"])),
        ("For whom", str(s["holds_for"])),
        *((name, str(s[key])) for name, key in _LATER if key in s),
        ("Mechanism", str(s["mechanism"])),
        (
            "Steps",
            f"{s['steps_reserved']:,} reserved and charged, {s['steps_settled']:,} settled{unfinished}",
        ),
        (
            "All runs here",
            f"epsilon at most {numbers.spent(s['site_epsilon'])} over {numbers.count(s['site_runs'], 'run')} of this site "
            "on this data",
        ),
        ("Notes", s["caveats"]),
        ("Not covered", s["not_covered"]),
    ]
