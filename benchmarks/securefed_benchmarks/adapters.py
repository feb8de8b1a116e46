"""Adapters side by side on sentiment: prompt, prefix, IA3 and LoRA at equal bytes; unlike ranks beside equal ones.

Twelve natural clients of `sentiment`, MiniLM, no privacy. `--what ranks`: LoRA in the top layer (what lies below is
computed once), all clients of rank 8 beside ranks 2, 4 and 8 in turn, joined in each way. `--what bytes`: adapters
through all layers, sized so that a round sends nearly the same number of bytes.

    python -m securefed_benchmarks.adapters --what ranks --seeds 3
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

from securefed.federation import run
from securefed_benchmarks.timing import report

JOB: dict[str, Any] = {
    "weights": "equal",
    "rounds": 12,
    "data": {"name": "sentiment", "partition": "natural", "clients": 12, "max_length": 32, "limit": 2000},
    "model": {"name": "minilm", "adapter": "lora", "rank": 8, "layers": 1},
    "train": {"steps": 5, "batch_size": 16, "learning_rate": 1.0, "head_learning_rate": 8.0},
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "tracking": {"report": False},
    "engine": {"threads": 1, "checkpoint_every": 1000},
}
UNLIKE = {"model.ranks": [2, 4, 8]}
RANKS: dict[str, dict[str, Any]] = {
    "all of rank 8": {"algorithm": "slices"},
    "all of rank 2": {"algorithm": "slices", "model.rank": 2, "model.alpha": 2.0},
    "2, 4, 8: slices": {"algorithm": "slices", **UNLIKE},
    "2, 4, 8: hetlora": {"algorithm": "hetlora", **UNLIKE},
    "2, 4, 8: hetlora by sparsity": {"algorithm": {"name": "hetlora", "weighting": "sparsity"}, **UNLIKE},
    "2, 4, 8: flexlora": {"algorithm": "flexlora", **UNLIKE},
    "2, 4, 8: flora": {"algorithm": "flora", "model.merged": True, **UNLIKE},
    "2, 4, 8: fedex": {"algorithm": "fedex", "model.merged": True, **UNLIKE},
}
WHOLE = {"model.layers": "all", "data.limit": 1200, "data.max_length": 24, "rounds": 8}
BYTES: dict[str, dict[str, Any]] = {
    "head alone": {**WHOLE, "model.adapter": "head"},
    "prompt, 24 tokens": {**WHOLE, "model.adapter": "prompt", "model.virtual_tokens": 24},
    "prefix, 2 tokens": {**WHOLE, "model.adapter": "prefix", "model.virtual_tokens": 2},
    "ia3 on key, value, output": {**WHOLE, "model.adapter": "ia3"},
    "lora of rank 1": {**WHOLE, "model.adapter": "lora", "model.rank": 1, "model.alpha": 1.0},
}
"""The numbers that a round sends beside the head: 9,216 by prompt, 9,216 by prefix, 16,128 by IA3, 9,216 by LoRA."""


def played(way: Mapping[str, Any], seed: int, overrides: Mapping[str, Any]) -> tuple[float, float]:
    """(test accuracy, MiB up over all clients and rounds) of one federation."""
    with tempfile.TemporaryDirectory() as scratch:
        found = run(JOB, {**way, **overrides, "seed": seed, "model.seed": seed}, folder=Path(scratch) / "run")
        totals = json.loads((found.folder / "bytes.json").read_text(encoding="utf-8"))
    return float(found.metrics["accuracy"]), float(totals["mib_up"])


def measured(
    ways: Mapping[str, Mapping[str, Any]], seeds: int, only: Sequence[str], out: Path | None
) -> None:
    """Reports each way, and adds it to `out`."""
    for name, way in ways.items():
        if only and not any(word in name for word in only):
            continue
        began = time.process_time()
        runs = [played(way, seed, {}) for seed in range(seeds)]
        facts = {
            "way": name,
            "accuracy": [round(a, 4) for a, _ in runs],
            "mean": round(float(np.mean([a for a, _ in runs])), 4),
            "mib_up": round(float(np.mean([u for _, u in runs])), 3),
            "cpu_s_per_run": round((time.process_time() - began) / seeds, 1),
        }
        report(f"adapters: {name}", facts)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")


def main() -> None:
    """Prints one JSON line for each way."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--what", choices=("ranks", "bytes"), default="ranks")
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--only", nargs="*", default=[], help="ways whose names hold one of these words")
    arguments.add_argument("--out", type=Path)
    asked = arguments.parse_args()
    measured(RANKS if asked.what == "ranks" else BYTES, asked.seeds, asked.only, asked.out)


if __name__ == "__main__":
    main()
