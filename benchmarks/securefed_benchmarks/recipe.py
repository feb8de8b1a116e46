"""How well a DP recipe learns, judged on a validation split of the training records, never on the test set.

One-step rounds weighed by shard size are one step on all records with sqrt(clients) times the noise, so a
federation is played as one client: minutes become seconds while the head trains alone. The validation split
is by a hash of each record's document, as the test split is.

    python -m securefed_benchmarks.recipe                                    # the quickstart's head rounds
    python -m securefed_benchmarks.recipe --whole --seeds 3                  # and its adapter's
    python -m securefed_benchmarks.recipe model.head_centre=false train.label_smoothing=0
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.server_optimizer import Moments
from securefed.config import Config, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data import load_dataset
from securefed.data.batch import Encoded
from securefed.data.records import Examples
from securefed.data.text import unit_hash
from securefed.errors import ConfigError
from securefed.privacy.calibration import calibrate_noise
from securefed.registry import ALGORITHMS, make
from securefed.training.dp import DPWork
from securefed.training.frozen_cache import FrozenCache, open_cache
from securefed.training.local import LocalWork, train_locally
from securefed.training.metrics import Metrics, predict
from securefed.types import Vector
from securefed_benchmarks.timing import report

if TYPE_CHECKING:
    from securefed.models import TaskModel

SALT, SHARE = "securefed recipe validation 1", 0.2


@dataclass(frozen=True, eq=False)
class Bench:
    """A job's parts with its training records divided: `train` is trained on, `held` is judged."""

    config: Config
    model: TaskModel = field(repr=False)
    train: Encoded
    held: Encoded
    classes: int
    cache: FrozenCache


def validation_split(train: Examples) -> tuple[Examples, Examples]:
    """(trained on, judged): a fifth of the documents is held out."""
    held = np.array([unit_hash(SALT, d) < SHARE for d in train.documents])
    return train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))


def build(config: Config) -> Bench:
    """Loads data and model once for all seeds.

    Raises:
        ConfigError: more than one local step, or no example-level DP: one client could not stand for all.
    """
    from securefed.models import load_model

    if config.train.steps != 1 or config.privacy.unit != "example":
        raise ConfigError('this bench plays train.steps = 1 with privacy.unit = "example" only')
    dataset = load_dataset(config.data, task="classification")
    model = load_model(
        config.model, classes=len(dataset.classes), unit="example", max_length=config.data.max_length
    )
    train, held = (model.encode(e, config.data.max_length) for e in validation_split(dataset.train))
    return Bench(config, model, train, held, len(dataset.classes), open_cache(config) or FrozenCache(0))


def play(bench: Bench, start: Vector, rounds: int, every: int = 0) -> Vector:
    """The global model (d,) after the first `rounds` rounds of the job's schedule, from fresh randomness.

    Args:
        every: after so many rounds each time, a line of JSON on standard error says how good the model is (0: never).
    """
    began = time.process_time()
    c, model, p = bench.config, bench.model, bench.config.privacy
    algorithm: FedAvg = make("algorithm", c.algorithm, ALGORITHMS)
    sigma = p.noise_multiplier
    if sigma is None:
        assert p.epsilon is not None
        sigma = calibrate_noise(p.epsilon, p.delta, p.sample_rate, c.rounds, p.accountant)
    noise = sigma * math.sqrt(max(1, c.data.clients))
    dp = DPWork(noise, p.max_grad_norm, p.sample_rate, p.sample_rate * len(bench.train), p.grad_sample_mode)
    vector, moments, entropy = start, Moments.zeros(start.size), SystemEntropy()
    for done in range(rounds):
        plan = algorithm.plan(c, model.part_of, done)
        work = LocalWork(0, done, plan.train)
        after = train_locally(
            model, bench.train, vector, work, c.train, dp=dp, entropy=entropy, seed=0, cache=bench.cache
        )
        shared = model.layout.select(set(plan.share).__contains__)
        update = model.layout.gather(after.vector, shared) - model.layout.gather(vector, shared)
        vector, moments = algorithm.apply(
            c.server, model.layout, model.part_of, plan, vector, update, moments
        )
        if every and (done + 1) % every == 0:
            found = judge(bench, vector)
            told = {"round": done + 1, "accuracy": found.accuracy, "loss": found.loss}
            told["cpu_seconds"] = round(time.process_time() - began, 1)
            print(json.dumps(told), file=sys.stderr, flush=True)
    return vector


def judge(bench: Bench, vector: Vector) -> Metrics:
    """Scores on the held records."""
    bench.model.write(vector, bench.model.layout)
    t = bench.config.train
    bounds = {"physical_tokens": t.physical_tokens, "physical_batch": t.physical_batch}
    return predict(bench.model, bench.held, **bounds, cache=bench.cache).score(bench.classes)


def main() -> None:
    """Prints one JSON line with accuracy and loss of each seed."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--config", default="configs/quickstart.toml")
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument(
        "--whole", action="store_true", help="the adapter's rounds too, not the head's alone"
    )
    arguments.add_argument("--every", type=int, default=0, help="judge after so many rounds each time, too")
    arguments.add_argument("overrides", nargs="*", help="fields of the job: key=value")
    asked = arguments.parse_args()
    config = load_config(asked.config, asked.overrides)
    if config.model.adapter == "tangent" and not asked.whole:
        arguments.error(
            "the first head of adapter tangent ends as the anchor of the second; play both with --whole"
        )
    bench = build(config)
    phases = [
        make("algorithm", bench.config.algorithm, ALGORITHMS).plan(bench.config, bench.model.part_of, r).phase
        for r in range(bench.config.rounds)
    ]
    rounds = len(phases) if asked.whole else sum(phase in ("centre", "head") for phase in phases)
    start = bench.model.read(bench.model.layout)
    found = [judge(bench, play(bench, start, rounds, asked.every)) for _ in range(asked.seeds)]
    report(
        "recipe",
        {
            "rounds": rounds,
            "overrides": asked.overrides,
            "accuracy": [round(m.accuracy or 0.0, 4) for m in found],
            "loss": [round(m.loss, 4) for m in found],
        },
    )


if __name__ == "__main__":
    main()
