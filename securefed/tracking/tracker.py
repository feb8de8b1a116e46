"""What a run tells those who watch it: once at the start, once a round, once at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from securefed.config import Config

Scores = Mapping[str, float]

UNTRAINED = "before_training"
"""The baseline of a language model: itself, before a step is taken."""


@dataclass(frozen=True)
class RunInfo:
    """The facts of a run before its first round.

    Attributes:
        model: name, parameters (all), trainable (d), layout digest, parts (part -> size).
        dataset: name, source, licence, classes, train and test counts, digest.
        shards: one dict a client (client, name, train, test, counts): a simulation diagnostic.
        baselines: name -> scores on the pooled data: a simulation diagnostic.
        privacy: unit, noise multiplier, sample rate, steps, target; None without DP.
        resumed_at: the round it goes on from, None for a fresh run.
    """

    name: str
    folder: Path
    run: str
    config: Config
    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    shards: list[dict[str, Any]]
    baselines: Mapping[str, Scores]
    privacy: Mapping[str, Any] | None
    resumed_at: int | None
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class RoundRecord:
    """One round, 0-based. `diagnostics` come from private data and are flagged wherever shown.

    Attributes:
        dropped: client -> the step of the protection it did not answer.
        clip: of whole updates in this round, public, where it moves; None for a fixed one.
        sim_seconds: when the round ended on the job's simulated clock, since the start; None without a clock.
        staleness: client -> versions by which the model had moved on when its update was taken (fedbuff).
        clipped_share: what the protection's fixed point clipped, as the server decoded it; None without.
    """

    round: int
    rounds: int
    phase: str
    metrics: Scores | None
    client_metrics: Mapping[int, Scores] | None
    epsilon: float | None
    site_epsilon: float | None
    mib_up: float
    mib_down: float
    cohort: tuple[int, ...]
    survivors: tuple[int, ...]
    refused: Mapping[int, str]
    seconds: float
    train_seconds: float
    diagnostics: Scores = field(default_factory=dict)
    dropped: Mapping[int, str] = field(default_factory=dict)
    clipped_share: float | None = None
    clip: float | None = None
    sim_seconds: float | None = None
    staleness: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """The end of a run; `statement` is the ledger's, `statement_text` the same for people.

    `gains`: who gains and who loses, a simulation diagnostic; empty where it was not measured.
    """

    metrics: Scores
    client_metrics: Mapping[int, Scores]
    rounds: int
    stopped: str
    seconds: float
    statement: Mapping[str, Any] | None
    statement_text: str
    mib_up: float
    mib_down: float
    peak_mib: float
    gains: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """Anything that wants to be told. It must not change what it is given."""

    def start(self, info: RunInfo) -> None: ...

    def round(self, record: RoundRecord) -> None: ...

    def end(self, summary: RunSummary) -> None: ...

    def close(self) -> None: ...
