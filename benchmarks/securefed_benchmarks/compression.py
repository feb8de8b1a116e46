"""Accuracy against MiB: what each compression of updates costs and saves, on sentiment.

Twelve natural clients of `sentiment`. The model is a hidden layer on frozen features of MiniLM, which are computed
once and then are the records; all of it, 98,498 numbers, is trained and sent. Bytes are those that the protection's
own messages had: headers, indices, scales, keys and shares are inside. Seeds change the first model, the batches
and what compression draws.

    python -m securefed_benchmarks.compression --seeds 3 --out compression.jsonl
    python -m securefed_benchmarks.compression --digits     # a small net on scikit-learn's digits: half a CPU minute
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from securefed.assembly import Assembly
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data.records import Dataset, Shard
from securefed.federation import Federation, run
from securefed.models import load_model
from securefed_benchmarks.features import SharedStates, frozen
from securefed_benchmarks.timing import report

JOB: dict[str, Any] = {
    "rounds": 40,
    "weights": "equal",
    "data": {"name": "sentiment", "partition": "natural", "clients": 12, "max_length": 48},
    "model": {"name": "mlp", "adapter": "full", "hidden": 64},
    "train": {"steps": 10, "batch_size": 32, "learning_rate": 0.3},
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "engine": {"threads": 1, "checkpoint_every": 1000},
}
DIGITS: dict[str, Any] = {
    **JOB,
    "rounds": 30,
    "data": {"name": "digits", "clients": 4, "partition": "iid"},
    "train": {"epochs": 1, "batch_size": 32, "learning_rate": 0.2},
    "tracking": {"report": False},
}
"""One hidden layer on 8 x 8 pictures, 4,810 numbers."""
NARROW: dict[str, Any] = {"name": "masking", "bits": 16, "value_range": 0.5}
"""Half the bytes of a masked word; 2,730 levels for each of twelve clients, so the range must fit the updates."""
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "quantized to -1, 0, 1": {"compression": {"name": "quantized", "levels": 1}},
    "quantized to 15 levels": {"compression": {"name": "quantized", "levels": 7}},
    "top-k, 1 in 32": {"compression": {"name": "top_k", "share": 1 / 32}},
    "top-k, 1 in 128": {"compression": {"name": "top_k", "share": 1 / 128}},
    "top-k, 1 in 32, no memory": {"compression": {"name": "top_k", "share": 1 / 32, "error_feedback": False}},
    "random-k, 1 in 16": {"compression": {"name": "random_k", "share": 1 / 16}},
    "random-k, 1 in 16, memory": {
        "compression": {"name": "random_k", "share": 1 / 16, "error_feedback": True}
    },
    "low rank 2": {"compression": {"name": "low_rank", "rank": 2}},
    "low rank 4": {"compression": {"name": "low_rank", "rank": 4}},
    "low rank 2, fresh basis": {"compression": {"name": "low_rank", "rank": 2, "warm": False}},
    "Count-Sketch, 1 in 4": {"compression": {"name": "count_sketch", "share": 1 / 4}},
    "whole, masking": {"protection": "masking"},
    "random-k, 1 in 16, masking": {
        "protection": "masking",
        "compression": {"name": "random_k", "share": 1 / 16},
    },
    "random-k, 1 in 16, masking of 16 bits": {
        "protection": NARROW,
        "compression": {"name": "random_k", "share": 1 / 16},
    },
    "low rank 2, masking of 16 bits": {
        "protection": NARROW,
        "compression": {"name": "low_rank", "rank": 2},
    },
}


def played(
    way: Mapping[str, Any],
    seed: int,
    dataset: Dataset,
    shards: Sequence[Shard],
    overrides: Sequence[str] = (),
) -> tuple[float, float, float]:
    """(test accuracy, MiB up, MiB down, both over all clients and rounds) of one federation."""
    config = load_config({**JOB, **way}, {"seed": seed, "model.seed": seed})
    config = load_config(config, overrides)
    assert dataset.test.images is not None
    width = dataset.test.images.shape[-1]
    model = load_model(config.model, classes=2, image_shape=(1, 1, width))
    with tempfile.TemporaryDirectory() as scratch:
        assembly = Assembly(config, dataset, tuple(shards), model)
        player = Federation(assembly, Path(scratch), f"bench {time.time_ns()}", SystemEntropy())
        found = player.play(None)
        player.close()
        totals = json.loads((Path(scratch) / "bytes.json").read_text(encoding="utf-8"))
    return float(found.metrics["accuracy"]), float(totals["mib_up"]), float(totals["mib_down"])


def played_digits(way: Mapping[str, Any], seed: int) -> tuple[float, float, float]:
    """The same for the small net on digits."""
    with tempfile.TemporaryDirectory() as scratch:
        found = run({**DIGITS, **way}, {"seed": seed, "model.seed": seed}, folder=Path(scratch) / "run")
        totals = json.loads((found.folder / "bytes.json").read_text(encoding="utf-8"))
    return float(found.metrics["accuracy"]), float(totals["mib_up"]), float(totals["mib_down"])


def main() -> None:
    """Prints one JSON line for each way, and adds it to `--out`."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--only", nargs="*", default=[], help="ways whose names hold one of these words")
    arguments.add_argument("--digits", action="store_true", help="the small net on digits")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument(
        "--features", type=Path, help="a file that keeps MiniLM's features from call to call"
    )
    arguments.add_argument("overrides", nargs="*", help="fields of the job: key=value")
    asked = arguments.parse_args()
    features = (
        None if asked.digits else frozen(load_config(JOB, asked.overrides), SharedStates(asked.features))
    )
    whole = 0.0
    for name, way in WAYS.items():
        if asked.only and not any(word in name for word in asked.only):
            continue
        began = time.process_time()
        runs = [
            played_digits(way, seed) if features is None else played(way, seed, *features, asked.overrides)
            for seed in range(asked.seeds)
        ]
        up = float(np.mean([u for _, u, _ in runs]))
        whole = whole or up
        facts = {
            "way": name,
            "accuracy": [round(a, 4) for a, _, _ in runs],
            "mean": round(float(np.mean([a for a, _, _ in runs])), 4),
            "mib_up": round(up, 3),
            "mib_down": round(float(np.mean([d for _, _, d in runs])), 2),
            "fewer_bytes_up": round(whole / up, 1),
            "cpu_s_per_run": round((time.process_time() - began) / asked.seeds, 1),
        }
        report(f"compression: {name}", facts)
        if asked.out is not None:
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
