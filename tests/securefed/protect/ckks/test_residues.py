"""Residues packed to their bits, and added modulo primes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import ProtocolError
from securefed.protect.ckks.parameters import COMPACT, PRECISE, WIDE
from securefed.protect.ckks.residues import (
    add_into,
    pack,
    pack_residues,
    packed_size,
    size_of,
    unpack,
    unpack_residues,
)


@settings(max_examples=80, deadline=None)
@given(st.integers(30, 60), st.integers(0, 70), st.integers(0, 2**32))
def test_packing_takes_exactly_its_bits_and_gives_them_back(bits: int, count: int, seed: int) -> None:
    residues = np.random.default_rng(seed).integers(0, 2**bits, count, dtype=np.uint64)
    packed = pack_residues(residues, bits)
    assert len(packed) == packed_size(count, bits)
    assert 0 <= 8 * len(packed) - count * bits < 8 * 8  # at most a byte a plane is filled up
    np.testing.assert_array_equal(unpack_residues(packed, count, bits), residues)


@pytest.mark.parametrize("chosen", [COMPACT, PRECISE, WIDE])
def test_whole_ciphertexts_come_back_and_wrong_lengths_are_refused(chosen: object) -> None:
    assert isinstance(chosen, type(COMPACT))
    rng = np.random.default_rng(0)
    words = np.stack(
        [rng.integers(0, p, (3, 2, chosen.degree), dtype=np.uint64) for p in chosen.primes], axis=2
    )
    packed = pack(words, chosen.primes)
    assert len(packed) == size_of(3, 2, chosen.degree, chosen.primes)
    np.testing.assert_array_equal(unpack(packed, 3, 2, chosen.degree, chosen.primes), words)
    for wrong in (packed[:-1], packed + b"\0", b""):
        with pytest.raises(ProtocolError, match="truncated, or made with another set"):
            unpack(wrong, 3, 2, chosen.degree, chosen.primes)


def test_a_number_that_is_no_residue_is_refused() -> None:
    prime = COMPACT.primes[0]
    words = np.zeros((1, 2, 1, 4096), np.uint64)
    words[0, 1, 0, 7] = prime
    with pytest.raises(ProtocolError, match="not below its prime"):
        unpack(pack(words, (prime,)), 1, 2, 4096, (prime,))
    words[0, 1, 0, 7] = prime - 1
    unpack(pack(words, (prime,)), 1, 2, 4096, (prime,))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_adding_is_modulo_each_prime(seed: int) -> None:
    """Against Python's integers."""
    primes = WIDE.primes
    rng = np.random.default_rng(seed)
    a, b = (
        np.stack([rng.integers(0, p, (1, 2, 5), dtype=np.uint64) for p in primes], axis=2) for _ in range(2)
    )
    a[0, 0, 0, 0], b[0, 0, 0, 0] = primes[0] - 1, primes[0] - 1
    expected = [
        [(int(x) + int(y)) % p for x, y in zip(a[0, k, i], b[0, k, i], strict=True)]
        for k in range(2)
        for i, p in enumerate(primes)
    ]
    add_into(a, b, primes)
    assert a.reshape(-1, 5).tolist() == expected
