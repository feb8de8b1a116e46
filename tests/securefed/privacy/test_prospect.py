"""The estimate of what can be learned under a job's noise, from public numbers alone."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import Config, load_config
from securefed.federation import Federation, run
from securefed.privacy.prospect import HOPELESS, POOR, signal_to_noise, warn_of_noise

EXAMPLE: dict[str, Any] = {
    "rounds": 9,
    "data": {"name": "digits", "clients": 3, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 1},
    "privacy": {"unit": "example", "noise_multiplier": 2.0, "delta": 1e-4, "sample_rate": 0.5},
}


def job(**changes: Any) -> Config:
    return load_config({**EXAMPLE, **changes})


def simulated(sigmas: list[float], weights: list[float], steps: int) -> float:
    """The same from draws: standard deviation of the sum of all steps' weighed noises, in clips."""
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((4000, steps, len(sigmas))) * np.array(sigmas) * np.array(weights)
    return steps / float(draws.sum((1, 2)).std())


@pytest.mark.parametrize("weights", ["size", "equal"])
def test_it_is_the_ratio_that_draws_of_the_clients_noise_give(weights: str) -> None:
    sizes = [100, 40, 10]
    shares = [n / 150 if weights == "size" else 1 / 3 for n in sizes]
    expected = simulated([2.0 / (0.5 * n) for n in sizes], shares, 9)
    assert signal_to_noise(job(weights=weights), 2.0, sizes) == pytest.approx(expected, rel=0.05)


def test_one_noise_for_all_clients_gives_the_root_of_their_number_more() -> None:
    own = signal_to_noise(job(weights="size"), 2.0, [50, 60, 70])
    shared = job(algorithm="fedsgd", privacy={**EXAMPLE["privacy"], "noise": "central"})
    assert signal_to_noise(shared, 2.0, [50, 60, 70]) == pytest.approx(own * math.sqrt(3))


def test_four_times_the_steps_stand_twice_as_high() -> None:
    assert signal_to_noise(job(rounds=36), 2.0, [50] * 3) == pytest.approx(
        2 * signal_to_noise(job(), 2.0, [50] * 3)
    )
    assert signal_to_noise(job(train={"steps": 4}), 2.0, [50] * 3) == pytest.approx(
        2 * signal_to_noise(job(), 2.0, [50] * 3)
    )


def test_at_client_level_the_cohort_counts_and_records_do_not() -> None:
    config = job(privacy={"unit": "client", "noise_multiplier": 2.0, "delta": 1e-2}, clients_per_round=2)
    assert signal_to_noise(config, 2.0, [50, 60, 70]) == pytest.approx(2 * 3 / 2.0)
    assert signal_to_noise(config, 2.0, [1, 1, 1]) == signal_to_noise(config, 2.0, [50, 60, 70])


def test_half_a_cohort_has_less_signal_than_the_whole() -> None:
    half = signal_to_noise(job(clients_per_round=2), 2.0, [50] * 4)
    assert half == pytest.approx(signal_to_noise(job(), 2.0, [50] * 4) / math.sqrt(2))


def test_without_noise_it_is_infinite() -> None:
    assert signal_to_noise(job(), 0.0, [10]) == math.inf


@pytest.mark.parametrize(
    ("ratio", "said"), [(HOPELESS / 2, "nothing can be learned"), (POOR / 2, "will suffer"), (POOR * 2, "")]
)
def test_what_is_said_follows_the_ratio(ratio: float, said: str, caplog: pytest.LogCaptureFixture) -> None:
    config = job(weights="size")
    sigma = signal_to_noise(config, 1.0, [300] * 3) / ratio
    with caplog.at_level(logging.WARNING, logger="securefed"):
        warn_of_noise(config, sigma, [300] * 3)
    assert (said in caplog.text) if said else not caplog.text
    assert not said or "fedsgd" in caplog.text


def test_a_job_says_so_before_its_first_round_and_spends_nothing_for_it(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FirstRound(Exception):
        """Ends the run where it would begin."""

    spent: list[int] = []

    def stop(federation: Federation, *_: Any) -> None:
        assert federation.ledger is not None
        spent.append(federation.ledger.charges(federation.run_id))
        raise FirstRound

    monkeypatch.setattr("securefed.federation.Federation.play", stop)
    hopeless = {**EXAMPLE["privacy"], "noise_multiplier": 1000.0}
    with caplog.at_level(logging.WARNING, logger="securefed"), pytest.raises(FirstRound):
        run({**EXAMPLE, "privacy": hopeless}, folder=tmp_path / "out")
    assert "nothing can be learned" in caplog.text
    assert spent == [0]
