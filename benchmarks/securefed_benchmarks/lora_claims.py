"""Liars against a federated MiniLM LoRA run: rules that measure distances factor by factor, or in product space.

Eight clients, two of whom lie, fine-tune A and B of the top layer and a head on rated sentences (Dirichlet 1 over the
labels), from a head that was fitted before on the frozen features. Rows are combined factor by factor in either case; `space` only says how distances between them are
measured. Beside the usual attacks there is one made for adapters, `gauge`: the liars' factors multiply to the honest
product, so that product space sees nothing, while their average with anybody's is far from any of them.

    python -m securefed_benchmarks.lora_claims --out lora.jsonl             # resumable
    python -m securefed_benchmarks.lora_claims --out lora.jsonl --table
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from securefed.config import DataConfig, ModelConfig, TrainConfig
from securefed.data import load_dataset
from securefed.data.batch import Encoded
from securefed.data.partition import dirichlet
from securefed.factors import A_END, AdapterSpace
from securefed.layout import Layout
from securefed.training.frozen_cache import FrozenCache
from securefed.training.local import LocalWork, train_locally
from securefed.training.metrics import predict
from securefed.types import RoundContext, Vector
from securefed_attacks import BYZANTINE
from securefed_benchmarks.byzantine_claims import load, shown
from securefed_defenses import AGGREGATORS, NNM, GeometricMedian, MultiKrum, Pipeline

if TYPE_CHECKING:
    from securefed.models import TaskModel

N, F, ROUNDS, ALPHA, RECORDS, JUDGED, LENGTH = 8, 2, 6, 1.0, 1200, 500, 24
MODEL = ModelConfig(name="minilm", adapter="lora", rank=8, layers=1)
TRAIN = TrainConfig(optimizer="adamw", learning_rate=5e-3, head_learning_rate=5e-2, steps=4, batch_size=8)
HEAD = TrainConfig(optimizer="sgd", learning_rate=8.0, steps=300, batch_size=128)
"""How the head is fitted before the first round: cheap, on features that are computed once."""
GAUGE = 100.0
"""How far the gauge attack stretches A (and shrinks B)."""

RULES: Mapping[str, Callable[[], Any]] = {
    "mean": lambda: AGGREGATORS["mean"](),
    "NNM + geometric median, factor": lambda: Pipeline((NNM(f=F),), GeometricMedian()),
    "NNM + geometric median, product": lambda: Pipeline(
        (NNM(f=F, space="product"),), GeometricMedian(space="product")
    ),
    "Multi-Krum, factor": lambda: MultiKrum(f=F),
    "Multi-Krum, product": lambda: MultiKrum(f=F, space="product"),
}
ATTACKS: Mapping[str, Callable[[], Any] | None] = {
    "none": None,
    "sign flip x5": lambda: BYZANTINE["sign_flip"](scale=5.0),
    "IPM(10)": lambda: BYZANTINE["ipm"](tau=10.0),
    "ALIE(1.5)": lambda: BYZANTINE["alie"](tau=1.5),
    "gauge(100)": None,
}


@dataclass(frozen=True, eq=False)
class Bench:
    """What all runs share: the model, encoded records and the frozen layers' output."""

    model: TaskModel = field(repr=False)
    train: Encoded
    judged: Encoded
    labels: Any
    classes: int
    start: Vector = field(repr=False)
    states: FrozenCache


@cache
def bench() -> Bench:
    """Loads it once."""
    from securefed.models import load_model

    dataset = load_dataset(DataConfig(name="sentiment"), task="classification")
    rng = np.random.default_rng(0)
    train = dataset.train.take(rng.choice(len(dataset.train), RECORDS, replace=False))
    judged = dataset.test.take(rng.choice(len(dataset.test), JUDGED, replace=False))
    model = load_model(MODEL, classes=len(dataset.classes), unit="none", max_length=LENGTH)
    encoded, states = model.encode(train, LENGTH), FrozenCache()
    head = LocalWork(0, 0, tuple(n for n, part in model.part_of.items() if part == "head"))
    start = train_locally(
        model, encoded, model.read(model.layout), head, HEAD, dp=None, entropy=None, seed=0, cache=states
    ).vector
    found = model.encode(judged, LENGTH)
    return Bench(model, encoded, found, train.labels, len(dataset.classes), start, states)


@cache
def shards(seed: int) -> list[Encoded]:
    """The clients' records; kept, because the cache of frozen layers knows a shard by its object."""
    b = bench()
    assert b.train.tokens is not None
    cuts = dirichlet(b.labels, b.classes, N, ALPHA, 40, np.random.default_rng(seed))
    tokens = b.train.tokens
    return [
        Encoded(tokens=tuple(tokens[i] for i in rows), labels=b.labels[rows], pad_id=b.train.pad_id)
        for rows in cuts
    ]


def gauge(honest: torch.Tensor, f: int, base: torch.Tensor, layout: Layout, stretch: float) -> torch.Tensor:
    """Updates (f, d) to A' = -stretch A and B' = -B / stretch, where A and B are the honest mean's new factors.

    (-B / stretch)(-stretch A) = B A: at distance zero from the honest mean in product space. Averaged factor by
    factor with h honest rows, A turns round as soon as f stretch > h.

    Args:
        honest: (h, d). base: the global model's values of the same coordinates, (d,).
    """
    new, row = base + honest.mean(0), honest.mean(0).clone()
    for name in layout.names:
        columns = layout.slice_of(name)
        if ".lora_" in name:
            factor = -stretch if name.endswith(A_END) else -1 / stretch
            row[columns] = factor * new[columns] - base[columns]
    return row.expand(f, -1).clone()


def updates(vector: Vector, seed: int, round: int, clients: int) -> torch.Tensor:
    """Each honest client's update of the whole layout, (clients, d)."""
    b, rows = bench(), []
    names = tuple(b.model.layout.names)
    for client, shard in enumerate(shards(seed)[:clients]):
        work = LocalWork(client, round, names)
        found = train_locally(
            b.model, shard, vector, work, TRAIN, dp=None, entropy=None, seed=seed, cache=b.states
        )
        rows.append(torch.from_numpy(found.vector - vector))
    return torch.stack(rows)


def accuracy(vector: Vector) -> float:
    """On held-out sentences."""
    b = bench()
    b.model.write(vector, b.model.layout)
    found = predict(
        b.model, b.judged, physical_tokens=TRAIN.physical_tokens, physical_batch=256, cache=b.states
    ).score(b.classes)
    return float(found.accuracy or 0.0)


def play(rule_name: str, attack_name: str, seed: int) -> dict[str, Any]:
    """One run: honest clients train, liars answer with an attack on what they sent, the rule combines."""
    b, rule, scores = bench(), RULES[rule_name](), list[float]()
    vector = b.start
    layout, generator = b.model.layout, torch.Generator().manual_seed(seed)
    make = ATTACKS[attack_name]
    for round in range(ROUNDS):
        honest = updates(vector, seed, round, N if attack_name == "none" else N - F)
        base = torch.from_numpy(vector.copy())
        sent = honest
        if attack_name.startswith("gauge"):
            sent = torch.cat([honest, gauge(honest, F, base, layout, GAUGE)])
        elif make is not None:
            sent = torch.cat([honest, make()(honest, F, generator)])
        space = AdapterSpace.of(
            layout, {**layout.unflatten(vector), **b.model.frozen_adapter}, MODEL.alpha / MODEL.rank
        )
        context = RoundContext(round, tuple(range(len(sent))), (1.0,) * len(sent), layout.digest, space=space)
        vector = vector + rule.step(sent, context, None)[0].numpy()
        if not np.isfinite(vector).all() or float(np.abs(vector).max()) > 1e4:
            return {"final": 1 / b.classes, "best": max([1 / b.classes, *scores]), "diverged": round}
        if round % 2:
            scores.append(accuracy(vector))
    return {"final": scores[-1], "best": max(scores)}


def table(runs: list[dict[str, Any]]) -> str:
    """Rules against attacks: final / best accuracy with 95 % intervals."""
    lines = ["| rule | " + " | ".join(ATTACKS) + " |", "| --- |" + " --- |" * len(ATTACKS)]
    for rule in RULES:
        cells = []
        for attack in ATTACKS:
            mine = [r for r in runs if (r["rule"], r["attack"]) == (rule, attack)]
            parts = [shown([100 * r[metric] for r in mine]) for metric in ("final", "best") if mine]
            cells.append(" / ".join(parts) or "-")
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Plays what is not on record yet, or prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("lora.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print the table of what is on record")
    asked = parser.parse_args()
    if asked.table:
        sys.stdout.write(table(load(asked.out)) + "\n")
        return
    torch.set_num_threads(1)
    done = {r["key"] for r in load(asked.out)}
    for seed in range(asked.seeds):
        for attack in ATTACKS:
            for rule in RULES:
                key = f"{rule}/{attack}/{seed}"
                if key in done:
                    continue
                began = time.process_time()
                found = play(rule, attack, seed)
                spent = round(time.process_time() - began, 1)
                line = {
                    "key": key,
                    "rule": rule,
                    "attack": attack,
                    "seed": seed,
                    **found,
                    "cpu_seconds": spent,
                }
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
