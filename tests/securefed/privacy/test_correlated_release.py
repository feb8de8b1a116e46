"""Correlated noise as a run's mechanism: one charge, noise as the factorization says, and no state used twice."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.errors import BudgetExceeded, PrivacyError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.budget import Budget
from securefed.privacy.calibration import calibrate_noise
from securefed.privacy.correlated_release import CorrelatedRelease
from securefed.privacy.dealing import Deal
from securefed.privacy.events import CorrelatedGaussian, SampledGaussian, from_json, to_json
from securefed.privacy.ledger import Ledger
from securefed.privacy.records import ShardKey
from securefed.types import SERVER, Collected
from tests.entropy import SeededEntropy

DEAL = Deal(clients=8, size=2, rounds=6, separation=4, seed=3)


def mechanism(
    path: Path, deal: Deal = DEAL, budget: Budget | None = None, run: str = "run"
) -> CorrelatedRelease:
    ledger = Ledger(path / "ledger.sqlite")
    ledger.register(run, {SERVER: ShardKey("d", deal.clients)}, "data", "client")
    return CorrelatedRelease(ledger, run, 1.0, 1.0, deal, budget)


def collected(m: CorrelatedRelease, round: int, d: int = 5, value: float = 0.0) -> Collected:
    chosen = m.deal.cohort(round)
    rows = {k: np.full(d, value, np.float32) for k in chosen}
    return Collected(survivors=chosen, total=np.zeros(d), weight=float(len(chosen)), updates=rows)


def play(m: CorrelatedRelease, rounds: range, entropy: Entropy, d: int = 5) -> list[np.ndarray]:
    found = []
    for round in rounds:
        stored = m.stored(round)
        found.append(
            m.release(m.reserve(round), round, collected(m, round, d), entropy) if stored is None else stored
        )
    return found


def dense(deal: Deal) -> np.ndarray:
    return sum(
        (c * np.eye(deal.rounds, k=-j) for j, c in enumerate(deal.factor.coefficients)),
        start=np.zeros((deal.rounds, deal.rounds)),
    )


# ------------------------------------------------------------------------------------------- the schedule


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(1, 9), st.data())
def test_what_is_charged_is_the_worst_that_any_client_of_the_schedule_can_do(
    clients: int, size: int, rounds: int, data: st.DataObject
) -> None:
    size = min(size, clients)
    separation = data.draw(st.integers(1, clients // size))
    deal = Deal(clients, size, rounds, separation, data.draw(st.integers(0, 9)))
    turns = {k: [r for r in range(rounds) if k in deal.cohort(r)] for k in range(clients)}
    assert all(len(set(deal.cohort(r))) == size for r in range(rounds))
    assert all(b - a >= separation for t in turns.values() for a, b in itertools.pairwise(t))
    assert max(map(len, turns.values())) == deal.participation.most
    worst = 0.0
    for mine in turns.values():
        for signs in itertools.product((1, -1), repeat=len(mine)):
            x = np.zeros(rounds)
            x[mine] = signs
            worst = max(worst, float(np.linalg.norm(dense(deal) @ x)))
    assert worst <= deal.factor.sensitivity * (1 + 1e-12)
    allowed = [
        s
        for n in range(deal.participation.most + 1)
        for s in itertools.combinations(range(rounds), n)
        if all(b - a >= separation for a, b in itertools.pairwise(s))
    ]
    most = max(float(np.linalg.norm(dense(deal)[:, list(s)].sum(axis=1))) for s in allowed)
    assert deal.factor.sensitivity == pytest.approx(most, rel=1e-12)  # and no larger than the promise allows


def test_a_promise_that_the_cohort_cannot_keep_is_refused() -> None:
    with pytest.raises(PrivacyError, match="after 4 rounds, sooner than the promised 5"):
        Deal(clients=8, size=2, rounds=6, separation=5, seed=0)


def test_a_client_that_is_not_of_the_round_is_refused_and_nothing_is_released(tmp_path: Path) -> None:
    m = mechanism(tmp_path)
    reservation = m.reserve(0)
    early = collected(m, 1)  # the next round's clients, one round too soon
    with pytest.raises(PrivacyError, match="not of round 0's cohort"):
        m.release(reservation, 0, early, SystemEntropy())
    assert m.stored(0) is None


# -------------------------------------------------------------------------------------------- the noise


def covariance(deal: Deal, draw: Callable[[Entropy], np.ndarray]) -> np.ndarray:
    noise = draw(SeededEntropy(5)) * deal.size
    return noise @ noise.T / noise.shape[1]


def expected(deal: Deal) -> np.ndarray:
    inverse = np.linalg.inv(dense(deal))
    return deal.factor.sensitivity**2 * inverse @ inverse.T


def released_noise(m: CorrelatedRelease, d: int = 40_000) -> Callable[[Entropy], np.ndarray]:
    return lambda entropy: np.array(play(m, range(m.deal.rounds), entropy, d), np.float64)


def test_released_noise_has_the_covariance_of_the_factorization(tmp_path: Path) -> None:
    found = covariance(DEAL, released_noise(mechanism(tmp_path)))
    assert np.abs(found - expected(DEAL)).max() < 0.06  # of about 2; six standard errors of 40,000 draws


def test_noise_that_is_left_out_or_not_correlated_is_noticed_by_the_same_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from securefed.privacy import correlated_release as module

    def without(factor: object, clip: float, sigma: float, d: int) -> object:
        return replace(original(factor, clip, sigma, d), deviation=1e-9)  # type: ignore[arg-type] # a fault on purpose

    original = module.correlated_noise
    monkeypatch.setattr(module, "correlated_noise", without)
    found = covariance(DEAL, released_noise(mechanism(tmp_path)))
    assert np.abs(found - expected(DEAL)).max() > 1
    alone = np.eye(DEAL.rounds) * DEAL.factor.sensitivity**2
    assert np.abs(alone - expected(DEAL)).max() > 0.3


def test_running_sums_carry_less_noise_than_independent_noise_of_the_same_epsilon(tmp_path: Path) -> None:
    deal = Deal(clients=40, size=2, rounds=40, separation=20, seed=0)
    sums = np.cumsum(released_noise(mechanism(tmp_path, deal), 2000)(SeededEntropy(1)), axis=0) * deal.size
    epsilon = epsilon_of([deal.event(1.0)], 1e-3)
    sigma = calibrate_noise(
        epsilon, 1e-3, 1.0, deal.participation.most
    )  # of independent noise, each turn charged
    independent = sigma * np.sqrt(np.arange(1, 41))
    assert np.sqrt(np.mean(sums**2)) < 0.7 * np.sqrt(np.mean(independent**2))


def test_updates_are_clipped_again_by_the_server(tmp_path: Path) -> None:
    quiet, loud = (play_one(mechanism(tmp_path / name), value) for name, value in (("a", 0.0), ("b", 1e6)))
    assert np.linalg.norm(loud - quiet) == pytest.approx(
        1.0, rel=1e-4
    )  # two clients of norm 1 over a cohort of two


def play_one(m: CorrelatedRelease, value: float) -> np.ndarray:
    return m.release(m.reserve(0), 0, collected(m, 0, value=value), SeededEntropy(2))


# ------------------------------------------------------------------------------------------- the charge


def test_the_whole_run_is_charged_once_before_its_first_round_and_stays_charged(tmp_path: Path) -> None:
    m = mechanism(tmp_path)
    m.reserve(0)
    whole = epsilon_of([SampledGaussian(1.0, 1.0, 1)], 1e-3)
    assert m.ledger.epsilon(1e-3, run="run", unit="client") == whole
    again = mechanism(tmp_path)  # another process after a crash: nothing was released, so nothing more is due
    play(again, range(6), SeededEntropy(0))
    assert again.ledger.epsilon(1e-3, run="run", unit="client") == whole
    assert sum(e.steps for e in again.ledger.events(run="run", unit="client")) == 1  # type: ignore[union-attr] # no NonPrivate


def test_a_second_run_is_charged_beside_the_first_and_a_budget_stops_it_before_it_begins(
    tmp_path: Path,
) -> None:
    play(mechanism(tmp_path), range(2), SeededEntropy(0))
    once = epsilon_of([SampledGaussian(1.0, 1.0, 1)], 1e-3)
    tight = Budget(epsilon=2 * once, delta=1e-3, site_epsilon=1.01 * once)
    second = mechanism(tmp_path, budget=tight, run="second")
    with pytest.raises(BudgetExceeded):
        second.admit()
    with pytest.raises(BudgetExceeded):
        second.reserve(0)
    assert not second.ledger.events(run="second", unit="client")


def test_the_event_is_read_back_as_it_was_and_never_amplified() -> None:
    event = DEAL.event(0.7)
    assert from_json(to_json(event)) == event
    assert (event.rounds, event.separation, event.participations) == (6, 4, 2)
    with pytest.raises(PrivacyError, match="not amplified"):
        CorrelatedGaussian(1.0, 0.5, 1, 6, 4, 4, 2)


# ---------------------------------------------------------------------------------- crashes and old copies


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class KillAt:
    """Kills the process at the n-th call of a method, before or after its work."""

    calls: int
    after: bool

    def around(self, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            self.calls -= 1
            if self.calls == 0 and not self.after:
                raise Killed
            result = original(*arguments, **named)
            if self.calls == 0:
                raise Killed
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "where", ["securefed.privacy.noise_state.NoiseStates.write", "securefed.privacy.ledger.Ledger.settle"]
)
@pytest.mark.parametrize("calls", [2, 3])
def test_killed_anywhere_it_goes_on_with_the_same_bits_and_no_second_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: bool, calls: int
) -> None:
    whole = play(mechanism(tmp_path / "whole"), range(6), SeededEntropy(9))
    kind, method = where.rsplit(".", 1)
    module, name = kind.rsplit(".", 1)
    target = getattr(__import__(module, fromlist=[name]), name)
    with monkeypatch.context() as patch:
        patch.setattr(target, method, KillAt(calls, after).around(getattr(target, method)))
        with pytest.raises(Killed):
            play(mechanism(tmp_path / "killed"), range(6), SeededEntropy(9))
    m = mechanism(tmp_path / "killed")
    assert all(np.array_equal(a, b) for a, b in zip(whole, play(m, range(6), SeededEntropy(9)), strict=True))
    assert sum(e.steps for e in m.ledger.events(run="run", unit="client")) == 1  # type: ignore[union-attr] # no NonPrivate


def test_under_system_randomness_a_released_round_is_the_same_after_a_crash(tmp_path: Path) -> None:
    before = play(mechanism(tmp_path), range(3), SystemEntropy())
    again = play(mechanism(tmp_path), range(6), SystemEntropy())
    assert all(np.array_equal(a, b) for a, b in zip(before, again[:3], strict=True))


def test_a_lost_state_ends_the_run(tmp_path: Path) -> None:
    m = mechanism(tmp_path)
    play(m, range(2), SystemEntropy())
    shutil.rmtree(m.states.folder)
    with pytest.raises(PrivacyError, match="noise state of round 2 is not in"):
        m.reserve(2)


def test_an_older_state_under_the_name_of_a_newer_one_is_refused(tmp_path: Path) -> None:
    m = mechanism(tmp_path)
    play(m, range(2), SystemEntropy())
    old = (m.states.folder / f"{2:09d}").read_bytes()
    play(m, range(2, 3), SystemEntropy())
    (m.states.folder / f"{3:09d}").write_bytes(old)
    with pytest.raises(PrivacyError, match="is not the one that"):
        m.reserve(3)


def test_a_round_that_was_released_is_not_drawn_again_when_an_old_checkpoint_asks_for_it(
    tmp_path: Path,
) -> None:
    m = mechanism(tmp_path)
    play(m, range(3), SystemEntropy())
    m.ledger.clear_outbox("run", 3)  # a checkpoint held them once
    for round in range(3):
        assert m.stored(round) is None
        with pytest.raises(PrivacyError, match="was released before"):
            m.reserve(round)


def test_of_two_processes_that_resume_one_run_only_one_releases_a_round(tmp_path: Path) -> None:
    first, second = mechanism(tmp_path), mechanism(tmp_path)
    ours, theirs = first.reserve(0), second.reserve(0)
    first.release(ours, 0, collected(first, 0), SystemEntropy())
    first.ledger.clear_outbox("run", 1)
    with pytest.raises(PrivacyError, match="by another process"):
        second.release(theirs, 0, collected(second, 0), SystemEntropy())
    assert sum(e.steps for e in first.ledger.events(run="run", unit="client")) == 1  # type: ignore[union-attr] # no NonPrivate


def test_a_ledger_older_than_the_state_is_refused(tmp_path: Path) -> None:
    m = mechanism(tmp_path)
    m.reserve(0)
    m.ledger.close()
    shutil.copy(m.ledger.path, tmp_path / "old")
    play(m, range(2), SystemEntropy())
    m.ledger.close()
    for beside in tmp_path.glob("ledger.sqlite*"):
        beside.unlink()
    shutil.copy(tmp_path / "old", m.ledger.path)
    with pytest.raises(PrivacyError, match="rolled back"):
        m.reserve(2)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    m = mechanism(tmp_path)
    play(m, range(1), SystemEntropy())
    path = m.states.folder / f"{1:09d}"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(PrivacyError, match="damaged"):
        m.reserve(1)


def test_a_state_does_not_serve_another_schedule_of_the_same_noise(tmp_path: Path) -> None:
    """Same event, factor and fingerprint; but the client of rounds 0 and 1 would be one whose rounds lie 4 apart on paper."""
    m = mechanism(tmp_path)
    play(m, range(1), SystemEntropy())
    other = mechanism(tmp_path, replace(DEAL, seed=6))
    assert other.event == m.event
    assert set(other.deal.cohort(1)) & set(m.deal.cohort(0))
    with pytest.raises(PrivacyError, match="another schedule of cohorts"):
        other.reserve(1)
    m.reserve(1)


def test_the_state_is_a_secret_of_this_user_and_gone_after_the_last_round(tmp_path: Path) -> None:
    m = mechanism(tmp_path)
    play(m, range(3), SystemEntropy())
    kept = list(m.states.folder.iterdir())
    assert [p.name for p in kept] == [f"{3:09d}"]
    assert (kept[0].stat().st_mode & 0o777, m.states.folder.stat().st_mode & 0o777) == (0o600, 0o700)
    secret = m.states.read(3).secret
    assert secret.hex() not in repr(m.states.read(3))
    assert hashlib.sha256(secret).hexdigest() not in repr(m)
    play(m, range(3, 6), SystemEntropy())
    assert not m.states.folder.exists()
