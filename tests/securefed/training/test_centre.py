"""The centre of a head's features: one release of the job's own mechanism, measured and then held still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import plan_round
from securefed.algorithms.server_optimizer import Moments
from securefed.config import ServerConfig, load_config
from securefed.data.batch import Batch, collate
from securefed.errors import ConfigError
from securefed.federation import run
from securefed.models import TaskModel, load_result
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian
from securefed.training.dp import DPWork
from securefed.training.frozen_cache import FrozenCache
from securefed.training.local import LocalWork, train_locally
from tests.entropy import SeededEntropy
from tests.securefed.models import tiny
from tests.securefed.models.test_per_sample_gradients import assert_agree
from tests.securefed.training.setups import bert, stirred, texts, train

CENTRE = ("centre.weight",)


def centred(folder: Path, **changes: Any) -> TaskModel:
    return bert(folder, layers=1, head_layers=2, head_centre=True, **changes)


def batch_of(model: TaskModel, n: int = 6) -> Batch:
    return collate(model.encode(tiny.examples(n), 16), range(n))


def measured(model: TaskModel, dp: DPWork | None, **changes: Any) -> np.ndarray:
    """The centre after one client's round on twelve records."""
    result = train_locally(
        model,
        texts(model),
        model.read(model.layout),
        LocalWork(0, 0, CENTRE),
        train(batch_size=12, **changes),
        dp=dp,
        entropy=SeededEntropy(2),
        seed=0,
        cache=FrozenCache(64),
        check=dp is not None,
    )
    part = model.layout.select(CENTRE.__contains__)
    found: np.ndarray = model.layout.gather(result.vector, part)
    return found


def mean_features(model: TaskModel) -> np.ndarray:
    found: np.ndarray = model.prefix(batch_of(model, 12), model.depth).mean(0).numpy()
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [0.25, 1.0, 8.0])
def test_one_round_measures_the_mean_whatever_the_clip_and_the_jobs_own_rates(
    tmp_path: Path, clip: float, optimizer: str
) -> None:
    """Sample rate 1 and no noise: what is released is the mean itself, so the clip is undone exactly."""
    model = centred(tmp_path)
    rates = {"optimizer": optimizer, "learning_rate": 7.0, "warmup_steps": 3, "schedule": "cosine"}
    found = measured(model, DPWork(0.0, clip, 1.0, 12.0), **rates)
    np.testing.assert_allclose(found, mean_features(model), atol=2e-6)
    np.testing.assert_allclose(measured(centred(tmp_path), None, **rates), mean_features(model), atol=2e-6)


def test_the_release_is_noised_like_any_other(tmp_path: Path) -> None:
    """Noise on each coordinate: noise_multiplier x clip / expected batch, times the 1 / clip that undoes it."""
    model = centred(tmp_path)
    found = measured(model, DPWork(3.0, 0.5, 1.0, 12.0)) - mean_features(model)
    assert found.size == 32
    assert 0.6 < found.std() / (3.0 / 12) < 1.5  # 32 normal draws: outside with probability below 1e-3


def test_logits_are_the_head_on_the_shifted_features_of_unit_norm(tmp_path: Path) -> None:
    model = centred(tmp_path)
    model.write(stirred(model), model.layout)
    batch = batch_of(model)
    features = model.prefix(batch, model.depth) - model.parameters["centre.weight"].detach().T
    unit = features / features.norm(dim=1, keepdim=True)
    expected = F.linear(unit, model.parameters["head.weight"], model.parameters["head.bias"])
    torch.testing.assert_close(model.logits(batch), expected)


def test_a_centre_of_zero_changes_nothing(tmp_path: Path) -> None:
    model, plain = centred(tmp_path), bert(tmp_path, layers=1, head_layers=2)
    values = stirred(plain)
    plain.write(values, plain.layout)
    model.write(values, plain.layout)
    torch.testing.assert_close(model.logits(batch_of(model)), plain.logits(batch_of(plain)))


def test_each_record_has_its_own_gradient_and_only_the_centre_moves(tmp_path: Path) -> None:
    model = centred(tmp_path)
    model.write(stirred(model), model.layout)
    model.set_trainable(CENTRE)
    assert model.measures_centre
    assert_agree(model, batch_of(model), 1e-4)
    before = model.read(model.layout)
    start = measured(model, DPWork(1.0, 1.0, 0.5, 6.0))
    rest = model.layout.select(lambda n: n not in CENTRE)
    assert np.array_equal(
        model.layout.gather(model.read(model.layout), rest), model.layout.gather(before, rest)
    )
    assert start.any()


def test_the_loss_of_the_head_never_moves_the_centre(tmp_path: Path) -> None:
    model = centred(tmp_path)
    model.write(stirred(model), model.layout)
    model.set_trainable(model.layout.names)
    assert not model.measures_centre
    model.losses(batch_of(model)).sum().backward()
    assert model.parameters["centre.weight"].grad is None
    assert model.parameters["head.weight"].grad is not None


def test_hooks_follow_an_adapter_below_a_shifted_head(tmp_path: Path) -> None:
    model = centred(tmp_path)
    model.write(stirred(model), model.layout)
    model.set_trainable([n for n in model.layout.names if n not in CENTRE])
    assert_agree(model, batch_of(model), 1e-4)


def test_the_first_round_is_the_centres_and_the_schedule_starts_after_it() -> None:
    parts = {"l.lora_A": "A", "l.lora_B": "B", "head.weight": "head", "centre.weight": "centre"}
    plans = [plan_round("rolora", parts, r, 6, head_rounds=2) for r in range(6)]
    assert [p.phase for p in plans] == ["centre", "head", "head", "B", "A", "B"]
    assert plans[0].train == plans[0].share == CENTRE
    assert not any("centre.weight" in p.train for p in plans[1:])
    assert [p.progress for p in plans] == [0, 0, 0.5, 0, 1 / 3, 2 / 3]
    without = {n: p for n, p in parts.items() if p != "centre"}
    assert plans[1:] == [plan_round("rolora", without, r, 5, head_rounds=2) for r in range(5)]
    assert "centre.weight" not in plan_round("full", {"w": "base", "centre.weight": "centre"}, 1, 2).train
    with pytest.raises(ConfigError, match="raise rounds"):
        plan_round("head", parts, 0, 1)


def test_the_server_adds_the_mean_as_it_is(tmp_path: Path) -> None:
    model = centred(tmp_path)
    plan = plan_round("rolora", model.part_of, 0, 4)
    config = ServerConfig(optimizer="fedadam", learning_rate=0.01, schedule="linear")
    mean = np.linspace(-1, 1, 32, dtype=np.float32)
    start, moments = stirred(model), Moments.zeros(model.layout.size)
    new, after = FedAvg().apply(config, model.layout, model.part_of, plan, start, mean, moments)
    part = model.layout.select(CENTRE.__contains__)
    np.testing.assert_allclose(model.layout.gather(new, part), model.layout.gather(start, part) + mean)
    assert not after.first.any()


def test_a_federation_measures_it_and_charges_the_round_like_the_others(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "records.csv"
    rows = [f"{tiny.TEXTS[i % 6]} {'good' * (i % 5)},{i % 2},c{i % 2}" for i in range(60)]
    data.write_text("text,label,client\n" + "\n".join(rows) + "\n", encoding="utf-8")
    job = {
        "rounds": 3,
        "data": {
            "name": str(data),
            "client_column": "client",
            "clients": 2,
            "max_length": 16,
            "min_examples": 4,
        },
        "model": {
            "name": str(tiny.tiny_bert(tmp_path / "bert")),
            "adapter": "lora",
            "rank": 2,
            "layers": 1,
            "head_layers": 2,
            "head_centre": True,
        },
        "algorithm": {"name": "fedavg", "head_rounds": 1},
        "train": {"steps": 1, "learning_rate": 1.0, "physical_tokens": 128},
        "privacy": {"unit": "example", "noise_multiplier": 0.7, "delta": 1e-3, "sample_rate": 0.5},
        "server": {"optimizer": "fedadam", "learning_rate": 0.01},
        "evaluate": {"baselines": False},
        "engine": {"threads": 1},
    }
    result = run(job, folder=tmp_path / "out")
    assert result.ledger is not None
    expected = epsilon_of([SampledGaussian(0.7, 0.5, 3)], 1e-3)
    assert result.ledger.epsilon(1e-3) == pytest.approx(expected, rel=1e-9)
    model = load_result(tmp_path / "out" / "adapter")
    centre = model.parameters["centre.weight"].detach()
    assert 0.3 < float(centre.norm()) < 3, "the mean of vectors of length one, and noise"
    assert "centre.weight" in (tmp_path / "out" / "adapter" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"head_centre": True, "task": "causal-lm"}}, "is for classification"),
        (
            {"model": {"head_centre": True}, "privacy": {"unit": "client", "epsilon": 3.0}},
            "example-level noise",
        ),
    ],
)
def test_a_centre_that_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"train": {"steps": 1}, **changes})
