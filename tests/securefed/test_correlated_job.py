"""Jobs and calls of `federate` with noise that is correlated over rounds: what is played, charged, stated and refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import securefed as sf
from securefed.config import load_config
from securefed.errors import ConfigError
from securefed.federation import resume, run
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.events import SampledGaussian
from securefed.privacy.ledger import Ledger
from tests.entropy import SeededEntropy
from tests.stopping import StopAfter

JOB: dict[str, Any] = {
    "name": "correlated",
    "rounds": 6,
    "clients_per_round": 2,
    "data": {"name": "digits", "clients": 8, "partition": "iid", "limit": 600},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 2, "learning_rate": 0.3},
    "evaluate": {"baselines": False},
    "engine": {"threads": 1, "checkpoint_every": 2},
    "tracking": {"report": False},
    "privacy": {"unit": "client", "noise": "correlated", "epsilon": 8.0, "delta": 0.01},
}


def test_a_job_spends_its_epsilon_once_and_says_how(home: Path, tmp_path: Path) -> None:
    result = run(JOB, folder=tmp_path / "a")
    assert result.ledger is not None
    statement = result.ledger.statement(0.01)
    assert 7.9 < statement.epsilon <= 8.0
    assert statement.steps_reserved == 1
    assert "banded matrix factorization over 6 rounds" in statement.mechanism
    assert "at most 2 times, at least 4 rounds apart" in statement.mechanism
    assert statement.trust.startswith("the server is trusted")
    assert "not against the server" in statement.adversary
    assert "none is claimed" in statement.amplification


def test_a_run_that_stops_early_has_spent_the_whole(home: Path, tmp_path: Path) -> None:
    result = run(JOB, folder=tmp_path / "a", stop_flag=StopAfter(1))
    assert result.rounds == 1
    assert result.ledger is not None
    assert 7.9 < result.ledger.statement(0.01).epsilon <= 8.0


def test_a_stopped_run_goes_on_with_the_bits_of_an_uninterrupted_one_at_no_charge(
    home: Path, tmp_path: Path
) -> None:
    whole = run(JOB, folder=tmp_path / "whole", entropy=SeededEntropy(1))
    run(JOB, folder=tmp_path / "part", entropy=SeededEntropy(1), stop_flag=StopAfter(3))
    ended = resume(tmp_path / "part", entropy=SeededEntropy(1))
    assert ended.metrics == whole.metrics
    assert ended.ledger is not None
    assert ended.ledger.statement(0.01).steps_reserved == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"privacy.unit": "example", "privacy.delta": 1e-4}, 'set privacy.unit = "client"'),
        ({"clients_per_round": 0}, "at most 4"),
        ({"clients_per_round": 5}, "at most 4"),
        ({"privacy.min_separation": 5}, "come back after 4 rounds"),
        ({"privacy.min_separation": -1}, "0 .as the cohort allows. or more"),
        ({"privacy.clip": "adaptive"}, 'set clip = "fixed"'),
        ({"protection": {"name": "masking"}}, 'protection = "plain"'),
        ({"aggregator": {"name": "median"}}, 'aggregator = "mean"'),
        ({"algorithm": {"name": "fedper"}}, "fedper"),
        ({"algorithm": {"name": "fedavg", "head_rounds": 1}}, "head_rounds"),
        ({"compression": {"name": "random_k", "keep": 0.5}}, "leave compression out"),
        ({"privacy.noise": "central", "privacy.min_separation": 3}, 'privacy.noise = "correlated"'),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(JOB, overrides)


def test_a_promise_lower_than_the_schedule_keeps_has_fewer_bands(home: Path, tmp_path: Path) -> None:
    result = run(JOB, {"privacy.min_separation": 2}, folder=tmp_path / "a")
    assert result.ledger is not None
    assert "(2 bands)" in result.ledger.statement(0.01).mechanism


def test_federate_takes_it_too_and_resumes(home: Path, tmp_path: Path) -> None:
    met: list[tuple[int, int]] = []

    def train(weights: dict[str, np.ndarray], shard: int, round: int) -> None:
        met.append((shard, round))
        weights["w"] += 0.1

    result = sf.federate(
        train,
        list(range(8)),
        model={"w": np.zeros(4, np.float32)},
        rounds=6,
        clients_per_round=2,
        noise="correlated",
        min_separation=4,
        noise_multiplier=1.0,
        delta=0.01,
        data_id="eight",
        ledger=Ledger(tmp_path / "ledger.sqlite"),
        folder=tmp_path / "a",
    )
    assert result.ledger is not None
    assert result.ledger.statement(0.01).epsilon == epsilon_of([SampledGaussian(1.0, 1.0, 1)], 0.01)
    turns = [sorted(r for k, r in met if k == client) for client in range(8)]
    assert all(b - a >= 4 for t in turns for a, b in itertools.pairwise(t))
    assert len(met) == 12
