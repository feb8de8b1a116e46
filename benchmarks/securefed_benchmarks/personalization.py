"""What personalization gains on sentiment, client by client and domain by domain, beside training alone.

Twelve natural clients of four domains (films, products, news, tweets); a small net on MiniLM's frozen features,
which are computed once and then are the records, so that a federation takes seconds. Each way has the same
rounds and local epochs; `own` is the model that a client is left with, `alone` the one it would have had.

    python -m securefed_benchmarks.personalization --seeds 3
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
from securefed.config import Config, load_config
from securefed.data import load_dataset, make_shards
from securefed.data.records import Dataset
from securefed.federation import run
from securefed.models import load_model
from securefed_benchmarks.features import SharedStates, in_features
from securefed_benchmarks.timing import report

CLASSES = 2
JOB: dict[str, Any] = {
    "name": "personalization",
    "rounds": 33,
    "data": {"name": "sentiment", "partition": "natural", "clients": 12, "max_length": 48},
    "model": {"name": "mlp", "adapter": "full", "hidden": 64},
    "train": {"epochs": 1, "learning_rate": 0.3, "batch_size": 32},
    "server": {"average": 0.8},
    "evaluate": {"every": 0, "baselines": False},
    "engine": {"threads": 1, "checkpoint_every": 1000},
    "tracking": {"report": False},
}
WAYS: dict[str, dict[str, Any]] = {
    "fedavg": {"algorithm": "fedavg", "evaluate.alone": True},
    "fedprox": {"algorithm": {"name": "fedprox", "mu": 0.01}, "evaluate.alone": True},
    "ditto": {"algorithm": {"name": "ditto", "strength": 0.3}},
    "fedper": {"algorithm": "fedper"},
    "fedrep": {"algorithm": "fedrep"},
    "finetune": {"rounds": 43, "algorithm": {"name": "finetune", "tune_rounds": 10, "tune_rate": 0.1}},
}
"""`finetune`: the same 33 rounds together, then ten alone. Its rate and rounds are those of six that did best on a
fifth of the training documents (benchmarks/README.md); the others were not searched."""


def played(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Who gained and who lost in one federation (`clients.json` of its folder)."""
    assert dataset.train.images is not None
    width = dataset.train.images.shape[-1]
    model = load_model(config.model, classes=CLASSES, image_shape=(1, 1, width))
    assembly = Assembly(config, dataset, tuple(make_shards(dataset, config.data)), model)
    with tempfile.TemporaryDirectory() as scratch:
        result = run(config, folder=Path(scratch) / "run", assembly=assembly)
        found: dict[str, Any] = json.loads((result.folder / "clients.json").read_text())
    return found


def facts_of(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each domain's mean over seeds, and what a reader looks for with every seed's value."""
    names = [d["domain"] for d in found[0]["domains"]]
    by_domain = {
        way: {
            name: round(float(np.mean([_of(f, name)[way] for f in found])), 4)
            for name in names
            if all(_of(f, name)[way] is not None for f in found)
        }
        for way in ("own", "global", "alone")
    }
    alone = {
        "clients_that_gain_over_alone": [f["gain"] for f in found],
        "clients_that_lose": [f["lose"] for f in found],
        "mean_gain_over_alone": [round(f["mean_gain_over_alone"], 4) for f in found if f["gain"] is not None],
    }
    return {
        **by_domain,
        "worst_domain": [f["worst_domain"]["domain"] for f in found],
        "worst_domain_accuracy": [round(f["worst_domain"]["own"], 4) for f in found],
        "worst_domain_of_the_global_model": [
            round(w, 4) for f in found if (w := worst_global(f)) is not None
        ],
        "mean_over_domains": [round(float(np.mean([d["own"] for d in f["domains"]])), 4) for f in found],
        "worst_client_accuracy": [round(f["worst_client"]["own"], 4) for f in found],
        **(alone if found[0]["gain"] is not None else {}),
    }


def worst_global(found: Mapping[str, Any]) -> float | None:
    """The worst domain's accuracy under the global model of the same run; None where there is no whole one."""
    scores = [d["global"] for d in found["domains"]]
    return None if None in scores else float(min(scores))


def _of(found: Mapping[str, Any], domain: str) -> Mapping[str, Any]:
    return next(d for d in found["domains"] if d["domain"] == domain)


def main() -> None:
    """Prints a JSON line for each way, and one with what it lifts the worst domain by, seed by seed."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument(
        "--ways", nargs="+", choices=sorted(WAYS), default=list(WAYS), help="after overrides"
    )
    arguments.add_argument(
        "--features", type=Path, help="a file that keeps MiniLM's features from call to call"
    )
    arguments.add_argument("overrides", nargs="*", help="fields of the job: key=value")
    asked = arguments.parse_args()
    first = load_config(JOB, asked.overrides)
    dataset = in_features(
        load_dataset(first.data, task="classification"), first.data.max_length, SharedStates(asked.features)
    )
    worst: dict[str, list[float]] = {}
    for name in asked.ways:
        began = time.process_time()
        found = []
        for seed in range(asked.seeds):
            seeds = {"seed": seed, "data.seed": seed, "model.seed": seed}
            config = load_config(load_config(JOB, {**WAYS[name], **seeds}), asked.overrides)
            found.append(played(config, dataset))
        worst[name] = [f["worst_domain"]["own"] for f in found]
        cpu = round((time.process_time() - began) / asked.seeds, 1)
        report(f"personalization: {name}", {**facts_of(found), "cpu_s_per_run": cpu})
    for name in [n for n in worst if n != "fedavg" and "fedavg" in worst]:
        lift = [round(a - b, 4) for a, b in zip(worst[name], worst["fedavg"], strict=True)]
        report(
            f"personalization: {name} lifts the worst domain by",
            {"lift": lift, "mean": round(float(np.mean(lift)), 4)},
        )


if __name__ == "__main__":
    main()
