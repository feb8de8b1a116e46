"""Fixed point: never wraps, errs by less than a step, is unbiased, and counts what it clips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.entropy import SystemEntropy
from securefed.protect.masking.fixedpoint import BLOCK, TAIL_BITS, Limbs, Quantizer, levels_for, weight_unit
from tests.entropy import SeededEntropy


def codes(q: Quantizer, vector: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, int]:
    words = np.empty(len(vector), np.uint32)
    clipped = q.quantize(vector.astype(np.float32), scale, SystemEntropy().stream("q"), words)
    return words, clipped


values = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30)


@settings(max_examples=60)
@given(values=values, bits=st.integers(16, 32), n=st.integers(1, 200), scale=st.floats(0, 1))
def test_n_clients_at_the_ends_of_the_range_never_wrap(
    values: list[float], bits: int, n: int, scale: float
) -> None:
    q = Quantizer(bits, levels_for(n, bits), 1.5)
    words, _ = codes(q, np.array(values), scale)
    signed = words.view(np.int32).astype(np.int64)
    assert np.abs(signed).max() <= q.levels
    assert n * np.abs(signed).max() < 2 ** (bits - 1)
    np.testing.assert_array_equal(q.dequantize((signed * n).astype(np.uint32)), signed * n * q.step)


@settings(max_examples=60)
@given(values=values, bits=st.integers(16, 32))
def test_the_error_is_below_one_step(values: list[float], bits: int) -> None:
    q = Quantizer(bits, levels_for(3, bits), 5.0)
    words, clipped = codes(q, np.array(values))
    assert clipped == 0
    error = q.dequantize(words) - np.array(values, np.float32)
    assert np.abs(error).max() < q.step * (1 + 1e-9)


def test_rounding_is_unbiased_and_uses_both_neighbours() -> None:
    """10^5 coins of probability 1/4: the mean leaves 0.25 +- 0.008 with probability 5e-9 over all seeds."""
    q = Quantizer(16, 100, 100.0)
    words = np.empty(100_000, np.uint32)
    q.quantize(np.full(100_000, -7.75, np.float32), 1.0, SeededEntropy(1).stream("q"), words)
    found = words.view(np.int32)
    assert set(found.tolist()) == {-8, -7}
    assert abs((found == -7).mean() - 0.25) < 0.008


def test_zero_stays_zero_and_the_ends_stay_the_ends() -> None:
    q = Quantizer(32, levels_for(3, 32), 0.1)
    words, clipped = codes(q, np.array([0.0, 0.1, -0.1, 7.0, -7.0], np.float32))
    top = float(np.float32(0.1)) / 0.1 * q.levels
    assert words.view(np.int32).tolist()[0] == 0
    assert words.view(np.int32)[3:].tolist() == [q.levels, -q.levels]
    assert abs(int(words.view(np.int32)[1])) <= min(q.levels, top + 1)
    assert clipped in (2, 4)  # 0.1 in float32 lies a hair above 0.1


def test_clipped_coordinates_are_counted_over_blocks() -> None:
    vector = np.zeros(2 * BLOCK + 3, np.float32)
    vector[[0, BLOCK, 2 * BLOCK + 2]] = 3.0, -3.0, np.float32(1.0)
    assert codes(Quantizer(32, 1000, 1.0), vector)[1] == 2


def test_the_input_is_left_as_it_was() -> None:
    vector = np.array([5.0, -5.0], np.float32)
    codes(Quantizer(32, 10, 1.0), vector)
    assert vector.tolist() == [5.0, -5.0]


@pytest.mark.parametrize("bits", [16, 17, 32])
def test_one_more_level_would_wrap(bits: int) -> None:
    for n in (1, 3, 100):
        levels = levels_for(n, bits)
        assert n * levels < 2 ** (bits - 1) <= n * (levels + 1)


@settings(max_examples=80)
@given(
    bits=st.integers(16, 32),
    rows=st.lists(st.tuples(st.integers(0, 2**40 - 1), st.integers(0, 2**40 - 1)), min_size=1, max_size=60),
)
def test_sums_of_integers_in_limbs_are_exact(bits: int, rows: list[tuple[int, int]]) -> None:
    limbs = Limbs.for_cohort(len(rows), bits)
    total = np.sum([limbs.encode(row).astype(np.uint64) for row in rows], axis=0) % 2**bits
    assert limbs.decode(total.astype(np.uint32)) == [sum(r[0] for r in rows), sum(r[1] for r in rows)]


@given(largest=st.floats(1e-3, 1e9), share=st.floats(0, 1))
def test_weights_fit_their_bits_and_whole_numbers_are_exact(largest: float, share: float) -> None:
    unit = weight_unit(largest)
    assert round(largest / unit) < 2**TAIL_BITS
    whole = float(int(share * largest))
    assert round(whole / unit) * unit == whole
