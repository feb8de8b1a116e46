"""What 16-bit Skellam noise costs in accuracy: client-level DP on Fashion-MNIST, beside the server's Gaussian.

1,000 simulated clients of 60 pictures, a cohort of 100 a round, an MLP. Both ways have the same seeds (cohorts, model,
local batches), rounds, clip and noise multiplier; Skellam's is over the sensitivity after rounding, so both make the same
claim by the theory of their accountant. What masking carries are these very integers (a test holds it to that), so
here they are added without it.

    python -m securefed_benchmarks.skellam_vs_gaussian --seeds 3
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed.config import DataConfig, ModelConfig, TrainConfig
from securefed.crypto.entropy import SystemEntropy
from securefed.data import load_dataset, make_shards
from securefed.data.batch import Encoded
from securefed.models import load_model
from securefed.privacy import SampledGaussian, clip_update, epsilon_of, noisy_mean
from securefed.privacy.design import Cohort, design
from securefed.privacy.distributed import DistributedSkellam
from securefed.training.local import LocalWork, train_locally
from securefed.training.metrics import predict
from securefed.types import Vector
from securefed_benchmarks.timing import report

if TYPE_CHECKING:
    from securefed.models.task_model import TaskModel

CLIENTS, COHORT, DELTA = 1000, 100, 5e-4
TRAIN = TrainConfig(epochs=2, learning_rate=0.1, batch_size=20)
Mean = Callable[[Sequence[Vector], int], Vector]
"""(updates of a cohort, round) -> the noised mean of the clipped updates."""


@dataclass(frozen=True, eq=False)
class Setting:
    """Data, model and schedule that both ways share."""

    model: TaskModel
    shards: tuple[Encoded, ...] = field(repr=False)
    test: Encoded = field(repr=False)
    rounds: int
    clip: float
    noise_multiplier: float


def prepare(rounds: int, clip: float, noise_multiplier: float, hidden: int) -> Setting:
    """Reads the pictures and makes the net."""
    dataset = load_dataset(DataConfig(name="fashion-mnist"), task="classification")
    config = DataConfig(name="fashion-mnist", clients=CLIENTS, partition="iid", min_examples=10)
    model = load_model(
        ModelConfig(name="mlp", adapter="full", hidden=hidden), classes=10, image_shape=(1, 28, 28)
    )
    shards = tuple(model.encode(s.train, 1) for s in make_shards(dataset, config))
    return Setting(model, shards, model.encode(dataset.test, 1), rounds, clip, noise_multiplier)


def gaussian(s: Setting) -> Mean:
    """The server clips, adds and adds its noise."""
    entropy = SystemEntropy()

    def mean(updates: Sequence[Vector], round: int) -> Vector:
        total = np.stack([clip_update(u, s.clip).vector for u in updates]).sum(0, dtype=np.float64)
        return noisy_mean(total, s.clip, s.noise_multiplier, len(updates), entropy.stream("noise", round))

    return mean


def skellam(s: Setting, mechanism: DistributedSkellam) -> Mean:
    """Every client encodes; the sum is modulo 2^bits."""
    entropy = SystemEntropy()

    def mean(updates: Sequence[Vector], round: int) -> Vector:
        own = mechanism.at_round(entropy.stream("rotation", round).bytes(16))
        total = np.zeros(own.dimension, np.uint64)
        for k, update in enumerate(updates):
            total += own.encode(update, entropy.stream("client", round, k))
        found: Vector = own.decode(total % (1 << own.bits), len(updates)) / np.float32(len(updates))
        return found

    return mean


def accuracy(s: Setting, mean: Mean, start: Vector, seed: int) -> float:
    """Test accuracy after all rounds; the seed says cohorts and batches."""
    vector = start
    for round in range(s.rounds):
        chosen = np.random.default_rng([seed, round]).choice(CLIENTS, COHORT, replace=False)
        updates = []
        for client in chosen:
            work = LocalWork(int(client), round, tuple(s.model.layout.names))
            after = train_locally(
                s.model, s.shards[client], vector, work, TRAIN, dp=None, entropy=None, seed=seed
            )
            updates.append(after.vector - vector)
        vector = vector + mean(updates, round)
    s.model.write(vector, s.model.layout)
    found = predict(s.model, s.test, physical_tokens=1024, physical_batch=1024).score(10)
    return float(found.accuracy or 0.0)


def main() -> None:
    """Prints one JSON line a seed, and one with all of them."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--rounds", type=int, default=30)
    arguments.add_argument("--clip", type=float, default=0.5)
    arguments.add_argument("--noise", type=float, default=1.0, help="noise multiplier")
    arguments.add_argument("--hidden", type=int, default=32)
    arguments.add_argument("--bits", type=int, default=16)
    asked = arguments.parse_args()
    began = time.process_time()
    s = prepare(asked.rounds, asked.clip, asked.noise, asked.hidden)
    d = s.model.layout.size
    cohort = Cohort(
        dimension=d, clip=s.clip, clients=COHORT, min_survivors=COHORT, corrupt=0, bits=asked.bits
    )
    mechanism = design(DistributedSkellam, cohort, s.noise_multiplier)
    start = s.model.read(s.model.layout)
    found: dict[str, list[float]] = {"gaussian": [], "skellam": []}
    for seed in range(asked.seeds):
        found["gaussian"].append(accuracy(s, gaussian(s), start, seed))
        found["skellam"].append(accuracy(s, skellam(s, mechanism), start, seed))
        pair = {name: round(values[-1], 4) for name, values in found.items()}
        report("client-level DP, one seed", {"seed": seed, "rounds": s.rounds, **pair})
    apart = [100 * (a - b) for a, b in zip(found["gaussian"], found["skellam"], strict=True)]
    facts: dict[str, Any] = {
        "d": d,
        "rounds": s.rounds,
        "cohort": COHORT,
        "clients": CLIENTS,
        "noise_multiplier": s.noise_multiplier,
        "bits": asked.bits,
        "sensitivity_after_rounding_over_clip": round(mechanism.sensitivity / mechanism.levels, 4),
        "wrap_probability_a_round": mechanism.wrap_probability,
        **{name: [round(a, 4) for a in values] for name, values in found.items()},
        "points_apart": {"mean": round(float(np.mean(apart)), 2), "each": [round(a, 2) for a in apart]},
        "epsilon_gaussian": round(epsilon_of([SampledGaussian(s.noise_multiplier, 1.0, s.rounds)], DELTA), 1),
        "epsilon_skellam": round(epsilon_of([mechanism.event(s.rounds)], DELTA), 1),
        "delta": DELTA,
        "cpu_s": round(time.process_time() - began),
    }
    report("client-level DP: 16-bit Skellam beside central Gaussian", facts)


if __name__ == "__main__":
    main()
