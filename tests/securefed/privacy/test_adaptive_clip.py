"""Adaptive clipping: it finds the quantile, costs what it says, and its bit is noised like a count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.adaptive_clip import AdaptiveClip, ClipCount, clip_count, is_below, split_noise
from securefed.privacy.design import Cohort, calibrate
from securefed.privacy.distributed import DistributedSkellam, centred
from securefed.privacy.events import SampledGaussian
from tests.entropy import SeededEntropy


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [1e-3, 100.0])
def test_the_clip_finds_the_quantile_from_far_away(quantile: float, start: float) -> None:
    norms = np.random.default_rng(0).lognormal(0.3, 0.5, 1000)
    rule, clip = AdaptiveClip(quantile=quantile), start
    for _ in range(700):
        clip = rule.step(clip, float((norms <= clip).mean()))
    assert clip == pytest.approx(np.quantile(norms, quantile), rel=0.02)


def test_through_the_noised_ring_it_finds_the_median_too() -> None:
    rng = np.random.default_rng(1)
    norms = rng.lognormal(0.0, 0.4, 200)
    count = clip_count(10.0, clients=200, min_survivors=180, bits=16, scale=4)
    rule, clip, seen = AdaptiveClip(), 0.1, []
    for round in range(60):
        total = np.zeros(1, np.uint32)
        for client, norm in enumerate(norms[:190]):  # ten drop out
            total += count.encode(bool(norm <= clip), SeededEntropy(0).stream("bit", round, client))
        clip = rule.step(clip, count.decode(total, survivors=190))
        seen.append(clip)
    assert np.mean(seen[-20:]) == pytest.approx(np.median(norms[:190]), rel=0.1)


def test_one_step_is_the_papers_formula() -> None:
    rule = AdaptiveClip(quantile=0.5, learning_rate=0.2)
    assert rule.step(2.0, 1.0) == pytest.approx(2.0 * math.exp(-0.1))
    assert rule.step(2.0, 0.5) == 2.0
    assert rule.step(2.0, -3.0) == pytest.approx(2.0 * math.exp(0.7))


def test_the_clip_stays_within_its_limits_whatever_the_noise() -> None:
    rule = AdaptiveClip(least=0.5, most=4.0)
    assert rule.step(1.0, 1e9) == 0.5
    assert rule.step(1.0, -1e9) == 4.0


@given(st.floats(0.1, 20), st.floats(1.01, 50))
def test_split_noise_composes_back_to_the_whole(z: float, factor: float) -> None:
    count_std = factor * z / 2
    update = split_noise(z, count_std)
    assert update >= z
    assert update**-2 + (2 * count_std) ** -2 == pytest.approx(z**-2, rel=1e-9)


def test_split_noise_costs_the_same_epsilon_by_an_accountant_that_knows_nothing_of_it() -> None:
    z, count_std = 1.1, 5.0
    together = [SampledGaussian(split_noise(z, count_std), 1.0, 30), SampledGaussian(2 * count_std, 1.0, 30)]
    assert epsilon_of(together, 1e-6) == pytest.approx(
        epsilon_of([SampledGaussian(z, 1.0, 30)], 1e-6), rel=1e-3
    )
    # and forgetting the bit's share is noticed
    assert epsilon_of([SampledGaussian(z, 1.0, 30), together[1]], 1e-6) > 1.002 * epsilon_of(together, 1e-6)


def test_a_bit_whose_noise_would_use_up_the_budget_is_refused() -> None:
    with pytest.raises(PrivacyError, match="must exceed 1"):
        split_noise(2.0, 1.0)


@pytest.mark.parametrize("family", ["skellam", "gaussian"])
def test_the_counts_honest_noise_has_the_stated_deviation_and_its_event_says_so(family: str) -> None:
    count = clip_count(5.0, clients=100, min_survivors=80, corrupt=10, scale=8, family=family)  # type: ignore[arg-type]
    stream = SeededEntropy(0).stream("bit")
    noise = [float(centred(count.encode(True, stream), 16)[0]) - 8 for _ in range(4000)]
    per_client = np.std(noise) / 16  # in bits of the count
    assert per_client * math.sqrt(70) == pytest.approx(5.0, rel=0.05)  # standard error 1.1 %
    event = count.event(3)
    shares = getattr(event, "shares", 1)
    # Noise multiplier: a set bit moves the sum by `scale`, half of the distance between the two values.
    assert math.sqrt(event.variance * shares) / event.sensitivity == pytest.approx(10.0, rel=1e-6)
    gaussian = epsilon_of([SampledGaussian(10.0, 1.0, 3)], 1e-5, "rdp")
    assert gaussian * (1 - 1e-6) <= epsilon_of([event], 1e-5) <= gaussian * 1.05


def test_a_client_replaced_by_zero_moves_the_count_by_at_most_the_scale() -> None:
    count = ClipCount(variance=1e-4, clients=4, min_survivors=4, scale=8)
    values = {
        below: int(centred(count.encode(below, SeededEntropy(0).stream("b")), 16)[0])
        for below in (True, False)
    }
    assert values == {True: 8, False: -8}  # noise of variance 1e-4 is zero here: centred, not 0 and 16


def test_counts_over_the_wrong_number_of_clients_are_refused() -> None:
    count = clip_count(5.0, clients=10, min_survivors=8)
    with pytest.raises(PrivacyError, match="abort"):
        count.decode(np.zeros(1, np.uint32), survivors=7)
    with pytest.raises(PrivacyError, match="wraps around"):
        clip_count(500.0, clients=1000, min_survivors=900, scale=1000)


def test_the_bit_rides_along_as_one_more_coordinate_of_the_secure_sum() -> None:
    """Update and bit in one ring: the way the federation sends them."""
    options = {"clients": 6, "min_survivors": 5, "bits": 20}
    mechanism = DistributedSkellam(dimension=64, clip=1.0, levels=2000.0, variance=50.0, **options)  # type: ignore[arg-type]
    count = clip_count(0.3, **options)  # type: ignore[arg-type]
    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) * np.float32(0.1)
    total = np.zeros(65, np.uint32)
    for client, row in enumerate(rows):
        stream = SeededEntropy(2).stream("client", client)
        total += np.concatenate([mechanism.encode(row, stream), count.encode(is_below(row, 1.0), stream)])
    vector = mechanism.decode(total[:64], survivors=5)
    clipped = rows * np.minimum(1, 1 / np.linalg.norm(rows, axis=1, keepdims=True))
    assert np.abs(vector - clipped.sum(0)).max() < 0.1
    assert count.decode(total[64:], survivors=5) == pytest.approx(
        np.mean([is_below(r, 1.0) for r in rows]), abs=0.35
    )


@pytest.mark.parametrize(
    "options",
    [
        {"quantile": 0.0},
        {"quantile": 1.0},
        {"learning_rate": 0.0},
        {"least": 0.0},
        {"least": 2.0, "most": 1.0},
    ],
)
def test_rules_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        AdaptiveClip(**options)
    with pytest.raises(PrivacyError):
        AdaptiveClip().step(1.0, math.nan)


def test_calibration_leaves_room_for_the_bit() -> None:
    cohort = Cohort(dimension=500, clip=1.0, clients=40, min_survivors=30, bits=20)
    bit = clip_count(8.0, clients=40, min_survivors=30, bits=20).event(20)
    mechanism = calibrate(DistributedSkellam, cohort, epsilon=3.0, delta=1e-5, rounds=20, beside=[bit])
    assert 0.99 * 3 < epsilon_of([mechanism.event(20), bit], 1e-5) <= 3
    alone = calibrate(DistributedSkellam, cohort, epsilon=3.0, delta=1e-5, rounds=20)
    assert mechanism.noise_multiplier > 1.05 * alone.noise_multiplier
    # Nearly what the formula for Gaussian noise says.
    assert mechanism.noise_multiplier == pytest.approx(split_noise(alone.noise_multiplier, 8.0), rel=0.02)
    loud = clip_count(0.1, clients=40, min_survivors=30, bits=20).event(20)
    with pytest.raises(PrivacyError, match="add noise there"):
        calibrate(DistributedSkellam, cohort, epsilon=3.0, delta=1e-5, rounds=20, beside=[loud])
