"""One secure sum in one process, as the README promises it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import securefed as sf
from securefed.protect.masking import Masking
from securefed.protect.plain import Plain

RNG = np.random.default_rng(5)
VECTORS = RNG.normal(0, 3, (9, 40)).astype(np.float32)
WEIGHTS = [float(w) for w in RNG.integers(1, 500, 9)]


@pytest.mark.parametrize(
    "protection", ["masking", "plain", Masking(value_range=16.0, max_weight=500.0), Plain()]
)
def test_the_value_is_the_weighted_sum_whatever_carries_it(protection: object) -> None:
    found = sf.secure_sum(VECTORS, weights=WEIGHTS, protection=protection)  # type: ignore[arg-type]  # names and objects
    expected = np.array(WEIGHTS) @ VECTORS.astype(np.float64)
    np.testing.assert_allclose(found.value, expected, atol=1e-3)
    assert found.weight == sum(WEIGHTS)
    np.testing.assert_allclose(found.mean, expected / sum(WEIGHTS), atol=1e-6)
    assert found.survivors == tuple(range(9))
    assert (found.value.dtype, found.mean.dtype) == (np.float32, np.float32)
    assert set(found.bytes_up) == set(range(9))


def test_without_weights_all_count_alike() -> None:
    found = sf.secure_sum(list(VECTORS))
    np.testing.assert_allclose(found.value, VECTORS.sum(0), atol=1e-6)
    assert found.weight == 9.0


@pytest.mark.parametrize(
    ("drop", "inside"),
    [
        ({1: "advertise", 2: "share", 3: "mask"}, {0, 4, 5, 6, 7, 8}),
        ({1: "agree", 2: "unmask"}, set(range(9))),
        ({8: "mask"}, set(range(8))),
    ],
)
def test_whoever_drops_before_its_vector_left_is_out_and_the_sum_is_that_of_the_rest(
    drop: dict[int, str], inside: set[int]
) -> None:
    found = sf.secure_sum(VECTORS, drop=drop)
    assert set(found.survivors) == inside
    assert found.dropped == drop
    np.testing.assert_allclose(found.value, VECTORS[sorted(inside)].sum(0), atol=1e-6)


def test_too_many_drops_give_no_sum_but_the_reason() -> None:
    with pytest.raises(sf.ProtocolError, match=r"quorum|min_survivors"):
        sf.secure_sum(VECTORS, drop=dict.fromkeys(range(7), "mask"))


def test_a_threshold_of_ones_own_is_taken_and_one_of_one_is_not() -> None:
    assert sf.secure_sum(VECTORS, threshold=8).weight == 9
    with pytest.raises(sf.ProtocolError, match="threshold"):
        sf.secure_sum(VECTORS, threshold=8, drop={0: "mask", 1: "mask"})
    with pytest.raises(sf.ProtocolError, match="threshold=1"):
        sf.secure_sum(VECTORS, threshold=1)


def test_clipping_is_measured_and_too_much_of_it_refused() -> None:
    calm = np.full((4, 1000), 0.25, np.float32)
    calm[0, :3] = 9.0
    found = sf.secure_sum(calm, value_range=1.0)
    assert found.clipped_share == pytest.approx(3 / 4000)
    assert found.value[0] == pytest.approx(1.75, abs=1e-6)
    with pytest.raises(sf.ProtocolError, match=r"were clipped to value_range=0\.125"):
        sf.secure_sum(calm, value_range=0.125)


def test_a_narrow_ring_sends_fewer_bytes() -> None:
    d = 20_000
    vectors = RNG.uniform(-1, 1, (5, d)).astype(np.float32)
    for bits in (20, 32):
        found = sf.secure_sum(vectors, protection=Masking(value_range=1.0, bits=bits))
        assert max(found.bytes_up.values()) < d * bits / 8 + 3000
        exact = vectors.astype(np.float64).sum(0)
        rounding = 2.0**-22  # of the float32 result, up to 5 in size
        np.testing.assert_allclose(found.value, exact, rtol=0, atol=5 * 5 / 2 ** (bits - 1) * 1.01 + rounding)


def test_what_does_not_fit_is_refused_in_words() -> None:
    for call, said in (
        (lambda: sf.secure_sum([]), "at least one vector"),
        (lambda: sf.secure_sum([np.zeros(2), np.zeros(3), np.zeros(2)]), "vector 1"),
        (lambda: sf.secure_sum(VECTORS, weights=[1.0]), "1 weights do not fit 9 vectors"),
        (
            lambda: sf.secure_sum(VECTORS, drop={0: "lunch"}),
            "steps are advertise, share, mask, agree, unmask",
        ),
        (lambda: sf.secure_sum(VECTORS, drop={9: "mask"}), "clients are 0 .. 8"),
        (lambda: sf.secure_sum(VECTORS, protection="masking!"), "no protection named"),
        (lambda: sf.secure_sum(VECTORS, protection="plain", threshold=3), "no option"),
        (lambda: sf.secure_sum(VECTORS, protection=Plain(), threshold=3), "no option"),
    ):
        with pytest.raises(sf.ConfigError, match=said):
            call()


def test_two_vectors_are_no_crowd() -> None:
    with pytest.raises(sf.ProtocolError, match="cohort of 2"):
        sf.secure_sum(VECTORS[:2])


def test_an_infinite_vector_is_left_out_by_its_own_client() -> None:
    bad = VECTORS.copy()
    bad[4, 3] = np.inf
    found = sf.secure_sum(bad)
    assert found.survivors == (0, 1, 2, 3, 5, 6, 7, 8)
    assert "non-finite" in found.refused[4]


def test_the_result_is_a_frozen_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        sf.secure_sum(VECTORS[:3]).weight = 2.0  # type: ignore[misc]  # that is the point
