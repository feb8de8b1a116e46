"""Nothing that depends on private records leaves without an event in the ledger, or without being said."""

from __future__ import annotations

import csv
import dataclasses
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.assembly import assemble
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data import load_dataset
from securefed.data.records import Dataset
from securefed.errors import (
    BudgetExceeded,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    PrivacyError,
)
from securefed.federation import run
from securefed.training.client import ClientRunner
from securefed.training.dp import DPWork
from securefed.training.local import LocalWork, train_locally
from tests.securefed.test_federation import CLIENT, DIGITS, PRIVATE

# ---------------------------------------------------------------------------------------------- dropout


def test_dropout_is_refused_under_example_level_dp_and_allowed_without() -> None:
    with pytest.raises(ConfigError, match=r"model\.dropout = 0"):
        load_config(PRIVATE, {"model.dropout": 0.1})
    load_config(DIGITS, {"model.dropout": 0.1})


def test_a_model_with_dropout_of_its_own_is_refused_at_the_first_private_step(home: Path) -> None:
    import torch

    job = load_config(PRIVATE, {"rounds": 1})
    assembly = assemble(job)
    model = assembly.model
    model.module.add_module("extra", torch.nn.Dropout(0.1))
    data = model.encode(assembly.shards[0].train, job.data.max_length)
    work = LocalWork(0, 0, tuple(model.layout.names))
    with pytest.raises(PrivacyError, match="set every dropout to 0"):
        train_locally(
            model,
            data,
            model.read(model.layout),
            work,
            job.train,
            dp=DPWork(1.0, 1.0, 0.1, 10.0),
            entropy=SystemEntropy(),
            seed=0,
        )


@pytest.mark.model
def test_without_dropout_one_record_moves_a_private_step_by_no_more_than_the_clip(
    home: Path, require_model: Any
) -> None:
    require_model("minilm")
    clip, records = 0.5, 24
    job = load_config(
        {
            "data": {"name": "spam", "clients": 2, "partition": "iid", "limit": 100, "max_length": 32},
            "model": {"name": "minilm", "adapter": "lora", "layers": 1},
            "train": {"learning_rate": 1.0, "steps": 1, "cache_frozen": False},
        }
    )
    assembly = assemble(job)
    model = assembly.model
    whole = model.encode(assembly.shards[0].train, job.data.max_length)
    start = model.read(model.layout)
    start = (start + 0.02 * np.random.default_rng(0).standard_normal(start.size)).astype(np.float32)
    exact = DPWork(0.0, clip, 1.0, 1.0)  # no noise, everybody in the batch, denominator one: the sum itself

    def total(rows: list[int]) -> Any:
        assert whole.tokens is not None
        assert whole.labels is not None
        data = dataclasses.replace(
            whole, tokens=tuple(whole.tokens[i] for i in rows), labels=whole.labels[rows]
        )
        work = LocalWork(0, 3, tuple(model.layout.names))
        found = train_locally(model, data, start, work, job.train, dp=exact, entropy=SystemEntropy(), seed=0)
        return start.astype(np.float64) - found.vector

    everyone = total(list(range(records)))
    for gone in (0, 9, records - 1):
        difference = everyone - total([r for r in range(records) if r != gone])
        assert np.linalg.norm(difference) <= clip * (1 + 1e-5)


# --------------------------------------------------------------------------------- who was in the cohort


def test_under_client_level_dp_no_outsider_learns_how_many_clients_were_drawn(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    fake = types.SimpleNamespace(
        log=lambda values, step: logged.append(values), summary={}, finish=lambda: None
    )
    module = types.ModuleType("wandb")
    module.init = lambda **_: fake  # type: ignore[attr-defined]  # a stand-in for the package
    monkeypatch.setitem(sys.modules, "wandb", module)
    run(CLIENT, {"rounds": 3, "tracking.wandb": True}, folder=tmp_path / "client")
    assert len(logged) == 3
    assert not any("bytes/mib_up" in values for values in logged)
    run(PRIVATE, {"rounds": 1, "tracking.wandb": True}, folder=tmp_path / "example")
    assert "bytes/mib_up" in logged[-1]


def test_a_client_that_diverges_under_client_level_dp_does_not_show_itself_by_ending_the_round(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClientRunner._train

    def diverge(self: ClientRunner, job: Any) -> Any:
        if job.client % 2:
            raise DivergedError("the loss is no longer finite")
        return original(self, job)

    monkeypatch.setattr(ClientRunner, "_train", diverge)
    result = run(CLIENT, {"rounds": 2}, folder=tmp_path / "out")
    assert (result.rounds, result.stopped) == (2, "rounds")


def test_a_round_in_which_every_client_diverges_still_releases_noise(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(self: ClientRunner, job: Any) -> Any:
        raise DivergedError("the loss is no longer finite")

    monkeypatch.setattr(ClientRunner, "_train", diverge)
    result = run(CLIENT, {"rounds": 1}, folder=tmp_path / "out")
    assert (result.rounds, result.stopped) == (1, "rounds")


# ----------------------------------------------------------------------------------- the site's accounts


@pytest.mark.parametrize("job", [PRIVATE, CLIENT])
def test_a_run_without_noise_makes_the_sites_epsilon_infinite(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    run(DIGITS, {"rounds": 1}, folder=tmp_path / "open")
    result = run(job, {"rounds": 1}, folder=tmp_path / "dp")
    assert result.ledger is not None
    statement = result.ledger.statement(1e-5)
    assert math.isfinite(statement.epsilon)
    assert statement.site_epsilon == math.inf
    with pytest.raises(BudgetExceeded, match="infinity"):
        run(job, {"rounds": 1, "privacy.site_epsilon": 50.0}, folder=tmp_path / "capped")


def test_a_job_whose_folder_cannot_be_made_charges_nothing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be made: Not a directory; choose another --folder"):
        run(DIGITS, {"rounds": 1}, folder=tmp_path / "file" / "run")
    result = run(PRIVATE, {"rounds": 1}, folder=tmp_path / "dp")
    assert result.ledger is not None
    assert math.isfinite(
        result.ledger.statement(1e-5).site_epsilon
    )  # a run without noise would make it infinite


def test_a_job_that_is_refused_leaves_no_folder(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        run(DIGITS, {"data.name": str(tmp_path / "no.csv")}, folder=tmp_path / "runs" / "mine")
    assert not (tmp_path / "runs").exists()


def test_resuming_a_run_without_noise_notes_it_once(home: Path, tmp_path: Path) -> None:
    from securefed.federation import resume
    from securefed.privacy.ledger import Ledger

    run(DIGITS, {"rounds": 1}, folder=tmp_path / "open")
    resume(tmp_path / "open")
    with Ledger.site() as ledger:
        assert len(ledger.events()) == 1


def own_table(path: Path, rows: int) -> str:
    with path.open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream)
        out.writerow(["text", "label"])
        out.writerows([f"record {i} of mine", ("no", "yes")[i % 2]] for i in range(rows))
    return str(path)


def loaded(path: Path, rows: int, task: str = "classification", **data: Any) -> Dataset:
    job = load_config(
        {
            "data": {"name": own_table(path, rows), "partition": "iid", "clients": 2, **data},
            "train": {"epochs": 1},
        }
    )
    return load_dataset(job.data, task=task)


def test_a_named_file_keeps_its_account_when_it_grows(tmp_path: Path) -> None:
    before, after = (loaded(tmp_path / "own.csv", n, ledger_name="ward 7") for n in (400, 401))
    assert before.account == after.account
    assert before.digest != after.digest  # a checkpoint is still held to the very records
    assert loaded(tmp_path / "own.csv", 400).account != loaded(tmp_path / "own.csv", 401).account


def test_an_own_file_has_one_account_whatever_the_task(tmp_path: Path) -> None:
    accounts = {loaded(tmp_path / "own.csv", 400, task).account for task in ("classification", "causal-lm")}
    assert len(accounts) == 1


def test_the_statement_says_that_sizes_are_public_and_which_runs_are_in_another_ledger(
    home: Path, tmp_path: Path
) -> None:
    run(CLIENT, {"rounds": 1}, folder=tmp_path / "client")
    result = run(PRIVATE, {"rounds": 1}, folder=tmp_path / "example")
    assert result.ledger is not None
    text = result.ledger.statement(1e-4).text()
    assert "the number of records and clients is public" in text
    assert "1 run(s) of this site on this data set at client level: another ledger" in text
