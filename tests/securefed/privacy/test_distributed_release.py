"""Distributed noise carried by masking: the mechanism's own bits, its scale, and what a lying or thin round meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from securefed.crypto.entropy import Stream, SystemEntropy
from securefed.engine.exchange import exchange
from securefed.errors import PrivacyError, ProtocolError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.distributed import DistributedMechanism, DistributedSkellam
from securefed.privacy.distributed_release import KINDS, Design, RoundWords, RunWords, constants_of
from securefed.protect.masking import Masking, OpenMasking
from securefed.types import Collected, RoundParameters, Update

N, D = 10, 20_000
CONFIG = Masking(bits=20)
SURVIVORS, CORRUPT = CONFIG.noise_floor(N)
BASE = RoundParameters("run", 0, tuple(range(N)), D, "00" * 32, "11" * 32, (1.0,) * N)


def design_of(kind: str = "skellam", sizes: tuple[int, ...] = (D,)) -> Design:
    return Design(
        kind=kind,
        sizes=sizes,
        clip=0.5,
        clients=N,
        min_survivors=SURVIVORS,
        corrupt=CORRUPT,
        bits=CONFIG.bits,
    )


MECHANISM = design_of().mechanisms(1.0)[D]
CLAIMED = MECHANISM.sensitivity * (N / (SURVIVORS - CORRUPT)) ** 0.5
"""Deviation of the sum's noise in steps at noise multiplier 1; taken before a test breaks anything."""
OWN = RunWords({D: MECHANISM}, SystemEntropy())


def opened(words: RunWords | None = OWN) -> OpenMasking:
    parties = CONFIG.open("run", range(N), SystemEntropy())
    return parties if words is None else parties.carrying(words)


def played(vector: np.ndarray, who: Iterable[int] = range(N), words: RunWords = OWN) -> Collected:
    updates = {k: Update(k, 0, vector.astype(np.float32)) for k in who}
    return exchange(opened(words), BASE, updates, SystemEntropy())


def test_the_floor_of_survivors_is_what_masking_needs_anyway() -> None:
    assert 1 <= SURVIVORS - CORRUPT < SURVIVORS
    assert SURVIVORS > N / 2
    assert Masking(bits=20, min_survivors=N).noise_floor(N) == (N, CORRUPT)


@pytest.mark.parametrize("kind", KINDS)
def test_masking_carries_the_mechanisms_own_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[np.ndarray] = []
    rounds: list[DistributedMechanism] = []
    honest = RoundWords.encode

    def recorded(self: RoundWords, update: np.ndarray, stream: Stream) -> np.ndarray:
        words = honest(self, update, stream)
        sent.append(words.copy())
        rounds.append(self.mechanism)
        return words

    monkeypatch.setattr(RoundWords, "encode", recorded)
    words = RunWords(design_of(kind).mechanisms(1.0), SystemEntropy())
    collected = played(np.full(D, 1e-3), words=words)
    assert len(sent) == N
    assert len({m.seed for m in rounds}) == 1
    total = np.stack(sent).astype(np.uint64).sum(axis=0)
    np.testing.assert_array_equal(collected.total, rounds[0].decode(total).astype(np.float64))
    assert (collected.weight, collected.clipped_share, collected.updates) == (N, None, None)


def scale_holds(collected: Collected, sent_norm: float = 0.0) -> bool:
    """Whether a sum carries all the noise it claims and, of N equal updates, no more than their clipped norms.

    The standard deviation is that of N shares of variance sigma^2 / honest: 20,000 coordinates give it to 0.5 %.
    """
    direction = np.ones(D) / D**0.5
    along = float(collected.total @ direction)
    noise = collected.total - along * direction
    unit = MECHANISM.clip / MECHANISM.levels
    deviation = float(np.linalg.norm(noise)) / (D - 1) ** 0.5 / unit
    bound = N * min(sent_norm, MECHANISM.clip) + 6 * CLAIMED * unit
    return bool(abs(deviation / CLAIMED - 1) < 0.04 and along < bound)


def test_the_released_noise_has_the_claimed_scale_and_the_sum_the_clipped_norm() -> None:
    assert scale_holds(played(np.zeros(D)))
    assert scale_holds(played(np.full(D, 100.0), words=OWN), 100 * D**0.5)


def silent(self: DistributedMechanism) -> Any:
    class Nothing:
        def draw(self, count: int, stream: Stream) -> np.ndarray:
            return np.zeros(count, np.int64)

    return Nothing()


def thin(self: DistributedMechanism) -> Any:
    from securefed.privacy.samplers import skellam

    return skellam(self.variance * 0.85)


@pytest.mark.parametrize("sampler", [silent, thin])
def test_a_client_that_skips_or_thins_its_noise_is_caught_by_the_scale(
    sampler: Callable[[DistributedMechanism], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistributedSkellam, "sampler", sampler)
    assert not scale_holds(played(np.zeros(D)))


def test_a_client_that_skips_its_clip_is_caught_by_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    from securefed.privacy import distributed
    from securefed.privacy.client_level import Clipped

    monkeypatch.setattr(distributed, "clip_update", lambda vector, norm: Clipped(vector, norm))
    monkeypatch.setattr(distributed, "rounded_norm_squared", lambda levels, d: 1e12)  # nor does rounding
    step = 4 * MECHANISM.clip / D**0.5  # little enough not to wrap around
    collected = played(np.full(D, step))
    assert float(collected.total.sum()) / D**0.5 > 3 * N * MECHANISM.clip
    assert not scale_holds(collected, step * D**0.5)


def test_a_sum_over_fewer_than_the_agreed_survivors_is_an_abort() -> None:
    assert played(np.zeros(D), range(SURVIVORS)).survivors == tuple(range(SURVIVORS))
    with pytest.raises(ProtocolError, match="min_survivors"):
        played(np.zeros(D), range(SURVIVORS - 1))
    with pytest.raises(ProtocolError, match="abort the round"):
        RoundWords(MECHANISM).decode(np.zeros(D, np.uint32), SURVIVORS - 1)


@pytest.mark.parametrize(
    ("server", "client", "said"),
    [
        (RunWords({D: replace(MECHANISM, variance=1.0)}, SystemEntropy()), OWN, "clip or noise is not"),
        (RunWords({D: replace(MECHANISM, clip=5.0)}, SystemEntropy()), OWN, "clip or noise is not"),
        (RunWords({D: replace(MECHANISM, corrupt=0)}, SystemEntropy()), OWN, "clip or noise is not"),
        (None, OWN, "sends nothing without its own"),
        (OWN, None, "was not set up with"),
    ],
)
def test_a_client_leaves_a_round_whose_noise_is_not_its_own(
    server: RunWords | None, client: RunWords | None, said: str
) -> None:
    parties = opened(None)
    of_server = parties if server is None else parties.carrying(server)
    of_client = parties if client is None else parties.carrying(client)
    proposal = of_server.server(BASE).start().send[0].payload
    output = of_client.client(BASE, 0, SystemEntropy()).receive(proposal)
    assert output.abort is not None
    assert said in output.abort


def test_the_rotation_is_public_signed_and_fresh_in_every_attempt() -> None:
    first, second = (opened().server(BASE).parameters for _ in range(2))
    assert first.codec != second.codec
    assert constants_of(MECHANISM)[:-16] == first.codec[:-16] == second.codec[:-16]
    assert type(first).decode(first.encode(), BASE.model_digest) == first
    assert replace(first, codec=second.codec).digest != first.digest


def test_weights_other_than_one_are_refused() -> None:
    heavy = replace(BASE, weights=(2.0,) * N)
    with pytest.raises(ProtocolError, match="cannot be weighted"):
        opened().server(heavy)


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_of_several_sizes_together_keep_to_the_target(kind: str) -> None:
    design = design_of(kind, (300, 1000, 300, 1000))
    found = design.mechanisms(design.noise_for(4.0, 1e-3))
    spent = epsilon_of([found[300].event(2), found[1000].event(2)], 1e-3)
    assert 0.98 * 4.0 < spent <= 4.0
    with pytest.raises(PrivacyError, match="too few"):
        replace(design, bits=6).mechanisms(1.0)


def test_a_wide_ring_asks_for_no_noise_beyond_the_samplers() -> None:
    wide = replace(design_of(), bits=32, vectors=250, sample_rate=0.1)
    mechanism = wide.mechanisms(2.0)[D]
    assert mechanism.sampler().draw(3, SystemEntropy().stream("x")).shape == (3,)
    assert mechanism.noise_multiplier == pytest.approx(2.0, rel=1e-6)


def test_the_noise_of_steps_counts_the_busiest_record_at_its_sample_rate() -> None:
    steps = replace(
        design_of("skellam", (300,) * 12),
        vectors=50,
        sample_rate=0.2,
        exposures=((300,) * 12, (300,) * 5),
    )
    noise = steps.noise_for(2.0, 1e-4)
    event = steps.mechanisms(noise)[300].event(12, 0.2)
    assert event.sample_rate == 0.2
    assert 0.98 * 2.0 < epsilon_of([event], 1e-4) <= 2.0
    seldom = replace(steps, exposures=((300,) * 5,)).noise_for(2.0, 1e-4)
    assert seldom < noise < steps.noise_for(1.0, 1e-4)
