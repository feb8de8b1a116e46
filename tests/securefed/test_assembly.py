"""Cohorts, the schedule that noise is calibrated for, and records held by two clients."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from securefed.assembly import cohort, config_digest, disjoint
from securefed.config import Config, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data.records import Examples, Shard
from securefed.noising import make_guarantee, planned_releases
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian

JOB: dict[str, Any] = {
    "rounds": 12,
    "clients_per_round": 3,
    "data": {"name": "digits", "clients": 9},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 4},
    "privacy": {"unit": "example", "epsilon": 3.0, "delta": 1e-5, "sample_rate": 0.05},
}


def job(**changes: Any) -> Config:
    return load_config(JOB, {k.replace("__", "."): v for k, v in changes.items()})


def test_a_seeded_cohort_repeats_and_has_the_size_asked_for() -> None:
    first = [cohort(job(), 9, r, SystemEntropy()) for r in range(12)]
    assert first == [cohort(job(), 9, r, SystemEntropy()) for r in range(12)]
    assert all(len(set(c)) == 3 and list(c) == sorted(c) for c in first)
    assert len(set(first)) > 1
    assert first != [cohort(job(seed=1), 9, r, SystemEntropy()) for r in range(12)]


def test_no_limit_takes_every_client() -> None:
    assert cohort(job(clients_per_round=0), 9, 0, SystemEntropy()) == tuple(range(9))


def test_a_client_level_cohort_is_a_poisson_sample_from_secret_randomness() -> None:
    config = job(privacy__unit="client", privacy__delta=0.01, clients_per_round=30, data__clients=100)
    sizes = [len(cohort(config, 100, 0, SystemEntropy())) for _ in range(400)]
    # Binomial(100, .3): mean 30, variance 21; a mean of 400 draws has sd .23, so 30 +- 1.4 fails once in 1e9 runs.
    assert abs(np.mean(sizes) - 30) < 1.4
    assert 14 < np.var(sizes) < 30
    assert len({cohort(config, 100, 0, SystemEntropy()) for _ in range(5)}) > 1, "not from the public seed"


def test_noise_is_planned_for_the_client_that_takes_part_most_often() -> None:
    config = job()
    taken = Counter(k for r in range(12) for k in cohort(config, 9, r, SystemEntropy()))
    assert planned_releases(config, 9) == (0.05, max(taken.values()) * 4)
    assert max(taken.values()) > 12 * 3 / 9, (
        "the busiest client is above the average, and it is the one that counts"
    )


def test_a_client_level_release_is_one_a_round() -> None:
    config = job(privacy__unit="client", privacy__delta=0.01)
    assert planned_releases(config, 9) == (3 / 9, 12)


def test_calibrated_noise_meets_the_target_over_the_whole_schedule_and_not_by_much() -> None:
    config = job()
    guarantee = make_guarantee(config, 9)
    assert guarantee is not None
    rate, steps = planned_releases(config, 9)
    spent = epsilon_of([SampledGaussian(guarantee.noise_multiplier, rate, steps)], 1e-5)
    assert 2.95 < spent <= 3.0


def test_given_noise_is_used_as_it_is() -> None:
    config = load_config(
        {**JOB, "privacy": {"unit": "example", "noise_multiplier": 1.25, "sample_rate": 0.05}}
    )
    guarantee = make_guarantee(config, 9)
    assert guarantee is not None
    assert guarantee.noise_multiplier == 1.25


def test_without_dp_there_is_no_guarantee() -> None:
    config = load_config({**JOB, "privacy": {"unit": "none"}})
    assert make_guarantee(config, 9) is None


def shard(client: int, *texts: str) -> Shard:
    examples = Examples(texts=texts, labels=np.zeros(len(texts), np.int64))
    return Shard(client, str(client), examples, examples.take([]), str(client))


def test_a_record_at_two_clients_is_noticed() -> None:
    assert disjoint([shard(0, "a", "b"), shard(1, "c", "d")])
    assert not disjoint([shard(0, "a", "b"), shard(1, "c", "a")])
    assert disjoint([shard(0, "a", "a"), shard(1, "c")]), "twice at one client is that client's own matter"


@pytest.mark.parametrize("change", [{"rounds": 13}, {"privacy.epsilon": 2.0}, {"train.steps": 5}])
def test_any_change_of_the_job_changes_its_digest(change: dict[str, Any]) -> None:
    assert config_digest(load_config(JOB, change)) != config_digest(load_config(JOB))
