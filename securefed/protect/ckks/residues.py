"""Ciphertexts as words modulo primes: packed to the bits that they need, added without the library.

A CKKS ciphertext is two polynomials over Z_q, q a product of primes of 30 to 60 bits. SEAL stores each
residue in 64 bits and compresses with zstd, which finds little in uniform numbers. Here a residue modulo a
prime of b bits takes b bits: whole bytes first, the bits that are left over as planes behind them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ProtocolError

Words = NDArray[np.uint64]
"""Residues of ciphertexts, uint64 (ciphertexts, polynomials, primes, degree)."""


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` residues of `bits` bits."""
    return count * (bits // 8) + (bits % 8) * ((count + 7) // 8)


def _columns(bits: int) -> list[tuple[type[np.unsignedinteger[Any]], int]]:
    """The whole bytes of a residue as columns of 32, 16 and 8 bits: (type, first bit) each."""
    out: list[tuple[type[np.unsignedinteger[Any]], int]] = []
    at = 0
    for kind, width in ((np.uint32, 32), (np.uint16, 16), (np.uint8, 8)):
        while bits - at >= width:
            out.append((kind, at))
            at += width
    return out


def pack_residues(residues: Words, bits: int) -> bytes:
    """Residues below 2^bits, uint64 (m,), as `packed_size(m, bits)` bytes."""
    whole = bits // 8 * 8
    columns = [
        (residues >> np.uint64(at)).astype(np.dtype(kind).newbyteorder("<")).tobytes()
        for kind, at in _columns(bits)
    ]
    rest = (residues >> np.uint64(whole)).astype(np.uint8)
    planes = [np.packbits(rest >> np.uint8(i) & np.uint8(1)).tobytes() for i in range(bits - whole)]
    return b"".join(columns + planes)


def unpack_residues(payload: bytes | memoryview, count: int, bits: int) -> Words:
    """The inverse of `pack_residues`, uint64 (count,).

    Raises:
        ProtocolError: another length than `packed_size(count, bits)`.
    """
    if len(payload) != packed_size(count, bits):
        raise ProtocolError(
            f"ckks: {count} residues of {bits} bits have {packed_size(count, bits)} bytes, found {len(payload)}"
        )
    out, offset = np.zeros(count, np.uint64), 0
    for kind, at in _columns(bits):
        column = np.frombuffer(payload, np.dtype(kind).newbyteorder("<"), count, offset)
        out |= column.astype(np.uint64) << np.uint64(at)
        offset += column.nbytes
    for i in range(bits // 8 * 8, bits):
        ones = np.frombuffer(payload, np.uint8, (count + 7) // 8, offset)
        out |= np.unpackbits(ones, count=count).astype(np.uint64) << np.uint64(i)
        offset += ones.nbytes
    return out


def pack(words: Words, primes: tuple[int, ...]) -> bytes:
    """All residues, prime by prime."""
    return b"".join(
        pack_residues(words[:, :, i].reshape(-1), prime.bit_length()) for i, prime in enumerate(primes)
    )


def size_of(count: int, polynomials: int, degree: int, primes: tuple[int, ...]) -> int:
    """Bytes of `count` ciphertexts of `polynomials` polynomials each, packed."""
    return sum(packed_size(count * polynomials * degree, prime.bit_length()) for prime in primes)


def unpack(
    payload: bytes | memoryview, count: int, polynomials: int, degree: int, primes: tuple[int, ...]
) -> Words:
    """The inverse of `pack`: every residue checked to be below its prime.

    Raises:
        ProtocolError: a wrong length (truncated, or of another parameter set), or a residue that is none.
    """
    expected = size_of(count, polynomials, degree, primes)
    if len(payload) != expected:
        raise ProtocolError(
            f"ckks: {count} ciphertexts of this parameter set have {expected} bytes, found {len(payload)}; "
            "truncated, or made with another set"
        )
    words = np.empty((count, polynomials, len(primes), degree), np.uint64)
    view, at = memoryview(payload), 0
    for i, prime in enumerate(primes):
        step = packed_size(count * polynomials * degree, prime.bit_length())
        residues = unpack_residues(view[at : at + step], count * polynomials * degree, prime.bit_length())
        if residues.size and int(residues.max()) >= prime:
            raise ProtocolError("ckks: a residue is not below its prime; garbled, or made with another set")
        words[:, :, i] = residues.reshape(count, polynomials, degree)
        at += step
    return words


def add_into(total: Words, words: Words, primes: tuple[int, ...]) -> None:
    """total := total + words modulo the primes, in place; both hold reduced residues of primes below 2^63."""
    np.add(total, words, out=total)
    for i, prime in enumerate(primes):
        part = total[:, :, i]
        # below the prime, the subtraction wraps to a huge number and the minimum keeps the sum
        np.minimum(part, part - np.uint64(prime), out=part)
