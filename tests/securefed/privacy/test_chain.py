"""The hash chain over the ledger's records: who saw a head notices what is cut off afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from securefed.errors import PrivacyError
from securefed.privacy.chain import EMPTY, Head, follow
from securefed.privacy.events import SampledGaussian
from securefed.privacy.ledger import Ledger
from securefed.privacy.records import ShardKey

EVENT = SampledGaussian(1.0, 0.1, 5)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger with one run of two clients and three charges, one of them settled."""
    made = Ledger(tmp_path / "ledger.sqlite")
    made.register("run", {0: ShardKey("a" * 64, 10), 1: ShardKey("b" * 64, 20)}, "data", "example")
    first = made.reserve(run="run", client=0, round=0, event=EVENT)
    made.settle(first, steps_taken=5, payload=b"update")
    made.reserve(run="run", client=1, round=0, event=EVENT)
    made.reserve(run="run", client=0, round=1, event=EVENT)
    return made


def by_hand(ledger: Ledger, *statements: str, triggers: bool = False) -> None:
    """Edits the file as somebody would who wants to cheat: triggers off, then the statements."""
    ledger.close()
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in [] if triggers else names:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)


def test_every_record_is_a_link(ledger: Ledger) -> None:
    assert ledger.head().count == 5  # a run, three reservations, a settlement
    ledger.check()


def test_a_head_is_text_and_back(ledger: Ledger) -> None:
    assert Head.parse(str(ledger.head())) == ledger.head()
    for bad in ("", "x:00", "1:00", "-1:" + "00" * 32):
        with pytest.raises(ValueError):
            Head.parse(bad)


def test_the_links_since_a_head_lead_to_the_newest(ledger: Ledger) -> None:
    before = ledger.head()
    ledger.reserve(run="run", client=1, round=1, event=EVENT)
    head, start, links = ledger.proof(before.count)
    assert start == before.count
    assert len(links) == 1
    assert follow(before, links) == head == ledger.head()
    assert follow(EMPTY, ledger.proof(0)[2]) == head
    ledger.check(before)


def test_equal_records_give_unlike_links(tmp_path: Path) -> None:
    """Links are shown to others, who must not be able to guess what a site's other runs spent."""
    heads = set()
    for name in ("a", "b"):
        made = Ledger(tmp_path / f"{name}.sqlite")
        made.register("run", {0: ShardKey("a" * 64, 10)}, "data", "example")
        heads.add(made.head().digest)
    assert len(heads) == 2


def rolled_back(ledger: Ledger) -> None:
    by_hand(
        ledger,
        "DELETE FROM reservations WHERE id = 3",
        "DELETE FROM chain WHERE kind = 'reserve' AND ref = '3'",
    )


def rolled_back_and_spent_again(ledger: Ledger) -> None:
    rolled_back(ledger)
    ledger.reserve(run="run", client=0, round=1, event=EVENT)


@pytest.mark.parametrize("cheat", [rolled_back, rolled_back_and_spent_again])
def test_a_ledger_cut_short_with_care_is_noticed_by_whoever_saw_its_head(
    ledger: Ledger, cheat: Callable[[Ledger], None]
) -> None:
    seen = ledger.head()
    cheat(ledger)
    ledger.check()  # by itself it looks whole: without a head that others kept nobody could tell
    with pytest.raises(PrivacyError, match="rolled back or rewritten: it had 5 entries"):
        ledger.check(seen)
    assert follow(seen, ledger.proof(seen.count)[2]) != ledger.head()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("UPDATE reservations SET event = replace(event, '\"steps\": 5', '\"steps\": 1'), steps = 1 WHERE id = 2", "reserve 2"),
        ("UPDATE reservations SET client = 1 WHERE id = 3", "reserve 3"),
        ("UPDATE reservations SET steps_taken = 0 WHERE id = 1", "settle 1"),
        ("UPDATE runs SET dataset = 'other'", "run run"),
        ("UPDATE shards SET records = 1000 WHERE client = 0", "run run"),
        ("DELETE FROM reservations WHERE id = 3", "reserve 3"),
        ("DELETE FROM chain WHERE id = 5", "records of kind reserve"),
        (
            "INSERT INTO reservations SELECT 9, run, client, 7, event, steps, NULL, NULL, reserved_at, NULL"
            " FROM reservations WHERE id = 1",
            "records of kind reserve",
        ),
        ("DELETE FROM chain WHERE id = 2", "entry 2 of its chain"),
    ],
)  # fmt: skip
def test_a_careless_edit_is_noticed_without_any_head(ledger: Ledger, edit: str, words: str) -> None:
    by_hand(ledger, edit)
    with pytest.raises(PrivacyError, match=words):
        ledger.check()


def test_links_are_kept_by_the_file_itself(ledger: Ledger) -> None:
    for statement in ("DELETE FROM chain", "UPDATE chain SET link = x'00' WHERE id = 1"):
        with pytest.raises(sqlite3.IntegrityError):
            by_hand(ledger, statement, triggers=True)


def test_a_ledger_of_the_first_version_gets_its_chain_and_keeps_its_charges(ledger: Ledger) -> None:
    spent = ledger.epsilon(1e-5, run="run")
    by_hand(ledger, "DROP TABLE chain", "PRAGMA user_version = 1")
    assert ledger.head().count == 5
    ledger.check()
    assert ledger.epsilon(1e-5, run="run") == spent
    ledger.reserve(run="run", client=1, round=1, event=EVENT)
    ledger.check()


def test_a_proof_is_bounded_and_says_where_it_begins(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("securefed.privacy.chain.MOST_LINKS", 2)
    head, start, links = ledger.proof(0)
    assert (head.count, start, len(links)) == (5, 3, 2)
