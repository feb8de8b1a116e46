"""The benchmarks of shared noise play what they say: the same claim both ways, the ways that the table names."""

from __future__ import annotations

import numpy as np
import pytest

from securefed.config import ModelConfig, load_config
from securefed.data.batch import Encoded
from securefed.models import load_model
from securefed.privacy.design import Cohort, design
from securefed.privacy.distributed import DistributedSkellam
from securefed_benchmarks.fedsgd_vs_local import JOB, RATE, WAYS
from securefed_benchmarks.skellam_vs_gaussian import Setting, accuracy, gaussian, skellam

N = 12


def setting(noise_multiplier: float) -> Setting:
    model = load_model(ModelConfig(name="logistic", adapter="full"), classes=3, image_shape=(1, 4, 4))
    rng = np.random.default_rng(0)

    def records(n: int) -> Encoded:
        labels = rng.integers(0, 3, n)
        images = rng.random((n, 1, 4, 4), dtype=np.float32) * 0.2
        images[np.arange(n), 0, labels, 0] += 1
        return Encoded(images=images, labels=labels)

    return Setting(model, tuple(records(10) for _ in range(N)), records(200), 2, 0.5, noise_multiplier)


def mechanism(s: Setting, noise_multiplier: float) -> DistributedSkellam:
    d = s.model.layout.size
    cohort = Cohort(dimension=d, clip=s.clip, clients=N, min_survivors=N, corrupt=0, bits=16)
    return design(DistributedSkellam, cohort, noise_multiplier)


def test_both_ways_release_the_clipped_mean_with_the_same_noise() -> None:
    s = setting(2.0)
    updates = [np.full(s.model.layout.size, 0.5, np.float32) for _ in range(N)]
    clipped = 0.5 / np.sqrt(s.model.layout.size)
    for mean in (gaussian(s), skellam(s, mechanism(s, 2.0))):
        released = np.stack([mean(updates, round) for round in range(40)]) - clipped
        assert abs(released.mean()) < 0.02
        assert np.std(released) == pytest.approx(2.0 * 0.5 / N, rel=0.12)  # 2,040 draws: 1.6 % each way


def test_a_federation_learns_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("securefed_benchmarks.skellam_vs_gaussian.CLIENTS", N)
    monkeypatch.setattr("securefed_benchmarks.skellam_vs_gaussian.COHORT", N)
    s = setting(0.05)
    start = s.model.read(s.model.layout)
    for mean in (gaussian(s), skellam(s, mechanism(s, 0.05))):
        assert accuracy(s, mean, start, 0) > 0.5  # chance is 1/3


def test_the_three_ways_differ_in_whose_noise_it_is_and_in_nothing_else() -> None:
    configs = {
        name: load_config(load_config({**JOB, **job}, {**way, "privacy.epsilon": 1.0}))
        for name, (job, way) in WAYS.items()
    }
    assert len({(c.rounds, c.privacy.sample_rate, c.privacy.max_grad_norm) for c in configs.values()}) == 1
    assert len({(c.train.steps, c.train.label_smoothing) for c in configs.values()}) == 1
    rates = {c.server.learning_rate * (1.0 if c.fedsgd else c.train.learning_rate) for c in configs.values()}
    assert rates == {RATE}
    assert [c.fedsgd for c in configs.values()] == [True, False, True, True]
