"""What a run tells its trackers: the facts at the start, a record a round, the summary at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securefed.algorithms.algorithm import Algorithm
from securefed.algorithms.plan import RoundPlan
from securefed.assembly import Assembly, public_cohorts
from securefed.checkpoint import State
from securefed.config import Config
from securefed.data import plot_shards, shard_table
from securefed.registry import ALGORITHMS, make
from securefed.tracking.environment import environment
from securefed.tracking.files import read_rounds
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary
from securefed.training.client import ClientOutcome, Guarantee
from securefed.types import Collected

if TYPE_CHECKING:
    from securefed.privacy.statement import Statement


def run_info(
    assembly: Assembly,
    folder: Path,
    run: str,
    guarantee: Guarantee | None,
    baselines: Mapping[str, Mapping[str, float]],
    resumed_at: int | None,
) -> RunInfo:
    """The run's facts; the table of shards and the baselines are simulation diagnostics."""
    data, model, config = assembly.dataset, assembly.model, assembly.config
    sizes = dict.fromkeys(sorted(set(model.part_of.values())), 0)
    for name, part in model.part_of.items():
        sizes[part] += model.parameters[name].numel()
    return RunInfo(
        name=config.name,
        folder=folder,
        run=run,
        config=config,
        model={
            "name": config.model.name,
            "parameters": sum(p.numel() for p in model.module.parameters()),
            "trainable": model.trained,
            "layout": model.layout.digest,
            "parts": sizes,
        },
        dataset={
            "name": data.name,
            "source": data.source,
            "licence": data.licence,
            "classes": list(data.classes),
            "train": len(data.train),
            "test": len(data.test),
            "digest": data.digest,
        },
        shards=shard_table(assembly.shards, data.classes),
        baselines=baselines,
        privacy=_mechanism(config, guarantee, len(assembly.shards)),
        resumed_at=resumed_at,
        environment=environment(),
    )


def _mechanism(config: Config, guarantee: Guarantee | None, clients: int) -> dict[str, Any] | None:
    p = config.privacy
    if guarantee is None:
        return None
    algorithm: Algorithm = make("algorithm", config.algorithm, ALGORITHMS)
    steps = algorithm.steps(config)
    example = p.unit == "example"
    return {
        "unit": p.unit,
        "noise_multiplier": guarantee.noise_multiplier,
        "max_grad_norm": p.max_grad_norm,
        "clip": p.clip,
        "noise": p.noise,
        "sample_rate": p.sample_rate
        if example
        else 1.0
        if config.distributed or config.correlated
        else 1.0
        if public_cohorts(config, clients) is not None
        else (config.clients_per_round or clients) / clients,
        "steps_per_round": steps if example else 1,
        "rounds": config.rounds,
        "epsilon": p.epsilon,
        "delta": p.delta,
        "accountant": "rdp" if config.discrete else p.accountant,
    }


def stored_baselines(folder: Path) -> dict[str, dict[str, float]] | None:
    """The baselines an earlier part of this run computed, None if there are none."""
    try:
        tree: dict[str, dict[str, float]] = json.loads(
            (folder / "baselines.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return None
    return tree


def is_evaluated(config: Config, round: int) -> bool:
    """Whether the model is measured after `round` rounds."""
    every = config.evaluate.every
    return round == config.rounds or (every > 0 and round % every == 0)


@dataclass(frozen=True, eq=False)
class Played:
    """What was asked of a cohort in one round, and what came of it.

    Attributes:
        mib_up, mib_down: of this round. clip: of whole updates, where it moves. staleness: client -> versions behind.
    """

    plan: RoundPlan
    chosen: tuple[int, ...]
    collected: Collected
    outcomes: Sequence[ClientOutcome]
    mib_up: float
    mib_down: float
    clip: float | None = None
    staleness: Mapping[int, int] = field(default_factory=dict)


def round_record(
    config: Config,
    state: State,
    played: Played,
    *,
    epsilon: tuple[float | None, float | None],
    seconds: float,
) -> RoundRecord:
    """The round that led to `state`; `epsilon` is (this run's, the site's)."""
    metrics = dict(state.metrics) if is_evaluated(config, state.round) else None
    return RoundRecord(
        round=state.round - 1,
        rounds=config.rounds,
        phase=played.plan.phase,
        metrics=metrics,
        client_metrics={k: dict(v) for k, v in state.client_metrics.items()} if metrics else None,
        epsilon=epsilon[0],
        site_epsilon=epsilon[1],
        mib_up=played.mib_up,
        mib_down=played.mib_down,
        cohort=played.chosen,
        survivors=played.collected.survivors,
        refused=dict(played.collected.refused),
        seconds=seconds,
        train_seconds=sum(o.seconds for o in played.outcomes),
        diagnostics=_mean_diagnostics(played.outcomes),
        dropped=dict(played.collected.dropped),
        clipped_share=played.collected.clipped_share,
        clip=played.clip,
        sim_seconds=state.sim_seconds if config.clock.seconds else None,
        staleness=dict(played.staleness),
    )


def _mean_diagnostics(outcomes: Sequence[ClientOutcome]) -> dict[str, float]:
    """The clients' diagnostics averaged; computed on private data, for simulations only."""
    told = [o.diagnostics for o in outcomes if o.diagnostics]
    keys = sorted({k for d in told for k in d})
    held = {k: [d[k] for d in told if k in d] for k in keys}
    return {k: float(sum(v) / len(v)) for k, v in held.items()}


def took_part(folder: Path) -> dict[int, list[int]]:
    """Client -> the rounds on record in which its training counted."""
    found: dict[int, list[int]] = {}
    for line in read_rounds(folder):
        for client in line["survivors"]:
            found.setdefault(client, []).append(line["round"])
    return found


def run_summary(
    state: State, stopped: str, statement: Statement | None, gains: Mapping[str, Any] | None = None
) -> RunSummary:
    """The end of a run in numbers and, where it was private, in the ledger's words."""
    return RunSummary(
        metrics=dict(state.metrics),
        client_metrics={k: dict(v) for k, v in state.client_metrics.items()},
        rounds=state.round,
        stopped=stopped,
        seconds=state.seconds,
        statement=None if statement is None else json.loads(statement.to_json()),
        statement_text="" if statement is None else statement.text(),
        mib_up=state.mib_up,
        mib_down=state.mib_down,
        peak_mib=peak_mib(),
        gains=gains or {},
    )


def draw_shards(assembly: Assembly, folder: Path) -> None:
    """A picture of who holds what."""
    (folder / "plots").mkdir(exist_ok=True)
    plot_shards(assembly.shards, assembly.dataset.classes, folder / "plots" / "shards.png")


def peak_mib() -> float:
    """Peak resident memory of this process and its finished children, MiB."""
    import resource
    import sys

    scale = 1024 if sys.platform != "darwin" else 1024 * 1024  # kilobytes on Linux, bytes on macOS
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / scale
