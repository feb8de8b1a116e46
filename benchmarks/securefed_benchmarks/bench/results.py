"""Stored rows as tables over seeds: one line a configuration, each score with its interval."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from securefed_benchmarks.bench.estimates import BySeed, Estimate, mean_interval, worst
from securefed_benchmarks.bench.grid import NOT_IN_KEY, SEEDED
from securefed_benchmarks.bench.store import Row as Row

Labels = tuple[tuple[str, Any], ...]
SHARES = (
    "accuracy",
    "best_accuracy",
    "balanced_accuracy",
    "f1",
    "attack_success",
    "reconstructed",
    "control",
)
"""Shown in percent."""
WANTED_HIGH = ("accuracy", "best_accuracy", "balanced_accuracy", "f1")
"""Scores of which the lowest is the worst; of all others it is the highest."""
MAIN = (
    "accuracy",
    "best_accuracy",
    "attack_success",
    "reconstructed",
    "control",
    "psnr_db",
    "lira_auc",
    "loss_auc",
    "gain_auc",
    "perplexity",
    "epsilon",
)
"""In this order where a table has them; what else there is follows."""
NAMES = {
    "attack_success": "attack success",
    "best_accuracy": "best accuracy",
    "lira_auc": "LiRA AUC",
    "loss_auc": "loss AUC",
    "gain_auc": "gain AUC",
    "psnr_db": "PSNR, dB",
    "records_in_view": "records in view",
    "bytes_up": "bytes up",
    "mib_up": "MiB up",
    "mib_down": "MiB down",
}
LESS = ("loss", "refused", "mib_up", "mib_down", "diverged", "balanced_accuracy")
"""Kept in the store and the CSV, not in the tables for people."""


@dataclass(frozen=True)
class Line:
    """One configuration over its seeds: score -> seed -> value."""

    suite: str
    grid: str
    labels: Labels
    values: Mapping[str, BySeed] = field(repr=False)
    failed: int

    @property
    def chosen(self) -> dict[str, Any]:
        """Axis -> label."""
        return dict(self.labels)

    def estimate(self, score: str) -> Estimate | None:
        """Mean and interval over its seeds; None where nothing was measured."""
        found = self.values.get(score)
        return mean_interval([found[s] for s in sorted(found)]) if found else None


def lines(rows: Sequence[Row]) -> list[Line]:
    """The configurations in the order in which they were first played."""
    found: dict[tuple[str, str, str], tuple[Row, dict[str, dict[int, float]], list[int]]] = {}
    for row in rows:
        key = (row.suite, row.grid, repr(sorted(row.labels.items())))
        _, values, failed = found.setdefault(key, (row, {}, []))
        if row.state != "done":
            failed.append(row.seed)
        for name, value in row.scores.items():
            values.setdefault(name, {})[row.seed] = value
    return [
        Line(row.suite, row.grid, tuple(row.labels.items()), values, len(failed))
        for row, values, failed in found.values()
    ]


def of_one_job(rows: Sequence[Row]) -> list[Row]:
    """Of each configuration the rows whose job is, seeds aside, that of its newest.

    A suite whose job was changed leaves results of the old one under the same labels: they are no further seeds of the new
    one. Fields that one of the two does not know (of another version of the code) are not compared.
    """
    newest: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        place = (row.suite, row.grid, repr(sorted(row.labels.items())))
        if place not in newest or row.started >= newest[place].started:
            newest[place] = row
    jobs = {place: dict(fields_of(row.job)) for place, row in newest.items()}

    def kept(row: Row) -> bool:
        wanted = jobs[(row.suite, row.grid, repr(sorted(row.labels.items())))]
        return all(wanted.get(name, value) == value for name, value in fields_of(row.job))

    return [row for row in rows if kept(row)]


def fields_of(job: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """What of a job decides its numbers, by dotted name; without seeds."""
    for key, value in job.items():
        name = f"{where}{key}"
        if name in SEEDED or (name in NOT_IN_KEY and name != "evaluate"):
            continue
        if isinstance(value, Mapping):
            yield from fields_of(value, f"{name}.")
        elif not name.startswith("evaluate.") or name == "evaluate.every":
            yield name, value


def scores_of(table: Sequence[Line], *, all: bool = False) -> list[str]:
    """The scores that a table has, those that people look for first; constant zeros are left out."""
    there = dict.fromkeys(name for line in table for name in line.values)
    ordered = [n for n in MAIN if n in there] + [n for n in there if n not in MAIN and (all or n not in LESS)]
    diverged = [n for n in ("diverged",) if n in there and not all]
    return ordered + diverged


def score_name(score: str) -> str:
    """A score's name for people."""
    name, sign, fpr = score.partition("_tpr_at_")
    if sign:
        return f"{NAMES.get(name + '_auc', name + ' AUC').removesuffix(' AUC')} TPR at {100 * float(fpr):g} % FPR"
    return NAMES.get(score, score.replace("_", " "))


def shown(score: str, estimate: Estimate | None) -> str:
    """An estimate for people: percent for shares, 'mean ± half', the mean alone without an interval."""
    if estimate is None:
        return "–"
    unit = 100 if score in SHARES else 1
    mean, half = unit * estimate.mean, unit * estimate.half
    digits = 1 if score in SHARES else 3 if abs(mean) < 10 else 1 if abs(mean) < 1000 else 0
    if not math.isfinite(mean):
        return "∞" if mean > 0 else "–"
    text = f"{mean:,.{digits}f}"
    known = score in ("bytes_up", "mib_up", "mib_down") and half == 0  # counted, not estimated
    return text if known or not math.isfinite(half) else f"{text} ± {half:,.{digits}f}"


def axes_of(table: Sequence[Line]) -> list[str]:
    """The axes on which a table's lines differ, else all that it has."""
    axes = list(dict.fromkeys(a for line in table for a, _ in line.labels))
    varied = [a for a in axes if len({str(line.chosen.get(a)) for line in table}) > 1]
    return varied or axes


def worst_cases(table: Sequence[Line], score: str = "accuracy") -> Iterator[tuple[Labels, str, Estimate]]:
    """For each choice of the other axes the attack with the lowest mean, "none" among them."""
    groups: dict[str, list[Line]] = {}
    for line in table:
        rest = [(a, v) for a, v in line.labels if a != "attack"]
        groups.setdefault(repr(rest), []).append(line)
    for group in groups.values():
        by_attack = {
            str(li.chosen["attack"]): li.values[score]
            for li in group
            if li.values.get(score) and "attack" in li.chosen
        }
        if len(by_attack) < 2:
            continue
        try:
            name, estimate = worst(by_attack)
        except ValueError:
            continue  # no seed that all have yet
        yield tuple((a, v) for a, v in group[0].labels if a != "attack"), name, estimate


def markdown(rows: Sequence[Row]) -> str:
    """One table a grid, ready to be pasted."""
    out: list[str] = []
    table = lines(rows)
    for suite, grid in dict.fromkeys((line.suite, line.grid) for line in table):
        mine = [line for line in table if (line.suite, line.grid) == (suite, grid)]
        out += [f"\n## {suite}: {grid}\n", *_markdown_table(mine)]
    return "\n".join(out).strip() + "\n"


def _markdown_table(table: Sequence[Line]) -> Iterator[str]:
    axes, scores = axes_of(table), scores_of(table)
    yield "| " + " | ".join([*axes, *map(score_name, scores), "seeds"]) + " |"
    yield "| " + " | ".join(["---"] * len(axes) + ["---:"] * (len(scores) + 1)) + " |"
    for line in table:
        cells = [str(line.chosen.get(a, "–")) for a in axes]
        cells += [shown(s, line.estimate(s)) for s in scores]
        seeds = max((len(v) for v in line.values.values()), default=0)
        note = f"{seeds}, {line.failed} failed" if line.failed else str(seeds)
        yield "| " + " | ".join(one.replace("|", "\\|") for one in [*cells, note]) + " |"
    counts = [len(v) for line in table for v in line.values.values()]
    yield "\nMean ± half of the 95 % interval (Student's t over seeds)." + _few(counts)


def _few(seeds: Sequence[int]) -> str:
    from securefed_benchmarks.bench.estimates import FEW

    fewest = min(seeds, default=0)
    return (
        f" Only {fewest} seed{'' if fewest == 1 else 's'} in places: read intervals with care."
        if fewest < FEW
        else ""
    )


def as_csv(rows: Sequence[Row]) -> str:
    """Every estimate on a line of its own, numbers in full: for spreadsheets and pandas."""
    text = io.StringIO()
    table = lines(rows)
    axes = list(dict.fromkeys(a for line in table for a, _ in line.labels))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["suite", "grid", *axes, "score", "mean", "low", "high", "seeds", "failed"])
    for line in table:
        for score in line.values:
            found = line.estimate(score)
            if found is not None:
                chosen = [line.chosen.get(a, "") for a in axes]
                numbers = [repr(n) if math.isfinite(n) else "" for n in (found.mean, found.low, found.high)]
                writer.writerow([line.suite, line.grid, *chosen, score, *numbers, found.seeds, line.failed])
    return text.getvalue()
