"""`securefed report` of bench folders: tables.md, tables.csv, results.csv, plots, jobs and bench.html."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securefed.config import load_config, to_toml
from securefed.errors import CheckpointError, ConfigError
from securefed.tracking.files import write_text
from securefed_benchmarks.bench.claims import Claim, Judged, choices_of, judge, load_claims
from securefed_benchmarks.bench.current import of_the_suite
from securefed_benchmarks.bench.estimates import Estimate
from securefed_benchmarks.bench.page import Found, render
from securefed_benchmarks.bench.pictures import Picture, pictures
from securefed_benchmarks.bench.results import as_csv, lines, markdown, of_one_job, score_name
from securefed_benchmarks.bench.store import FILE, Row, read_columns, read_facts, read_rows
from securefed_benchmarks.bench.svg import standalone


@dataclass(frozen=True)
class BenchReport:
    """What was written, and what it says in short."""

    page: Path
    claims: list[dict[str, Any]] = field(repr=False)
    summary: list[str] = field(repr=False)


def is_bench(folder: Path) -> bool:
    """Whether a bench left its results there."""
    return (folder / FILE).is_file()


def write_bench_report(folders: Sequence[Path]) -> BenchReport:
    """Writes everything into the first folder, anew from the stores; several folders make one page.

    Raises:
        CheckpointError: a folder without results, or two folders with results of one suite.
    """
    rows: list[Row] = []
    suites: dict[str, Mapping[str, Any]] = {}
    judged: list[Judged] = []
    made: dict[str, str] = {}
    stale = 0
    for folder in folders:
        played = read_rows(folder)
        facts = _suites(folder, played)
        mine = of_one_job(of_the_suite(played, facts))
        stale += _done(played) - _done(mine)
        if not mine or not facts:
            raise CheckpointError(f"{folder} holds no results yet; play its suite first")
        if facts.keys() & suites.keys():
            raise CheckpointError(
                f"{folder} and another folder hold suite {next(iter(facts))}; report them apart"
            )
        mine = in_order(mine, facts)
        rows, suites = [*rows, *mine], {**suites, **facts}
        known, table = next(iter(facts.values())), lines(mine)
        judged += [judge(c, table, choices_of(c, known)) for c in load_claims(folder / "claims.toml")]
        made |= {id: _environment(f) for id, f in read_facts(folder, "environments").items()}
    target = Path(folders[0])
    found = Found(rows, suites, judged, _jobs(suites, target), _pictures(rows, target), made, stale)
    write_text(target / "bench.html", render(found))
    write_text(target / "tables.md", markdown(rows) + _claims_markdown(judged))
    write_text(target / "tables.csv", as_csv(rows))
    write_text(target / "results.csv", _columns_csv(folders))
    return BenchReport(target / "bench.html", [_told(j) for j in judged], _summary(rows, judged, stale))


def _suites(folder: Path, rows: Sequence[Row]) -> dict[str, Mapping[str, Any]]:
    """Name -> the newest facts of each suite, with what any of its benches had to skip.

    What an older bench skipped is left out where its grid was another, or a result is there by now.
    """
    found: dict[str, Mapping[str, Any]] = {}
    done = {(r.suite, r.grid, _told_apart(r.labels)) for r in rows if r.state == "done"}
    for facts in read_facts(folder, "suites").values():
        name, same = str(facts["name"]), _grids(facts)
        older = found.get(name, {"grids": [], "skipped": []})
        kept = {grid for grid, what in _grids(older).items() if same.get(grid) == what}
        before = [
            s
            for s in older["skipped"]
            if s["grid"] in kept and (name, s["grid"], _told_apart(s["labels"])) not in done
        ]
        skipped = [*before, *(s for s in facts["skipped"] if s not in before)]
        found[name] = {**facts, "skipped": skipped}
    return found


def _grids(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> a grid without its seeds, which are a part of it on one day and all on another."""
    return {g["name"]: {k: v for k, v in g.items() if k not in ("seeds", "about")} for g in facts["grids"]}


def _told_apart(labels: Mapping[str, Any]) -> str:
    return repr(sorted((axis, str(label)) for axis, label in labels.items()))


def in_order(rows: Sequence[Row], suites: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The rows as the suite has them, seeds innermost, however they came in: workers race, benches resume."""
    places: dict[tuple[str, str], tuple[int, dict[str, dict[str, int]]]] = {}
    for facts in suites.values():
        for k, grid in enumerate(facts["grids"]):
            labels = {a: {str(v): i for i, v in enumerate(vs)} for a, vs in grid["axes"].items()}
            places[(str(facts["name"]), str(grid["name"]))] = (k, labels)

    def place(row: Row) -> tuple[Any, ...]:
        number, labels = places.get((row.suite, row.grid), (len(places), {}))
        at = [v.get(str(row.labels.get(a)), len(v)) for a, v in labels.items()]
        return row.suite, number, at, row.seed

    return sorted(rows, key=place)


def _pictures(rows: Sequence[Row], target: Path) -> dict[tuple[str, str], Sequence[Picture]]:
    found: dict[tuple[str, str], Sequence[Picture]] = {}
    (target / "plots").mkdir(exist_ok=True)
    for suite, grid in dict.fromkeys((r.suite, r.grid) for r in rows):
        mine = [r for r in rows if (r.suite, r.grid) == (suite, grid)]
        found[(suite, grid)] = drawn = list(pictures(mine, lines(mine)))
        for k, picture in enumerate(drawn):
            name = file_name(f"{grid} {k + 1:02} {picture.title}")[:90]
            write_text(
                target / "plots" / f"{name}.svg", standalone(picture.svg, picture.title, picture.names)
            )
    return found


def _jobs(suites: Mapping[str, Mapping[str, Any]], target: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """The job behind each grid, as a file that `securefed run` takes."""
    (target / "jobs").mkdir(exist_ok=True)
    found = {}
    for suite, facts in suites.items():
        for grid in facts["grids"]:
            name = file_name(f"{suite} {grid['name']}") + ".toml"
            try:
                text = to_toml(load_config({"name": file_name(grid["name"]), **grid["job"]}))
            except ConfigError as error:  # of an older version of the code, whose jobs are read no longer
                text = f"# this version cannot read the job any more: {error}\n"
            write_text(target / "jobs" / name, text)
            found[(suite, str(grid["name"]))] = (name, text)
    return found


def file_name(text: str) -> str:
    """Words as a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "grid"


def _environment(facts: Mapping[str, Any]) -> str:
    packages = facts.get("packages") or {}
    told = ", ".join(
        f"{name} {packages[name]}" for name in ("securefed", "torch", "numpy") if packages.get(name)
    )
    return f"Python {facts.get('python')}, {facts.get('platform')}, {facts.get('cores')} cores, {told}"


def _columns_csv(folders: Sequence[Path]) -> str:
    """Every run on a line, axes and scores in columns."""
    text, tables = io.StringIO(), [read_columns(folder) for folder in folders]
    names = list(dict.fromkeys(name for table in tables for name in table))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for table in tables:
        for k in range(len(table["seed"])):
            cells = [table[n][k] if n in table else None for n in names]
            writer.writerow(["" if c is None else c for c in cells])
    return text.getvalue()


def _told(one: Judged) -> dict[str, Any]:
    e = one.estimate
    measured = (
        None if e is None else {"mean": e.mean, "low": e.low, "high": e.high, "seeds": e.seeds, "how": e.how}
    )
    return {
        "claim": one.claim.claim,
        "source": one.claim.source,
        "expected": one.claim.asked,
        "measured": measured,
        "verdict": one.verdict,
        "reason": one.reason,
    }


def _claims_markdown(judged: Sequence[Judged]) -> str:
    if not judged:
        return ""
    out = [
        "\n## Claims\n",
        "| claim | source | expected | measured | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in judged:
        e = one.estimate
        measured = "–" if e is None else _measured(one.claim, e)
        asked = f"{score_name(one.claim.score)}{one.claim.unit_name}: {one.claim.asked}"
        cells = [one.claim.claim, one.claim.source, asked, measured, one.verdict]
        out.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(out) + "\n"


def _measured(claim: Claim, e: Estimate) -> str:
    low, mean, high = (f"{claim.unit * v:.3g}" for v in (e.low, e.mean, e.high))
    return f"{mean} ({low} to {high}, {e.seeds} seeds)"


def _done(rows: Sequence[Row]) -> int:
    return sum(r.state == "done" for r in rows)


def _summary(rows: Sequence[Row], judged: Sequence[Judged], stale: int) -> list[str]:
    failed = len(rows) - _done(rows)
    out = [f"{len(rows) - failed} results" + (f", {failed} failed" if failed else "")]
    out += [f"{stale} of an older job under the same labels are left out"] if stale else []
    return [*out, *(f"{one.verdict:<15} {one.claim.claim}" for one in judged)]
