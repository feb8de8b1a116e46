"""What an audit found: one value, its JSON, its words, its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securefed.tracking.files import plain, write_json, write_text
from securefed_attacks.audit.belonging import Belonging
from securefed_attacks.audit.columns import Column
from securefed_attacks.audit.epsilon import Epsilon
from securefed_attacks.audit.exposure import Exposure
from securefed_attacks.audit.labels import Labels
from securefed_attacks.audit.reconstruction import Reconstruction
from securefed_attacks.audit.verdict import MEANS, Finding, Verdict, at_least, strongest
from securefed_attacks.statistics import Interval

VERSION = 2


@dataclass(frozen=True)
class Trial:
    """One change, tried.

    Attributes:
        name: what was changed. view: on which view. leak_before, leak_after: what the finding measured.
        measure: what that is. loss_before, loss_after: mean loss of non-members with the update applied,
            unchanged and changed: what it costs. enough: the finding is gone.
    """

    name: str
    view: str
    measure: str
    leak_before: float
    leak_after: float
    loss_before: float | None
    loss_after: float | None
    enough: bool


@dataclass(frozen=True, eq=False)
class AuditReport:
    """Everything an audit says. No record's text is in it unless it was asked for.

    Attributes:
        verdict: the strongest of `findings`. facts: what was handed over, in words.
        columns: the views. missing: what to hand over for more. left_out: what the time budget left out.
        layers: layer -> (AUC of its part of the update cosine, its share of the update's squared norm).
        rounds: AUC of the update cosine of each round. grid: of each of them, layer -> AUC of its part;
            round_names: what they are called. texts: the members' tokens, only where asked for.
    """

    findings: tuple[Finding, ...]
    facts: Mapping[str, str]
    columns: tuple[Column, ...] = ()
    exposure: Exposure | None = None
    reconstruction: tuple[Reconstruction, ...] = ()
    labels: Labels | None = None
    membership: Belonging | None = None
    epsilon: Epsilon | None = None
    layers: Mapping[str, tuple[float | None, float]] = field(default_factory=dict)
    rounds: tuple[Interval, ...] = ()
    grid: Sequence[Mapping[str, float]] = ()
    round_names: tuple[str, ...] = ()
    mitigation: tuple[Trial, ...] = ()
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0
    texts: Mapping[int, Sequence[str]] = field(default_factory=dict, repr=False)

    @property
    def verdict(self) -> Verdict:
        """The strongest finding: FAIL, LEAKS, UNDERPOWERED or NO EVIDENCE; never "safe"."""
        return strongest(self.findings)

    def is_at_least(self, bound: str) -> bool:
        """Whether the verdict is `bound` or worse: what a CI step asks."""
        return at_least(self.verdict, bound)

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain JSON types."""
        tree: dict[str, Any] = plain(_tree(self))
        return tree

    def text(self) -> str:
        """The verdict and its reasons, a line each."""
        lines = [f"{self.verdict}: {MEANS[self.verdict]}"]
        lines += [
            f"  {f.verdict:<12} {f.section}{', ' + f.view if f.view else ''}: {f.reason}"
            for f in self.findings
        ]
        lines += [f"  warning      {w}" for w in self.warnings]
        lines += [f"  missing      {m}" for m in self.missing]
        lines += [f"  left out     {m}" for m in self.left_out]
        return "\n".join(lines)

    def save(self, path: str | Path) -> Path:
        """Writes the page (`.html`), or the JSON (`.json`)."""
        where = Path(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        if where.suffix == ".json":
            write_json(where, self.to_json())
            return where
        from securefed_attacks.audit.page import render

        write_text(where, render(self))
        return where


def _tree(report: AuditReport) -> dict[str, Any]:
    return {
        "version": VERSION,
        "verdict": report.verdict,
        "meaning": MEANS[report.verdict],
        "findings": [dataclasses.asdict(f) for f in report.findings],
        "facts": dict(report.facts),
        "views": [
            {
                "name": c.name,
                "made": c.update is not None,
                "why_not": c.why_not,
                "clients": c.clients,
                "note": c.note,
                "norm": c.norm,
            }
            for c in report.columns
        ],
        "exposure": None if report.exposure is None else dataclasses.asdict(report.exposure),
        "reconstruction": [_rebuilt(r) for r in report.reconstruction],
        "labels": None if report.labels is None else dataclasses.asdict(report.labels),
        "membership": None if report.membership is None else _membership(report.membership),
        "epsilon": None if report.epsilon is None else dataclasses.asdict(report.epsilon),
        "layers": {k: {"auc": a, "norm_share": s} for k, (a, s) in report.layers.items()},
        "rounds": [
            {"name": name, "auc": dataclasses.asdict(auc), "layers": dict(layers)}
            for name, auc, layers in zip(report.round_names, report.rounds, report.grid, strict=False)
        ],
        "mitigation": [dataclasses.asdict(t) for t in report.mitigation],
        "warnings": list(report.warnings),
        "missing": list(report.missing),
        "left_out": list(report.left_out),
        "seconds": report.seconds,
    }


def _membership(found: Belonging) -> dict[str, Any]:
    return {
        "members": found.members,
        "non_members": found.others,
        "smallest_fpr_asked": found.smallest_fpr,
        "smallest_fpr_resolvable": 1 / found.others if found.others else None,
        "smallest_detectable_tpr": found.detectable,
        "joint_tests": found.tests,
        "shift": None
        if found.shift is None
        else {"shifted": found.shift.shifted, **dataclasses.asdict(found.shift)},
        "not_made": dict(found.not_made),
        "results": [
            {
                "view": r.view,
                "attack": r.attack,
                "auc": dataclasses.asdict(r.auc),
                "rates": [dataclasses.asdict(a) for a in r.rates],
                "leaks_at": list(r.leaks),
            }
            for r in found.results
        ],
    }


def _rebuilt(found: Reconstruction) -> dict[str, Any]:
    tree = {k: v for k, v in dataclasses.asdict(found).items() if k not in ("hits", "wholes")}
    return {**tree, "used": "exact" if found.used is found.exact else "nearest", "leaks": found.leaks}
