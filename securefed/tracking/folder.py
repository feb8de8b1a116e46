"""The result folder: plain files that explain a run without any program.

config.toml, environment.json, facts.json, shards.json, baselines.json, metrics.jsonl (a line a round),
privacy.json, bytes.json, summary.json, clients.json (who gains and who loses, where it was measured), plots/*.png and report.html.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

from securefed.config import to_toml
from securefed.registry import make_protection
from securefed.tracking.files import METRICS, plain, read_rounds, write_json, write_text
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary
from securefed.types import CohortDescribable, Describable, Protection

_OPEN = "the run has not ended; `securefed epsilon` reads what it has spent so far from the site's ledger"


class FolderTracker:
    """Writes the folder as the run goes; the report and its pictures at the end."""

    def __init__(self, folder: Path, report: bool = True) -> None:
        self.folder, self._report = folder, report
        self._lines: IO[str] | None = None
        self._mechanism: Any = None

    def start(self, info: RunInfo) -> None:
        """Writes what is known before the first round; drops lines of rounds that will be played again."""
        write_text(self.folder / "config.toml", to_toml(info.config))
        write_json(self.folder / "environment.json", info.environment)
        write_json(self.folder / "shards.json", info.shards)
        write_json(self.folder / "baselines.json", info.baselines)
        write_json(self.folder / "facts.json", _facts(info))
        self._mechanism = info.privacy
        self._write_privacy(None, _OPEN)
        self._keep_rounds_before(info.resumed_at or 0)
        self._lines = open(self.folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115  # closed in close()

    def round(self, record: RoundRecord) -> None:
        """Appends the round's line; flushed, so that a killed run leaves every finished round."""
        assert self._lines is not None
        line = {f.name: getattr(record, f.name) for f in fields(record)}  # `plain` copies what is inside
        self._lines.write(json.dumps(plain(line), allow_nan=False) + "\n")
        self._lines.flush()

    def end(self, summary: RunSummary) -> None:
        """Writes the summary, the privacy statement, the byte counts, the pictures and the report."""
        write_json(self.folder / "summary.json", asdict(summary))
        self._write_privacy(summary.statement, summary.statement_text)
        write_json(self.folder / "bytes.json", self._bytes(summary))
        if summary.gains:
            write_json(self.folder / "clients.json", summary.gains)
        if self._report:
            from securefed.tracking.report import write_report

            write_report(self.folder)

    def close(self) -> None:
        """Closes the line file."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _write_privacy(self, statement: Any, text: str) -> None:
        """`privacy.json`: without DP it says so, rather than being absent."""
        none = "no differential privacy: nothing bounds what an update or the model tells about a record"
        tree = {
            "mechanism": self._mechanism,
            "statement": statement,
            "text": text if self._mechanism else none,
        }
        write_json(self.folder / "privacy.json", tree)

    def _keep_rounds_before(self, round: int) -> None:
        """A resumed run plays `round` again; a torn last line is dropped with it."""
        path = self.folder / METRICS
        if path.exists():
            kept = [r for r in read_rounds(self.folder) if r["round"] < round]
            write_text(path, "".join(json.dumps(r) + "\n" for r in kept))

    def _bytes(self, summary: RunSummary) -> dict[str, Any]:
        rounds = read_rounds(self.folder)
        return {
            "mib_up": summary.mib_up,
            "mib_down": summary.mib_down,
            "rounds": [{k: r[k] for k in ("round", "phase", "mib_up", "mib_down")} for r in rounds],
        }


def _promises(protection: Protection, n: int) -> dict[str, str]:
    """What the protection says of itself, and of this cohort."""
    found = dict(protection.facts) if isinstance(protection, Describable) else {}
    return {**found, **(protection.facts_of(n) if isinstance(protection, CohortDescribable) else {})}


def _facts(info: RunInfo) -> dict[str, Any]:
    protection = make_protection(info.config.protection)
    return {
        "name": info.name,
        "run": info.run,
        "model": info.model,
        "dataset": info.dataset,
        "mechanism": info.privacy,
        "protection": {
            "name": protection.name,
            "reveals": protection.reveals,
            "facts": _promises(protection, len(info.shards)),
            "simulated": "simulated: no protection between clients",
        },
    }
