"""A statement in plain words says all a newcomer must know, and says absent where something is absent."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from securefed.privacy.events import (
    BestOf,
    CentralGaussian,
    Event,
    NonPrivate,
    SampledGaussian,
    SharedGaussian,
    SkellamSum,
    Unit,
)
from securefed.privacy.ledger import Ledger
from securefed.privacy.plain_words import reading
from securefed.privacy.records import ShardKey
from securefed.privacy.statement import Statement
from securefed.types import SERVER

HALF, WHOLE = SampledGaussian(2.0, 0.5, 3), SampledGaussian(2.0, 1.0, 3)
SKELLAM = SkellamSum(sensitivity=50.0, sensitivity_l1=500.0, variance=1e5, steps=3)


def stated(folder: Path, unit: Unit, event: Event, clients: int = 3, holder: int = 0) -> Statement:
    """The statement of a run in which one holder spends one event."""
    keys = {k: ShardKey(f"{k:064d}", 100) for k in range(clients)}
    if holder == SERVER:
        keys = {SERVER: ShardKey("f" * 64, clients)}
    with Ledger(folder / "ledger.sqlite") as ledger:
        ledger.register("run", keys, "data", unit)
        ledger.reserve(run="run", client=holder, round=0, event=event)
        return ledger.statement(1e-5, "run")


@pytest.mark.parametrize(
    ("unit", "event", "clients", "holder", "trust", "sampling"),
    [
        ("example", HALF, 3, 0, "each client trusts its own machine", "in a step with chance 0.5, drawn in secret; absent for the choice of clients"),
        ("example", HALF, 1, 0, "whoever runs the training is trusted", "in a step with chance 0.5, drawn in secret"),
        ("example", WHOLE, 1, 0, "whoever runs the training is trusted", "absent: each step counts as having used every record"),
        ("client", HALF, 40, SERVER, "the server is trusted", "void for whoever knows who took part"),
        ("client", WHOLE, 40, SERVER, "the server is trusted", "absent: each step counts as having used every client"),
        ("client", SKELLAM, 40, SERVER, "no server is trusted", "absent: each step counts as having used every client, cohort or not; who takes part is known to the server"),
        ("client", SharedGaussian(2.0, 1.0, 3), 40, SERVER, "whoever holds the key is trusted", "absent: each step counts as having used every client"),
        ("example", SharedGaussian(2.0, 0.5, 3), 3, 0, "whoever holds the key is trusted", "chance 0.5"),
        ("example", CentralGaussian(2.0, 0.5, 3), 3, 0, "the server is trusted: it sees the sum", "chance 0.5"),
        ("client", HALF, 3, 0, "each client trusts its own machine", "chance 0.5"),
    ],
)  # fmt: skip
def test_trust_and_amplification_are_said(
    tmp_path: Path, unit: Unit, event: Event, clients: int, holder: int, trust: str, sampling: str
) -> None:
    text = stated(tmp_path, unit, event, clients, holder).text()
    assert f"  trust: {trust}" in text
    assert sampling in text


@pytest.mark.parametrize(
    ("unit", "event", "said"),
    [
        ("client", HALF, "a person whose records lie at k clients"),
        ("example", SKELLAM, "a record that lies at k clients, under the one noise of all: for k of them epsilon is k times"),
        ("example", HALF, "a record that appears at several clients: it spends the sum"),
    ],
)  # fmt: skip
def test_what_an_overlap_of_clients_means_is_said(
    tmp_path: Path, unit: Unit, event: Event, said: str
) -> None:
    assert f"  not covered: {said}" in stated(tmp_path, unit, event).text()


def test_the_choice_of_settings_is_charged_or_said_not_to_be(tmp_path: Path) -> None:
    for folder in ("plain", "search"):
        (tmp_path / folder).mkdir()
    plain = stated(tmp_path / "plain", "example", HALF)
    search = stated(tmp_path / "search", "example", BestOf((HALF,), 10.0, 1.0, 1))
    assert plain.tuning.startswith("not charged: ")
    assert search.tuning.startswith("charged: 1 search in this run")
    assert search.epsilon > plain.epsilon
    assert "RDP, which adds up Renyi divergences" in search.text()
    assert "PLD, which composes" in plain.text()


def test_the_guarantee_is_read_as_odds() -> None:
    assert "at most 2.72, but for a failure of probability about 1e-05" in reading(1.0, 1e-5, "example")
    assert "one client was in it" in reading(1.0, 1e-5, "client")
    assert "protects little" in reading(12.0, 1e-5, "example")
    assert "protects little" not in reading(8.0, 1e-5, "example")
    assert "e^2000" in reading(2000.0, 1e-5, "example")
    assert reading(math.inf, 1e-5, "example").startswith("nothing is promised")


def test_a_release_without_noise_promises_nothing(tmp_path: Path) -> None:
    text = stated(tmp_path, "example", NonPrivate()).text()
    assert "nothing is promised" in text
    assert "nothing was released with noise" in text


def test_every_line_is_in_the_json_too(tmp_path: Path) -> None:
    statement = stated(tmp_path, "example", HALF)
    tree = json.loads(statement.to_json())
    for key in ("trust", "amplification", "tuning", "relation", "adversary", "accountant", "holds_for"):
        assert tree[key]
        assert tree[key] in statement.text() or key == "accountant"
