"""FedBuff beside synchronous rounds over one simulated clock with stragglers: simulated time to a target accuracy.

An MLP on Fashion-MNIST, 50 clients with skewed labels, one in ten of them ten times slower. Synchronous rounds wait
for the slowest of their cohort; FedBuff steps whenever ten updates are there, while as many clients are at work.
Two synchronous cohorts are tried (as many as a buffer, and as are at work); the quicker of them counts.

    python -m securefed_benchmarks.asynchronous --seeds 3
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from securefed.config import load_config
from securefed.federation import run
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary
from securefed_benchmarks.timing import report

TARGET, BUFFER, AT_WORK = 0.75, 10, 20
JOB: dict[str, Any] = {
    "name": "asynchronous",
    "rounds": 60,
    "data": {
        "name": "fashion-mnist",
        "clients": 50,
        "partition": "dirichlet",
        "alpha": 0.5,
        "limit": 10_000,
    },
    "model": {"name": "mlp", "adapter": "full", "hidden": 64},
    "train": {"steps": 10, "learning_rate": 0.1, "batch_size": 32},
    "clock": {"seconds": 60.0, "spread": 0.5, "stragglers": 0.1, "slowdown": 10.0},
    "evaluate": {"every": 1, "clients": False, "baselines": False},
    "engine": {"threads": 1, "checkpoint_every": 1000},
    "tracking": {"report": False},
}
FEDBUFF: dict[str, Any] = {
    "clients_per_round": BUFFER,
    "algorithm": {"name": "fedbuff", "concurrency": AT_WORK},
}
SYNCHRONOUS = {f"fedavg, {k} a round": {"clients_per_round": k} for k in (BUFFER, AT_WORK)}
WAYS: dict[str, dict[str, Any]] = {
    "fedbuff": FEDBUFF,
    "fedbuff, weights of 1": {**FEDBUFF, "algorithm.exponent": 0.0},
    **SYNCHRONOUS,
}


class Watch:
    """A tracker that notes when the score is first at the target, and a stop flag that is set from then on."""

    def __init__(self, target: float) -> None:
        self.target, self.rounds = target, 0
        self.seconds: float | None = None

    def start(self, info: RunInfo) -> None: ...

    def round(self, record: RoundRecord) -> None:
        """Notes the round's simulated time where it has met the target."""
        self.rounds = record.round + 1
        if self.seconds is None and record.metrics and record.metrics["accuracy"] >= self.target:
            self.seconds = record.sim_seconds

    def end(self, summary: RunSummary) -> None: ...

    def close(self) -> None: ...

    def is_set(self) -> bool:
        """Whether the target is met."""
        return self.seconds is not None


def played(way: dict[str, Any], seed: int, target: float, overrides: Sequence[str]) -> Watch:
    """One federation until it meets the target, or to its end."""
    config = load_config(JOB, {**way, "seed": seed, "data.seed": seed, "model.seed": seed})
    watch = Watch(target)
    with tempfile.TemporaryDirectory() as scratch:
        run(config, overrides, folder=Path(scratch) / "run", trackers=[watch], stop_flag=watch)
    return watch


def main() -> None:
    """Prints a JSON line for each way, and one with FedBuff's time over the quicker synchronous one, seed by seed."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--target", type=float, default=TARGET)
    arguments.add_argument("overrides", nargs="*", help="fields of the job: key=value")
    asked = arguments.parse_args()
    times: dict[str, list[float | None]] = {}
    for name, way in WAYS.items():
        began = time.process_time()
        found = [played(way, seed, asked.target, asked.overrides) for seed in range(asked.seeds)]
        times[name] = [one.seconds for one in found]
        facts = {
            "target": asked.target,
            "sim_seconds": [None if t is None else round(t, 1) for t in times[name]],
            "rounds": [one.rounds for one in found],
            "cpu_s_per_run": round((time.process_time() - began) / asked.seeds, 1),
        }
        report(f"asynchronous: {name}", facts)
    ratios = []
    for seed in range(asked.seeds):
        rivals = [t for name in SYNCHRONOUS if (t := times[name][seed]) is not None]
        mine = times["fedbuff"][seed]
        ratios.append(None if mine is None or not rivals else round(mine / min(rivals), 3))
    report("asynchronous: fedbuff over the quicker synchronous", {"ratios": ratios, "most": _most(ratios)})


def _most(ratios: Sequence[float | None]) -> float | None:
    return None if None in ratios else float(np.max([r for r in ratios if r is not None]))


if __name__ == "__main__":
    main()
