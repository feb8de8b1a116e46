"""A run as the federation tells it, without a federation: 30 rounds, 12 clients, under DP or not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from securefed.config import Config, load_config
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary, Tracker

DOMAINS = ("movies", "products", "news", "tweets")
STATEMENT: dict[str, Any] = {
    "version": 1,
    "run": "5a1e0f2c9b7d4e83",
    "dataset": "3f" * 32,
    "unit": "example",
    "relation": "contribution by zero",
    "epsilon": 7.981234,
    "delta": 1e-5,
    "accountant": "pld",
    "adversary": "against everyone who sees this client's updates, the server included: each client adds its own noise before sending",
    "holds_for": "every record of the 12 clients: the maximum over clients, whose shards are disjoint",
    "clients": 12,
    "disjoint": True,
    "mechanism": "30 Gaussian steps, noise multiplier 0.9731, sample rate 0.135",
    "steps_reserved": 360,
    "steps_settled": 359,
    "unfinished": 1,
    "site_epsilon": 12.4401,
    "site_runs": 3,
    "caveats": ["a second attempt of a round was charged again"],
    "not_covered": [
        "the choice of hyper-parameters: every run that was tried on these records and is not in the ledger",
        "what a person's other records reveal about them",
    ],
}
TEXT = "Differential privacy of run 5a1e0f2c9b7d4e83\n  epsilon = 7.981 at delta = 1e-05, by PLD (an upper bound)\n  holds against everyone"


def job(rounds: int = 30, private: bool = True, **changes: Any) -> Config:
    """A job like the quickstart's."""
    tree: dict[str, Any] = {"name": "quickstart", "rounds": rounds, "train": {"steps": 1}, **changes}
    if private:
        tree["privacy"] = {"unit": "example", "epsilon": 8.0, "sample_rate": 0.135, "max_grad_norm": 0.5}
    return load_config(tree)


def shard_table(clients: int) -> list[dict[str, Any]]:
    """Clients of four natural groups with different sizes and class balance."""
    rng = np.random.default_rng(1)
    table = []
    for k in range(clients):
        train = int(rng.integers(450, 2600))
        positive = int(train * rng.uniform(0.25, 0.8))
        counts = {"negative": train - positive, "positive": positive}
        name = f"{DOMAINS[k % 4]}/{k // 4 + 1}"
        table.append({"client": k, "name": name, "train": train, "test": train // 4, "counts": counts})
    return table


def info(folder: Path, config: Config | None = None, clients: int = 12, **changes: Any) -> RunInfo:
    """The facts before the first round."""
    config = config or job()
    shards = shard_table(clients)
    mechanism = {
        "unit": config.privacy.unit,
        "noise_multiplier": 0.9731,
        "max_grad_norm": 0.5,
        "sample_rate": 0.135,
        "steps_per_round": 1,
        "rounds": config.rounds,
        "epsilon": config.privacy.epsilon,
        "delta": 1e-5,
        "accountant": "pld",
    }
    made = RunInfo(
        name=config.name,
        folder=folder,
        run="5a1e0f2c9b7d4e83",
        config=config,
        model={
            "name": "minilm",
            "parameters": 22_762_370,
            "trainable": 49_922,
            "layout": "ab" * 32,
            "parts": {"head": 770, "A": 24_576, "B": 24_576},
        },
        dataset={
            "name": "sentiment",
            "source": "Hutto and Gilbert, ICWSM 2014, from the source package of vaderSentiment 0.5",
            "licence": "MIT",
            "classes": ["negative", "positive"],
            "train": sum(s["train"] for s in shards),
            "test": 3787,
            "digest": "3f" * 32,
        },
        shards=shards,
        baselines={
            "majority_class": {"accuracy": 0.551, "balanced_accuracy": 0.5, "loss": 0.688},
            "tf_idf": {"accuracy": 0.781, "balanced_accuracy": 0.777, "loss": 0.486},
            "frozen_probe": {"accuracy": 0.802, "balanced_accuracy": 0.799, "loss": 0.441},
        },
        privacy=mechanism if config.private else None,
        resumed_at=None,
        environment={
            "python": "3.11.9",
            "platform": "Linux x86_64",
            "cores": 2,
            "packages": {"securefed": "0.1.0", "torch": "2.13.0", "opacus": "1.6.0", "nothing": None},
            "commit": "972ca69",
        },
    )
    return replace(made, **changes)


def records(config: Config, clients: int = 12, start: int = 0) -> Iterator[RoundRecord]:
    """The rounds; in round 7 two clients are missing, one of them refused."""
    rng = np.random.default_rng(2)
    for r in range(config.rounds):
        accuracy = 0.55 + 0.24 * (1 - math.exp(-(r + 1) / 7)) + float(rng.normal(0, 0.006))
        evaluated = r % 3 == 2 or r == config.rounds - 1
        per = {k: {"accuracy": accuracy + float(rng.normal(0, 0.05)), "loss": 0.5} for k in range(clients)}
        bad = r == 7 and clients > 4
        spent = 8 * math.sqrt((r + 1) / config.rounds) * 0.9976 if config.private else None
        record = RoundRecord(
            round=r,
            rounds=config.rounds,
            phase="head" if r < config.rounds // 2 else "BA"[r % 2],
            metrics={"loss": 1 - accuracy / 1.5, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.01}
            if evaluated
            else None,
            client_metrics=per if evaluated else None,
            epsilon=spent,
            site_epsilon=None if spent is None else spent + 4.46,
            mib_up=0.0352 * clients,
            mib_down=0.1904 * clients,
            cohort=tuple(range(clients)),
            survivors=tuple(k for k in range(clients) if not (bad and k in (2, 4))),
            refused={4: "update is not finite"} if bad else {},
            seconds=1.9 + float(rng.normal(0, 0.1)),
            train_seconds=1.7,
            diagnostics={"loss": 0.69 - 0.01 * r, "clipped_share": 0.62},
        )
        if r >= start:
            yield record


def summary(config: Config, stopped: str = "rounds", clients: int = 12) -> RunSummary:
    """The end that fits `records`."""
    last = list(records(config, clients))[-1]
    assert last.metrics is not None
    assert last.client_metrics is not None
    return RunSummary(
        metrics=last.metrics,
        client_metrics=last.client_metrics,
        rounds=config.rounds,
        stopped=stopped,
        seconds=61.3,
        statement=STATEMENT if config.private else None,
        statement_text=TEXT if config.private else "",
        mib_up=0.0352 * clients * config.rounds,
        mib_down=0.1904 * clients * config.rounds,
        peak_mib=812.4,
    )


def play(tracker: Tracker, told: RunInfo, end: bool = True) -> None:
    """Tells the tracker a whole run."""
    clients = len(told.shards)
    tracker.start(told)
    for record in records(told.config, clients, told.resumed_at or 0):
        tracker.round(record)
    if end:
        tracker.end(summary(told.config, clients=clients))
    tracker.close()
