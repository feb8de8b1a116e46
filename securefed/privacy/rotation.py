"""A random rotation that spreads a vector's energy evenly, so that few bits hold every coordinate.

Signs drawn from a public seed, then a Walsh-Hadamard transform: orthogonal, O(d log d), inverted exactly
up to rounding. Ailon and Chazelle 2006; used for sums of integers by Kairouz, Liu and Steinke 2021
(arXiv 2102.06387). The seed is public and fresh each round; it carries no secret, but clients that choose
their update after seeing it can aim at one coordinate.

The transform exists for powers of two only. Padding would send up to twice the numbers, so this one
does not pad: with m the largest power of two <= d it rotates the first m coordinates, and then (fresh
signs) the last m. They overlap, so everything passes through at least one transform over more than half
of the coordinates. What is lost is flatness: a coordinate of the result is sub-Gaussian with variance
||x||^2 / m instead of ||x||^2 / d, less than a factor of two (in bits: less than half of one).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError

_RADIX = 16  # one matrix product does four butterfly levels, and 1/sqrt(16) is exact
_PANEL = 1 << 16  # floats per temporary, so that memory stays O(1) beside the vector


def span(dimension: int) -> int:
    """The largest power of two <= dimension: the size of the transforms."""
    return 1 << (dimension.bit_length() - 1)


def rotate(vector: NDArray[np.float32], seed: bytes) -> None:
    """Rotates the vector in place.

    Args:
        vector: float32 (d,), d >= 1, contiguous and writable.
        seed: public, at least 8 bytes; everyone in a round uses the same.

    Raises:
        PrivacyError: another dtype or layout, or a short seed.
    """
    for number, part in enumerate(_parts(vector, seed)):
        _flip(part, seed, number)
        hadamard(part)


def unrotate(vector: NDArray[np.float32], seed: bytes) -> None:
    """Undoes `rotate` in place, up to float32 rounding."""
    for number, part in reversed(list(enumerate(_parts(vector, seed)))):
        hadamard(part)
        _flip(part, seed, number)


def hadamard(part: NDArray[np.float32]) -> None:
    """The orthonormal Walsh-Hadamard transform in place; float32 (2^k,). Its own inverse."""
    inner = min(len(part), _PANEL)
    rows = part.reshape(-1, inner)
    for row in rows:
        _transform(row, 1)
    if len(rows) > 1:
        width = max(16, _PANEL // len(rows))
        for start in range(0, inner, width):
            panel = np.ascontiguousarray(rows[:, start : start + width])
            _transform(panel.reshape(-1), panel.shape[1])
            rows[:, start : start + width] = panel


def _transform(flat: NDArray[np.float32], width: int) -> None:
    """Transforms each column of flat.reshape(-1, width) in place, by products with small matrices."""
    done = width
    while done < len(flat):
        radix = min(_RADIX, len(flat) // done)
        matrix = _matrix(radix)
        if done == 1:  # one large product; its matrix is symmetric
            flat[:] = (flat.reshape(-1, radix) @ matrix).reshape(-1)
        else:
            flat[:] = (matrix @ flat.reshape(-1, radix, done)).reshape(-1)
        done *= radix


@lru_cache(maxsize=8)
def _matrix(size: int) -> NDArray[np.float32]:
    """The symmetric orthonormal Hadamard matrix, float32 (size, size), by Sylvester's doubling."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: NDArray[np.float32] = (matrix / np.sqrt(size)).astype(np.float32)
    scaled.setflags(write=False)
    return scaled


def _parts(vector: NDArray[np.float32], seed: bytes) -> list[NDArray[np.float32]]:
    if vector.dtype != np.float32 or vector.ndim != 1 or not len(vector) or not vector.flags.c_contiguous:
        raise PrivacyError(f"a rotation takes a float32 vector (d,), got {vector.dtype} {vector.shape}")
    if len(seed) < 8:
        raise PrivacyError(f"a rotation's seed has at least 8 bytes, got {len(seed)}; draw one each round")
    m = span(len(vector))
    return [vector[:m]] if m == len(vector) else [vector[:m], vector[-m:]]


def _flip(part: NDArray[np.float32], seed: bytes, number: int) -> None:
    """Multiplies by the seed's signs: bits of a public AES keystream, turned into sign bits."""
    key = hashlib.sha256(b"securefed rotation signs 1:%d:" % number + seed).digest()
    packed = np.frombuffer(Stream(key).bytes((len(part) + 7) // 8), np.uint8)
    words = part.view(np.uint32)
    for start in range(0, len(part), _PANEL):
        block = words[start : start + _PANEL]
        bits = np.unpackbits(packed[start // 8 : (start + len(block) + 7) // 8], count=len(block))
        block ^= bits.astype(np.uint32) << np.uint32(31)
