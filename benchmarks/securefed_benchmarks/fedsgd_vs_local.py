"""What sharing one noise is worth: central DP-SGD, fedsgd under masking, and fedavg with each client's own noise.

Twelve natural clients of `sentiment`; a linear head on frozen features of MiniLM, which are computed once and
then are the records, so that whole federations, masking and ledger included, take seconds. The three ways have
the same schedule, sample rate, clip and server step; each calibrates its noise for the same epsilon.

    python -m securefed_benchmarks.fedsgd_vs_local --epsilons 1 3 --seeds 3
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from securefed.assembly import Assembly
from securefed.config import Config, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data.records import Dataset, Shard
from securefed.federation import Federation
from securefed.models import load_model
from securefed_benchmarks.features import SharedStates, frozen
from securefed_benchmarks.timing import report

RATE = 8.0
JOB: dict[str, Any] = {
    "rounds": 60,
    "data": {"name": "sentiment", "partition": "natural", "clients": 12, "max_length": 48},
    "model": {"name": "logistic", "adapter": "full"},
    "privacy": {"unit": "example", "delta": 1e-5, "sample_rate": 0.2, "max_grad_norm": 0.5},
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "engine": {"threads": 1, "checkpoint_every": 1000},
}
STEP = {"steps": 1, "label_smoothing": 0.1, "physical_batch": 4096}
SERVER = {"optimizer": "fedavgm", "momentum": 0.9}
TOGETHER = {"algorithm": "fedsgd", "train": STEP, "server": {**SERVER, "learning_rate": RATE}}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "central: the server adds the noise": (TOGETHER, {"privacy.noise": "central"}),
    "fedavg, each client adds all the noise": (
        {
            "weights": "size",
            "train": {**STEP, "learning_rate": RATE},
            "server": {**SERVER, "learning_rate": 1.0},
        },
        {},
    ),
    "fedsgd, Skellam noise under masking, all 12 survive": (
        TOGETHER,
        {"privacy.noise": "skellam", "protection": {"name": "masking", "min_survivors": 12}},
    ),
    "fedsgd, the same with masking's own floor of survivors": (
        TOGETHER,
        {"privacy.noise": "skellam", "protection": "masking"},
    ),
}


def accuracies(config: Config, dataset: Dataset, shards: Sequence[Shard], seeds: int) -> list[float]:
    """Test accuracy of `seeds` federations from fresh randomness."""
    found = []
    for _ in range(seeds):
        assert dataset.test.images is not None
        model = load_model(config.model, classes=2, image_shape=(1, 1, dataset.test.images.shape[-1]))
        with tempfile.TemporaryDirectory() as scratch:
            player = Federation(
                Assembly(config, dataset, tuple(shards), model),
                Path(scratch),
                f"bench {time.time_ns()}",
                SystemEntropy(),
            )
            found.append(float(player.play(None).metrics["accuracy"]))
            player.close()
    return found


def main() -> None:
    """Prints one JSON line for each way and epsilon."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 3.0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument(
        "--features", type=Path, help="a file that keeps MiniLM's features from call to call"
    )
    arguments.add_argument("overrides", nargs="*", help="fields of the job: key=value")
    asked = arguments.parse_args()
    first = load_config({**JOB, "train": STEP, "privacy": {"unit": "none"}}, asked.overrides)
    dataset, shards = frozen(first, SharedStates(asked.features))
    for epsilon in asked.epsilons:
        for name, (job, way) in WAYS.items():
            config = _job(job, way, epsilon, asked.overrides)
            began = time.process_time()
            found = accuracies(config, dataset, shards, asked.seeds)
            facts: Mapping[str, Any] = {
                "epsilon": epsilon,
                "accuracy": [round(a, 4) for a in found],
                "mean": round(float(np.mean(found)), 4),
                "cpu_s_per_run": round((time.process_time() - began) / asked.seeds, 1),
            }
            report(f"fedsgd_vs_local: {name}", facts)


def _job(job: dict[str, Any], way: dict[str, Any], epsilon: float, overrides: Sequence[str]) -> Config:
    whole = load_config({**JOB, **job}, {**way, "privacy.epsilon": epsilon})
    return load_config(whole, overrides)


if __name__ == "__main__":
    main()
