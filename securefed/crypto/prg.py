"""Masks: keystreams of AES-256-CTR (or ChaCha20) added to a vector of words, at nearly the cipher's speed.

A mask is the cipher's keystream under a key made for one mask alone, counter from zero (NIST SP 800-38A,
section 6.5; RFC 8439, section 2.4), read as little-endian words: two bytes a word for rings of at most
16 bits, else four, and only the low `bits` count. So the sum of masks is uniform over the ring.

The vector is walked in blocks that stay in the second-level cache; all keys visit a block before the
next, nothing of the vector's size is allocated, and the ciphers let go of the interpreter's lock, so
ranges of the vector can go to threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from securefed.errors import ProtocolError

CipherName = Literal["aes", "chacha20"]
KEY_BYTES = 32
BLOCK_BYTES = 1 << 17
_SEEK = {"aes": 16, "chacha20": 64}  # bytes of keystream a counter step stands for


@cache
def has_aes() -> bool:
    """Whether this machine is known to compute AES in hardware; else "chacha20" is faster and leaks less.

    The kernel is asked on Linux; elsewhere the answer is True, as on every x86-64 and ARMv8 machine of
    the last ten years. The cipher is part of a round's parameters: all parties use the one agreed.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return " aes" in flags


def add_masks(
    words: NDArray[np.uint32],
    keys: Sequence[tuple[bytes, int]],
    *,
    bits: int = 32,
    threads: int = 1,
    cipher: CipherName = "aes",
) -> None:
    """Adds sign x keystream(key) to the words, in place, modulo 2^bits.

    Args:
        words: uint32 (n,), contiguous and writable; high bits are cleared even where `keys` is empty.
        keys: (32-byte key, +1 or -1); each key for this mask only.
        bits: width of the ring, 1 .. 32. threads: at most this many ranges of the vector at once.

    Raises:
        ProtocolError: an argument out of range; the words are then as they were.
    """
    _check(words, keys, bits, cipher)
    blocks = -(-len(words) // _block_words(bits))
    workers = max(1, min(threads, blocks))
    edges = [blocks * i // workers * _block_words(bits) for i in range(workers)] + [len(words)]
    ranges = list(pairwise(edges))
    if workers == 1:
        _add_range(words, keys, 0, len(words), bits, cipher)
        return
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_add_range, words, keys, a, b, bits, cipher) for a, b in ranges]
        for job in jobs:
            job.result()


def mask_stream(key: bytes, n: int, bits: int = 32, cipher: CipherName = "aes") -> NDArray[np.uint32]:
    """The n words of one mask, uint32 (n,)."""
    words = np.zeros(n, np.uint32)
    add_masks(words, [(key, 1)], bits=bits, cipher=cipher)
    return words


def word_bytes(bits: int) -> int:
    """Keystream bytes that one word of a ring takes: 2 up to 16 bits, else 4."""
    return 2 if bits <= 16 else 4


def _block_words(bits: int) -> int:
    return BLOCK_BYTES // word_bytes(bits)


def _add_range(
    words: NDArray[np.uint32],
    keys: Sequence[tuple[bytes, int]],
    start: int,
    stop: int,
    bits: int,
    cipher: CipherName,
) -> None:
    """The masks of words[start:stop]; start is a multiple of the block, so of the cipher's counter step."""
    width, step = word_bytes(bits), _block_words(bits)
    streams = [(_keystream(key, start * width, cipher), sign) for key, sign in keys]
    size = min(step, stop - start)
    zeros, mask = memoryview(bytes(size * width)), np.empty(size, f"<u{width}")
    narrow = np.empty(size, np.uint16) if width == 2 else None
    for low in range(start, stop, step):
        block = words[low : min(low + step, stop)]
        n = len(block)
        _add_block(block, streams, mask[:n], zeros[: n * width], None if narrow is None else narrow[:n])
        if bits < 32:
            np.bitwise_and(block, np.uint32((1 << bits) - 1), out=block)


def _add_block(
    block: NDArray[np.uint32],
    streams: Sequence[tuple[CipherContext, int]],
    mask: NDArray[Any],
    zeros: memoryview,
    narrow: NDArray[np.uint16] | None,
) -> None:
    target: NDArray[Any] = block
    if narrow is not None:
        np.copyto(narrow, block, casting="unsafe")  # modulo 2^16: at most 16 bits count in this ring
        target = narrow
    raw = mask.data.cast("B")
    for stream, sign in streams:
        stream.update_into(zeros, raw)
        (np.add if sign > 0 else np.subtract)(target, mask, out=target)
    if narrow is not None:
        np.copyto(block, narrow)


def _keystream(key: bytes, offset: int, cipher: CipherName) -> CipherContext:
    """The cipher's keystream from a byte offset on, a multiple of its counter step."""
    counter = offset // _SEEK[cipher]
    if cipher == "aes":
        return Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(16, "big"))).encryptor()
    # `cryptography` takes RFC 8439's 32-bit little-endian counter and 96-bit nonce as one string
    return Cipher(algorithms.ChaCha20(key, counter.to_bytes(4, "little") + bytes(12)), None).encryptor()


def _check(words: NDArray[np.uint32], keys: Sequence[tuple[bytes, int]], bits: int, cipher: str) -> None:
    if not 1 <= bits <= 32:
        raise ProtocolError(f"masks: a ring has 1 .. 32 bits, got {bits}")
    if cipher not in _SEEK:
        raise ProtocolError(f"masks: the cipher is one of {', '.join(_SEEK)}, got {cipher!r}")
    if (
        words.dtype != np.uint32
        or words.ndim != 1
        or not words.flags.c_contiguous
        or not words.flags.writeable
    ):
        raise ProtocolError("masks: words must be a contiguous, writable vector of uint32")
    if len(words) * word_bytes(bits) > _SEEK["chacha20"] << 32:
        raise ProtocolError("masks: the vector is longer than a keystream of 256 GiB")
    for key, sign in keys:
        if len(key) != KEY_BYTES or sign not in (1, -1):
            raise ProtocolError(f"masks: a key has {KEY_BYTES} bytes and a sign of +1 or -1")
