"""Frozen states on disk in whole jobs: the same bits, who may write, and what the site's owner decides."""

from __future__ import annotations

import errno
import json
import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.assembly import Fresh, assemble, make_runner
from securefed.cli import main
from securefed.config import Config, DataConfig, load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.data import Dataset, load_dataset
from securefed.data.load import is_named
from securefed.errors import PolicyRefusal, PrivacyError
from securefed.federation import resume, run
from securefed.privacy.policy import Policy, load_policy
from securefed.training.file_lock import lock_shared
from securefed.training.kept_states import allowed_form, open_store
from securefed.training.state_folder import is_sealed, stored_files
from tests.entropy import SeededEntropy
from tests.results import model_of
from tests.securefed.models import tiny
from tests.securefed.training.setups import counted
from tests.stopping import StopAfter

ALWAYS = {"train.cache_on_disk": "always"}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    return {
        "rounds": 3,
        "weights": "equal",
        "algorithm": {"name": "fedavg", "head_rounds": 1},
        "data": tiny.three_clients(tmp_path, 60),
        "model": {
            "name": str(tiny.tiny_bert(tmp_path / "bert")),
            "adapter": "lora",
            "layers": 1,
            "head_layers": 2,
        },
        "train": {"steps": 1, "learning_rate": 0.5},
        "privacy": {
            "unit": "example",
            "noise_multiplier": 0.7,
            "delta": 1e-3,
            "sample_rate": 0.5,
        },
        "evaluate": {"clients": True, "baselines": True},
        "tracking": {"report": False},
        "engine": {"threads": 1, "checkpoint_every": 1},
    }


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return counted(monkeypatch)


@pytest.mark.parametrize("policy", ["", 'states_on_disk = "plain"'])
def test_a_second_run_computes_nothing_and_ends_with_the_same_bits_as_one_without_a_store(
    job: dict[str, Any], home: Path, tmp_path: Path, passes: list[int], policy: str
) -> None:
    (home / "policy.toml").write_text(policy)
    first = run(job, {"train.cache_on_disk": "never"}, folder=tmp_path / "without", entropy=SeededEntropy(1))
    without = len(passes)
    assert without > 0
    assert stored_files(home / "states") == []
    run(job, ALWAYS, folder=tmp_path / "cold", entropy=SeededEntropy(1))
    assert len(passes) == 2 * without
    warm = run(job, ALWAYS, folder=tmp_path / "warm", entropy=SeededEntropy(1))
    assert len(passes) == 2 * without
    for name in ("cold", "warm"):
        np.testing.assert_array_equal(model_of(tmp_path / name), model_of(tmp_path / "without"))
    assert warm.metrics == first.metrics
    assert all(is_sealed(path) == (not policy) for path in stored_files(home / "states"))
    modes = {stat.S_IMODE(p.stat().st_mode) for p in stored_files(home / "states")}
    assert modes == {0o600}


def test_a_resumed_run_starts_from_the_stored_states(
    job: dict[str, Any], home: Path, tmp_path: Path, passes: list[int]
) -> None:
    run(job, ALWAYS, folder=tmp_path / "whole", entropy=SeededEntropy(1))
    done = len(passes)
    run(job, ALWAYS, folder=tmp_path / "a", entropy=SeededEntropy(1), stop_flag=StopAfter(1))
    resume(tmp_path / "a", entropy=SeededEntropy(1))
    assert len(passes) == done
    np.testing.assert_array_equal(model_of(tmp_path / "a"), model_of(tmp_path / "whole"))


def test_a_worker_process_uses_what_this_one_has_stored(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    job.pop("privacy")  # secret randomness does not travel to workers, so the bits are compared without
    quiet = {**ALWAYS, "evaluate.baselines": False, "evaluate.every": 0}
    run(job, quiet, folder=tmp_path / "here")
    stored = {p.name: p.stat().st_mtime_ns for p in stored_files(home / "states")}
    assert len(stored) >= 6  # three shards at two stages, and the test records
    run(job, {**quiet, "engine.workers": 1}, folder=tmp_path / "pool")
    used = {p.name: p.stat().st_mtime_ns for p in stored_files(home / "states")}
    assert used.keys() == stored.keys()
    assert sum(used[name] > stored[name] for name in stored) >= 6
    np.testing.assert_array_equal(model_of(tmp_path / "here"), model_of(tmp_path / "pool"))


@pytest.mark.parametrize(
    ("asked", "name", "policy", "form"),
    [
        ("public", "sentiment", None, "plain"),
        ("public", "sentiment", "plain", "plain"),
        ("public", "sentiment", "encrypted", "encrypted"),
        ("public", "sentiment", "never", None),
        ("public", "mine.csv", None, None),
        ("public", "mine.csv", "plain", None),
        ("public", "hub:somebody/data", None, None),
        ("public", "my.module:Data", None, None),
        ("always", "sentiment", None, "plain"),
        ("always", "mine.csv", None, "encrypted"),
        ("always", "mine.csv", "encrypted", "encrypted"),
        ("always", "mine.csv", "plain", "plain"),
        ("never", "sentiment", "plain", None),
        ("never", "sentiment", "never", None),
    ],
)
def test_job_and_policy_decide_together_what_may_lie_on_disk(
    asked: str, name: str, policy: str | None, form: str | None
) -> None:
    config = load_config({"data": {"name": name}, "train": {"cache_on_disk": asked, "steps": 1}})
    assert allowed_form(config, Policy(states_on_disk=policy)) == form


def test_public_records_of_somebody_else_are_not_a_public_data_set() -> None:
    tree = {"data": {"name": "sentiment"}, "algorithm": "distill", "train": {"steps": 1}}
    for public, form in (("held-out", "plain"), ("spam", "plain"), ("mine.csv", None)):
        config = load_config({**tree, "distill": {"public": public}})
        assert allowed_form(config, Policy()) == form


@pytest.mark.parametrize("name", ["records", "sentiment"])
def test_own_records_under_the_name_of_a_public_set_are_nobodys_public_set(
    name: str, job: dict[str, Any], home: Path
) -> None:
    """A data set is handed over in Python, and the job still names the default: its states must not lie in the clear."""

    class Mine(Fresh):
        def dataset(self, config: Config) -> Dataset:
            return replace(own, name=name)

    own = load_dataset(load_config(job).data)
    data = {"name": "sentiment", "partition": "iid", "clients": 3, "max_length": 16, "min_examples": 4}
    config = load_config({**job, "data": data, "privacy": {"unit": "none"}})
    assert allowed_form(config, Policy()) == "plain"
    runner = make_runner(assemble(config, Mine()), "run", SystemEntropy(), None, None)
    assert runner.cache is not None
    assert runner.cache.store is None
    assert not is_named(replace(own, name=name), "sentiment")
    assert is_named(load_dataset(DataConfig(name="digits")), "digits")


def test_a_job_that_insists_where_the_policy_says_never_is_refused_with_the_line(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    (home / "policy.toml").write_text('\nstates_on_disk = "never"\n')
    with pytest.raises(PolicyRefusal, match=r"policy.toml:2: states_on_disk"):
        run(job, ALWAYS, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (home / "states").exists()
    run(job, folder=tmp_path / "out")


@pytest.mark.parametrize("value", ['"sometimes"', "true", '["plain"]', "1"])
def test_a_policy_of_no_known_form_lets_nothing_run(home: Path, value: str) -> None:
    (home / "policy.toml").write_text(f"states_on_disk = {value}")
    with pytest.raises(PrivacyError, match="states_on_disk"):
        load_policy()


@pytest.mark.parametrize(("policy", "left"), [("encrypted", 0), ("never", 0), ("plain", 1)])
def test_what_a_stricter_policy_no_longer_allows_is_deleted_by_the_next_job(
    job: dict[str, Any], home: Path, tmp_path: Path, policy: str, left: int
) -> None:
    (home / "policy.toml").write_text('states_on_disk = "plain"')
    run(job, ALWAYS, folder=tmp_path / "a")
    before = {p.name for p in stored_files(home / "states")}
    (home / "policy.toml").write_text(f'states_on_disk = "{policy}"')
    run(job, folder=tmp_path / "b")
    assert len(before & {p.name for p in stored_files(home / "states")}) == left * len(before)


@pytest.mark.parametrize("trouble", ["in use", "somebody else's folder"])
def test_states_that_a_policy_forbids_and_nobody_can_delete_are_told_and_stop_no_job(
    job: dict[str, Any],
    home: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    run(job, ALWAYS, folder=tmp_path / "a")
    (home / "policy.toml").write_text('states_on_disk = "never"')
    held = stored_files(home / "states")[0]
    if trouble == "somebody else's folder":

        def closed(self: Path) -> Any:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))

        monkeypatch.setattr(Path, "iterdir", closed)
    caplog.clear()
    with held.open("rb") as file, caplog.at_level(logging.WARNING):
        lock_shared(file.fileno())
        assert open_store(load_config(job)) is None
    words = "1 file of" if trouble == "in use" else "cannot be deleted"
    assert [words in r.getMessage() for r in caplog.records] == [True]
    assert held.exists()


def test_own_records_are_not_written_unless_the_job_says_so(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    run(job, folder=tmp_path / "a")
    assert not (home / "states").exists()
    assert not (home / "state" / "states.key").exists()


@pytest.mark.parametrize("trouble", ["folder is a file", "key is open to others"])
def test_a_site_that_cannot_keep_them_trains_all_the_same_and_says_so_once(
    job: dict[str, Any], home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    if trouble == "folder is a file":
        (home / "states").write_text("in the way")
    else:
        (home / "state").mkdir()
        (home / "state" / "states.key").write_bytes(bytes(32))
        (home / "state" / "states.key").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        result = run(job, ALWAYS, folder=tmp_path / "a")
    assert result.rounds == 3
    assert sum("frozen states are not kept on disk" in r.message for r in caplog.records) == 1


def test_no_token_or_text_is_in_file_names_logs_or_sealed_files(
    job: dict[str, Any], home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "securefed"):
        run(job, ALWAYS, folder=tmp_path / "a")
    sealed = b"".join(p.read_bytes() for p in stored_files(home / "states"))
    names = " ".join(p.name for p in (home / "states").iterdir())
    for text in tiny.TEXTS:
        assert text not in caplog.text + names
        assert text.encode() not in sealed


def test_the_command_shows_and_clears_them(
    job: dict[str, Any], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "states", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 0
    run(job, ALWAYS, folder=tmp_path / "a")
    assert main(["data", "states", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == found["encrypted"] == len(stored_files(home / "states")) > 0
    assert found["bytes"] == sum(p.stat().st_size for p in stored_files(home / "states"))
    assert main(["data", "states"]) == 0
    assert "encrypted" in capsys.readouterr().out
    assert main(["data", "states", "--clear"]) == 0
    assert f"{found['files']} files deleted" in capsys.readouterr().out
    assert stored_files(home / "states") == []
    assert not (home / "state" / "states.key").exists()
