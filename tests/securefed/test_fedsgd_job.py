"""`algorithm = "fedsgd"` in a job: central DP-SGD's step, its one noise shared, charged, journaled and aborted right."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from securefed import federation
from securefed.assembly import assemble
from securefed.config import load_config
from securefed.crypto.entropy import Stream
from securefed.engine.inprocess import InProcess
from securefed.errors import BudgetExceeded, ConfigError, PrivacyError, ProtocolError
from securefed.federation import resume, run
from securefed.models import load_result
from securefed.privacy import Ledger, epsilon_of
from securefed.privacy.chain import Head
from securefed.privacy.distributed import DistributedSkellam
from securefed.privacy.events import CentralGaussian, SharedGaussian, SkellamSum
from securefed.privacy.step_noise import StepNoise
from securefed.privacy.step_release import StepRelease
from securefed.privacy.words import CENTRAL, DISTRIBUTED, SHARED
from securefed.protect.masking import Masking
from securefed.training.client import ClientOutcome
from securefed.types import Collected
from tests.results import model_of
from tests.securefed.models import tiny
from tests.stopping import StopAfter

N = 8
FLOOR, CORRUPT = Masking().noise_floor(N)
JOB: dict[str, Any] = {
    "algorithm": "fedsgd",
    "rounds": 6,
    "protection": "masking",
    "data": {"name": "digits", "clients": N, "partition": "iid"},
    "model": {"name": "logistic", "adapter": "full"},
    "train": {"steps": 1},
    "server": {"learning_rate": 2.0},
    "privacy": {"unit": "example", "noise": "skellam", "epsilon": 20.0, "delta": 1e-4, "sample_rate": 0.2},
    "evaluate": {"every": 0, "baselines": False, "clients": False},
    "engine": {"threads": 1, "checkpoint_every": 1},
}
CKKS = {"name": "ckks", "min_survivors": N, "value_range": 64.0}
CENTRAL_JOB = {**JOB, "protection": "plain", "privacy": {**JOB["privacy"], "noise": "central"}}
WAYS: dict[str, dict[str, Any]] = {
    "skellam": {"privacy.noise": "skellam", "protection": "masking"},
    "discrete-gaussian": {"privacy.noise": "discrete-gaussian", "protection": "masking"},
    "gaussian": {"privacy.noise": "gaussian", "protection": CKKS},
    "central": {"privacy.noise": "central", "protection": "plain"},
}


needs_tenseal = pytest.mark.skipif(
    importlib.util.find_spec("tenseal") is None, reason="the extra ckks is not installed"
)


def way(name: str) -> Any:
    return pytest.param(name, marks=[needs_tenseal] if name == "gaussian" else [])


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[tuple[StepNoise, Collected, np.ndarray]]:
    """Every step's noise, what the server held, and what it released."""
    found: list[tuple[StepNoise, Collected, np.ndarray]] = []
    honest = StepRelease.release

    def watched(self: StepRelease, round: int, collected: Collected, entropy: Any) -> Any:
        found.append((self.noise, collected, honest(self, round, collected, entropy)))
        return found[-1][2]

    monkeypatch.setattr(StepRelease, "release", watched)
    return found


# ----------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize(("name", "adversary"), [("skellam", DISTRIBUTED), ("central", CENTRAL)])
def test_a_job_learns_and_its_statement_is_the_accountants(
    home: Path, tmp_path: Path, name: str, adversary: str
) -> None:
    result = run(JOB, WAYS[name], folder=tmp_path / "a")
    assert result.metrics["accuracy"] > 0.5  # chance is 0.1
    assert result.ledger is not None
    statement = result.ledger.statement(1e-4)
    assert (statement.unit, statement.adversary, statement.clients) == ("example", adversary, N)
    assert 0.98 * 20 < statement.epsilon <= 20
    assert statement.steps_reserved == statement.steps_settled == 6 * N
    assert "zero" in statement.relation
    assert adversary in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.parametrize("name", [way(name) for name in WAYS])
def test_every_clients_site_is_charged_the_same_event_of_its_own_noise(
    home: Path, tmp_path: Path, name: str
) -> None:
    result = run(JOB, {**WAYS[name], "rounds": 2}, folder=tmp_path / "a")
    assert result.ledger is not None
    per_client = [result.ledger.events(client=k) for k in range(N)]
    assert len(set(per_client)) == 1
    assert len(per_client[0]) == 2
    event: Any = per_client[0][0]
    assert (event.sample_rate, event.steps) == (0.2, 1)
    kinds = {"central": CentralGaussian, "gaussian": SharedGaussian, "skellam": SkellamSum}
    assert type(event) is kinds.get(name, type(event))
    statement = result.ledger.statement(1e-4)
    assert statement.epsilon == epsilon_of(per_client[0], 1e-4)
    if name == "gaussian":
        assert statement.adversary == SHARED
        assert statement.accountant == "pld"


def test_a_client_outside_the_cohort_spends_nothing_and_the_target_counts_the_busiest(
    home: Path, tmp_path: Path
) -> None:
    result = run(JOB, {"clients_per_round": 6, "rounds": 3}, folder=tmp_path / "a")
    assert result.ledger is not None
    steps = [len(result.ledger.events(client=k)) for k in range(N)]
    assert (sum(steps), max(steps)) == (18, 3)
    assert len(set(steps)) > 1
    spent = [result.ledger.epsilon(1e-4, client=k) for k in range(N)]
    assert 0.98 * 20 < max(spent) <= 20
    assert min(spent) < max(spent)


def test_without_noise_and_sampling_it_is_gradient_descent_on_all_records(home: Path, tmp_path: Path) -> None:
    """The oracle: torch's own gradient of the mean loss over the whole federation."""
    job = {
        **CENTRAL_JOB,
        "rounds": 3,
        "privacy": {
            "unit": "example",
            "noise_multiplier": 0.0,
            "delta": 1e-4,
            "sample_rate": 1.0,
            "max_grad_norm": 1e6,
        },
    }
    run(job, folder=tmp_path / "a")
    assembly = assemble(load_config(job))
    images, labels = (
        np.concatenate([getattr(s.train, what) for s in assembly.shards]) for what in ("images", "labels")
    )
    layout, model = assembly.model.layout, assembly.model.module
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    from securefed.data.batch import Batch

    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(assembly.model.losses(Batch(images=x, labels=y)).mean())
        optimizer.step()
    np.testing.assert_allclose(model_of(tmp_path / "a"), assembly.model.read(layout), rtol=0, atol=2e-5)


# ------------------------------------------------------------------------------------ the noise's scale


def nobody_drawn(stream: Stream, records: int, rate: float) -> np.ndarray:
    return np.zeros(0, np.int64)


def relative(noise: StepNoise, released: np.ndarray) -> float:
    """Deviation of the released mean's noise over what is claimed for N survivors.

    1,950 coordinates: one deviation of this ratio is 1.6 %, so 8 % is a false alarm in two million.
    """
    shares = 1.0 if noise.kind == "central" else N / noise.honest
    return float(np.std(released)) / (noise.deviation * math.sqrt(shares) / N)


@pytest.mark.parametrize("name", [way(name) for name in WAYS])
def test_a_step_over_no_record_releases_noise_of_the_claimed_scale(
    home: Path,
    tmp_path: Path,
    name: str,
    released: list[tuple[StepNoise, Collected, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("securefed.training.step.draw", nobody_drawn)
    run(JOB, {**WAYS[name], "rounds": 3}, folder=tmp_path / "a")
    noise = released[0][0]
    assert noise.expected == pytest.approx(0.2 * 1437 / N, rel=0.01)
    if name != "central":
        assert all(collected.updates is None for _, collected, _ in released)
    if name in ("skellam", "discrete-gaussian"):
        assert (noise.min_survivors, noise.corrupt) == (FLOOR, CORRUPT)
    assert relative(noise, np.concatenate([r for _, _, r in released])) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("kind", ["skellam", "gaussian", "central"])
def test_shares_of_the_honest_add_up_to_the_noise_of_the_event_exactly(kind: str) -> None:
    from securefed.privacy.distributed_release import Design

    design = Design(
        kind="skellam", sizes=(650,), clip=0.05, clients=N, min_survivors=6, corrupt=2, bits=32, vectors=180
    )
    found = design.mechanisms(1.3) if kind == "skellam" else None
    noise = StepNoise(
        kind=kind,
        noise_multiplier=1.3,
        sample_rate=0.2,
        clip=1.0,
        expected=20.0,
        records=180,
        min_survivors=1 if kind == "central" else 6,
        corrupt=0 if kind == "central" else 2,
        mechanisms=found,
    )
    event: Any = noise.event(650)
    assert event.sample_rate == 0.2
    if found is not None:
        m = found[650]
        assert m.honest * m.variance == pytest.approx(event.variance, rel=1e-12)
        assert event.variance >= (1.3 * event.sensitivity) ** 2
        assert m.clip * m.sensitivity / m.levels >= 1.0 / 20.0, (
            "no less than the clip, in steps of the quantizer"
        )
        assert m.vectors == 180
    else:
        assert event.noise_multiplier == 1.3
        assert noise.honest * noise.share**2 == pytest.approx((1.3 * noise.clip / noise.expected) ** 2)


def thin(self: DistributedSkellam) -> Any:
    from securefed.privacy.samplers import skellam

    return skellam(self.variance * 0.7)


@pytest.mark.parametrize(
    ("name", "target", "broken"),
    [
        ("skellam", (DistributedSkellam, "sampler"), thin),
        ("central", (StepNoise, "deviation"), property(lambda self: 0.8 * self.clip / self.expected)),
    ],
)
def test_thinner_noise_is_noticed_by_that_scale(
    home: Path,
    tmp_path: Path,
    name: str,
    target: tuple[type, str],
    broken: Any,
    released: list[tuple[StepNoise, Collected, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("securefed.training.step.draw", nobody_drawn)
    job = {**WAYS[name], "rounds": 3, "privacy.epsilon": None, "privacy.noise_multiplier": 1.0}
    with monkeypatch.context() as patched:
        patched.setattr(*target, broken)
        run(JOB, job, folder=tmp_path / "a")
    noise = released[0][0]
    ratio = relative(noise, np.concatenate([r for _, _, r in released]))
    assert abs(ratio - 1) > 0.12


# --------------------------------------------------------------------------------- survivors and crashes


def vanish(monkeypatch: pytest.MonkeyPatch, staying: int) -> None:
    honest = InProcess.train

    def most_vanish(self: InProcess, jobs: Any) -> list[ClientOutcome]:
        return list(honest(self, jobs))[:staying]

    monkeypatch.setattr(InProcess, "train", most_vanish)


def test_the_agreed_survivors_are_enough_for_a_step(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanish(monkeypatch, FLOOR)
    assert run(JOB, {"rounds": 2}, folder=tmp_path / "a").rounds == 2


@pytest.mark.parametrize("name", [way("skellam"), way("gaussian")])
def test_one_fewer_aborts_and_everybody_stays_charged(
    home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanish(monkeypatch, (FLOOR if name == "skellam" else N) - 1)
    with pytest.raises(ProtocolError, match="min_survivors"):
        run(JOB, WAYS[name], folder=tmp_path / "a")
    with Ledger.site() as ledger:
        assert len({ledger.epsilon(1e-4, client=k) for k in range(N)}) == 1
        assert ledger.epsilon(1e-4) > 0


def test_clients_who_refuse_end_the_run_when_too_few_are_left(home: Path, tmp_path: Path) -> None:
    job = {"privacy.epsilon": 25.0, "privacy.noise_multiplier": 0.35, "privacy.sample_rate": 1.0}
    two, three = (epsilon_of([CentralGaussian(0.35, 1.0, steps)], 1e-4) for steps in (2, 3))
    assert two < 25 < three
    result = run(CENTRAL_JOB, job, folder=tmp_path / "a")
    assert (result.stopped, result.rounds) == ("budget", 2)
    with pytest.raises(BudgetExceeded):
        run(CENTRAL_JOB, {**job, "privacy.noise_multiplier": 0.1}, folder=tmp_path / "b")


def events_of(result: Any) -> list[Any]:
    return [result.ledger.events(client=k) for k in range(N)]


def test_a_resumed_run_leaves_the_ledger_of_one_that_was_not_stopped(home: Path, tmp_path: Path) -> None:
    whole = run(JOB, {"rounds": 4}, folder=tmp_path / "a")
    stopped = run(JOB, {"rounds": 4}, folder=tmp_path / "b", stop_flag=StopAfter(2))
    assert stopped.stopped == "interrupted"
    resumed = resume(tmp_path / "b")
    assert (resumed.rounds, resumed.stopped) == (4, "rounds")
    assert events_of(resumed) == events_of(whole)
    assert resumed.ledger is not None
    assert whole.ledger is not None
    assert resumed.ledger.epsilon(1e-4) == whole.ledger.epsilon(1e-4)


def crash(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("broken", "attempts"),
    [
        (lambda patched: patched.setattr(federation, "save_state", crash), 4),
        (lambda patched: patched.setattr("securefed.privacy.journal.Journal.write", crash), 5),
    ],
)
def test_a_released_step_is_applied_again_and_one_that_was_lost_is_drawn_and_charged_anew(
    home: Path,
    tmp_path: Path,
    broken: Callable[[pytest.MonkeyPatch], None],
    attempts: int,
    monkeypatch: pytest.MonkeyPatch,
    released: list[tuple[StepNoise, Collected, np.ndarray]],
) -> None:
    """The server had seen the lost sum, so the next one is a release of its own."""
    with monkeypatch.context() as patched:
        broken(patched)
        with pytest.raises(KeyboardInterrupt):
            run(
                JOB,
                {"rounds": 4, "privacy.epsilon": None, "privacy.noise_multiplier": 2.0},
                folder=tmp_path / "a",
            )
    result = resume(tmp_path / "a")
    assert result.rounds == 4
    assert [len(events) for events in events_of(result)] == [attempts] * N
    assert len(released) == 4
    assert sorted(p.name for p in (tmp_path / "a" / "released").iterdir()) == [], (
        "forgotten with the checkpoint"
    )


def test_a_journal_outlives_no_ledger(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site's ledger is put back to what it was when the run began: it knows the run, and none of its steps."""
    import shutil

    job = {"rounds": 4, "privacy.epsilon": None, "privacy.noise_multiplier": 2.0}
    with monkeypatch.context() as patched:
        patched.setattr(InProcess, "train", crash)
        with pytest.raises(KeyboardInterrupt):
            run(JOB, job, folder=tmp_path / "a")
    with Ledger.site() as ledger:
        path = ledger.path
    shutil.copy(path, tmp_path / "old.sqlite")
    with monkeypatch.context() as patched:
        patched.setattr(federation, "save_state", crash)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "a")
    assert [p.name for p in (tmp_path / "a" / "released").iterdir()] == ["000000000"]
    for leftover in path.parent.glob("ledger.sqlite*"):
        leftover.unlink()
    shutil.copy(tmp_path / "old.sqlite", path)
    with pytest.raises(PrivacyError, match="rolled back or rewritten"):
        resume(tmp_path / "a")


def test_a_torn_journal_is_none(home: Path, tmp_path: Path) -> None:
    from securefed.privacy.journal import Journal

    journal = Journal(tmp_path / "released")
    vector = np.arange(5, dtype=np.float32)
    head = Head(7, b"\5" * 32)
    for round in range(3):
        journal.write(round, vector + round, head)
    found = journal.read(2)
    assert found is not None
    np.testing.assert_array_equal(found[0], vector + 2)
    assert found[1] == head
    journal.clear(2)
    assert [journal.read(r) is None for r in range(4)] == [True, True, False, True]
    path = next((tmp_path / "released").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    assert journal.read(2) is None


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"privacy.unit": "none", "privacy.noise": "central", "privacy.epsilon": None}, 'set privacy.unit = "example"'),
        ({"privacy.unit": "client"}, 'set privacy.unit = "example"'),
        ({"privacy.noise": "central"}, 'set privacy.noise = "skellam"'),
        ({"protection": "plain"}, 'use protection = "masking"'),
        ({"protection": "ckks"}, 'use protection = "masking"'),
        ({"privacy.noise": "gaussian"}, 'use protection = "ckks"'),
        ({"algorithm": "fedavg", "train.learning_rate": 0.2}, 'algorithm = "fedsgd"'),
        ({"train.steps": 2}, "set train.steps = 1"),
        ({"train.learning_rate": 0.3}, "train.learning_rate is of a client's own optimizer"),
        ({"train.optimizer": "adamw"}, "train.optimizer"),
        ({"train.momentum": 0.5}, "server.optimizer"),
        ({"model.name": "minilm", "model.adapter": "fedsa"}, "fedsa trains B at home"),
        ({"weights": "size"}, 'weights = "auto"'),
        ({"attack.name": "sign_flip", "attack.f": 1}, "algorithm fedsgd sends sums"),
        ({**WAYS["central"], "aggregator": "median"}, 'aggregator = "mean"'),
        ({"privacy.epsilon": None, "privacy.noise_multiplier": 0.0}, "adds no noise"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_the_job_is_read(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(JOB, overrides)


def test_a_heads_centre_is_the_mean_that_clients_steps_measure(home: Path, tmp_path: Path) -> None:
    """All records, no noise: fedsgd plays what fedavg plays, centre, head and adapter, whatever the clip."""
    data = tmp_path / "records.csv"
    rows = [f"{tiny.TEXTS[i % 6]} {'good ' * (i % 5)},{i % 2},c{i % 3 > 0:d}" for i in range(48)]
    data.write_text("text,label,client\n" + "\n".join(rows) + "\n", encoding="utf-8")
    job = {
        "rounds": 4,
        "data": {
            "name": str(data),
            "client_column": "client",
            "clients": 2,
            "max_length": 16,
            "min_examples": 4,
        },
        "model": {
            "name": str(tiny.tiny_bert(tmp_path / "bert")),
            "adapter": "lora",
            "rank": 2,
            "layers": 1,
            "head_layers": 2,
            "head_centre": True,
        },
        "train": {"steps": 1, "physical_tokens": 128},
        "privacy": {
            "unit": "example",
            "noise_multiplier": 0.0,
            "delta": 1e-3,
            "sample_rate": 1.0,
            "max_grad_norm": 0.3,
        },
        "server": {"optimizer": "fedavgm", "learning_rate": 0.5},
        "evaluate": {"baselines": False, "every": 0},
        "engine": {"threads": 1},
    }
    averaged = {
        "algorithm": {"name": "fedavg", "head_rounds": 1},
        "weights": "size",
        "train.learning_rate": 1.0,
    }
    found = {}
    for name, own in (("fedavg", averaged), ("fedsgd", {"algorithm": {"name": "fedsgd", "head_rounds": 1}})):
        folder = run(job, own, folder=tmp_path / name).folder
        model = load_result(folder / "adapter")
        found[name] = model.layout.unflatten(model.read(model.layout))
    for name, tensor in found["fedavg"].items():
        np.testing.assert_allclose(found["fedsgd"][name], tensor, atol=2e-5)
    centre = next(t for n, t in found["fedsgd"].items() if "centre" in n)
    assert 0.5 < np.linalg.norm(centre) <= 1.0  # of features of length one, most of it common to all


@pytest.mark.parametrize(
    ("protection", "said"),
    [
        ({"name": "ckks", "min_survivors": 2, "gamma": 0.3, "value_range": 64.0}, "raise min_survivors"),
        ({"name": "ckks", "min_survivors": N, "value_range": 4.0}, "set protection.value_range ="),
    ],
)
@needs_tenseal
def test_shares_under_ckks_need_an_honest_rest_and_room(
    home: Path, tmp_path: Path, protection: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(JOB, {**WAYS["gaussian"], "protection": protection}, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_ready_job_is_one(tmp_path: Path) -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "fedsgd.toml")
    assert config.fedsgd
    assert json.dumps(config.privacy.noise) == '"skellam"'


# ------------------------------------------------------------------------------------------ copies of a record


def test_a_record_at_two_clients_is_refused_as_one_noise_hides_one_copy(home: Path, tmp_path: Path) -> None:
    """Two copies move the sum by two clips: 4 / sigma^2, where two clients' events composed say 2 / sigma^2."""
    from dataclasses import replace

    config = load_config(JOB)
    whole = assemble(config)
    first, second, *rest = whole.shards
    doubled = replace(second, train=first.train.take([0, 1, 2]), digest="ab" * 32)
    assembly = replace(whole, shards=(first, doubled, *rest))
    with pytest.raises(PrivacyError, match="hides one copy"):
        run(config, folder=tmp_path / "a", assembly=assembly)
    assert not (tmp_path / "a").exists()
    with Ledger.site() as ledger:
        assert ledger.events() == ()
    two_clips = epsilon_of([CentralGaussian(1.0, 1.0, 1)], 1e-4)
    composed = epsilon_of([CentralGaussian(2.0, 1.0, 2)], 1e-4)
    assert two_clips > 1.3 * composed, "what the ledger would have said is too small"


@pytest.mark.parametrize(
    ("name", "trusted"), [("skellam", "no server is trusted"), ("central", "the server is trusted")]
)
def test_the_statement_says_whom_it_trusts_and_what_copies_cost(
    home: Path, tmp_path: Path, name: str, trusted: str
) -> None:
    result = run(JOB, {**WAYS[name], "rounds": 1}, folder=tmp_path / "a")
    assert result.ledger is not None
    statement = result.ledger.statement(1e-4)
    assert statement.trust.startswith(trusted)
    assert any("at k clients, under the one noise of all" in matter for matter in statement.not_covered)
