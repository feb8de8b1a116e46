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

from securefed.assembly import assemble
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.federation import Federation
from securefed_benchmarks.features import Shared, SharedStates
from securefed_benchmarks.timing import report

JOB: dict[str, Any] = {
    "weights": "equal",
    "rounds": 12,
    "data": {"name": "sentiment", "partition": "natural", "clients": 12, "max_length": 32, "limit": 3000},
    "model": {"name": "minilm", "adapter": "lora", "rank": 8, "layers": 1, "head_layers": 4},
    "train": {
        "optimizer": "adamw",
        "steps": 8,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "head_learning_rate": 2e-2,
    },
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "tracking": {"report": False},
    "engine": {"threads": 1, "checkpoint_every": 1000},
}
UNLIKE = {"model.ranks": [2, 4, 8]}


def joined(name: str, **settings: Any) -> dict[str, Any]:
    """An algorithm after four rounds of the head alone, which everything else waits for."""
    return {"algorithm": {"name": name, "head_rounds": 4, **settings}}


RANKS: dict[str, dict[str, Any]] = {
    "all of rank 8": {**joined("slices")},
    "all of rank 2": {**joined("slices"), "model.rank": 2, "model.alpha": 2.0},
    "2, 4, 8: slices": {**joined("slices"), **UNLIKE},
    "2, 4, 8: hetlora": {**joined("hetlora"), **UNLIKE},
    "2, 4, 8: hetlora by sparsity": {**joined("hetlora", weighting="sparsity"), **UNLIKE},
    "2, 4, 8: flexlora": {**joined("flexlora"), **UNLIKE},
    "2, 4, 8: flexlora of products, masked": {
        **joined("flexlora", products=True),
        "model.merged": True,
        "protection": "masking",
        **UNLIKE,
    },
    "2, 4, 8: flora": {**joined("flora"), "model.merged": True, **UNLIKE},
    "2, 4, 8: fedex": {**joined("fedex"), "model.merged": True, **UNLIKE},
}
WHOLE = {
    **joined("fedavg"),
    "model.layers": "all",
    "data.limit": 1200,
    "data.max_length": 24,
    "train.batch_size": 16,
}
BYTES: dict[str, dict[str, Any]] = {
    "head alone": {**WHOLE, "model.adapter": "head"},
    "prompt, 24 tokens": {
        **WHOLE,
        "model.adapter": "prompt",
        "model.virtual_tokens": 24,
        "train.learning_rate": 1e-2,
    },
    "prefix, 2 tokens": {
        **WHOLE,
        "model.adapter": "prefix",
        "model.virtual_tokens": 2,
        "train.learning_rate": 1e-2,
    },
    "ia3 on key, value, output": {**WHOLE, "model.adapter": "ia3", "train.learning_rate": 1e-2},
    "lora of rank 1": {**WHOLE, "model.adapter": "lora", "model.rank": 1, "model.alpha": 1.0},
}
"""The numbers that a round sends beside the head: 9,216 by prompt, 9,216 by prefix, 16,128 by IA3, 9,216 by LoRA."""


def played(way: Mapping[str, Any], seed: int, shared: Shared) -> tuple[float, float]:
    """(test accuracy, MiB up over all clients and rounds) of one federation."""
    config = load_config(JOB, {**way, "seed": seed, "model.seed": seed})
    with tempfile.TemporaryDirectory() as scratch:
        player = Federation(
            assemble(config, shared), Path(scratch), f"bench {time.time_ns()}", SystemEntropy()
        )
        player.parts.runner.cache = player.parts.evaluator.cache = shared.cache
        found = player.play(None)
        player.close()
        totals = json.loads((Path(scratch) / "bytes.json").read_text(encoding="utf-8"))
    return float(found.metrics["accuracy"]), float(totals["mib_up"])


def measured(
    ways: Mapping[str, Mapping[str, Any]], seeds: int, only: Sequence[str], out: Path | None, shared: Shared
) -> None:
    """Reports each way, and adds it to `out`."""
    for name, way in ways.items():
        if only and not any(word in name for word in only):
            continue
        began = time.process_time()
        runs = [played(way, seed, shared) for seed in range(seeds)]
        accuracy = [a for a, _ in runs]
        facts = {
            "way": name,
            "accuracy": [round(a, 4) for a in accuracy],
            "mean": round(float(np.mean(accuracy)), 4),
            "sd": round(float(np.std(accuracy, ddof=1)), 4) if seeds > 1 else None,
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
    arguments.add_argument("--tests", type=int, default=1200, help="test sentences, of 3,885")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--features", type=Path, help="a file that keeps frozen states from call to call")
    asked = arguments.parse_args()
    ways = RANKS if asked.what == "ranks" else BYTES
    measured(ways, asked.seeds, asked.only, asked.out, Shared(asked.tests, SharedStates(asked.features)))


if __name__ == "__main__":
    main()
