"""A result folder's files: written whole or not at all, read back as one value."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securefed.errors import CheckpointError
from securefed.registry import algorithm_name

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class RunFiles:
    """What a folder says about its run, finished or not.

    Attributes:
        facts: name, run, model, dataset, mechanism, protection. config: the resolved job, a tree.
        rounds: one dict a round on record. summary: empty until the run has ended.
    """

    folder: Path
    facts: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    rounds: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, float]]
    shards: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]

    @property
    def private(self) -> bool:
        """Whether the run was under differential privacy."""
        return self.facts["mechanism"] is not None

    @property
    def algorithm(self) -> str:
        """The short name of the job's algorithm."""
        return algorithm_name(str(self.config["algorithm"]["name"]))

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The final scores, or the newest on record."""
        newest: Mapping[str, Any] = next((r["metrics"] for r in reversed(self.rounds) if r["metrics"]), {})
        return self.summary.get("metrics") or newest

    @property
    def client_metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Client -> its scores: the final ones, or the newest on record."""
        newest: Mapping[str, Any] = next(
            (r["client_metrics"] for r in reversed(self.rounds) if r["client_metrics"]), {}
        )
        return self.summary.get("client_metrics") or newest

    def client_name(self, client: str) -> str:
        """The client's readable name."""
        return next((str(s["name"]) for s in self.shards if str(s["client"]) == client), f"client {client}")

    def total(self, key: str) -> float:
        """Sum of a quantity over the rounds on record."""
        return float(sum(r[key] for r in self.rounds))


def read_run(folder: Path) -> RunFiles:
    """Everything a report needs, from the folder's files alone.

    Raises:
        CheckpointError: the folder is not one of a run that has begun.
    """
    facts = read_json(folder / "facts.json")
    try:
        text = (folder / "config.toml").read_text(encoding="utf-8")
        config = tomllib.loads(text)
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict):
        raise CheckpointError(
            f"{folder} holds no run that has begun; give the folder that securefed run printed"
        )
    return RunFiles(
        folder=folder,
        facts=facts,
        config=config,
        config_text=text,
        rounds=read_rounds(folder),
        summary=read_json(folder / "summary.json") or {},
        baselines=read_json(folder / "baselines.json") or {},
        shards=read_json(folder / "shards.json") or [],
        environment=read_json(folder / "environment.json") or {},
    )


def read_json(path: Path) -> Any:
    """The file's content; None if it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds on record; from a line that a crash tore in half on, nothing is believed."""
    path = folder / METRICS
    rounds: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rounds.append(json.loads(line))
            except ValueError:
                break
    return rounds


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, tree: Any) -> None:
    """Writes JSON that every parser reads, indented, whole or not at all."""
    write_text(path, json.dumps(plain(tree), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The value as JSON has it: infinity becomes the word, not-a-number null, NumPy scalars Python's."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item") and not isinstance(value, bool | int | float | str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("infinity" if value > 0 else "-infinity")
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def number(value: Any) -> float:
    """A number as `plain` wrote it."""
    return float(value) if value is not None else math.nan
