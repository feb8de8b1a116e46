"""`privacy.noise = "skellam"` in a job: it learns, says what it spent and against whom, and re-sends after a crash."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed import federation
from securefed.config import load_config
from securefed.engine.inprocess import InProcess
from securefed.errors import BudgetExceeded, ConfigError, DivergedError, ProtocolError
from securefed.federation import resume, run
from securefed.privacy import Ledger, ShardKey, epsilon_of
from securefed.privacy.distributed_release import DistributedRelease
from securefed.privacy.events import Event, NonPrivate, SkellamSum
from securefed.privacy.words import DISTRIBUTED
from securefed.protect.masking import Masking
from securefed.tracking.report import write_report
from securefed.training.client import ClientOutcome, ClientRunner
from securefed.types import SERVER

N = 20
JOB: dict[str, Any] = {
    "rounds": 3,
    "protection": {"name": "masking", "bits": 24},
    "data": {"name": "digits", "clients": N, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"epochs": 1, "learning_rate": 0.3},
    "privacy": {"unit": "client", "noise": "skellam", "epsilon": 30.0, "delta": 0.01},
    "evaluate": {"every": 0, "baselines": False},
    "engine": {"threads": 1},
}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_of(events: Iterable[Event]) -> int:
    return sum(0 if isinstance(event, NonPrivate) else event.steps for event in events)


@pytest.mark.parametrize("noise", ["skellam", "discrete-gaussian"])
def test_a_job_learns_and_its_statement_is_the_accountants(home: Path, tmp_path: Path, noise: str) -> None:
    result = run(JOB, {"privacy.noise": noise}, folder=tmp_path / "a")
    assert result.metrics["accuracy"] > 0.5  # chance is 0.1
    assert result.ledger is not None
    events = result.ledger.events(client=SERVER)
    assert steps_of(events) == 3
    statement = result.ledger.statement(0.01)
    assert statement.epsilon == epsilon_of(events, 0.01, "rdp")
    assert 0.98 * 30 < statement.epsilon <= 30
    assert (statement.unit, statement.adversary, statement.clients) == ("client", DISTRIBUTED, N)
    assert "no amplification by sampling" in statement.mechanism
    assert "zero" in statement.relation
    facts = json.loads((tmp_path / "a" / "facts.json").read_text())
    assert facts["mechanism"]["noise"] == noise
    assert DISTRIBUTED in (tmp_path / "a" / "report.html").read_text()


def test_the_server_session_meets_no_sum_without_all_shares_of_the_noise(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With updates that are zero, what is released is noise of the claimed scale and nothing else."""
    seen: list[np.ndarray] = []
    honest = DistributedRelease.release

    def watched(self: DistributedRelease, *arguments: Any) -> Any:
        assert arguments[2].updates is None
        seen.append(arguments[2].total)
        mechanisms.append(self.mechanisms[self.sizes[0]])
        return honest(self, *arguments)

    mechanisms: list[Any] = []
    monkeypatch.setattr(DistributedRelease, "release", watched)
    run(JOB, {"train.learning_rate": 1e-12}, folder=tmp_path / "a")
    m = mechanisms[0]
    survivors, corrupt = Masking(bits=24).noise_floor(N)
    assert (m.clients, m.min_survivors, m.corrupt) == (N, survivors, corrupt)
    claimed = m.noise_multiplier * m.sensitivity * m.clip / m.levels * (N / (survivors - corrupt)) ** 0.5
    values = np.concatenate(seen)  # 3 x 650 coordinates: 1.6 % each way, so 8 % is five deviations
    assert np.std(values) == pytest.approx(claimed, rel=0.08)


def test_every_round_is_charged_in_full_though_the_cohort_is_a_part(home: Path, tmp_path: Path) -> None:
    result = run(JOB, {"clients_per_round": 12, "rounds": 2}, folder=tmp_path / "a")
    assert [len(r["survivors"]) for r in records(tmp_path / "a")] == [12, 12]
    assert result.ledger is not None
    events = result.ledger.events(client=SERVER)
    assert all(isinstance(e, SkellamSum) and e.sample_rate == 1.0 for e in events)
    assert steps_of(events) == 2


def test_too_few_survivors_end_the_run_and_the_attempt_stays_charged(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor, _ = Masking(bits=24).noise_floor(N)
    honest = InProcess.train

    def most_vanish(self: InProcess, jobs: Any) -> list[ClientOutcome]:
        return list(honest(self, jobs))[: floor - 1]

    monkeypatch.setattr(InProcess, "train", most_vanish)
    with pytest.raises(ProtocolError, match="min_survivors"):
        run(JOB, folder=tmp_path / "a")
    with Ledger.site() as ledger:
        assert ledger.epsilon(0.01, unit="client") > 0


def test_a_client_that_diverges_sends_zero_and_its_noise(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = ClientRunner._train

    def diverges(self: ClientRunner, job: Any) -> ClientOutcome:
        if job.client == 3:
            raise DivergedError("not finite")
        return honest(self, job)

    monkeypatch.setattr(ClientRunner, "_train", diverges)
    run(JOB, {"rounds": 1}, folder=tmp_path / "a")
    assert records(tmp_path / "a")[0]["survivors"] == list(range(N))


def test_after_a_crash_the_journaled_mean_is_applied_again_at_no_charge(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[np.ndarray] = []
    resent: list[np.ndarray] = []
    honest, stored = DistributedRelease.release, DistributedRelease.stored

    def release(self: DistributedRelease, *arguments: Any) -> Any:
        released.append(honest(self, *arguments))
        return released[-1]

    def restore(self: DistributedRelease, round: int) -> Any:
        if (found := stored(self, round)) is not None:
            resent.append(found)
        return found

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DistributedRelease, "release", release)
    monkeypatch.setattr(DistributedRelease, "stored", restore)
    with monkeypatch.context() as patched:
        patched.setattr(federation, "save_state", crash)
        with pytest.raises(KeyboardInterrupt):
            run(JOB, {"engine.checkpoint_every": 1}, folder=tmp_path / "a")
    result = resume(tmp_path / "a")
    np.testing.assert_array_equal(resent[0], released[0])
    assert (len(resent), len(released), result.rounds) == (1, 3, 3)
    assert result.ledger is not None
    assert steps_of(result.ledger.events(client=SERVER)) == 3
    again, *later = records(tmp_path / "a")
    assert (again["cohort"], again["survivors"], again["mib_up"], again["mib_down"]) == ([], [], 0, 0)
    assert all(line["cohort"] == line["survivors"] == list(range(N)) for line in later)
    assert "Who was missing" not in write_report(tmp_path / "a").read_text(encoding="utf-8")


def test_a_sum_lost_before_its_journal_is_drawn_anew_and_charged_twice(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server had seen the first sum already, so the second is a release of its own."""
    honest = Ledger.settle

    def crash(self: Ledger, *arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "settle", crash)
        with pytest.raises(KeyboardInterrupt):
            run(JOB, {"privacy.epsilon": None, "privacy.noise_multiplier": 2.0}, folder=tmp_path / "a")
    assert Ledger.settle is honest
    result = resume(tmp_path / "a")
    assert result.ledger is not None
    assert steps_of(result.ledger.events(client=SERVER)) == 4
    statement = result.ledger.statement(0.01)
    assert (statement.steps_reserved, statement.steps_settled, statement.unfinished) == (4, 3, 1)


def test_rounds_that_share_half_of_an_adapter_each_have_their_own_ring_and_keep_to_the_target(
    home: Path,
) -> None:
    """The budget is the calibration's own target, so its last round must still fit."""
    from securefed.privacy.budget import Budget
    from securefed.privacy.distributed_release import Design

    design = Design(
        kind="skellam",
        sizes=(200, 90, 200),
        clip=1.0,
        clients=N,
        min_survivors=14,
        corrupt=2,
        bits=24,
    )
    found = design.mechanisms(design.noise_for(5.0, 1e-3))
    with Ledger.site() as ledger:
        ledger.register("run", {SERVER: ShardKey("data", N)}, "data", "client")
        budget = Budget(epsilon=5.0, delta=1e-3)
        release = DistributedRelease(ledger, "run", found, design.sizes, budget)
        for round in range(3):
            ledger.settle(release.reserve(round), steps_taken=1)
        with pytest.raises(BudgetExceeded):
            ledger.reserve(run="run", client=SERVER, round=3, event=release.event, budget=budget)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"privacy.noise": "central"}, 'privacy.noise = "skellam"'),
        ({"protection": "plain"}, 'use protection = "masking"'),
        ({"privacy.unit": "example", "train.epochs": 0, "train.steps": 2}, 'set privacy.unit = "client"'),
        ({"privacy.unit": "none", "privacy.epsilon": None}, 'set privacy.unit = "client"'),
        ({"privacy.noise": "laplace"}, "privacy.noise"),
        ({"privacy.epsilon": None, "privacy.noise_multiplier": 0.0}, "adds no noise"),
        ({"weights": "size"}, 'weights = "equal"'),
    ],
)
def test_what_cannot_be_is_refused_when_the_job_is_read(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(JOB, overrides)
