"""A run never goes on in a ledger that has forgotten what it spent, nor begins with a budget for nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from securefed.checkpoint import load_state
from securefed.errors import BudgetExceeded, CheckpointError, PrivacyError
from securefed.federation import resume, run
from securefed.paths import state_dir
from securefed.privacy.ledger import Ledger
from tests.securefed.test_federation import CLIENT, PRIVATE
from tests.stopping import StopAfter


@pytest.fixture
def stopped(home: Path, tmp_path: Path) -> Path:
    """A DP run that has played two of its rounds; its ledger is closed and whole."""
    run(PRIVATE, folder=tmp_path / "cut", stop_flag=StopAfter(2))
    return tmp_path / "cut"


def ledger_file() -> Path:
    return state_dir() / "ledger.sqlite"


def lose_ledger() -> None:
    for path in state_dir().glob("ledger.sqlite*"):
        path.unlink()


def test_resuming_without_the_ledger_is_refused_and_makes_no_new_one(stopped: Path) -> None:
    lose_ledger()
    with pytest.raises(PrivacyError, match="does not know run"):
        resume(stopped)
    assert not ledger_file().exists()


def test_resuming_in_another_home_is_refused(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECUREFED_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(PrivacyError, match="set SECUREFED_HOME to where the run began"):
        resume(stopped)


def test_an_empty_ledger_file_is_a_loss_and_not_a_new_ledger(stopped: Path) -> None:
    lose_ledger()
    ledger_file().touch()
    with pytest.raises(PrivacyError, match="is empty"):
        resume(stopped)
    with pytest.raises(PrivacyError, match="is empty"):
        Ledger.site().events()


def test_an_older_copy_of_the_ledger_is_refused(home: Path, tmp_path: Path) -> None:
    run(PRIVATE, folder=tmp_path / "cut", stop_flag=StopAfter(1))
    with closing(sqlite3.connect(ledger_file())) as ledger, closing(sqlite3.connect(tmp_path / "old")) as old:
        ledger.backup(old)
    resume(tmp_path / "cut", stop_flag=StopAfter(3))
    lose_ledger()
    shutil.copy(tmp_path / "old", ledger_file())
    with pytest.raises(PrivacyError, match=r"holds 4 reservations of run .*, which had made 16"):
        resume(tmp_path / "cut")


def test_the_whole_ledger_lets_it_go_on(stopped: Path) -> None:
    assert resume(stopped).rounds == PRIVATE["rounds"]


def test_a_checkpoint_holds_the_ledger_to_what_was_charged(stopped: Path) -> None:
    identity = {"run": json.loads((stopped / "run.json").read_text())["run"]}
    state = load_state(stopped, identity)
    assert state is not None
    assert state.charges == 2 * 4


def test_a_cut_run_json_is_said_to_be_damaged(stopped: Path) -> None:
    (stopped / "run.json").write_text('{"ru')
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        resume(stopped)


@pytest.mark.parametrize(
    ("job", "cap"),
    [
        (PRIVATE, {"privacy.epsilon": 1e-3}),
        (PRIVATE, {"privacy.site_epsilon": 1e-3}),
        (CLIENT, {"privacy.epsilon": 1e-3}),
    ],
)
def test_a_budget_for_no_round_is_refused_before_a_folder_is_made(
    job: dict[str, Any], cap: dict[str, float], home: Path, tmp_path: Path
) -> None:
    with pytest.raises(BudgetExceeded, match="raise the budget or add noise"):
        run(job, cap, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with Ledger.site() as ledger:
        assert ledger.events(unit=job["privacy"]["unit"]) == ()


def test_a_damaged_ledger_is_told_before_a_folder_is_made(home: Path, tmp_path: Path) -> None:
    state_dir().mkdir(parents=True, exist_ok=True)
    ledger_file().write_bytes(b"not a database, not even nearly" * 100)
    with pytest.raises(PrivacyError, match="not a readable privacy ledger"):
        run(PRIVATE, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def cut_last_charge() -> None:
    """Takes the newest charge and its links out with care, so that the file by itself looks whole."""
    with closing(sqlite3.connect(ledger_file(), isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        last = connection.execute("SELECT max(id) FROM reservations").fetchone()[0]
        first = connection.execute("SELECT min(id) FROM chain WHERE ref = ?", (str(last),)).fetchone()[0]
        connection.execute("DELETE FROM chain WHERE id >= ?", (first,))
        connection.execute("DELETE FROM outbox")
        connection.execute("DELETE FROM reservations WHERE id = ?", (last,))


def test_a_ledger_cut_and_spent_again_to_the_same_count_is_refused_on_resumption(stopped: Path) -> None:
    run_id = json.loads((stopped / "run.json").read_text())["run"]
    cut_last_charge()
    with Ledger.site() as ledger:
        before = ledger.charges(run_id)
        event = ledger.events(run=run_id)[0]
        reservation = ledger.reserve(run=run_id, client=3, round=1, event=event)
        ledger.settle(reservation, steps_taken=0)
        assert ledger.charges(run_id) == before + 1  # as many as the checkpoint asks for
        ledger.check()  # and nothing that the file itself could tell
    with pytest.raises(PrivacyError, match="rolled back or rewritten"):
        resume(stopped)


@pytest.mark.parametrize("job", [PRIVATE, CLIENT])
def test_a_ledger_cut_between_two_rounds_ends_the_run(
    job: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    class Cheat(StopAfter):
        def is_set(self) -> bool:
            if not self.done:
                cut_last_charge()
            self.done = True
            return False

        done = False

    with pytest.raises(PrivacyError, match="rolled back or rewritten"):
        run(job, folder=tmp_path / "out", stop_flag=Cheat(99))
