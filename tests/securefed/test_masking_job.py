"""`protection = "masking"` in a job: the same model as in the clear, less seen, and refused where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import load_config
from securefed.config.check import check_against_shards
from securefed.errors import ConfigError, ProtocolError
from securefed.federation import run
from tests.results import model_of, rounds_of

JOB: dict[str, Any] = {
    "name": "masked",
    "rounds": 2,
    "data": {"name": "digits", "clients": 5, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"epochs": 1, "learning_rate": 0.3, "batch_size": 32},
    "evaluate": {"baselines": False},
    "engine": {"threads": 1},
}
PRIVATE: dict[str, Any] = {
    **JOB,
    "train": {"steps": 2, "learning_rate": 0.5},
    "privacy": {"unit": "example", "noise_multiplier": 1.0, "delta": 1e-4, "sample_rate": 0.1},
}


def test_a_masked_job_ends_with_the_model_of_the_plain_one(home: Path, tmp_path: Path) -> None:
    """Weights are record counts; the error of a coordinate of the mean is far below its size."""
    for protection in ("plain", "masking"):
        run(JOB, {"protection": protection}, folder=tmp_path / protection)
    plain, masked = model_of(tmp_path / "plain"), model_of(tmp_path / "masking")
    assert np.abs(plain).max() > 0.01
    np.testing.assert_allclose(masked, plain, atol=1e-5)
    assert not np.array_equal(masked, plain)  # rounding is random: it did travel in fixed point


def test_the_folder_says_what_was_seen_by_whom_and_what_it_cost(home: Path, tmp_path: Path) -> None:
    run(JOB, {"protection": "masking"}, folder=tmp_path / "a")
    facts = json.loads((tmp_path / "a" / "facts.json").read_text())["protection"]
    assert (facts["name"], facts["reveals"]) == ("masking", "sum")
    assert facts["simulated"] == "simulated: no protection between clients"
    assert {"Adversary", "Not hidden", "Fixed point"} <= facts["facts"].keys()
    for line in rounds_of(tmp_path / "a"):
        assert (line["dropped"], line["clipped_share"], line["survivors"]) == ({}, 0.0, [0, 1, 2, 3, 4])
        assert line["mib_up"] > 5 * 4 * 650 / 2**20
        assert line["mib_down"] > 5 * 4 * 650 / 2**20
    report = (tmp_path / "a" / "report.html").read_text()
    assert "only the sum of the clients" in report
    assert "not audited" in report
    assert "no protection between clients was in force" in report


def test_under_dp_weights_are_public_and_updates_masked(home: Path, tmp_path: Path) -> None:
    result = run(PRIVATE, {"protection": "masking", "protection.bits": 24}, folder=tmp_path / "a")
    assert result.ledger is not None
    assert rounds_of(tmp_path / "a")[0]["survivors"] == [0, 1, 2, 3, 4]


def test_a_round_that_clips_too_much_ends_with_the_reason(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="raise value_range"):
        run(JOB, {"protection": "masking", "protection.value_range": 1e-4}, folder=tmp_path / "a")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"clients_per_round": 2}, "a cohort of 2 is below min_cohort=3"),
        ({"protection.min_cohort": 2}, "min_cohort must be at least 3"),
        ({"protection.levels": 2**29}, "the sum could wrap"),
        ({"protection.bits": 33}, "bits must be in 16 .. 32"),
        ({"protection.threshold": 2, "data.clients": 20}, "threshold=2 is below"),
        ({"protection.quorum": 2}, "more than half"),
        ({"protection.k": 4, "protection.threshold": 5, "data.clients": 30}, "k=4 is below"),
        ({"protection.min_survivors": 2}, "min_survivors=2 is below"),
        ({"protection.gamma": 0.5}, "gamma must be in"),
        ({"protection.value_range": 0.0}, "value_range must be above 0"),
        ({"protection.cipher": "rot13"}, "cipher must be aes or chacha"),
        ({"protection.value_rang": 1.0}, "did you mean value_range"),
        (
            {"privacy.unit": "client", "privacy.epsilon": 1.0},
            "bounds each update, protection masking hides them",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_the_job_is_read(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(JOB, {"protection": "masking", **overrides})


def test_a_shard_heavier_than_the_largest_weight_is_refused_before_training() -> None:
    job = load_config(JOB, {"protection": "masking", "protection.max_weight": 100})
    check_against_shards(job, [100] * 5)
    with pytest.raises(
        ConfigError, match=r"a weight of 101 is above max_weight=100; raise protection\.max_weight"
    ):
        check_against_shards(job, [100] * 4 + [101])
    check_against_shards(load_config(job, {"weights": "equal"}), [1000] * 5)


def test_a_natural_cohort_too_small_is_refused_when_the_shards_are_known() -> None:
    job = load_config(JOB, {"protection": "masking", "data.clients": 0})
    with pytest.raises(ConfigError, match="a cohort of 2"):
        check_against_shards(job, [10, 10])
