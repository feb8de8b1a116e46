"""The result folder: plain files that explain a run without any program, written whole or appended.

config.toml, environment.json, shards.json, baselines.json, privacy.json, bytes.json, summary.json,
metrics.jsonl (a line a round), plots/*.png, report.html.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from securefed.config import to_toml
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary

METRICS = "metrics.jsonl"


class FolderTracker:
    """Writes the folder as the run goes; the report and its pictures at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: IO[str] | None = None

    def start(self, info: RunInfo) -> None:
        """Writes what is known before the first round; drops lines of rounds that will be played again."""
        write_text(self.folder / "config.toml", to_toml(info.config))
        write_json(self.folder / "environment.json", info.environment)
        write_json(self.folder / "shards.json", info.shards)
        write_json(self.folder / "baselines.json", info.baselines)
        facts = {
            "name": info.name,
            "run": info.run,
            "model": info.model,
            "dataset": info.dataset,
            "mechanism": info.privacy,
        }
        write_json(self.folder / "facts.json", facts)
        self._keep_rounds_before(info.resumed_at or 0)
        self._lines = open(self.folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115  # closed in close()

    def round(self, record: RoundRecord) -> None:
        """Appends the round's line; flushed, so that a killed run leaves every finished round."""
        assert self._lines is not None
        self._lines.write(json.dumps(asdict(record)) + "\n")
        self._lines.flush()

    def end(self, summary: RunSummary) -> None:
        """Writes the summary, the privacy statement, the byte counts, the pictures and the report."""
        write_json(self.folder / "summary.json", asdict(summary))
        if summary.statement is not None:
            facts = json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))
            write_json(
                self.folder / "privacy.json",
                {
                    "mechanism": facts["mechanism"],
                    "statement": summary.statement,
                    "text": summary.statement_text,
                },
            )
        write_json(self.folder / "bytes.json", self._bytes(summary))
        from securefed.tracking.report import write_report

        write_report(self.folder)

    def close(self) -> None:
        """Closes the line file."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

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


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds on record; a last line that a crash tore in half is left out."""
    path = folder / METRICS
    rounds: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rounds.append(json.loads(line))
            except ValueError:
                break
    return rounds


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, tree: Mapping[str, Any] | list[Any]) -> None:
    """Writes JSON, indented, whole or not at all."""
    write_text(path, json.dumps(tree, indent=1, default=str) + "\n")
