"""Canary clients ride inside open, masked and encrypted rounds, and the sum alone shows whether the noise is there."""

from __future__ import annotations

import functools
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from securefed.crypto.entropy import Entropy, Stream
from securefed.engine.exchange import exchange
from securefed.errors import ProtocolError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.client_level import clip_update, noisy_share
from securefed.privacy.distributed import DistributedMechanism
from securefed.privacy.distributed_release import Design, RunWords
from securefed.privacy.events import SampledGaussian
from securefed.privacy.rotation import rotate
from securefed.privacy.samplers import Sampler
from securefed.protect.ckks.scheme import available
from securefed.protect.masking import Masking
from securefed.protect.plain import Plain
from securefed_attacks import canary_clients
from securefed_attacks.canaries import Canaries, DPAudit, draw_canaries
from securefed_attacks.canary_clients import audit_sums, canary_updates, ride
from tests.entropy import SeededEntropy

M, CLIP, DELTA = 40, 0.5, 1e-5


class Numbered(Entropy):
    """A seeded entropy whose every stream is another one, as identities and masks need."""

    def __init__(self, seed: int) -> None:
        self._base, self._asked = SeededEntropy(seed), 0

    def stream(self, *context: str | int) -> Stream:
        self._asked += 1
        return self._base.stream(self._asked, *context)


def cohort(seed: int = 0, kind: Any = "dirac", m: int = M) -> Canaries:
    return draw_canaries(m, 64 if m <= 64 else m, np.random.default_rng(seed), kind)


def test_a_canary_client_sends_its_direction_or_nothing() -> None:
    canaries = cohort()
    updates = canary_updates(canaries, CLIP)
    assert sorted(updates) == list(range(M))
    for j, update in updates.items():
        long = canary_clients.LOUD * CLIP if canaries.included[j] else 0.0
        assert np.linalg.norm(update.vector) == pytest.approx(long)


@pytest.mark.parametrize("kind", ["dirac", "isotropic"])
def test_masked_and_open_rounds_give_the_auditor_the_same_sum(kind: Any) -> None:
    canaries = cohort(1, kind)
    share = lambda vector, client: clip_update(vector, CLIP).vector  # noqa: E731
    masked = ride(Masking(value_range=8.0), canaries, CLIP, Numbered(0), share=share)
    bare = ride(Plain(), canaries, CLIP, Numbered(0), share=share)
    np.testing.assert_allclose(masked, bare, atol=1e-5)
    inside = canaries.scores(masked)[canaries.included]
    if kind == "dirac":
        np.testing.assert_allclose(inside, CLIP, atol=1e-4)


@functools.cache
def words(noise: str, noise_multiplier: float) -> Any:
    survivors, corrupt = Masking(bits=24).noise_floor(M)
    design = Design(
        kind=noise,
        sizes=(64,),
        clip=CLIP,
        clients=M,
        min_survivors=survivors,
        corrupt=corrupt,
        bits=24,
    )
    return design.mechanisms(noise_multiplier)[64]


def masked_audit(noise: str, seed: int) -> DPAudit:
    """One masked round that carries distributed noise, the claim of its event, the verdict over its sum."""
    mechanism, entropy, canaries = words(noise, 3.0), Numbered(seed), cohort(seed)
    parties = Masking(bits=24).open("audit", range(M), entropy).carrying(RunWords({64: mechanism}, entropy))
    total = ride(parties, canaries, CLIP / 5, entropy)  # 20 clips long: more would wrap where the clip is off
    claimed = epsilon_of([mechanism.event()], DELTA)
    return audit_sums([total], canaries, claimed=claimed, delta=DELTA)


@pytest.mark.parametrize("noise", ["skellam", "discrete-gaussian"])
def test_canaries_inside_masked_rounds_refute_broken_noise_and_not_whole_noise(noise: str) -> None:
    whole = masked_audit(noise, 0)
    assert whole.verdict == "NO EVIDENCE", str(whole)
    draw = Sampler.draw
    with patch.object(Sampler, "draw", lambda self, n, stream: draw(self, n, stream) // 20):
        broken = masked_audit(noise, 0)
    assert broken.verdict == "FAIL", str(broken)
    assert broken.claimed == whole.claimed


def unclipped(self: DistributedMechanism, vector: np.ndarray, stream: Stream) -> np.ndarray:
    """The fault: the client rotates and rounds what it has."""
    work = vector.copy()
    rotate(work, self.seed)
    return np.rint(work * np.float32(self.levels / self.clip)).astype(np.int64)


def test_canaries_inside_masked_rounds_hear_a_clip_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = masked_audit("skellam", 1)
    monkeypatch.setattr(DistributedMechanism, "_rounded", unclipped)
    broken = masked_audit("skellam", 1)
    assert (whole.verdict, broken.verdict) == ("NO EVIDENCE", "FAIL"), f"{whole}; {broken}"


def encrypted_audit(noise_multiplier: float, seed: int, told: float = 3.0) -> DPAudit:
    """One CKKS round of clipped updates, each with its share of Gaussian noise before encryption."""
    from securefed.protect.ckks import CKKS

    canaries, entropy = cohort(seed), Numbered(seed)
    shares = SeededEntropy(seed)

    def share(vector: np.ndarray, client: int) -> np.ndarray:
        return noisy_share(clip_update(vector, CLIP), noise_multiplier, M, shares.stream("share", client))

    total = ride(CKKS(value_range=32.0, error=1e-4), canaries, CLIP, entropy, share=share)
    claimed = epsilon_of([SampledGaussian(told, 1.0, 1)], DELTA)
    return audit_sums({0: total}, canaries, claimed=claimed, delta=DELTA)


@pytest.mark.skipif(available() is not None, reason="TenSEAL does not import here")
def test_canaries_inside_encrypted_rounds_refute_broken_noise_and_not_whole_noise() -> None:
    assert encrypted_audit(3.0, 0).verdict == "NO EVIDENCE"
    assert encrypted_audit(0.2, 0).verdict == "FAIL"


def test_nothing_but_the_sum_reaches_the_auditor(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []

    def watched(*arguments: Any) -> Any:
        held.append(exchange(*arguments))
        return held[-1]

    monkeypatch.setattr(canary_clients, "exchange", watched)
    total = ride(
        Masking(value_range=8.0), cohort(), CLIP, Numbered(0), share=lambda v, _: clip_update(v, CLIP).vector
    )
    assert held[0].updates is None
    assert held[0].groups is None
    assert held[0].total is total


def test_rounds_of_one_run_add_up_and_none_is_refused() -> None:
    canaries = cohort(2, m=200)
    generator = np.random.default_rng(0)
    sums = [
        np.where(canaries.included, CLIP, 0) + 2 * CLIP * generator.standard_normal(200) for _ in range(40)
    ]
    one, all_ = (audit_sums(s, canaries, claimed=9.0, delta=DELTA) for s in (sums[:1], sums))
    assert all_.bound > one.bound + 1
    with pytest.raises(ValueError, match="at least one round"):
        audit_sums([], canaries, claimed=1.0, delta=DELTA)


class Aborting(Plain):
    """A round that ends in an abort."""

    def server(self, parameters: Any) -> Any:
        raise ProtocolError("too few survived")


def test_a_round_that_aborts_is_no_evidence_but_an_error() -> None:
    with pytest.raises(ProtocolError, match="too few"):
        ride(Aborting(), cohort(), CLIP, Numbered(0))
