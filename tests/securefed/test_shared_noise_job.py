"""Client-level noise that clients share where it used to be refused: real numbers under CKKS, integers per group."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed import federation
from securefed.config import load_config
from securefed.engine.inprocess import InProcess
from securefed.errors import ConfigError, ProtocolError
from securefed.federation import resume, run
from securefed.noising import noise_floor, noise_shares
from securefed.privacy import Ledger
from securefed.privacy.client_level import clip_update
from securefed.privacy.distributed_release import DistributedRelease
from securefed.privacy.events import SharedGaussian, SkellamSum
from securefed.privacy.shared_release import SharedRelease, Shares
from securefed.privacy.words import DISTRIBUTED, SHARED
from securefed.protect.grouped import Grouped
from securefed.training.client import ClientOutcome
from securefed.types import SERVER
from tests.securefed.test_distributed_job import JOB, N, steps_of
from tests.securefed.test_fedsgd_job import needs_tenseal

CKKS: dict[str, Any] = {
    **JOB,
    "protection": {"name": "ckks", "min_survivors": 16, "value_range": 16.0},
    "privacy": {**JOB["privacy"], "noise": "gaussian"},
}
GROUPS = {**JOB, "protection": {"name": "grouped", "size": 5, "bits": 24}, "aggregator": "median"}
STILL = {"train.learning_rate": 1e-12}
"""Updates that are zero: what is released is noise and nothing else."""


def watch(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """Every call of a release: (the release, its arguments)."""
    found: list[tuple[Any, tuple[Any, ...]]] = []
    honest: Callable[..., Any] = getattr(kind, name)

    def watched(self: Any, *arguments: Any) -> Any:
        found.append((self, arguments))
        return honest(self, *arguments)

    monkeypatch.setattr(kind, name, watched)
    return found


def crash(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------- CKKS


@needs_tenseal
def test_under_ckks_it_learns_and_says_whose_noise_it_is(home: Path, tmp_path: Path) -> None:
    result = run(CKKS, folder=tmp_path / "a")
    assert result.metrics["accuracy"] > 0.5  # chance is 0.1
    assert result.ledger is not None
    events = result.ledger.events(client=SERVER)
    assert {type(event) for event in events} == {SharedGaussian}
    statement = result.ledger.statement(0.01)
    assert (statement.unit, statement.adversary, statement.accountant) == ("client", SHARED, "pld")
    assert 0.98 * 30 < statement.epsilon <= 30


def noise_of(found: list[tuple[Any, tuple[Any, ...]]]) -> float:
    """Deviation of the decrypted sums over what N shares claim; 1,950 coordinates, so 1.6 % each way."""
    shares: Shares = found[0][0].shares
    values = np.concatenate([arguments[2].total for _, arguments in found])
    return float(np.std(values)) / (shares.noise_multiplier * shares.unit * math.sqrt(N / shares.honest))


@needs_tenseal
def test_the_decrypted_sum_carries_every_share_of_the_claimed_noise(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(monkeypatch, SharedRelease, "release")
    run(CKKS, STILL, folder=tmp_path / "a")
    shares = found[0][0].shares
    assert (shares.min_survivors, shares.corrupt, shares.honest) == (16, 2, 14)
    assert noise_of(found) == pytest.approx(1, abs=0.08)
    assert all(arguments[2].updates is None for _, arguments in found)


@needs_tenseal
def test_a_client_that_keeps_its_share_to_itself_is_seen_in_that_scale(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(monkeypatch, SharedRelease, "release")
    monkeypatch.setattr(Shares, "update", lambda self, vector, clip, stream: clip_update(vector, clip).vector)
    run(CKKS, STILL, folder=tmp_path / "a")
    assert noise_of(found) < 0.01


@needs_tenseal
def test_fewer_than_agreed_are_not_decrypted_and_stay_charged(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = InProcess.train
    monkeypatch.setattr(InProcess, "train", lambda self, jobs: list(honest(self, jobs))[:15])
    with pytest.raises(ProtocolError, match="min_survivors"):
        run(CKKS, folder=tmp_path / "a")
    with Ledger.site() as ledger:
        assert ledger.epsilon(0.01, unit="client") > 0


@needs_tenseal
def test_a_journaled_round_is_applied_again_at_no_charge(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(monkeypatch, SharedRelease, "release")
    with monkeypatch.context() as patched:
        patched.setattr(federation, "save_state", crash)
        with pytest.raises(KeyboardInterrupt):
            run(CKKS, {"engine.checkpoint_every": 1}, folder=tmp_path / "a")
    result = resume(tmp_path / "a")
    assert (result.rounds, len(found)) == (3, 3)
    assert result.ledger is not None
    assert steps_of(result.ledger.events(client=SERVER)) == 3


@needs_tenseal
def test_room_and_an_honest_rest_are_asked_for_before_anything_runs(home: Path, tmp_path: Path) -> None:
    for changes, said in (
        ({"protection.value_range": 1.0}, "set protection.value_range = "),
        ({"protection.min_survivors": 2}, "raise min_survivors"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(CKKS, changes, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ------------------------------------------------------------------------------------------------ groups


def test_in_groups_a_robust_rule_reads_sums_that_each_carry_all_their_noise(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(monkeypatch, DistributedRelease, "release_groups")
    result = run(GROUPS, {**STILL, "rounds": 4}, folder=tmp_path / "a")
    release = found[0][0]
    mechanism = release.mechanisms[release.sizes[0]]
    assert (mechanism.clients, mechanism.min_survivors, mechanism.corrupt) == (5, 5, 0)
    floor = Grouped(size=5, bits=24).noise_floor(N)
    assert floor == (5, 0)
    groups = [group for _, arguments in found for group in arguments[2].values()]
    assert len(groups) == 4 * 4
    claimed = mechanism.noise_multiplier * mechanism.sensitivity * mechanism.clip / mechanism.levels
    values = np.concatenate([group.total for group in groups])  # 10,400 coordinates: .7 % each way
    assert np.std(values) == pytest.approx(claimed, rel=0.04)
    assert result.ledger is not None
    events = result.ledger.events(client=SERVER)
    assert all(isinstance(event, SkellamSum) for event in events)
    assert steps_of(events) == 4
    statement = result.ledger.statement(0.01)
    assert (statement.unit, statement.adversary) == ("client", DISTRIBUTED)
    assert statement.epsilon <= 30


def test_a_group_with_a_drop_gives_no_sum_and_the_rest_go_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch(monkeypatch, DistributedRelease, "release_groups")
    honest = InProcess.train

    def one_vanishes(self: InProcess, jobs: Any) -> list[ClientOutcome]:
        return list(honest(self, jobs))[1:]

    monkeypatch.setattr(InProcess, "train", one_vanishes)
    run(GROUPS, {"rounds": 1}, folder=tmp_path / "a")
    assert [len(group.members) for group in found[0][1][2].values()] == [5, 5, 5]


def test_colluders_of_a_group_raise_every_share_of_its_noise() -> None:
    whole = Grouped(size=10, bits=24, gamma=0.25)
    assert whole.noise_floor(20) == (10, 2)
    uneven = Grouped(size=10, bits=24, gamma=0.25)
    assert uneven.noise_floor(25) == (12, 3)
    assert uneven.largest_sum(25) == 13


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"privacy.noise": "central"}, 'use protection = "plain"'),
        ({"privacy.noise": "gaussian"}, 'use protection = "ckks"'),
        ({"protection": "plain"}, 'use protection = "masking" or "grouped"'),
        ({"algorithm": "fedsgd", "privacy.unit": "example", "train": {"steps": 1}}, "algorithm fedsgd adds one sum up"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_the_job_is_read(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(
            {**GROUPS, **{k: v for k, v in overrides.items() if k == "train"}},
            {k: v for k, v in overrides.items() if k != "train"},
        )


def test_more_liars_than_may_leave_their_noise_out_are_refused_before_anything_is_spent() -> None:
    """What a liar sends has no share of the noise in it, and the claim counts on all but `corrupt` shares."""
    lying = {"attack.name": "sign_flip", "attack.f": 3}
    config = load_config(CKKS, lying)
    assert noise_floor(config, N) == (16, 2)
    with pytest.raises(ConfigError, match=r"at most 2 who leave theirs out; raise protection\.gamma"):
        noise_shares(config, N, 1.0, None)
    noise_shares(load_config(CKKS, {**lying, "attack.f": 2}), N, 1.0, None)
    noise_shares(load_config(CKKS, {"attack.poison": "label_flip", "attack.f": 3}), N, 1.0, None)
