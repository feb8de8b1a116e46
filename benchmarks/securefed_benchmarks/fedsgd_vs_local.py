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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefed.assembly import Assembly
from securefed.config import Config, ModelConfig, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data import load_dataset, make_shards
from securefed.data.records import Dataset, Examples, Shard
from securefed.federation import Federation
from securefed.models import load_model
from securefed.training.frozen_cache import FrozenCache
from securefed_benchmarks.timing import report

FEATURES = ModelConfig(name="minilm", adapter="head", head_layers=4)
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


def features(examples: Examples, max_length: int) -> NDArray[np.float32]:
    """What the frozen model gives a head to read, float32 (n, 1, 1, width)."""
    model = load_model(FEATURES, classes=2, unit="example", max_length=max_length)
    data = model.encode(examples, max_length)
    states = FrozenCache(1 << 14).states(
        model, data, set(model.part_of), physical_tokens=8192, physical_batch=256
    )
    assert states is not None
    assert states.pooled is not None
    return states.pooled.numpy()[:, None, None, :]


def frozen(config: Config) -> tuple[Dataset, tuple[Shard, ...]]:
    """The job's data and shards with features in place of their texts."""
    dataset = load_dataset(config.data, task="classification")
    shards = tuple(make_shards(dataset, config.data))

    def as_features(examples: Examples) -> Examples:
        return Examples(images=features(examples, config.data.max_length), labels=examples.labels)

    held = tuple(replace(s, train=as_features(s.train), test=s.test.take([])) for s in shards)
    return replace(dataset, train=held[0].train, test=as_features(dataset.test)), held


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
    arguments.add_argument("overrides", nargs="*", help="fields of the job: key=value")
    asked = arguments.parse_args()
    first = load_config({**JOB, "train": STEP, "privacy": {"unit": "none"}}, asked.overrides)
    dataset, shards = frozen(first)
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
