"""One membership attack on three views of a client: its weights, its answers on other records, its answers on its own.

A small net learns a few images by heart, half of them wrongly labelled, so that only training explains a low loss. The
adversary is a server that sees single vectors; from answers it trains a copy first (`answer_membership`).

    python -m securefed_benchmarks.answers_vs_weights --seeds 3
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.algorithms.distill import Distill
from securefed.config import DataConfig, ModelConfig, TrainConfig, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data import load_dataset
from securefed.data.records import Examples
from securefed.engine.exchange import exchange
from securefed.layout import Layout, vector_digest
from securefed.models import load_model
from securefed.models.task_model import TaskModel
from securefed.protect.plain import Plain
from securefed.training.local import LocalWork, train_locally
from securefed.training.soft import answers
from securefed.types import Protection, RoundParameters, Update, Vector, View
from securefed.views import server_view
from securefed_attacks import MEMBERSHIP
from securefed_attacks.answer_membership import copy_from_answers, model_in_update, record_losses
from securefed_attacks.membership import Evidence
from securefed_attacks.statistics import auc, tpr_at_fpr
from securefed_benchmarks.timing import report

TRAIN = TrainConfig(optimizer="adamw", learning_rate=0.01, epochs=100, batch_size=20)
COPY = TrainConfig(optimizer="adamw", learning_rate=0.01, steps=1, batch_size=50)
CLIENT = 1


@dataclass
class Victim:
    """A client that learned the first half of `candidates` by heart.

    Attributes:
        start: the first weights, public. trained: its own. public: records that nobody trained on, labels empty.
    """

    model: TaskModel
    start: Vector
    trained: Vector
    candidates: Examples
    public: Examples

    @property
    def is_member(self) -> NDArray[np.bool_]:
        return np.arange(len(self.candidates)) < len(self.candidates) // 2

    @property
    def overlapping(self) -> Examples:
        """As many public records, all candidates among them."""
        assert self.candidates.images is not None
        assert self.public.images is not None
        rest = self.public.images[: len(self.public) - len(self.candidates)]
        return bare(Examples(images=np.concatenate([self.candidates.images, rest])))


def bare(examples: Examples) -> Examples:
    """The records with empty labels, as public ones have."""
    return dataclasses.replace(examples, labels=np.zeros(len(examples), np.int64))


def victim(seed: int = 0, members: int = 60, public: int = 200) -> Victim:
    """A client of `digits` with an mlp; everything drawn from the seed."""
    images = load_dataset(DataConfig(name="digits")).train
    rows = np.random.default_rng(seed).permutation(len(images))
    candidates = images.take(rows[: 2 * members])
    assert candidates.labels is not None
    wrong = np.arange(2 * members) % 2 == 0
    labels = np.where(wrong, (candidates.labels + 1) % 10, candidates.labels)
    candidates = dataclasses.replace(candidates, labels=labels)
    config = ModelConfig(name="mlp", adapter="full", hidden=64, device="cpu", seed=seed)
    model = load_model(config, classes=10, image_shape=(1, 8, 8))
    start = model.read(model.layout)
    data = model.encode(candidates.take(np.arange(members)), 2)
    work = LocalWork(CLIENT, 0, tuple(sorted(model.part_of)))
    found = train_locally(model, data, start, work, TRAIN, dp=None, entropy=None, seed=seed)
    apart = bare(images.take(rows[2 * members : 2 * members + public]))
    return Victim(model, start, found.vector, candidates, apart)


def table(v: Victim, public: Examples) -> Vector:
    """What the client sends of its answers: the library's own table, its clip wide."""
    job = load_config(
        {
            "algorithm": "distill",
            "data": {"name": "digits", "clients": 3},
            "model": {"name": "mlp", "adapter": "full"},
            "train": {"epochs": 1},
            "distill": {"records": len(public), "clip": 100.0},
        }
    )
    v.model.write(v.trained, v.model.layout)
    return Distill().table(job, answers(v.model, v.model.encode(public, 2), TRAIN))


def seen(vector: Vector, before: Vector, protection: Protection | None = None) -> View:
    """The server's view of a round in which three clients send this vector."""
    digest = Layout.of_shapes({"x": vector.shape}).digest
    parameters = RoundParameters("r", 0, (0, 1, 2), vector.size, digest, vector_digest(before), (1.0,) * 3)
    protection = protection or Plain()
    sent = {k: Update(k, 0, vector) for k in range(3)}
    collected = exchange(protection, parameters, sent, SystemEntropy())
    return server_view(parameters, protection.reveals, collected, before)


def from_weights(v: Victim, view: View) -> NDArray[np.float64]:
    """Scores of the loss attack on the model that the update shows, (n,)."""
    return _scores(v, model_in_update(view, CLIENT, v.model))


def from_answers(v: Victim, view: View, public: Examples) -> NDArray[np.float64]:
    """Scores of the same attack on a copy that answers as the table does, (n,)."""
    data = v.model.encode(public, 2)
    return _scores(v, copy_from_answers(view, CLIENT, v.model, data, v.start, COPY, steps=600))


def _scores(v: Victim, vector: Vector) -> NDArray[np.float64]:
    losses = record_losses(v.model, vector, v.model.encode(v.candidates, 2), TRAIN)
    found: NDArray[np.float64] = MEMBERSHIP["loss"]()(Evidence(loss=losses))
    return found


def main() -> None:
    """Prints one JSON line for each view: AUC and the true-positive rate at 5 % false positives, seed by seed."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--members", type=int, default=200)
    arguments.add_argument("--public", type=int, default=800)
    asked = arguments.parse_args()
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed in range(asked.seeds):
        v = victim(seed, asked.members, asked.public)
        views = {
            "weights": from_weights(v, seen(v.trained - v.start, v.start)),
            "answers on other records": from_answers(v, seen(table(v, v.public), v.start), v.public),
            "answers on the candidates themselves": from_answers(
                v, seen(table(v, v.overlapping), v.start), v.overlapping
            ),
        }
        for name, scores in views.items():
            both = float(auc(scores, v.is_member)), float(tpr_at_fpr(scores, v.is_member, 0.05))
            rows.setdefault(name, []).append(both)
    for name, found in rows.items():
        facts = {
            "auc": [round(a, 3) for a, _ in found],
            "tpr_at_5%_fpr": [round(t, 3) for _, t in found],
        }
        report(f"answers_vs_weights: {name}", facts)


if __name__ == "__main__":
    main()
