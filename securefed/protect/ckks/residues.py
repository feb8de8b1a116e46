"""Ciphertexts as words modulo primes: packed to the bits that they need, added without the library.

A CKKS ciphertext is two polynomials over Z_q, q a product of primes of 30 to 60 bits. SEAL stores each
residue in 64 bits and compresses with zstd, which finds little in uniform numbers. Here a residue modulo a
prime of b bits takes b bits: whole bytes first, the bits that are left over as planes behind them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ProtocolError

Words = NDArray[np.uint64]
"""Residues of ciphertexts, uint64 (ciphertexts, polynomials, primes, degree)."""


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` residues of `bits` bits."""
    return count * (bits // 8) + (bits % 8) * ((count + 7) // 8)


def pack_residues(residues: Words, bits: int) -> bytes:
    """Residues below 2^bits, uint64 (m,), as `packed_size(m, bits)` bytes."""
    whole, rest = divmod(bits, 8)
    octets = np.ascontiguousarray(residues, "<u8").view(np.uint8).reshape(-1, 8)
    planes = [np.packbits(octets[:, whole] >> np.uint8(i) & np.uint8(1)) for i in range(rest)]
    return b"".join((octets[:, :whole].tobytes(), *(p.tobytes() for p in planes)))


def unpack_residues(payload: bytes | memoryview, count: int, bits: int) -> Words:
    """The inverse of `pack_residues`, uint64 (count,).

    Raises:
        ProtocolError: another length than `packed_size(count, bits)`.
    """
    if len(payload) != packed_size(count, bits):
        raise ProtocolError(
            f"ckks: {count} residues of {bits} bits have {packed_size(count, bits)} bytes, found {len(payload)}"
        )
    whole, rest = divmod(bits, 8)
    octets = np.zeros((count, 8), np.uint8)
    octets[:, :whole] = np.frombuffer(payload, np.uint8, count * whole).reshape(count, whole)
    plane = (count + 7) // 8
    for i in range(rest):
        ones = np.frombuffer(payload, np.uint8, plane, count * whole + i * plane)
        octets[:, whole] |= np.unpackbits(ones, count=count) << np.uint8(i)
    return octets.view("<u8").reshape(count).astype(np.uint64, copy=False)


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
