"""Distributed mechanisms: sums, noise scale, sensitivity, wrap-around, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import PrivacyError
from securefed.privacy import samplers
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.design import Cohort, calibrate, design, enough_bits
from securefed.privacy.distributed import (
    DistributedGaussian,
    DistributedMechanism,
    DistributedSkellam,
    centred,
)
from securefed.privacy.events import SampledGaussian
from securefed.privacy.rounding import rounded_norm_squared
from securefed.privacy.wraparound import wrap_probability
from tests.entropy import SeededEntropy

KINDS = [DistributedGaussian, DistributedSkellam]


def small(kind: type[DistributedMechanism], **changes: Any) -> DistributedMechanism:
    options: dict[str, Any] = {
        "dimension": 700,
        "clip": 2.0,
        "clients": 12,
        "min_survivors": 10,
        "corrupt": 2,
        "bits": 18,
    }
    noise_multiplier = changes.pop("noise_multiplier", 1.0)
    return design(kind, Cohort(**(options | changes)), noise_multiplier)


def updates(n: int, d: int, norm: float, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return (x * norm / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def encode_all(mechanism: DistributedMechanism, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    streams = [SeededEntropy(seed).stream("noise", client) for client in range(len(rows))]
    return np.stack([mechanism.encode(row, s) for row, s in zip(rows, streams, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoded_sum_is_the_sum_of_clipped_updates_plus_noise_of_the_stated_scale(
    kind: type[DistributedMechanism],
) -> None:
    mechanism = small(kind).at_round(b"round one's seed")
    rows = updates(12, 700, 1.5)
    rows[0] *= 10  # clipped to norm 2
    clipped = rows.copy()
    clipped[0] *= 2 / 15
    errors = []
    for repeat in range(12):
        words = encode_all(mechanism, rows, seed=repeat)
        assert words.dtype == np.uint32
        assert words.max() < 2**18
        errors.append(mechanism.decode(words.sum(0, dtype=np.uint32), survivors=12) - clipped.sum(0))
    error = np.concatenate(errors).astype(float)
    step = mechanism.clip / mechanism.levels
    least, most = math.sqrt(12 * mechanism.variance) * step, mechanism.noise_std
    # 8,400 values: the deviation's standard error is 0.8 %, so 4 % is five of them
    assert 0.96 * least < error.std() < 1.04 * most
    assert abs(error.mean()) < 5 * most / math.sqrt(len(error))


@pytest.mark.parametrize("kind", KINDS)
def test_the_honest_clients_noise_alone_is_the_claimed_multiple_of_the_sensitivity(
    kind: type[DistributedMechanism],
) -> None:
    """Gross faults are far away: noise / 10, or scaled for all 12 clients and not for the 8 honest ones."""
    mechanism = small(kind)
    zero = np.zeros(700, np.float32)
    honest = [centred(mechanism.encode(zero, SeededEntropy(c).stream("n")), 18) for c in range(8)]
    measured = np.sum(honest, axis=0).std() / mechanism.sensitivity
    assert measured == pytest.approx(1.0, rel=0.15)  # 700 values: standard error 2.7 %
    assert mechanism.noise_multiplier == pytest.approx(1.0, rel=1e-9)
    assert mechanism.honest == 8
    assert mechanism.variance == pytest.approx(mechanism.sensitivity**2 / 8, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_input_moves_the_integers_by_more_than_the_sensitivity(
    kind: type[DistributedMechanism], data: st.DataObject
) -> None:
    """With the noise taken away, every encoded vector is within the bound that the event carries."""
    d = data.draw(st.sampled_from([1, 2, 17, 200]))
    mechanism = small(kind, dimension=d, bits=16)
    shape = data.draw(st.sampled_from(["random", "spike", "flat", "huge"]))
    x = updates(1, d, 3.0, seed=d)[0]
    if shape == "spike":
        x = np.eye(1, d, d // 2, dtype=np.float32)[0] * 5
    elif shape == "flat":
        x = np.full(d, 7.0, np.float32)
    elif shape == "huge":
        x = x * np.float32(1e30)
    stream, same = (SeededEntropy(d).stream("noise") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers.Sampler, "draw", lambda self, n, stream: np.zeros(n, np.int64))
        quiet = centred(mechanism.encode(x, stream), mechanism.bits)
    assert math.sqrt(float((quiet**2).sum())) <= mechanism.sensitivity == mechanism.event().sensitivity
    with pytest.MonkeyPatch.context() as patch:  # and a client that is replaced by zero contributes none
        patch.setattr(samplers.Sampler, "draw", lambda self, n, stream: np.zeros(n, np.int64))
        assert not mechanism.encode(np.zeros(d, np.float32), same).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_event_carries_the_sensitivity_after_rounding_and_the_honest_noise(
    kind: type[DistributedMechanism],
) -> None:
    mechanism = small(kind, bits=10, clients=4, min_survivors=4, corrupt=1)
    event = mechanism.event(5)
    assert event.steps == 5
    assert event.sensitivity > mechanism.levels * 1.01  # 10 bits: rounding is no detail
    assert event.sensitivity**2 == pytest.approx(rounded_norm_squared(mechanism.levels, 700))
    shares = getattr(event, "shares", 1)
    assert event.variance * shares == pytest.approx(3 * mechanism.variance)
    assert 0 < event.slack < 1e-40
    # Nearly the continuous Gaussian's epsilon at the same noise multiplier, and never below it.
    reference = epsilon_of([SampledGaussian(mechanism.noise_multiplier, 1.0, 5)], 1e-5, "rdp")
    assert reference * (1 - 1e-9) <= epsilon_of([event], 1e-5) <= reference * 1.05


def test_forgetting_the_rounding_would_understate_epsilon() -> None:
    event = small(DistributedSkellam, bits=10, clients=4, min_survivors=4, corrupt=0).event(5)
    forgotten = replace(event, sensitivity=event.sensitivity * 0.9)
    assert epsilon_of([forgotten], 1e-5) < 0.95 * epsilon_of([event], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_wrap_around_stays_below_its_bound_and_a_ring_too_small_is_refused(
    kind: type[DistributedMechanism],
) -> None:
    mechanism = small(kind)
    assert mechanism.wrap_probability <= 2.0**-40
    with pytest.raises(PrivacyError, match="wraps around"):
        replace(mechanism, bits=15)


@pytest.mark.parametrize("family", ["gaussian", "skellam"])
def test_the_wrap_bound_is_above_the_frequency_of_wrapping(family: samplers.Family) -> None:
    """One coordinate, aligned clients, a ring so small that sums wrap visibly."""
    clients, variance, levels, bits, d = 5, 30.0, 8.0, 7, 64
    bound = wrap_probability(family, levels, variance, clients, d, bits) / d
    rng = np.random.default_rng(0)
    n = 200_000
    signs = rng.integers(0, 2, (n, d)) * 2 - 1
    signal = clients * levels / d * signs.sum(1)  # an all-equal vector under a random Hadamard row
    noise = sum(
        samplers._sampler(family, variance).draw(n, SeededEntropy(c).stream("n")) for c in range(clients)
    )
    wrapped = (np.abs(signal + noise) + clients >= 2 ** (bits - 1)).mean()
    assert 0 < wrapped <= bound < 0.2


def test_bits_by_rule_are_the_fewest_with_little_rounding() -> None:
    cohort = Cohort(dimension=20_000, clip=1.0, clients=100, min_survivors=90)
    bits = enough_bits(DistributedSkellam, cohort, 1.0)
    best = design(DistributedSkellam, replace(cohort, bits=bits), 1.0)
    fewer = design(DistributedSkellam, replace(cohort, bits=bits - 1), 1.0)
    assert best.sensitivity / best.levels <= 1.01 < fewer.sensitivity / fewer.levels
    with pytest.raises(PrivacyError, match=f"use bits={bits}"):
        design(DistributedSkellam, replace(cohort, bits=9), 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0.5, 3.0])
def test_calibrated_noise_meets_the_target_from_below(
    kind: type[DistributedMechanism], target: float
) -> None:
    cohort = Cohort(dimension=5000, clip=1.0, clients=50, min_survivors=40, bits=24)
    mechanism = calibrate(kind, cohort, epsilon=target, delta=1e-5, rounds=20)
    spent = epsilon_of([mechanism.event(20)], 1e-5)
    assert 0.99 * target < spent <= target


def test_a_new_clip_and_seed_leave_integers_and_event_as_they_were() -> None:
    mechanism = small(DistributedSkellam)
    later = mechanism.at_round(b"another seed", clip=0.5)
    assert later.event() == mechanism.event()
    assert later.clip == 0.5
    x = updates(1, 700, 0.4)[0]
    total = later.decode(later.encode(x, SeededEntropy(0).stream("n")))
    assert (total - x).std() == pytest.approx(math.sqrt(later.variance) * 0.5 / later.levels, rel=0.2)


def test_the_wrong_seed_at_the_server_gives_no_sum() -> None:
    mechanism = small(DistributedSkellam, noise_multiplier=0.01, bits=24)
    x = updates(1, 700, 2.0)[0]
    words = mechanism.at_round(b"seed of round 1").encode(x, SeededEntropy(0).stream("n"))
    assert np.linalg.norm(mechanism.at_round(b"seed of round 1").decode(words) - x) < 0.3
    assert np.linalg.norm(mechanism.at_round(b"seed of round 2").decode(words) - x) > 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"corrupt": 10}, "corrupt"),
        ({"min_survivors": 13}, "min_survivors"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"clip": math.inf}, "clip"),
        ({"clip": 0.0}, "clip"),
        ({"bits": 4}, "bits=4 are too few"),
    ],
)
def test_impossible_mechanisms_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(PrivacyError, match=match):
        small(DistributedSkellam, **changes)


def test_sums_over_too_few_or_too_many_clients_are_refused() -> None:
    mechanism = small(DistributedSkellam)
    total = np.zeros(700, np.uint32)
    for survivors in (9, 13):
        with pytest.raises(PrivacyError, match="abort the round"):
            mechanism.decode(total, survivors=survivors)


def test_wrong_shapes_and_values_are_refused() -> None:
    mechanism = small(DistributedSkellam)
    stream = SeededEntropy(0).stream("n")
    with pytest.raises(PrivacyError, match="shape"):
        mechanism.encode(np.zeros(699, np.float32), stream)
    with pytest.raises(PrivacyError, match="finite"):
        mechanism.encode(np.full(700, np.nan, np.float32), stream)
    with pytest.raises(PrivacyError, match="unsigned"):
        mechanism.decode(np.zeros(700, np.int64))  # type: ignore[arg-type]


def test_the_input_is_left_as_it_was() -> None:
    mechanism = small(DistributedGaussian)
    x = updates(1, 700, 1.0)[0]
    copy = x.copy()
    mechanism.encode(x, SeededEntropy(0).stream("n"))
    assert (x == copy).all()


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=20), st.integers(0, 2**16 - 1))
def test_recentring_undoes_the_ring(values: list[int], lift: int) -> None:
    array = np.array(values, np.int64)
    words = ((array + (lift << 16)) & (2**32 - 1)).astype(np.uint32)
    assert (centred(words, 16) == array).all()


def test_a_sum_of_per_example_gradients_has_one_examples_sensitivity() -> None:
    """Example level (FedSGD): each vector is clipped and rounded by itself, so that one more or one less moves the
    integers by at most one vector's bound, however long the sum is."""
    mechanism = small(DistributedSkellam, vectors=32, bits=20)
    rows = updates(30, 700, 5.0)  # all clipped to 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers.Sampler, "draw", lambda self, n, stream: np.zeros(n, np.int64))
        whole = centred(mechanism.encode_sum(iter(rows), SeededEntropy(0).stream("n")), 20)
        fewer = centred(mechanism.encode_sum(rows[:-1], SeededEntropy(0).stream("n")), 20)
        nothing = mechanism.encode_sum([], SeededEntropy(0).stream("n"))
    assert 0 < np.linalg.norm((whole - fewer).astype(float)) <= mechanism.sensitivity
    assert np.linalg.norm(whole.astype(float)) > mechanism.sensitivity
    assert not nothing.any()
    clipped = rows * (2 / np.linalg.norm(rows, axis=1, keepdims=True))
    decoded = mechanism.decode(mechanism.encode_sum(rows, SeededEntropy(1).stream("n")))
    one_client = math.sqrt(mechanism.variance + 32 / 4) * mechanism.clip / mechanism.levels
    assert (decoded - clipped.sum(0)).std() == pytest.approx(one_client, rel=0.15)


def test_more_vectors_than_the_ring_is_made_for_are_refused() -> None:
    mechanism = small(DistributedSkellam, vectors=2)
    with pytest.raises(PrivacyError, match="vectors=2"):
        mechanism.encode_sum(updates(3, 700, 1.0), SeededEntropy(0).stream("n"))
    with pytest.raises(PrivacyError, match="vectors=1"):
        small(DistributedSkellam).encode_sum(updates(2, 700, 1.0), SeededEntropy(0).stream("n"))


def test_more_vectors_leave_fewer_levels() -> None:
    one, many = small(DistributedSkellam), small(DistributedSkellam, vectors=64)
    assert many.levels < one.levels
    assert many.wrap_probability <= 2.0**-40


def test_example_level_calibration_uses_the_secret_sampling() -> None:
    cohort = Cohort(dimension=3000, clip=1.0, clients=10, min_survivors=8, bits=24, vectors=40)
    target: dict[str, Any] = {"epsilon": 3.0, "delta": 1e-5, "rounds": 100}
    sampled = calibrate(DistributedSkellam, cohort, sample_rate=0.05, **target)
    assert 0.99 * 3 < epsilon_of([sampled.event(100, sample_rate=0.05)], 1e-5) <= 3
    assert sampled.noise_multiplier < calibrate(DistributedSkellam, cohort, **target).noise_multiplier / 5
