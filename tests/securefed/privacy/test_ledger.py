"""The ledger: nothing spent is ever forgotten, nothing beyond a budget is ever granted."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from securefed.errors import BudgetExceeded, PrivacyError
from securefed.privacy import Budget, Ledger, NonPrivate, SampledGaussian, ShardKey, epsilon_of, max_steps
from securefed.privacy import records as records_module
from securefed.types import SERVER

EVENT = SampledGaussian(1.3, 0.135, 3)
DELTA = 1e-5
SHARDS = {c: ShardKey(f"digest{c}", 100 + c) for c in range(3)}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite")
    ledger.register("a", SHARDS, "mails", "example")
    return ledger


def spend(ledger: Ledger, client: int = 0, round: int = 0, run: str = "a", **kwargs: Any) -> int:
    return ledger.reserve(run=run, client=client, round=round, event=kwargs.pop("event", EVENT), **kwargs)


def test_site_ledger_lies_outside_run_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECUREFED_HOME", str(tmp_path))
    assert Ledger.site().path == tmp_path / "state" / "ledger.sqlite"


# ------------------------------------------------------------------------------------------ registering


def test_registering_the_same_again_changes_nothing(ledger: Ledger) -> None:
    spend(ledger)
    ledger.register("a", SHARDS, "mails", "example")
    assert ledger.events(run="a") == (EVENT,)


@pytest.mark.parametrize(
    ("shards", "dataset", "unit", "disjoint"),
    [
        ({0: SHARDS[0]}, "mails", "example", True),
        (SHARDS, "tweets", "example", True),
        (SHARDS, "mails", "client", True),
        (SHARDS, "mails", "example", False),
        (SHARDS | {2: ShardKey("digest2", 7)}, "mails", "example", True),
        ({0: SHARDS[1], 1: SHARDS[0], 2: SHARDS[2]}, "mails", "example", True),
    ],
)
def test_registering_other_content_is_refused(
    ledger: Ledger, shards: Any, dataset: str, unit: Any, disjoint: bool
) -> None:
    with pytest.raises(PrivacyError, match="with other data"):
        ledger.register("a", shards, dataset, unit, disjoint)


def test_equal_shards_are_not_disjoint(ledger: Ledger) -> None:
    twins = {0: ShardKey("same", 5), 1: ShardKey("same", 5)}
    with pytest.raises(PrivacyError, match="disjoint=False"):
        ledger.register("b", twins, "mails", "example")
    ledger.register("b", twins, "mails", "example", disjoint=False)


def test_unknown_runs_and_clients_cannot_spend(ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="no run 'b'"):
        spend(ledger, run="b")
    for client in (3, SERVER):
        with pytest.raises(PrivacyError, match="holds no shard"):
            spend(ledger, client=client)
    with pytest.raises(PrivacyError, match="no run 'b'"):
        ledger.epsilon(DELTA, run="b")


# -------------------------------------------------------------------------------------------- spending


def test_epsilon_is_the_maximum_over_disjoint_clients(ledger: Ledger) -> None:
    assert ledger.epsilon(DELTA, run="a") == 0
    for round in range(4):
        spend(ledger, 0, round)
    spend(ledger, 1)
    view = ledger.run_view("a")
    assert view.epsilon(DELTA) == ledger.epsilon(DELTA) == epsilon_of([EVENT] * 4, DELTA)
    assert view.epsilon(DELTA, client=1) == epsilon_of([EVENT], DELTA)
    assert view.epsilon(DELTA, client=2) == 0
    assert view.events(client=1) == (EVENT,)
    assert view.epsilon(DELTA, accountant="rdp") > view.epsilon(DELTA)


def test_epsilon_is_the_composition_where_shards_overlap(ledger: Ledger) -> None:
    ledger.register("b", SHARDS, "mails", "example", disjoint=False)
    spend(ledger, 0, run="b")
    spend(ledger, 1, run="b")
    assert ledger.epsilon(DELTA, run="b") == epsilon_of([EVENT] * 2, DELTA)
    assert ledger.epsilon(DELTA, run="b", client=1) == epsilon_of([EVENT], DELTA)


def test_an_update_without_noise_makes_epsilon_infinite(ledger: Ledger) -> None:
    ledger.settle(spend(ledger, event=NonPrivate()), steps_taken=0)
    assert ledger.epsilon(DELTA, run="a") == math.inf


def test_two_runs_on_the_same_shards_add_up_at_the_site(ledger: Ledger) -> None:
    ledger.register("b", SHARDS, "mails", "example")
    ledger.register("c", SHARDS, "tweets", "example")
    for run in "abc":
        spend(ledger, run=run)
    assert ledger.site_epsilon(DELTA, "mails") == epsilon_of([EVENT] * 2, DELTA) == ledger.epsilon(DELTA)
    assert ledger.site_epsilon(DELTA, "tweets") == epsilon_of([EVENT], DELTA)
    assert ledger.site_epsilon(DELTA, "unheard") == 0


def test_the_same_shards_in_another_order_are_the_same_partition(ledger: Ledger) -> None:
    ledger.register("b", {0: SHARDS[2], 1: SHARDS[1], 2: SHARDS[0]}, "mails", "example")
    spend(ledger, 0)  # digest0
    spend(ledger, 0, run="b")  # digest2
    assert ledger.site_epsilon(DELTA, "mails") == epsilon_of([EVENT], DELTA)


def test_client_level_is_a_book_of_its_own(ledger: Ledger) -> None:
    ledger.register("c", SHARDS, "mails", "client")
    spend(ledger, SERVER, run="c")
    spend(ledger, SERVER, 1, run="c")
    spend(ledger, 2, 1, run="c")
    central = epsilon_of([EVENT] * 2, DELTA)
    both = epsilon_of([EVENT] * 3, DELTA)
    assert ledger.epsilon(DELTA, run="c", unit="client", client=0) == central
    assert ledger.epsilon(DELTA, run="c", unit="client", client=2) == both
    assert ledger.epsilon(DELTA, run="c", unit="client") == ledger.epsilon(DELTA, unit="client") == both
    assert ledger.run_view("c").epsilon(DELTA) == both
    assert ledger.epsilon(DELTA) == 0
    with pytest.raises(PrivacyError, match="unit='client'"):
        ledger.epsilon(DELTA, run="c")


# ---------------------------------------------------------------------------------------------- budget


def test_the_budget_is_spent_to_its_last_step_and_no_further(ledger: Ledger) -> None:
    budget = Budget(3.0, DELTA)
    allowed = max_steps(EVENT.noise_multiplier, EVENT.sample_rate, 3.0, DELTA) // EVENT.steps
    for round in range(allowed):
        spend(ledger, 0, round, budget=budget)
    before = ledger.events(run="a")
    with pytest.raises(
        BudgetExceeded, match=r"client 0 has spent epsilon=.* of 3 at delta=1e-05; 3 more steps"
    ):
        spend(ledger, 0, allowed, budget=budget)
    assert ledger.events(run="a") == before
    assert ledger.epsilon(DELTA, run="a") <= 3.0
    spend(ledger, 1, budget=budget)  # another client's records are untouched


def test_mixed_noise_is_budgeted_by_composition(ledger: Ledger) -> None:
    other = SampledGaussian(2.0, 0.5, 5)
    total = epsilon_of([EVENT, other], DELTA)
    spend(ledger, event=other)
    with pytest.raises(BudgetExceeded):
        spend(ledger, budget=Budget(total * 0.999, DELTA))
    spend(ledger, budget=Budget(total, DELTA))


def test_no_noise_fits_no_budget(ledger: Ledger) -> None:
    for event in (NonPrivate(), SampledGaussian(0.0, 0.1, 1)):
        with pytest.raises(BudgetExceeded, match="infinity"):
            spend(ledger, event=event, budget=Budget(100.0, DELTA))
    assert ledger.events() == ()


def test_the_site_budget_counts_earlier_runs(ledger: Ledger) -> None:
    ledger.register("b", SHARDS, "mails", "example")
    cap = epsilon_of([EVENT] * 2, DELTA)
    budget = Budget(100.0, DELTA, site_epsilon=cap)
    spend(ledger)
    spend(ledger, run="b", budget=budget)
    with pytest.raises(BudgetExceeded, match="data set 'mails'"):
        spend(ledger, round=1, run="b", budget=budget)
    spend(ledger, 1, run="b", budget=budget)


def test_the_site_budget_counts_runs_that_divide_the_records_differently(ledger: Ledger) -> None:
    spend(ledger, 2)
    ledger.register("b", {0: ShardKey("everything", 303)}, "mails", "example")
    with pytest.raises(BudgetExceeded, match="this site"):
        spend(ledger, run="b", budget=Budget(100.0, DELTA, site_epsilon=epsilon_of([EVENT], DELTA)))


def test_the_server_budget_counts_the_worst_off_client(ledger: Ledger) -> None:
    ledger.register("c", SHARDS, "mails", "client")
    spend(ledger, 2, run="c")
    with pytest.raises(BudgetExceeded):
        spend(ledger, SERVER, run="c", budget=Budget(epsilon_of([EVENT], DELTA), DELTA))


@pytest.mark.parametrize(
    "arguments",
    [{"epsilon": 0.0}, {"epsilon": math.nan}, {"delta": 0.0}, {"delta": 1.0}, {"site_epsilon": -1.0}],
)
def test_budgets_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        Budget(**({"epsilon": 1.0, "delta": DELTA} | arguments))


def test_twelve_clients_and_sixty_rounds_are_reserved_quickly(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.register("a", {c: ShardKey(str(c), 100) for c in range(12)}, "mails", "example")
    budget = Budget(20.0, DELTA, site_epsilon=30.0)
    spend(ledger, budget=budget)
    start = time.process_time()  # the disk is not ours to time
    for round in range(1, 60):
        for client in range(12):
            spend(ledger, client, round, budget=budget)
    assert time.process_time() - start < 3  # about 1 s alone on one slow core
    assert len(ledger.events(run="a")) == 59 * 12 + 1


# ------------------------------------------------------------------------------------ settling, outbox


def test_a_settled_update_is_resent_byte_for_byte(ledger: Ledger, tmp_path: Path) -> None:
    payload = os.urandom(1000)
    ledger.settle(spend(ledger, 1, 4), steps_taken=3, payload=payload)
    ledger.close()
    again = Ledger(ledger.path)
    assert again.outbox("a", 1, 4) == payload
    assert again.outbox("a", 1, 3) is again.outbox("a", 0, 4) is None
    again.clear_outbox("a", 4)
    assert again.outbox("a", 1, 4) == payload
    again.clear_outbox("a", 5)
    assert again.outbox("a", 1, 4) is None
    assert again.events(run="a") == (EVENT,)


def test_a_reservation_is_settled_once_with_at_most_its_steps(ledger: Ledger) -> None:
    reservation = spend(ledger)
    with pytest.raises(PrivacyError, match="4 steps were taken but 3 reserved"):
        ledger.settle(reservation, steps_taken=4, payload=b"x")
    assert ledger.outbox("a", 0, 0) is None
    ledger.settle(reservation, steps_taken=2, payload=b"x")
    with pytest.raises(PrivacyError, match="settled already"):
        ledger.settle(reservation, steps_taken=2, payload=b"y")
    with pytest.raises(PrivacyError, match="no reservation 99"):
        ledger.settle(99, steps_taken=0)
    assert ledger.outbox("a", 0, 0) == b"x"


def test_fewer_steps_than_reserved_stay_charged(ledger: Ledger) -> None:
    ledger.settle(spend(ledger), steps_taken=1)
    assert ledger.epsilon(DELTA, run="a") == epsilon_of([EVENT], DELTA)
    statement = ledger.statement(DELTA)
    assert (statement.steps_reserved, statement.steps_settled, statement.unfinished) == (3, 1, 0)


def test_a_second_update_of_a_round_is_refused_but_its_charge_stays(ledger: Ledger) -> None:
    first, second = spend(ledger), spend(ledger)
    ledger.settle(first, steps_taken=3, payload=b"first")
    with pytest.raises(PrivacyError, match="re-send that one"):
        ledger.settle(second, steps_taken=3, payload=b"second")
    assert ledger.outbox("a", 0, 0) == b"first"
    assert ledger.statement(DELTA).unfinished == 1
    assert ledger.epsilon(DELTA) == epsilon_of([EVENT] * 2, DELTA)


# ------------------------------------------------------------------------------ crashes, processes, files

RESERVE_THEN_HANG = """
import sys, time
from securefed.privacy import Ledger, SampledGaussian
ledger = Ledger(sys.argv[1])
reservation = ledger.reserve(run="a", client=0, round=int(sys.argv[2]), event=SampledGaussian(1.3, 0.135, 3))
if len(sys.argv) > 3:
    ledger.settle(reservation, steps_taken=3, payload=b"update" * 1000)
print(reservation, flush=True)
time.sleep(600)
"""


def killed_after(ledger: Ledger, *arguments: str) -> None:
    command = [sys.executable, "-c", RESERVE_THEN_HANG, str(ledger.path), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        process.send_signal(signal.SIGKILL)


def test_killed_attempts_stay_charged_and_a_resumed_one_is_a_second_charge(ledger: Ledger) -> None:
    for attempt in range(3):
        killed_after(ledger, "0")
        assert ledger.epsilon(DELTA, run="a") == epsilon_of([EVENT] * (attempt + 1), DELTA)
    ledger.settle(spend(ledger), steps_taken=3, payload=b"at last")
    statement = ledger.statement(DELTA)
    assert (statement.unfinished, statement.steps_reserved, statement.steps_settled) == (3, 12, 3)


def test_an_update_settled_before_a_kill_is_in_the_outbox(ledger: Ledger) -> None:
    killed_after(ledger, "5", "settle")
    assert ledger.outbox("a", 0, 5) == b"update" * 1000


def race(path: Path, run: str, client: int, start: Any, granted: Any) -> None:
    ledger, budget = Ledger(path), Budget(100.0, DELTA, site_epsilon=3.0)
    start.wait()
    for round in range(12):
        try:
            ledger.reserve(run=run, client=client, round=round, event=EVENT, budget=budget)
        except BudgetExceeded:
            continue
        granted.put(run)


def test_two_processes_cannot_both_take_the_last_of_a_budget(ledger: Ledger) -> None:
    ledger.register("b", SHARDS, "mails", "example")
    allowed = max_steps(EVENT.noise_multiplier, EVENT.sample_rate, 3.0, DELTA) // EVENT.steps
    assert 2 < allowed < 24
    context = multiprocessing.get_context("spawn")
    start, granted = context.Barrier(2), context.Queue()
    racers = [context.Process(target=race, args=(ledger.path, run, 1, start, granted)) for run in "ab"]
    for racer in racers:
        racer.start()
    winners = [granted.get(timeout=60) for _ in range(allowed)]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert granted.empty()
    assert len(ledger.events(client=1)) == len(winners) == allowed
    assert ledger.site_epsilon(DELTA, "mails") <= 3.0


def test_without_the_transaction_the_race_would_be_lost(ledger: Ledger) -> None:
    """The defence broken on purpose: checking before the lock alone lets two reservations pass."""
    budget = Budget(epsilon_of([EVENT], DELTA), DELTA)
    barrier = threading.Barrier(2)
    import securefed.privacy.ledger as module

    def checked_then_wait() -> None:
        with ledger._store.reading() as connection:
            module._admit(connection, "a", 0, EVENT, budget)
        barrier.wait(30)
        spend(ledger)

    threads = [threading.Thread(target=checked_then_wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.epsilon(DELTA, run="a") > budget.epsilon


def test_threads_and_forked_processes_share_one_ledger(ledger: Ledger) -> None:
    spend(ledger)
    process = multiprocessing.get_context("fork").Process(target=spend, args=(ledger, 1))
    process.start()
    process.join()
    threads = [threading.Thread(target=spend, args=(ledger, 2, k)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.events()) == 6


def test_a_ledger_travels_to_another_process_by_its_path(ledger: Ledger) -> None:
    spend(ledger)
    copy = pickle.loads(pickle.dumps(ledger))  # noqa: S301 - our own bytes
    assert copy.events() == (EVENT,)


@pytest.mark.parametrize(("local", "journal"), [(True, "wal"), (False, "delete")])
def test_the_journal_fits_the_file_system_and_follows_a_moved_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool, journal: str
) -> None:
    for where in (not local, local):
        monkeypatch.setattr("securefed.privacy.store.is_local", lambda folder, where=where: where)
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            ledger.register("a", SHARDS, "mails", "example")
            spend(ledger)
            assert ledger._store._connection().execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
            mode = ledger._store._connection().execute("PRAGMA journal_mode").fetchone()[0]
    assert mode == journal
    assert ledger.events() == (EVENT, EVENT)


def test_a_clock_set_back_resets_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(ledger)
    monkeypatch.setattr(records_module, "now", lambda: "1970-01-01T00:00:00+00:00")
    monkeypatch.setattr("securefed.privacy.ledger.now", lambda: "1970-01-01T00:00:00+00:00")
    spend(ledger, round=1)
    assert ledger.epsilon(DELTA) == epsilon_of([EVENT] * 2, DELTA)
    assert ledger.events() == (EVENT, EVENT)


def test_rows_can_be_neither_deleted_nor_lessened(ledger: Ledger) -> None:
    reservation = spend(ledger)
    ledger.settle(reservation, steps_taken=3)
    with sqlite3.connect(ledger.path) as connection:
        for attempt in (
            "DELETE FROM reservations",
            "UPDATE reservations SET steps = 0",
            "UPDATE reservations SET settled_at = NULL",
            "UPDATE runs SET dataset = 'other'",
            "DELETE FROM shards",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(attempt)


def one_line(error: pytest.ExceptionInfo[PrivacyError], path: Path) -> bool:
    return "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 50)
    with pytest.raises(PrivacyError, match="restore it from a backup") as error:
        Ledger(path).events()
    assert one_line(error, path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(PrivacyError, match="something else"):
        Ledger(other).register("a", SHARDS, "mails", "example")


def test_a_damaged_ledger_is_refused(ledger: Ledger) -> None:
    for round in range(200):
        spend(ledger, round=round)
    ledger.close()
    raw = bytearray(ledger.path.read_bytes())
    raw[4096 : len(raw) - 4096] = os.urandom(len(raw) - 8192)
    ledger.path.write_bytes(raw)
    with pytest.raises(PrivacyError) as error:
        ledger.epsilon(DELTA, run="a")
    assert one_line(error, ledger.path)


def test_a_ledger_of_a_later_version_is_refused(ledger: Ledger) -> None:
    ledger.close()
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(PrivacyError, match=r"schema version 99.*update SecureFed"):
        ledger.events()


def test_a_full_disk_is_one_clear_line_and_charges_nothing(ledger: Ledger) -> None:
    reservation = spend(ledger)
    connection = ledger._store._connection()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(PrivacyError, match=r"disk is full; this transaction was undone") as error:
        ledger.settle(reservation, steps_taken=3, payload=bytes(100_000))
    assert one_line(error, ledger.path)
    assert ledger.statement(DELTA).unfinished == 1
    assert ledger.outbox("a", 0, 0) is None


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrivacyError, match="SECUREFED_HOME"):
        Ledger(tmp_path / "file" / "ledger.sqlite").events()


def test_a_ledger_that_cannot_be_written_is_one_clear_line(ledger: Ledger) -> None:
    ledger._store._connection().execute("PRAGMA query_only = ON")
    with pytest.raises(PrivacyError, match="readonly") as error:
        spend(ledger)
    assert one_line(error, ledger.path)


# ------------------------------------------------------------------------------------------- statements


def test_the_statement_says_everything_beside_epsilon(ledger: Ledger) -> None:
    ledger.register("b", SHARDS, "mails", "example")
    spend(ledger, run="b")
    ledger.settle(spend(ledger), steps_taken=3)
    spend(ledger, 1)
    statement = ledger.run_view("a").statement(DELTA)
    assert statement.epsilon == epsilon_of([EVENT], DELTA)
    assert statement.site_epsilon == epsilon_of([EVENT] * 2, DELTA)
    assert (statement.site_runs, statement.clients, statement.unfinished) == (2, 3, 1)
    text = statement.text()
    for words in (
        "by PLD",
        "one record (example level)",
        "contribution by zero",
        "the server included: each client adds its own noise before sending",
        "the maximum over clients",
        "noise multiplier 1.3, sample rate 0.135",
        "6 reserved and charged, 3 settled, 1 reservation(s) unfinished",
        "all 2 run(s) of this site on this data set: epsilon = ",
        "not covered: the choice of hyper-parameters",
        "not covered: a record that appears at several clients",
    ):
        assert words in text
    tree = json.loads(statement.to_json())
    assert tree["epsilon"] == statement.epsilon
    assert tree["version"] == 1


def test_a_central_statement_excludes_the_server(ledger: Ledger) -> None:
    ledger.register("c", SHARDS, "mails", "client")
    spend(ledger, SERVER, run="c", event=SampledGaussian(1.0, 0.1, 1))
    text = ledger.statement(DELTA, run="c").text()
    assert "against other clients and outsiders, not against the server" in text
    assert "everything of one client (client level)" in text


def test_a_statement_warns_of_a_delta_that_releases_whole_records(ledger: Ledger) -> None:
    spend(ledger)
    assert "not below 1/100" in ledger.statement(0.02).text()
    assert "not below" not in ledger.statement(0.005).text()


def test_a_statement_names_the_accountant_that_really_answered(ledger: Ledger) -> None:
    spend(ledger, event=SampledGaussian(0.01, 0.1, 1))
    statement = ledger.statement(DELTA)
    assert statement.accountant == "rdp"
    assert "the accountant pld failed here" in statement.text()


def test_an_infinite_epsilon_is_valid_json(ledger: Ledger) -> None:
    spend(ledger, event=NonPrivate())
    statement = ledger.statement(DELTA)
    assert json.loads(statement.to_json())["epsilon"] == "infinity"
    assert "epsilon = infinity" in statement.text()


def test_a_statement_without_a_run_needs_exactly_one(ledger: Ledger) -> None:
    ledger.register("b", SHARDS, "mails", "example")
    with pytest.raises(PrivacyError, match="holds 2 runs"):
        ledger.statement(DELTA)


def test_the_export_holds_every_charge_and_no_update(ledger: Ledger, tmp_path: Path) -> None:
    ledger.settle(spend(ledger), steps_taken=3, payload=b"SECRET UPDATE")
    spend(ledger, 1)
    ledger.export(tmp_path / "audit.json")
    text = (tmp_path / "audit.json").read_text()
    tree = json.loads(text)
    assert "SECRET" not in text
    assert [r["client"] for r in tree["reservations"]] == [0, 1]
    assert tree["reservations"][0]["event"]["noise_multiplier"] == 1.3
    assert tree["reservations"][1]["settled_at"] is None
    assert len(tree["shards"]) == 3
    with pytest.raises(PrivacyError, match="cannot write"):
        ledger.export(tmp_path / "nowhere" / "audit.json")
