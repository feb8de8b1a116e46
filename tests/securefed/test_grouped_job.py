"""`protection = "grouped"` in a job: liars that ruin masking's mean, and what a median of group means makes of them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import Component, load_config
from securefed.config.check import check_against_shards
from securefed.crypto.entropy import SystemEntropy
from securefed.errors import CheckpointError, ConfigError
from securefed.federation import resume, run
from securefed.grouping import fixed_groups
from securefed.protect.drawing import Groups
from securefed.protect.group_sessions import GroupedServer
from securefed.protect.grouped import Grouped, OpenGrouped
from securefed.types import RoundParameters
from securefed.wrapping.federate import federate

JOB: dict[str, Any] = {
    "name": "grouped",
    "rounds": 3,
    "data": {"name": "digits", "clients": 15, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"epochs": 2, "learning_rate": 0.3, "batch_size": 16},
    "weights": "equal",
    "evaluate": {"baselines": False, "clients": False, "every": 0},
    "engine": {"threads": 1},
}
GROUPED = {"protection": {"name": "grouped", "size": 3}, "aggregator": "median"}
ATTACKS = {
    "sign_flip": {"name": "sign_flip", "options": {"scale": 20.0}, "f": 2},
    "ipm": {"name": "ipm", "options": {"tau": 20.0}, "f": 2},
}


def accuracy(folder: Path, **changes: Any) -> float:
    return run({**JOB, **changes}, folder=folder).metrics["accuracy"]


def test_a_median_of_group_means_survives_sign_flips_that_ruin_the_masked_mean(
    home: Path, tmp_path: Path
) -> None:
    attack = ATTACKS["sign_flip"]
    clean = accuracy(tmp_path / "clean", protection="masking")
    ruined = accuracy(tmp_path / "mean", protection="masking", attack=attack)
    held = accuracy(tmp_path / "median", **GROUPED, attack=attack)
    assert clean > 0.85
    assert ruined < 0.5
    assert held > clean - 0.1


def test_a_median_of_group_means_survives_ipm_where_the_mean_of_the_same_sums_does_not(
    home: Path, tmp_path: Path
) -> None:
    attack = ATTACKS["ipm"]
    ruined = accuracy(tmp_path / "mean", protection=GROUPED["protection"], attack=attack)
    held = accuracy(tmp_path / "median", **GROUPED, attack=attack)
    assert ruined < 0.5
    assert held > 0.75


def test_the_folder_keeps_the_groups_and_says_what_they_are_worth(home: Path, tmp_path: Path) -> None:
    accuracy(tmp_path / "a", **GROUPED)
    told = json.loads((tmp_path / "a" / "facts.json").read_text())["protection"]
    assert (told["name"], told["reveals"]) == ("grouped", "group sums")
    names = {"Anonymity set", "Liars tolerated", "Thin groups", "Rank of all partitions", "Groups", "Drops"}
    assert names <= told["facts"].keys()
    stored = json.loads((tmp_path / "a" / "groups.json").read_text())["groups"]
    again = fixed_groups(Grouped(size=3).open("x", range(15), SystemEntropy()), tmp_path / "a")
    assert [list(g) for g in again.groups] == stored  # type: ignore[attr-defined]  # open gives OpenGrouped
    (tmp_path / "a" / "groups.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not hold groups"):
        fixed_groups(again, tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"aggregator": {"name": "trimmed_mean", "f": 3}}, "needs more than 6 groups, the cohort makes 5"),
        ({"protection": {"name": "grouped", "size": 8}}, "make no two groups"),
        ({"protection": {"name": "grouped", "size": 2}}, "size must be at least 3"),
        ({"protection": {"name": "grouped", "size": 3, "gamma": 0.4}}, "min_survivors"),
        ({"protection": {"name": "grouped", "size": 3, "gama": 0.4}}, "did you mean gamma"),
        ({"clients_per_round": 12}, "breaks the fixed groups"),
        (
            {
                "aggregator": "mean",
                "train": {"steps": 2},
                "privacy": {"unit": "client", "noise_multiplier": 1.0, "delta": 1e-3},
            },
            "protection grouped hides them",
        ),
    ],
)
def test_a_job_that_cannot_keep_its_promises_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config({**JOB, **GROUPED, **changes})


def test_groups_are_checked_again_when_the_data_say_how_many_clients_there_are() -> None:
    data = {"name": "spam", "clients": 0, "partition": "natural"}
    for changes, n, says in (
        ({}, 5, "make no two groups"),
        ({"clients_per_round": 9}, 12, "breaks the fixed groups"),
        (
            {"aggregator": {"name": "trimmed_mean", "f": 2}},
            14,
            "needs more than 4 groups, the cohort makes 4",
        ),
    ):
        job = load_config({**JOB, **GROUPED, "data": data, **changes})
        with pytest.raises(ConfigError, match=says):
            check_against_shards(job, [50] * n)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Groups]:
    """The groups of every round that is played, in order."""
    seen: list[Groups] = []
    server = OpenGrouped.server

    def spied(self: OpenGrouped, parameters: RoundParameters) -> GroupedServer:
        seen.append(self.groups)
        return server(self, parameters)

    monkeypatch.setattr(OpenGrouped, "server", spied)
    return seen


def test_groups_stay_over_all_rounds_and_over_a_resumption(
    home: Path, tmp_path: Path, used: list[Groups]
) -> None:
    job = {**JOB, **GROUPED, "train": {"steps": 1, "learning_rate": 0.1}}
    flag = threading.Event()
    flag.set()
    assert run(job, folder=tmp_path / "a", stop_flag=flag).rounds == 1
    assert resume(tmp_path / "a").rounds == 3
    assert len(used) == 3
    assert len(set(used)) == 1


def add_shard(model: dict[str, Any], shard: Any, round: int) -> None:
    model["w"] += shard


def test_a_federation_of_somebodys_own_code_keeps_its_groups_too(
    home: Path, tmp_path: Path, used: list[Groups]
) -> None:
    shards = [np.full(3, 0.1 * k, np.float32) for k in range(6)]
    federate(
        add_shard,
        shards,
        model={"w": np.zeros(3, np.float32)},
        rounds=3,
        protection=Component("grouped", {"size": 3}),
        unit="none",
        folder=tmp_path / "f",
    )
    assert len(used) == 3
    assert len(set(used)) == 1
