"""`privacy.clip = "adaptive"` in a job: the clip follows the norms, costs what is charged, and outlives a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed import federation
from securefed.config import load_config
from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import exchange
from securefed.errors import ConfigError
from securefed.federation import resume, run
from securefed.privacy import SampledGaussian, epsilon_of
from securefed.privacy.adaptive_clip import AdaptiveClip, split_noise
from securefed.privacy.client_level import noisy_mean
from securefed.privacy.distributed_release import Design, DistributedRelease, RoundWords, RunWords
from securefed.privacy.events import SharedGaussian, SkellamSum
from securefed.privacy.moving_clip import MovingClip, count_deviation
from securefed.privacy.server_mechanism import ServerMechanism
from securefed.privacy.shared_release import Shares
from securefed.protect.masking import Masking
from securefed.types import SERVER, Collected, RoundParameters, Update
from tests.securefed.test_distributed_job import JOB as DISTRIBUTED_JOB
from tests.securefed.test_distributed_job import N
from tests.securefed.test_fedsgd_job import needs_tenseal
from tests.stopping import StopAfter

CKKS = {"name": "ckks", "min_survivors": 16, "value_range": 16.0}
WAYS: dict[str, dict[str, Any]] = {
    "central": {"privacy.noise": "central", "protection": "plain"},
    "skellam": {"privacy.noise": "skellam"},
    "discrete-gaussian": {"privacy.noise": "discrete-gaussian"},
    "gaussian": {"privacy.noise": "gaussian", "protection": CKKS},
}
JOB = {
    **DISTRIBUTED_JOB,
    "rounds": 4,
    "privacy": {**DISTRIBUTED_JOB["privacy"], "clip": "adaptive", "clip_learning_rate": 1.0},
    "engine": {"threads": 1, "checkpoint_every": 1},
}


def way(name: str) -> Any:
    return pytest.param(name, marks=[needs_tenseal] if name == "gaussian" else [])


def clips(folder: Path) -> list[float]:
    return [json.loads(line)["clip"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


# -------------------------------------------------------------------------------------- it moves and learns


@pytest.mark.parametrize(
    ("name", "first", "down"),
    [
        ("central", 50.0, True),
        ("skellam", 1e-3, False),
        ("discrete-gaussian", 50.0, True),
        pytest.param("gaussian", 50.0, True, marks=needs_tenseal),
    ],
)
def test_the_clip_goes_where_the_norms_are(
    home: Path, tmp_path: Path, name: str, first: float, down: bool
) -> None:
    """All norms lie on one side of the first clips, so up to noise each step is exp(-+ rate / 2)."""
    job = {**WAYS[name], "privacy.max_grad_norm": first, "rounds": 3, "privacy.epsilon": 60.0}
    if name == "gaussian":
        job = {**job, "protection": {**CKKS, "value_range": 2048.0}}
    run(JOB, job, folder=tmp_path / "a")
    found = np.log(clips(tmp_path / "a"))
    assert found[0] == pytest.approx(np.log(first), abs=1e-6)
    moved = np.diff(found)
    # the count's noise is 1 of 20, and with shares sqrt(20 / honest) of that: below .12, five deviations each way
    assert np.all(np.abs(moved - (-0.5 if down else 0.5)) < 0.6)
    assert bool(moved.sum() < 0) is down


def test_both_events_are_charged_under_masking_and_keep_to_the_target(home: Path, tmp_path: Path) -> None:
    result = run(JOB, WAYS["skellam"], folder=tmp_path / "a")
    assert result.ledger is not None
    events = result.ledger.events(client=SERVER)
    assert all(isinstance(event, SkellamSum) for event in events)
    assert len(set(events)) == 2
    assert len(events) == 8
    assert 0.98 * 30 < result.ledger.epsilon(0.01) <= 30
    assert result.ledger.statement(0.01).unfinished == 0


@pytest.mark.parametrize(
    ("name", "kind"), [("central", SampledGaussian), (way("gaussian").values[0], SharedGaussian)]
)
def test_one_gaussian_event_covers_update_and_bit(
    home: Path, tmp_path: Path, name: str, kind: type[SampledGaussian]
) -> None:
    result = run(JOB, {**WAYS[name], "rounds": 2}, folder=tmp_path / "a")
    assert result.ledger is not None
    events = result.ledger.events(client=SERVER)
    assert {type(event) for event in events} == {kind}
    assert result.ledger.epsilon(0.01) == epsilon_of(events, 0.01)


# -------------------------------------------------------------------------------- the noise it is accounted for


def test_update_and_bit_share_the_rounds_noise_as_the_paper_says() -> None:
    clip = MovingClip.starting(1.0, 0.5, 0.2, count_deviation(0.0, 100, 1.3))
    assert clip.count_std == 5.0
    up = clip.update_noise(1.3)
    assert up**-2 + (2 * 5.0) ** -2 == pytest.approx(1.3**-2)
    assert count_deviation(0.0, 20, 1.3) == 2.6, "a small cohort's bit costs the update 3 %"
    assert split_noise(1.3, 2.6) / 1.3 < 1.04
    assert count_deviation(7.0, 20, 1.3) == 7.0
    shares = Shares(noise_multiplier=up, unit=1.0, min_survivors=9, corrupt=2, count_std=5.0)
    assert shares.honest == 7


def test_the_central_release_scales_its_noise_to_the_rounds_clip(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    met: list[tuple[float, float]] = []

    def watched(total: Any, sensitivity: float, sigma: float, denominator: float, stream: Any) -> Any:
        met.append((sensitivity, sigma))
        assert np.linalg.norm(total) <= 2 * sensitivity
        return noisy_mean(total, sensitivity, sigma, denominator, stream)

    monkeypatch.setattr("securefed.privacy.server_mechanism.noisy_mean", watched)

    class Silent:
        def settle(self, *_: Any, **__: Any) -> None: ...

    clip = MovingClip(AdaptiveClip(), 5.0, 0.25)
    mechanism = ServerMechanism(Silent(), "r", 1.3, 1.0, 1.0, 2.0, None, clip)  # type: ignore[arg-type]  # no ledger is needed
    rows = {k: np.append(np.full(9, 7.0), 99.0).astype(np.float32) for k in range(2)}
    collected = Collected((0, 1), np.zeros(10), 2.0, updates=rows)
    released = mechanism.release(0, 0, collected, SystemEntropy())
    assert released.shape == (9,)
    assert met == [(0.25, clip.update_noise(1.3))]
    bits = -np.log(clip.value / 0.25) / 0.2 + 0.5  # what the clip was moved by, in fractions
    assert abs(bits - 1.0) < 6 * 5.0 / 2, "a bit of 99 counted as 1/2"


def test_masking_carries_the_bit_unrotated_with_its_own_scale_and_noise() -> None:
    n, d = 10, 400
    survivors, corrupt = Masking().noise_floor(n)
    design = Design(
        kind="skellam", sizes=(d,), clip=1.0, clients=n, min_survivors=survivors, corrupt=corrupt, bits=24, count_std=3.0
    )  # fmt: skip
    count = design.count(2.0)
    assert count is not None
    clip = MovingClip(AdaptiveClip(), 3.0, 0.5)
    words = RunWords(design.mechanisms(2.0), SystemEntropy(), count, clip)
    parties = Masking(bits=24).open("run", range(n), SystemEntropy()).carrying(words)
    base = RoundParameters("run", 0, tuple(range(n)), d + 1, "00" * 32, "11" * 32, (1.0,) * n)
    sums = []
    for round in range(30):
        rows = {
            k: Update(k, round, np.append(np.zeros(d), 0.5 if k < 8 else -0.5).astype(np.float32))
            for k in range(n)
        }
        sums.append(exchange(parties, replace(base, round=round), rows, SystemEntropy()).total[-1])
    honest = survivors - corrupt
    deviation = 3.0 * (n / honest) ** 0.5
    assert np.mean(sums) == pytest.approx(3.0, abs=5 * deviation / 30**0.5)
    assert np.std(sums) == pytest.approx(deviation, rel=0.6)
    wide = design.mechanisms(2.0)[d].noise_multiplier
    assert wide == pytest.approx(split_noise(2.0, 3.0), rel=1e-6)


def test_a_client_leaves_a_round_whose_clip_is_not_the_one_it_followed() -> None:
    n, d = 10, 50
    survivors, corrupt = Masking().noise_floor(n)
    design = Design(
        kind="skellam", sizes=(d,), clip=1.0, clients=n, min_survivors=survivors, corrupt=corrupt, bits=24, count_std=3.0
    )  # fmt: skip
    mechanisms, count = design.mechanisms(2.0), design.count(2.0)
    mine = RunWords(mechanisms, SystemEntropy(), count, MovingClip(AdaptiveClip(), 3.0, 0.5))
    base = RoundParameters("run", 0, tuple(range(n)), d + 1, "00" * 32, "11" * 32, (1.0,) * n)
    parties = Masking(bits=24).open("run", range(n), SystemEntropy())
    assert count is not None
    for server in (
        RunWords(mechanisms, SystemEntropy(), count, MovingClip(AdaptiveClip(), 3.0, 5.0)),
        RunWords(
            mechanisms,
            SystemEntropy(),
            replace(count, variance=count.variance / 2),
            MovingClip(AdaptiveClip(), 3.0, 0.5),
        ),
    ):
        proposal = parties.carrying(server).server(base).start().send[0].payload
        output = parties.carrying(mine).client(base, 0, SystemEntropy()).receive(proposal)
        assert output.abort is not None
        assert "clip or noise is not" in output.abort
    words = mine.accept(base, mine.propose(base))
    assert isinstance(words, RoundWords)
    assert words.mechanism.clip == 0.5


# --------------------------------------------------------------------------------------- stops and crashes


def crash(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", [way("central"), way("skellam"), way("gaussian")])
def test_a_stopped_run_goes_on_with_its_clip(home: Path, tmp_path: Path, name: str) -> None:
    run(JOB, WAYS[name], folder=tmp_path / "a", stop_flag=StopAfter(2))
    from safetensors.numpy import load

    newest = sorted((tmp_path / "a" / "checkpoint").glob("round-*"))[-1]
    kept = load((newest / "state.safetensors").read_bytes())["rule.clip:"]
    before = clips(tmp_path / "a")
    assert kept[0] not in before
    result = resume(tmp_path / "a")
    assert result.rounds == 4
    assert clips(tmp_path / "a")[2] == pytest.approx(float(kept[0]), rel=1e-6)


@pytest.mark.parametrize("name", ["central", "skellam"])
def test_a_journaled_round_moves_the_clip_as_it_did_before_the_crash(
    home: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[float] = []
    kind = ServerMechanism if name == "central" else DistributedRelease
    honest = kind.release

    def watched(self: Any, *arguments: Any) -> Any:
        found = honest(self, *arguments)
        moved.append(self.clip.value)
        return found

    monkeypatch.setattr(kind, "release", watched)
    with monkeypatch.context() as patched:
        patched.setattr(federation, "save_state", crash)
        with pytest.raises(KeyboardInterrupt):
            run(JOB, WAYS[name], folder=tmp_path / "a")
    assert len(moved) == 1
    result = resume(tmp_path / "a")
    assert clips(tmp_path / "a")[1] == moved[0]
    assert (result.rounds, len(moved)) == (4, 4)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            {"privacy.unit": "example", "privacy.noise": "central", "train.epochs": 0, "train.steps": 1},
            'set privacy.unit = "client"',
        ),
        ({"privacy.clip_quantile": 1.0}, "clip_quantile must be in"),
        ({"privacy.clip_learning_rate": 0.0}, "clip_learning_rate must be above 0"),
        ({"privacy.clip_count_std": -1.0}, "clip_count_std must be 0"),
        ({"privacy.clip": "quantile"}, "privacy.clip is one of"),
        ({"protection": {"name": "grouped", "bits": 24}}, 'use protection = "masking"'),
        (
            {**WAYS["central"], "privacy.epsilon": None, "privacy.noise_multiplier": 0.0},
            "no noise to share",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_the_job_is_read(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(JOB, overrides)


def test_a_bit_that_would_cost_everything_is_refused(home: Path, tmp_path: Path) -> None:
    from securefed.errors import PrivacyError

    job = {**WAYS["central"], "privacy.epsilon": None, "privacy.noise_multiplier": 3.0}
    with pytest.raises(PrivacyError, match="it must exceed 1"):
        run(JOB, {**job, "privacy.clip_count_std": 1.0, "rounds": 1}, folder=tmp_path / "a")


def test_the_cohort_of_the_job_is_the_one_of_these_tests() -> None:
    assert load_config(JOB).data.clients == N
