"""What is read back out of a round: all of it where it must be, nothing where it must not."""

from __future__ import annotations

from typing import Any

import pytest

from securefed.config import load_config
from securefed.errors import ConfigError
from securefed_benchmarks.bench.measures import MEASURES, check_measure
from securefed_benchmarks.bench.play import play
from securefed_benchmarks.bench.resident import Resident

JOB: dict[str, Any] = {
    "rounds": 1,
    "data": {"name": "digits", "clients": 6, "partition": "iid", "limit": 6, "min_examples": 1},
    "model": {"name": "mlp", "adapter": "full", "hidden": 64},
    "train": {"epochs": 0, "steps": 1, "batch_size": 1, "learning_rate": 0.1},
    "evaluate": {"clients": False, "baselines": False},
}
PRIVATE = {"unit": "example", "epsilon": 2.0, "delta": 1e-2, "max_grad_norm": 1.0, "sample_rate": 1.0}


@pytest.fixture(scope="module")
def resident() -> Resident:
    return Resident()


def scores(resident: Resident, measure: str, **changed: Any) -> dict[str, float]:
    return play({**JOB, **changed}, [measure], resident).scores


def test_a_single_update_shows_its_record_exactly_and_no_record_of_anybody_else(resident: Resident) -> None:
    found = scores(resident, "linear")
    assert found["reconstructed"] == 1.0
    assert found["control"] == 0.0
    assert found["records_in_view"] == 1.0


def test_the_same_attack_on_a_masked_sum_sees_one_vector_of_all_and_reads_less(resident: Resident) -> None:
    narrow = {
        **JOB["model"],
        "hidden": 8,
    }  # with 64 neurons each of six records has one of its own, and all are read
    found = scores(resident, "linear", model=narrow, protection={"name": "masking", "bits": 32})
    assert found["records_in_view"] == 6.0
    assert found["psnr_db"] < scores(resident, "linear", model=narrow)["psnr_db"]


def test_noise_leaves_nothing_to_read_even_of_single_updates(resident: Resident) -> None:
    assert scores(resident, "linear", privacy=PRIVATE)["reconstructed"] == 0.0
    assert scores(resident, "imprint", privacy=PRIVATE)["reconstructed"] == 0.0


def test_a_server_that_changes_the_model_reads_out_of_the_sum(resident: Resident) -> None:
    masked = {"name": "masking", "bits": 32}
    assert scores(resident, "imprint")["reconstructed"] == 1.0
    assert scores(resident, "imprint", protection=masked)["reconstructed"] > 0


def test_gradient_matching_comes_nearer_than_noise_allows(resident: Resident) -> None:
    few = {**JOB["data"], "clients": 2, "limit": 2}
    assert (
        scores(resident, "inversion", data=few)["psnr_db"]
        > scores(resident, "inversion", data=few, privacy=PRIVATE)["psnr_db"]
    )


@pytest.mark.parametrize(
    ("measure", "changed", "wanted"),
    [
        ("linear", {"train": {"epochs": 2}}, "one step of plain SGD"),
        ("linear", {"train": {**JOB["train"], "momentum": 0.9}}, "one step of plain SGD"),
        ("linear", {"privacy": {**PRIVATE, "sample_rate": 0.5}}, "sample_rate = 1.0"),
        ("linear", {"model": {"name": "logistic", "adapter": "full"}}, "reads mlp"),
        ("linear", {"data": {**JOB["data"], "limit": 0}}, "data.limit"),
        ("span", {}, "transformer"),
    ],
)
def test_a_job_that_it_cannot_read_is_refused_with_the_way_out(
    measure: str, changed: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted):
        check_measure(measure, load_config({**JOB, **changed}))


def test_more_records_than_a_step_takes_are_refused(resident: Resident) -> None:
    with pytest.raises(ConfigError, match=r"lower data\.limit"):
        scores(resident, "linear", data={**JOB["data"], "limit": 12})


def test_every_measure_that_ships_can_be_made() -> None:
    for name in MEASURES:
        with pytest.raises(ConfigError):
            check_measure(
                name, load_config({"train": {"steps": 1}, "model": {"name": "logistic", "adapter": "full"}})
            )
