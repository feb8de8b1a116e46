"""Masks are the cipher's stream, added in place; the same whatever the threads, gone when both ends are added."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto import prg
from securefed.crypto.packing import pack, packed_size, unpack
from securefed.crypto.prg import BLOCK_WORDS, CHUNK_WORDS, CipherName, add_masks, mask_stream
from securefed.errors import ProtocolError


def oracle(key: bytes, n: int, bits: int, cipher: CipherName) -> np.ndarray:
    """The whole stream at once, by the library, read as words."""
    size = 2 if bits <= 16 else 4
    made = algorithms.AES(key) if cipher == "aes" else algorithms.ChaCha20(key, bytes(16))
    mode = modes.CTR(bytes(16)) if cipher == "aes" else None
    raw = Cipher(made, mode).encryptor().update(bytes(size * n))
    return np.frombuffer(raw, f"<u{size}").astype(np.uint32) & np.uint32((1 << bits) - 1)


@pytest.mark.parametrize("cipher", ["aes", "chacha20"])
@pytest.mark.parametrize("bits", [8, 13, 16, 17, 20, 24, 32])
@pytest.mark.parametrize("n", [0, 1, 5, BLOCK_WORDS - 1, BLOCK_WORDS, 2 * BLOCK_WORDS + 3])
def test_a_mask_is_the_ciphers_stream(cipher: CipherName, bits: int, n: int) -> None:
    key = bytes(range(32))
    assert np.array_equal(mask_stream(key, n, bits, cipher), oracle(key, n, bits, cipher))


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32), n=st.integers(1, 300), bits=st.sampled_from([16, 20, 32]), k=st.integers(1, 6)
)
def test_masks_of_both_ends_cancel(seed: int, n: int, bits: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 2**bits, n).astype(np.uint32)
    keys = [(rng.bytes(32), 1 if i % 2 else -1) for i in range(k)]
    words = before.copy()
    add_masks(words, keys, bits=bits)
    assert n < 8 or not np.array_equal(words, before)
    assert int(words.max()) < 2**bits
    add_masks(words, [(key, -sign) for key, sign in keys], bits=bits)
    assert np.array_equal(words, before)


@pytest.mark.parametrize("cipher", ["aes", "chacha20"])
@pytest.mark.parametrize("bits", [16, 32])
def test_threads_change_nothing(cipher: CipherName, bits: int) -> None:
    n, keys = 2 * CHUNK_WORDS + 12_345, [(os.urandom(32), 1), (os.urandom(32), -1)]
    one, three = np.zeros(n, np.uint32), np.zeros(n, np.uint32)
    add_masks(one, keys, bits=bits, cipher=cipher)
    add_masks(three, keys, bits=bits, cipher=cipher, threads=2)
    assert np.array_equal(one, three)


def test_the_lowest_bit_is_as_good_as_the_highest() -> None:
    """A linear generator's low bits repeat; a cipher's do not: Berlekamp-Massey needs half of all bits."""
    bits = (mask_stream(os.urandom(32), 400) & 1).tolist()
    assert abs(linear_complexity(bits) - 200) <= 12
    shift_register = [1, 0, 0, 1]
    while len(shift_register) < 400:
        shift_register.append(shift_register[-3] ^ shift_register[-4])
    assert linear_complexity(shift_register) == 4, "the test notices a stream that is linear"


def linear_complexity(bits: list[int]) -> int:
    """Length of the shortest linear feedback shift register that makes these bits (Massey 1969)."""
    current, previous, length, since = [1], [1], 0, 1
    for i, bit in enumerate(bits):
        wrong = bit
        for j in range(1, length + 1):
            wrong ^= (current[j] if j < len(current) else 0) & bits[i - j]
        if not wrong:
            since += 1
            continue
        kept = current.copy()
        current += [0] * (len(previous) + since - len(current))
        for j, p in enumerate(previous):
            current[j + since] ^= p
        if 2 * length <= i:
            length, previous, since = i + 1 - length, kept, 1
        else:
            since += 1
    return length


def test_what_cannot_be_masked_is_refused() -> None:
    key = bytes(32)
    for words in (np.zeros(4, np.int64), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(ProtocolError, match="contiguous uint32"):
            add_masks(words, [(key, 1)])  # type: ignore[arg-type]  # that is the point
    good = np.zeros(4, np.uint32)
    for keys in ([(bytes(16), 1)], [(key, 0)], [(key, 2)]):
        with pytest.raises(ProtocolError, match="32 bytes and a sign"):
            add_masks(good, keys)
    with pytest.raises(ProtocolError, match="8 to 32 bits"):
        add_masks(good, [(key, 1)], bits=33)


def test_the_processor_is_asked_for_aes(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("flags : fpu aes avx", True), ("flags : fpu avx", False)):
        monkeypatch.setattr(Path, "read_text", lambda self, text=text, **_: text)
        assert prg.has_aes() is expected


# ---------------------------------------------------------------------------------------------- packing


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), n=st.integers(0, 200), bits=st.integers(8, 32))
def test_packed_words_come_back(seed: int, n: int, bits: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**bits, n).astype(np.uint32)
    payload = pack(words, bits)
    assert len(payload) == packed_size(n, bits)
    assert np.array_equal(unpack(payload, n, bits), words)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), n=st.integers(0, 60), bits=st.integers(8, 32))
def test_packing_is_the_plain_stream_of_bits(seed: int, n: int, bits: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**bits, n).astype(np.uint32)
    stream = sum(int(w) << (i * bits) for i, w in enumerate(words))
    assert pack(words, bits) == stream.to_bytes(packed_size(n, bits), "little")


@pytest.mark.parametrize("bits", [13, 20, 31])
def test_blocks_join_without_a_seam(bits: int) -> None:
    words = np.random.default_rng(bits).integers(0, 2**bits, 3 * (1 << 15) + 7).astype(np.uint32)
    assert np.array_equal(unpack(pack(words, bits), len(words), bits), words)


def test_what_is_not_packed_words_is_refused() -> None:
    payload = pack(np.arange(3, dtype=np.uint32), 20)
    for wrong in (payload + b"\0", payload[:-1], b""):
        with pytest.raises(ProtocolError, match="3 words of 20 bits have 8 bytes"):
            unpack(wrong, 3, 20)
    with pytest.raises(ProtocolError, match="padding"):
        unpack(payload[:-1] + bytes([payload[-1] | 0x80]), 3, 20)
    with pytest.raises(ProtocolError, match="does not fit"):
        pack(np.array([1 << 20], np.uint32), 20)
    with pytest.raises(ProtocolError, match="8 to 32 bits"):
        pack(np.zeros(1, np.uint32), 33)
