"""The page: one file that works offline, from the stored rows alone; its tables are in `page.js`.

A policy in its head forbids it to load anything. What comes from suites and results is escaped, or reaches
the page as data that a script writes as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from securefed.tracking import html
from securefed.tracking.files import plain
from securefed_benchmarks.bench.claims import Judged
from securefed_benchmarks.bench.current import mixed_codes
from securefed_benchmarks.bench.grid import SEEDED
from securefed_benchmarks.bench.heat import heats
from securefed_benchmarks.bench.pictures import Picture
from securefed_benchmarks.bench.results import (
    SHARES,
    Line,
    Row,
    lines,
    score_name,
    scores_of,
    shown,
    worst_cases,
)
from securefed_benchmarks.bench.svg import key

HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SHOWN_PICTURES = 8
KINDS = {"reproduced": "good", "not reproduced": "bad", "underpowered": "open"}
HEATED = (
    "accuracy",
    "perplexity",
    "attack_success",
    "lira_auc",
    "loss_auc",
    "gain_auc",
    "reconstructed",
    "bytes_up",
)


@dataclass(frozen=True)
class Found:
    """What a page is made of.

    Attributes:
        suites: facts by name. jobs: (suite, grid) -> (file name, TOML) of the grid's job. pictures: by
            (suite, grid). made: digest of an environment -> in words. stale: results of older jobs, left out.
    """

    rows: Sequence[Row] = field(repr=False)
    suites: Mapping[str, Mapping[str, Any]]
    judged: Sequence[Judged]
    jobs: Mapping[tuple[str, str], tuple[str, str]] = field(repr=False)
    pictures: Mapping[tuple[str, str], Sequence[Picture]] = field(repr=False)
    made: Mapping[str, str]
    stale: int = 0


def render(found: Found) -> str:
    """The whole document."""
    table = lines(found.rows)
    href = {id(line): f"#c{k}" for k, line in enumerate(table)}
    title = " and ".join(found.suites) + ": SecureFed bench"
    body = "".join(
        (
            _head(found, table),
            _claims(found.judged),
            *_grids(found, table, href),
            _tables(),
            _missing(found),
            _reading(found),
        )
    )
    data = json.dumps(plain(_data(found, table)), separators=(",", ":"), allow_nan=False).replace(
        "<", "\\u003c"
    )
    style = html.STYLE + (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{style}</style></head>\n'
        f'<body><main>{body}</main><script id="data" type="application/json">{data}</script>\n'
        f"<script>{script}</script></body></html>\n"
    )


def _head(found: Found, table: Sequence[Line]) -> str:
    done = sum(r.state == "done" for r in found.rows)
    seeds = len({r.seed for r in found.rows})
    held = sum(j.verdict == "reproduced" for j in found.judged)
    cards = [(f"{len(table):,}", "configurations"), (f"{done:,}", f"runs, {seeds} seeds")]
    if found.judged:
        cards.insert(0, (f"{held} of {len(found.judged)}", "claims reproduced"))
    failed = len(found.rows) - done
    if failed:
        cards.append((f"{failed:,}", "runs failed"))
    cards.append((_time(sum(r.cpu_seconds for r in found.rows)), "CPU time"))
    about = "".join(
        f'<p class="lead">{escape(str(facts.get("about", "")))}</p>'
        for facts in found.suites.values()
        if facts.get("about")
    )
    return f"<h1>{escape(' and '.join(found.suites))}</h1>{about}{html.cards(cards)}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def _claims(judged: Sequence[Judged]) -> str:
    items = []
    for one in judged:
        c, e = one.claim, one.estimate
        measured = "nothing yet"
        if e is not None:
            low, mean, high = (f"{c.unit * v:.3g}" for v in (e.low, e.mean, e.high))
            span = f", {low} to {high} with 95 % confidence" if math.isfinite(e.low) else ""
            measured = f"{mean}{span}, {e.seeds} seeds ({e.how})"
        asked = f"{score_name(c.score)}{c.unit_name}: wanted {c.asked}"
        told = f"{asked}; measured {measured}: {one.reason}. Source: {c.source}"
        items.append(
            f'<div class="claim"><p>{escape(c.claim)}</p><p><span class="verdict {KINDS[one.verdict]}">'
            f'{one.verdict}</span></p><p class="soft">{escape(told)}</p></div>'
        )
    return html.section("Claims", f'<div class="claims">{"".join(items)}</div>' if items else "")


def _grids(found: Found, table: Sequence[Line], href: Mapping[int, str]) -> Iterator[str]:
    for suite, facts in found.suites.items():
        for grid in facts["grids"]:
            mine = [line for line in table if (line.suite, line.grid) == (suite, grid["name"])]
            if not mine:
                continue
            title = str(grid["name"]) if len(found.suites) == 1 else f"{suite}: {grid['name']}"
            maps = [m for score in HEATED for m in heats(mine, score, href)]
            few = _few(mine)
            yield html.section(
                title,
                html.paragraph(str(grid.get("about", ""))),
                html.paragraph(few, "note") if few else "",
                f'<div class="heats">{"".join(maps)}</div>' if maps else "",
                _worst(mine),
                _pictures(found.pictures.get((suite, str(grid["name"])), ()), str(grid["name"])),
            )


def _few(table: Sequence[Line]) -> str:
    """Said wherever it is so; an interval of three seeds looks like any other."""
    fewest = min((len(v) for line in table for v in line.values.values()), default=0)
    if fewest == 1:
        return "One seed in places: there is no interval, and a difference may be chance."
    return f"Only {fewest} seeds in places: intervals are wide." if fewest < 5 else ""


def _worst(table: Sequence[Line]) -> str:
    score = "accuracy" if any(line.values.get("accuracy") for line in table) else "perplexity"
    rows = [
        [*(str(v) for _, v in labels), name, shown(score, estimate)]
        for labels, name, estimate in worst_cases(table, score)
    ]
    if not rows or score != "accuracy":
        return ""
    axes = [a for a, _ in next(iter(worst_cases(table, score)))[0]]
    head = [*axes, "worst attack", f"{score}, %"]
    note = "The lowest mean over the attacks, with an interval that holds whichever attack is the worst in truth."
    return html.details(
        "worst case over attacks", html.paragraph(note, "soft small") + html.table(head, rows)
    )


def _pictures(found: Sequence[Picture], grid: str) -> str:
    if not found:
        return ""
    first = "".join(
        f"<figure><figcaption>{escape(p.title)}</figcaption>{key(p.names) if len(p.names) > 1 else ''}{p.svg}</figure>"
        for p in found[:SHOWN_PICTURES]
    )
    more = len(found) - SHOWN_PICTURES
    note = f"{more} more pictures of {grid} are in the folder plots/." if more > 0 else ""
    return f'<div class="pictures">{first}</div>{html.paragraph(note, "soft small")}'


def _tables() -> str:
    return html.section(
        "Every number",
        html.paragraph(
            "Click a heading to sort, a row to see its config and its command. Number filters take > 50, <= 0.1 or a value."
        ),
        '<div class="bar"><button type="button" data-kind="configs">over seeds</button>'
        '<button type="button" data-kind="runs">every run</button>'
        '<input id="search" type="search" placeholder="search: krum, 0.1" aria-label="search all columns, phrases with commas between"><output id="count"></output></div>'
        '<div id="table" class="grid" role="table" aria-label="results" tabindex="0"></div>'
        "<noscript><p>The tables need JavaScript; tables.md and tables.csv beside this page hold the same.</p></noscript>",
    )


def _missing(found: Found) -> str:
    skipped = [
        [s["grid"], ", ".join(f"{k} {v}" for k, v in s["labels"].items()), s["reason"]]
        for facts in found.suites.values()
        for s in facts.get("skipped", [])
    ]
    failed = [
        [r.grid, ", ".join(f"{k} {v}" for k, v in r.labels.items()), r.seed, r.error]
        for r in found.rows
        if r.state != "done"
    ]
    return html.section(
        "What is missing",
        html.details(
            f"{len(skipped)} configurations that cannot be",
            _wrapped(["grid", "configuration", "reason"], skipped),
        )
        if skipped
        else "",
        html.details(
            f"{len(failed)} runs that failed", _wrapped(["grid", "configuration", "seed", "reason"], failed)
        )
        if failed
        else "",
    )


def _wrapped(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of sentences: its cells may break lines."""
    return html.table(head, rows).replace("<table>", '<table class="wrapped">')


def _reading(found: Found) -> str:
    text = (
        "± is half of a 95 % interval, Student's t over seeds. A seed draws shards, first model and liars; cells of one "
        "seed differ in nothing but the choice, so differences in claims are taken seed by seed. Noise of differential "
        "privacy and masks come from the operating system and differ in every run. A model that left the finite numbers "
        "counts as chance. A claim is reproduced if its whole interval lies where the claim says, not reproduced if no "
        "part of it does, else underpowered: more seeds decide."
    )
    made = list(dict.fromkeys(found.made.values()))
    commits = ", ".join(dict.fromkeys(r.commit or "unknown" for r in found.rows))
    codes = list(dict.fromkeys(r.code for r in found.rows))
    several = mixed_codes(found.rows)
    mixed = (
        f"Results of {len(several)} versions of the code are mixed here: {', '.join(several)}."
        if several
        else ""
    )
    older = (
        f"{found.stale} results of an older job under the same labels are left out." if found.stale else ""
    )
    return html.section(
        "How to read this",
        html.paragraph(text),
        html.paragraph(" ".join(filter(None, (mixed, older))), "note"),
        html.facts([("Made with", made), ("Commit", commits), ("Code", ", ".join(codes))]),
    )


# --------------------------------------------------------------------------------------------- data


def _data(found: Found, table: Sequence[Line]) -> dict[str, Any]:
    """What the script draws: labels and overrides once each, numbers in rows."""
    axes = list(dict.fromkeys(a for line in table for a, _ in line.labels))
    labels = {a: list(dict.fromkeys(line.chosen[a] for line in table if a in line.chosen)) for a in axes}
    scores = scores_of(table, all=True)
    grids = list(dict.fromkeys((line.suite, line.grid) for line in table))
    changed, errors = _Numbered(), _Numbered()
    made = list(dict.fromkeys(_made(r, found) for r in found.rows))
    where = {(li.suite, li.grid, repr(sorted(li.labels))): k for k, li in enumerate(table)}
    runs = [
        [
            where[(r.suite, r.grid, repr(sorted(r.labels.items())))],
            r.seed,
            0 if r.state == "done" else 1 + errors.of(r.error),
            [_short(r.scores.get(s)) for s in scores],
            [changed.of(c) for c in r.changed if not c.startswith(tuple(f"{f}=" for f in SEEDED))],
            round(r.seconds, 2),
            made.index(_made(r, found)),
        ]
        for r in found.rows
    ]
    return {
        "axes": [{"name": a, "labels": labels[a]} for a in axes],
        "scores": [{"key": s, "name": score_name(s), "share": int(s in SHARES)} for s in scores],
        "grids": [
            {
                "name": g,
                "suite": s,
                "title": g if len(found.suites) == 1 else f"{s}: {g}",
                "file": found.jobs[(s, g)][0],
                "job": found.jobs[(s, g)][1],
            }
            for s, g in grids
        ],
        "configs": [
            [
                grids.index((li.suite, li.grid)),
                [labels[a].index(li.chosen[a]) if a in li.chosen else -1 for a in axes],
                [_pair(li, s) for s in scores],
                li.failed,
            ]
            for li in table
        ],
        "runs": runs,
        "changed": changed.words,
        "errors": errors.words,
        "made": made,
        "seeded": list(SEEDED),
    }


class _Numbered:
    """Words and their numbers, each word once."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[str, int] = {}

    def of(self, word: str) -> int:
        """The word's number."""
        if word not in self._numbers:
            self._numbers[word] = len(self.words)
            self.words.append(word)
        return self._numbers[word]


def _pair(line: Line, score: str) -> list[Any] | None:
    e = line.estimate(score)
    return None if e is None else [_short(e.mean), _short(e.half) if math.isfinite(e.half) else None]


def _short(value: float | None) -> float | None:
    return value if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _made(row: Row, found: Found) -> str:
    return f"{found.made.get(row.environment, 'an unknown machine')}, commit {row.commit or 'unknown'}, code {row.code}"
