"""A cell is an ordinary job: the same numbers as `securefed run`, a ledger of its own for public data."""

from __future__ import annotations

import os
from pathlib import Path

import securefed
from securefed.config import load_config
from securefed.privacy.ledger import Ledger
from securefed_benchmarks.bench.play import play
from securefed_benchmarks.bench.resident import Resident

JOB = {
    "rounds": 2,
    "data": {"name": "digits", "clients": 4, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"epochs": 1, "learning_rate": 0.3},
    "evaluate": {"every": 1, "clients": False, "baselines": False},
    "tracking": {"report": False},
}


def test_a_cell_gives_what_the_command_line_gives(tmp_path: Path) -> None:
    cell = play(JOB, [], Resident())
    run = securefed.run(JOB, folder=tmp_path / "run")
    assert cell.scores["accuracy"] == run.metrics["accuracy"]
    assert cell.curves["accuracy"][-1] == [2, run.metrics["accuracy"]]
    assert cell.scores["bytes_up"] > 4 * 640


def test_a_cell_played_on_a_used_worker_is_the_same_cell() -> None:
    resident = Resident()
    first = play(JOB, [], resident)
    play({**JOB, "rounds": 3}, [], resident)
    assert play(JOB, [], resident).scores == first.scores


def test_a_model_that_was_not_put_back_would_be_noticed() -> None:
    resident = Resident()
    first = play(JOB, [], resident)
    (key, (model, _)) = next(iter(resident.models.items()))
    resident.models[key] = (model, model.read(model.layout))  # broken on purpose: starts where the last ended
    assert play(JOB, [], resident).scores != first.scores


def test_public_data_do_not_fill_this_sites_ledger() -> None:
    home = os.environ["SECUREFED_HOME"]
    private = {
        **JOB,
        "train": {"steps": 2, "learning_rate": 0.3},
        "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-4},
    }
    found = play(private, [], Resident())
    assert 7 < found.scores["epsilon"] <= 8
    assert os.environ["SECUREFED_HOME"] == home
    account = Resident().whole(load_config(JOB)).account
    with Ledger.site() as ledger:
        assert ledger.site_epsilon(1e-4, account, "example") == 0


def test_records_of_ones_own_are_charged_to_this_site(tmp_path: Path) -> None:
    lines = ["text,label", *(f"word{k} word{k % 7},{'yes' if k % 2 else 'no'}" for k in range(60))]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    config = load_config({**JOB, "data": {"name": str(tmp_path / "mine.csv"), "clients": 2}})
    from securefed_benchmarks.bench.play import _ledger_of

    home = os.environ["SECUREFED_HOME"]
    with _ledger_of(config, tmp_path):
        assert os.environ["SECUREFED_HOME"] == home
    with _ledger_of(load_config(JOB), tmp_path):
        assert os.environ["SECUREFED_HOME"] != home


def test_a_model_that_leaves_the_finite_numbers_counts_as_chance() -> None:
    wild = {
        **JOB,
        "rounds": 6,
        "model": {"name": "mlp", "adapter": "full", "hidden": 8},
        "train": {"epochs": 1, "learning_rate": 1e30},
    }
    found = play(wild, [], Resident())
    assert found.scores["accuracy"] < 0.35


def test_cells_on_a_public_data_set_share_this_sites_store_of_frozen_states(
    tmp_path: Path,
) -> None:
    from securefed.paths import states_dir, states_key_path
    from securefed_benchmarks.bench.play import _ledger_of

    mine, key = states_dir(), states_key_path()
    with _ledger_of(load_config(JOB), tmp_path):
        assert states_dir() != mine
        assert states_dir().resolve() == mine.resolve()
        assert states_key_path().read_bytes() == key.read_bytes()
        (states_dir() / "left.states").touch()
    assert (mine / "left.states").exists()
