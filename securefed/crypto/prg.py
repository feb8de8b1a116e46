"""Mask streams: AES-256 in counter mode (NIST SP 800-38A) added to a vector in place, block by block.

One key gives one stream and is used for one vector: the counter begins at zero. The vector is visited
once; all streams of a block are added while it lies in the cache, so memory stays O(block).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from securefed.errors import ProtocolError

CipherName = Literal["aes", "chacha20"]
BLOCK_WORDS = 1 << 16
"""65,536 words, 256 KiB of stream: fits a second-level cache beside the vector's own block."""
CHUNK_WORDS = 1 << 20
"""Least work for a thread."""
_ZEROS = bytes(4 * BLOCK_WORDS)


def has_aes() -> bool:
    """Whether this processor has AES instructions; without them ChaCha20 is the faster stream."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return True  # no /proc: every 64-bit Apple and Windows machine of the last decade has them
    return "aes" in words


def word_type(bits: int) -> type[np.uint16] | type[np.uint32]:
    """What a stream is read as: two bytes a word where that is enough."""
    return np.uint16 if bits <= 16 else np.uint32


def add_masks(
    words: NDArray[np.uint32],
    keys: Sequence[tuple[bytes, int]],
    *,
    bits: int = 32,
    threads: int = 1,
    cipher: CipherName = "aes",
) -> None:
    """words += sum of sign x stream(key), modulo 2^bits, in place.

    Args:
        words: uint32 (d,), contiguous. keys: (32 secret bytes, +1 or -1) each.
        bits: 8 .. 32; the result is below 2^bits.
        threads: over chunks of a million words; the result does not depend on it.

    Raises:
        ProtocolError: a key of another length, a sign that is none, bits out of range, another array.
    """
    _check(words, keys, bits)
    n = len(words)
    workers = max(1, min(threads, n // CHUNK_WORDS))
    if workers == 1:
        return _add_range(words, 0, n, keys, bits, cipher)
    per = -(-n // workers // BLOCK_WORDS) * BLOCK_WORDS
    with ThreadPoolExecutor(workers) as pool:  # OpenSSL and NumPy's adds both release the lock
        parts = [
            pool.submit(_add_range, words, a, min(a + per, n), keys, bits, cipher) for a in range(0, n, per)
        ]
        for part in parts:
            part.result()
    return None


def mask_stream(key: bytes, n: int, bits: int = 32, cipher: CipherName = "aes") -> NDArray[np.uint32]:
    """The first n words of a key's stream, each below 2^bits: what `add_masks` adds to zeros."""
    words = np.zeros(n, np.uint32)
    add_masks(words, [(key, 1)], bits=bits, cipher=cipher)
    return words


def _add_range(
    words: NDArray[np.uint32],
    start: int,
    stop: int,
    keys: Sequence[tuple[bytes, int]],
    bits: int,
    cipher: CipherName,
) -> None:
    kind = word_type(bits)
    size = np.dtype(kind).itemsize
    streams = [(_stream_at(key, start * size, cipher), sign) for key, sign in keys]
    stream_block = np.empty(BLOCK_WORDS, np.dtype(kind).newbyteorder("<"))
    raw = stream_block.view(np.uint8)
    ring = np.uint32((1 << bits) - 1)
    for a in range(start, stop, BLOCK_WORDS):
        block = words[a : min(a + BLOCK_WORDS, stop)]
        n = len(block)
        # 16 bits are summed as such: half the traffic, and no widening of every stream
        narrow = block if size == 4 else block.astype(np.uint16)
        for encryptor, sign in streams:
            encryptor.update_into(_ZEROS[: size * n] if n < BLOCK_WORDS else _zeros(size), raw[: size * n])
            (np.add if sign > 0 else np.subtract)(narrow, stream_block[:n], out=narrow)
        if narrow is not block:
            block[:] = narrow
        if bits < 32:
            np.bitwise_and(block, ring, out=block)


_FULL = {2: bytes(2 * BLOCK_WORDS), 4: _ZEROS}


def _zeros(size: int) -> bytes:
    return _FULL[size]


def _stream_at(key: bytes, offset: int, cipher: CipherName) -> Any:
    """The keystream from this byte on; offsets are multiples of a block of words, so of the cipher's block."""
    if cipher == "aes":
        return Cipher(algorithms.AES(key), modes.CTR((offset // 16).to_bytes(16, "big"))).encryptor()
    # RFC 8439's layout in OpenSSL: 32-bit little-endian counter, then a 96-bit nonce, here zero.
    return Cipher(algorithms.ChaCha20(key, (offset // 64).to_bytes(16, "little")), None).encryptor()


def _check(words: NDArray[np.uint32], keys: Sequence[tuple[bytes, int]], bits: int) -> None:
    if words.dtype != np.uint32 or words.ndim != 1 or not words.flags.c_contiguous:
        raise ProtocolError(f"masks are added to a contiguous uint32 vector, got {words.dtype} {words.shape}")
    if not 8 <= bits <= 32:
        raise ProtocolError(f"a ring has 8 to 32 bits, got {bits}")
    for key, sign in keys:
        if len(key) != 32 or sign not in (1, -1):
            raise ProtocolError("a mask is a key of 32 bytes and a sign, +1 or -1")
