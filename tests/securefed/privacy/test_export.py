"""What an auditor gets, and what she can find in it without the site's help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from securefed.errors import PrivacyError
from securefed.privacy.chain import Head
from securefed.privacy.events import BestOf, NonPrivate, SampledGaussian
from securefed.privacy.export import check_export
from securefed.privacy.ledger import Ledger
from securefed.privacy.records import ShardKey


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite")
    made.register("run", {0: ShardKey("a" * 64, 10), 1: ShardKey("b" * 64, 20)}, "data", "example")
    event = SampledGaussian(1.1, 0.1, 5)
    made.settle(made.reserve(run="run", client=0, round=0, event=event), steps_taken=5, payload=b"update")
    made.reserve(run="run", client=1, round=0, event=BestOf((event,), 3.0, 1.0, 1))
    made.release_unprotected("open", {0: ShardKey("c" * 64, 10)}, "other")
    made.reserve(run="run", client=0, round=1, event=NonPrivate())
    return made


def test_an_export_checks_itself_and_against_a_head_that_was_seen(ledger: Ledger, tmp_path: Path) -> None:
    seen = ledger.head()
    ledger.reserve(run="run", client=0, round=2, event=SampledGaussian(2.0, 0.1, 1))
    ledger.export(tmp_path / "audit.json")
    assert check_export(tmp_path / "audit.json", seen) == ledger.head()
    other = Head(seen.count, bytes(32))
    with pytest.raises(PrivacyError, match="did not grow out of"):
        check_export(tmp_path / "audit.json", other)
    with pytest.raises(PrivacyError, match="did not grow out of"):
        check_export(tmp_path / "audit.json", Head(99, seen.digest))


def less_steps(tree: Any) -> None:
    tree["reservations"][0]["event"]["steps"] = 1


def one_charge_less(tree: Any) -> None:
    tree["reservations"].pop()
    tree["chain"].pop()


def a_charge_outside_the_chain(tree: Any) -> None:
    tree["reservations"].append({**tree["reservations"][0], "id": 99, "settled_at": None})


def more_records(tree: Any) -> None:
    tree["shards"][0]["records"] = 10**6


def another_format(tree: Any) -> None:
    tree["format"] = "something"


@pytest.mark.parametrize(
    "change", [less_steps, one_charge_less, a_charge_outside_the_chain, more_records, another_format]
)
def test_an_export_that_was_mended_is_noticed(
    ledger: Ledger, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    path = tmp_path / "audit.json"
    ledger.export(path)
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(PrivacyError):
        check_export(path)


def test_what_is_no_export_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="cannot read"):
        check_export(tmp_path / "nothing.json")
    (tmp_path / "text").write_text("{}")
    with pytest.raises(PrivacyError, match="not a whole export"):
        check_export(tmp_path / "text")
