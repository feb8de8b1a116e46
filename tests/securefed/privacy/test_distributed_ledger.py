"""Distributed mechanisms, searches and correlated noise in the ledger: budgets, statements, mixtures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from securefed.errors import BudgetExceeded, PrivacyError
from securefed.privacy import (
    Budget,
    DistributedSkellam,
    Ledger,
    Participation,
    SampledGaussian,
    ShardKey,
    TrialCount,
    epsilon_of,
)
from securefed.privacy.design import Cohort, calibrate
from securefed.privacy.matrix_factorization import square_root
from securefed.types import SERVER

DELTA = 1e-3
SHARDS = {client: ShardKey(f"shard {client}", 10) for client in range(20)}


def mechanism(rounds: int = 10, epsilon: float = 4.0) -> DistributedSkellam:
    cohort = Cohort(dimension=1000, clip=1.0, clients=20, min_survivors=15, corrupt=3, bits=20)
    return calibrate(DistributedSkellam, cohort, epsilon=epsilon, delta=DELTA, rounds=rounds)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.register("run", SHARDS, "data", "client")
    return ledger


def test_a_budget_lets_exactly_the_calibrated_rounds_pass(ledger: Ledger) -> None:
    budget = Budget(epsilon=4.0, delta=DELTA, accountant="rdp")
    event = mechanism(rounds=10).event()
    for round in range(10):
        reservation = ledger.reserve(run="run", client=SERVER, round=round, event=event, budget=budget)
        ledger.settle(reservation, steps_taken=1)
    with pytest.raises(BudgetExceeded, match="1 more steps"):
        ledger.reserve(run="run", client=SERVER, round=10, event=event, budget=budget)
    spent = ledger.epsilon(DELTA, unit="client")
    assert 0.99 * 4.0 < spent <= 4.0
    assert spent == epsilon_of([mechanism(rounds=10).event(10)], DELTA)


def test_a_budget_by_pld_admits_distributed_noise_counted_by_rdp(ledger: Ledger) -> None:
    budget = Budget(epsilon=4.0, delta=DELTA, site_epsilon=4.5)
    ledger.reserve(run="run", client=SERVER, round=0, event=mechanism().event(9), budget=budget)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(run="run", client=SERVER, round=1, event=mechanism().event(2), budget=budget)
    ledger.register("central", SHARDS, "data", "client")
    with pytest.raises(BudgetExceeded, match="this site"):  # a later run by another mechanism
        ledger.reserve(
            run="central", client=SERVER, round=0, event=SampledGaussian(3.0, 1.0, 5), budget=budget
        )


def test_the_statement_says_against_whom_and_about_which_neighbours(ledger: Ledger) -> None:
    ledger.reserve(run="run", client=SERVER, round=0, event=mechanism().event())
    statement = ledger.statement(DELTA, "run")
    assert statement.accountant == "rdp"
    assert "server included" in statement.adversary
    assert "no more clients than assumed" in statement.adversary
    assert statement.relation.startswith("replace one's contribution by zero")
    assert "Skellam" in statement.mechanism
    assert "no amplification" in statement.mechanism
    assert not any("failed" in caveat for caveat in statement.caveats)
    assert "RDP" in statement.text()
    assert statement.steps_reserved == 1


def test_a_mixture_names_its_relation_once_and_asking_for_pld_is_refused(ledger: Ledger) -> None:
    ledger.reserve(run="run", client=SERVER, round=0, event=mechanism().event())
    ledger.reserve(run="run", client=SERVER, round=1, event=SampledGaussian(5.0, 1.0, 1))
    statement = ledger.statement(DELTA, "run")
    assert statement.relation.count("by zero") == 1
    with pytest.raises(PrivacyError, match="pld is not valid for skellam-sum"):
        ledger.epsilon(DELTA, unit="client", accountant="pld")


def test_correlated_noise_is_charged_once_for_the_whole_run(ledger: Ledger) -> None:
    factor = square_root(Participation(100, 20, 5), 16)
    ledger.reserve(run="run", client=SERVER, round=0, event=factor.event(2.0))
    statement = ledger.statement(DELTA, "run")
    assert statement.accountant == "pld"
    assert statement.epsilon == epsilon_of([SampledGaussian(2.0, 1.0, 1)], DELTA)


def test_a_search_is_charged_and_stated(ledger: Ledger) -> None:
    search = TrialCount(10.0, 0.0).event([mechanism().event(2)])
    ledger.reserve(run="run", client=SERVER, round=0, event=search)
    statement = ledger.statement(DELTA, "run")
    assert statement.accountant == "rdp"
    assert "about 10 trials" in statement.mechanism
    assert "server included" in statement.adversary
    assert statement.epsilon > epsilon_of([mechanism().event(2)], DELTA)
    assert math.isfinite(statement.epsilon)
