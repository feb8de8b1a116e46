"""`aggregator = "fl_trust"` in a job: the server's own records, the update it trains on them, and what that is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.assembly import assemble
from securefed.config import load_config
from securefed.errors import ConfigError
from securefed.federation import run

JOB: dict[str, Any] = {
    "name": "root",
    "rounds": 6,
    "data": {"name": "digits", "clients": 6, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"epochs": 2, "learning_rate": 0.3, "batch_size": 16},
    "weights": "equal",
    "aggregator": "fl_trust",
    "server": {"root_records": 100},
    "evaluate": {"baselines": False, "clients": False, "every": 0},
    "engine": {"threads": 1},
}
LIARS = {"name": "ipm", "options": {"tau": 20.0}, "f": 4}


def accuracy(folder: Path, **changes: Any) -> float:
    return run({**JOB, **changes}, folder=folder).metrics["accuracy"]


def test_a_trusted_update_withstands_a_majority_of_liars_that_ruins_a_median(
    home: Path, tmp_path: Path
) -> None:
    held = accuracy(tmp_path / "trust", attack=LIARS)
    ruined = accuracy(tmp_path / "median", attack=LIARS, aggregator="median", server={})
    assert held > 0.8
    assert ruined < 0.5


def test_trust_works_over_the_means_of_masked_groups(home: Path, tmp_path: Path) -> None:
    data = {**JOB["data"], "clients": 9}
    grouped = {"name": "grouped", "size": 3}
    attack = {"name": "sign_flip", "options": {"scale": 20.0}, "f": 1}
    assert accuracy(tmp_path / "a", data=data, protection=grouped, attack=attack) > 0.8


def test_no_client_holds_the_servers_records(home: Path) -> None:
    parts = assemble(load_config(JOB))
    assert parts.root is not None
    assert parts.root.images is not None
    assert len(parts.root) == 100
    whole = assemble(load_config({**JOB, "server": {}, "aggregator": "median"}))
    assert sum(len(s.train) for s in parts.shards) == sum(len(s.train) for s in whole.shards) - 100
    again = assemble(load_config(JOB)).root
    assert again is not None
    assert again.images is not None
    np.testing.assert_array_equal(parts.root.images, again.images)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"server": {}}, "set server.root_records"),
        ({"aggregator": "median"}, "reads no update of the server's own"),
        ({"server": {"root_records": -1}}, "0 .none. or more, found -1"),
        (
            {"privacy": {"unit": "example", "noise_multiplier": 1.0}, "train": {"steps": 1}},
            "trained on without noise",
        ),
    ],
)
def test_a_job_without_records_or_without_use_for_them_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config({**JOB, **changes})


def test_more_records_than_there_are_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="leaves the clients none"):
        assemble(load_config({**JOB, "server": {"root_records": 100_000}}))
