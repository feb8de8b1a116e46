"""Three architectures teach one student: beside each client alone, with a liar, and in bytes beside weights.

Twelve natural clients of `sentiment` (four domains), a third of them a head on frozen MiniLM, a third a small transformer
from scratch, a third a bag of embeddings; the student is a head on MiniLM. MiniLM's features are computed once for all
seeds. Test sentences are of all four domains, of which a client has one.

    python -m securefed_benchmarks.distillation --seeds 3 --part clients
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from securefed.assembly import assemble
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.distillation import Distillation
from securefed.training.table_client import client_scores
from securefed_benchmarks.features import Shared, SharedStates
from securefed_benchmarks.timing import report

HEAD = {"name": "minilm", "adapter": "head", "head_layers": 4}
JOB: dict[str, Any] = {
    "algorithm": "distill",
    "weights": "equal",
    "data": {"name": "sentiment", "partition": "natural", "clients": 12, "max_length": 32, "limit": 6000},
    "model": HEAD,
    "train": {"optimizer": "adamw", "learning_rate": 0.01, "batch_size": 16, "physical_tokens": 8192},
    "distill": {
        "records": 600,
        "clients": [
            {**HEAD, "learning_rate": 0.03},
            {"name": "transformer", "hidden": 32, "learning_rate": 1e-3},
            {"name": "bag", "hidden": 32, "learning_rate": 5e-3},
        ],
        "student_steps": 300,
        "digest_steps": 60,
    },
    "evaluate": {"every": 0, "clients": False, "baselines": False},
    "engine": {"threads": 1, "checkpoint_every": 1000},
    "tracking": {"report": False},
}
ONCE: dict[str, Any] = {"rounds": 1, "train.epochs": 3, "distill.back": "nothing"}
ROUNDS: dict[str, Any] = {"rounds": 3, "train.epochs": 1, "distill.back": "labels"}
LIAR: dict[str, Any] = {**ONCE, "attack.name": "sign_flip", "attack.options": {"scale": 20.0}, "attack.f": 1}
WAYS: dict[str, dict[str, Any]] = {
    "one shot, mean of logits": ONCE,
    "three rounds, soft labels back": ROUNDS,
    "one shot, weighted by confidence": {**ONCE, "distill.confidence": True},
    "one shot, votes": {**ONCE, "distill.send": "votes"},
    "a liar, mean": LIAR,
    "a liar, median": {**LIAR, "aggregator": "median"},
    "a liar, trimmed mean": {**LIAR, "aggregator": {"name": "trimmed_mean", "f": 1}},
    "a liar, tables bounded as honest ones are": {
        **LIAR,
        "aggregator": {"name": "norm_bound", "max_norm": 5.0 * 600**0.5},  # clip x sqrt(records)
    },
}
PARTS = {"clients": list(WAYS)[:4], "liar": list(WAYS)[4:]}


@contextmanager
def played(shared: Shared, way: Mapping[str, Any], seed: int) -> Iterator[tuple[Distillation, float, Path]]:
    """A run to its end: its player, the student's accuracy, its folder."""
    config = load_config(JOB, {**way, "seed": seed, "model.seed": seed})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        folder.mkdir()
        player = Distillation(assemble(config, shared), folder, f"bench {time.time_ns()}", SystemEntropy())
        player.runner.cache = player.parts.evaluator.cache = shared.cache
        try:
            yield player, float(player.play(None).metrics["accuracy"]), folder
        finally:
            player.close()


def alone(player: Distillation, folder: Path) -> dict[int, float]:
    """Client -> accuracy of its own model, which was told nothing by anybody."""
    from securefed.checkpoint import load_state

    state = load_state(folder, player.identity)
    assert state is not None
    return client_scores(player.runner, state.local, player.assembly.dataset.test)


def compare(shared: Shared, name: str, seeds: int) -> None:
    """One line for a way: the student over the seeds and, of what was told nothing, its clients."""
    began, students, clients, mib = time.process_time(), [], [], 0.0
    for seed in range(seeds):
        with played(shared, WAYS[name], seed) as (player, accuracy, folder):
            students.append(accuracy)
            mib = 4 * player.layout.size / 2**20
            if name == next(iter(WAYS)):
                clients.append(alone(player, folder))
    facts: dict[str, Any] = {
        "accuracy": [round(a, 4) for a in students],
        "mean": round(float(np.mean(students)), 4),
        "sd": round(float(np.std(students, ddof=1)), 4) if seeds > 1 else None,
        "mib_up_a_client_a_round": round(mib, 4),
        "cpu_s_per_run": round((time.process_time() - began) / seeds, 1),
    }
    if clients:
        facts |= _alone_facts(clients)
    report(f"distillation: {name}", facts)


def _alone_facts(clients: list[dict[int, float]]) -> dict[str, Any]:
    kinds = [str(c["name"]) for c in JOB["distill"]["clients"]]
    by_kind = {
        kind: round(float(np.mean([s for one in clients for k, s in one.items() if k % len(kinds) == i])), 4)
        for i, kind in enumerate(kinds)
    }
    return {
        "alone_mean_by_architecture": by_kind,
        "best_client_alone_by_seed": [round(max(one.values()), 4) for one in clients],
        "all_alone_first_seed": {k: round(v, 4) for k, v in clients[0].items()},
    }


def cost(shared: Shared) -> None:
    """What one client sends in a round: answers, or the weights that it trains."""
    config = load_config(JOB, ONCE)
    with tempfile.TemporaryDirectory() as scratch:
        player = Distillation(
            assemble(config, shared), Path(scratch), f"bench {time.time_ns()}", SystemEntropy()
        )
        mib = {
            learner.model.config.name: 4 * learner.model.layout.size / 2**20
            for learner in player.runner.learners
        }
        answers = 4 * player.layout.size / 2**20
        player.close()
    report(
        "distillation: MiB a client a round",
        {"answers": round(answers, 4), **{k: round(v, 4) for k, v in mib.items()}},
    )


def main() -> None:
    """Prints one JSON line for each way."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--part", choices=[*PARTS, "cost", "all"], default="all")
    arguments.add_argument("--tests", type=int, default=1200, help="test sentences, of 3,885")
    arguments.add_argument(
        "--features", type=Path, help="a file that keeps MiniLM's features from call to call"
    )
    asked = arguments.parse_args()
    shared = Shared(asked.tests, SharedStates(asked.features))
    if asked.part in ("cost", "all"):
        cost(shared)
    for part, names in PARTS.items():
        if asked.part in (part, "all"):
            for name in names:
                compare(shared, name, asked.seeds)


if __name__ == "__main__":
    main()
