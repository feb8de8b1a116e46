"""The same membership attack on a view of weights and on one of answers: what each tells, and what overlap would tell."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from securefed.algorithms.distill import Distill
from securefed.config import Config, DataConfig, ModelConfig, TrainConfig, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data import load_dataset
from securefed.data.records import Examples
from securefed.engine.exchange import exchange
from securefed.layout import Layout, vector_digest
from securefed.models import TaskModel, load_model
from securefed.protect.masking.protection import Masking
from securefed.protect.plain import Plain
from securefed.training.local import LocalWork, train_locally
from securefed.training.soft import answers
from securefed.types import Protection, RoundParameters, Update, Vector, View
from securefed.views import server_view
from securefed_attacks import MEMBERSHIP
from securefed_attacks.answer_membership import copy_from_answers, model_in_update, record_losses
from securefed_attacks.membership import Evidence
from securefed_attacks.statistics import auc

N, M = 60, 200
TRAIN = TrainConfig(optimizer="adamw", learning_rate=0.01, epochs=100, batch_size=20)
COPY = TrainConfig(optimizer="adamw", learning_rate=0.01, steps=1, batch_size=50)


@dataclass
class Setting:
    """One client that learned N records by heart, half of them wrongly labelled so that only a member is fitted."""

    model: TaskModel
    start: Vector
    trained: Vector
    candidates: Examples
    public: Examples

    @property
    def is_member(self) -> np.ndarray:
        return np.arange(2 * N) < N


@pytest.fixture(scope="module")
def setting() -> Setting:
    images = load_dataset(DataConfig(name="digits")).train
    rows = np.random.default_rng(0).permutation(len(images))
    candidates, public = images.take(rows[: 2 * N]), images.take(rows[2 * N : 2 * N + M])
    assert candidates.labels is not None
    labels = np.where(np.arange(2 * N) % 2 == 0, (candidates.labels + 1) % 10, candidates.labels)
    candidates = dataclasses.replace(candidates, labels=labels)
    model = load_model(
        ModelConfig(name="mlp", adapter="full", hidden=64, device="cpu"), classes=10, image_shape=(1, 8, 8)
    )
    start = model.read(model.layout)
    names = tuple(sorted(model.part_of))
    data = model.encode(candidates.take(np.arange(N)), 2)
    work = LocalWork(0, 0, names)
    found = train_locally(model, data, start, work, TRAIN, dp=None, entropy=None, seed=0)
    return Setting(model, start, found.vector, candidates, public)


def view_of(vector: Vector, before: Vector, protection: Protection | None = None) -> View:
    """What the server sees of three clients that all send this vector."""
    digest = Layout.of_shapes({"x": vector.shape}).digest
    parameters = RoundParameters("r", 0, (0, 1, 2), vector.size, digest, vector_digest(before), (1.0,) * 3)
    updates = {k: Update(k, 0, vector) for k in range(3)}
    protection = protection or Plain()
    collected = exchange(protection, parameters, updates, SystemEntropy())
    return server_view(parameters, protection.reveals, collected, before)


def job(m: int) -> Config:
    return load_config(
        {
            "algorithm": "distill",
            "data": {"name": "digits", "clients": 3},
            "model": {"name": "mlp", "adapter": "full"},
            "train": {"epochs": 1},
            "distill": {"records": m, "clip": 100.0},
        }
    )


def bare(examples: Examples) -> Examples:
    """The records with empty labels, as public ones have."""
    return dataclasses.replace(examples, labels=np.zeros(len(examples), np.int64))


def table_of(s: Setting, public: Examples) -> Vector:
    s.model.write(s.trained, s.model.layout)
    logits = answers(s.model, s.model.encode(bare(public), 2), TRAIN)
    return Distill().table(job(len(public)), logits)


def attacked(s: Setting, vector: Vector) -> float:
    losses = record_losses(s.model, vector, s.model.encode(s.candidates, 2), TRAIN)
    return auc(MEMBERSHIP["loss"]()(Evidence(loss=losses)), s.is_member)


def through_answers(s: Setting, public: Examples) -> float:
    view = view_of(table_of(s, public), s.start)
    data = s.model.encode(bare(public), 2)
    return attacked(s, copy_from_answers(view, 1, s.model, data, s.start, COPY, steps=600))


def test_weights_give_members_away_and_answers_on_other_records_far_less(setting: Setting) -> None:
    """An AUC of 120 candidates errs by about 0.05."""
    weights = view_of(setting.trained - setting.start, setting.start)
    from_weights = attacked(setting, model_in_update(weights, 1, setting.model))
    from_answers = through_answers(setting, setting.public)
    assert from_weights > 0.85
    assert from_answers < from_weights - 0.1


def test_answers_on_the_members_themselves_tell_as_much_as_weights(setting: Setting) -> None:
    """What the refusal of overlapping public sets is for."""
    overlapping = Examples(
        images=np.concatenate([setting.candidates.images, setting.public.images[: M - 2 * N]])  # type: ignore[index]  # images
    )
    assert through_answers(setting, overlapping) > 0.8


def test_on_a_model_that_has_seen_nothing_the_attack_guesses(setting: Setting) -> None:
    assert abs(attacked(setting, setting.start) - 0.5) < 0.16, "three deviations"


def test_under_a_secure_sum_nothing_of_one_client_is_left_to_attack(setting: Setting) -> None:
    table = table_of(setting, setting.public)
    view = view_of(table, setting.start, Masking(value_range=128.0))
    data = setting.model.encode(bare(setting.public), 2)
    with pytest.raises(ValueError, match="shows nothing of client 1 alone"):
        copy_from_answers(view, 1, setting.model, data, setting.start, COPY, steps=1)
    with pytest.raises(ValueError, match="shows nothing of client 1 alone"):
        model_in_update(view, 1, setting.model)


def test_views_of_another_size_are_refused(setting: Setting) -> None:
    view = view_of(table_of(setting, setting.public), setting.start)
    with pytest.raises(ValueError, match="the view shows"):
        model_in_update(view, 1, setting.model)
    data = setting.model.encode(bare(setting.public.take(np.arange(9))), 2)
    with pytest.raises(ValueError, match="give the public records of this run"):
        copy_from_answers(view, 1, setting.model, data, setting.start, COPY, steps=1)
