"""Shamir's secret sharing of 32-byte secrets over a prime field just above 2^256 (Shamir 1979).

Python's integers are not constant-time: who can time this process closely may learn about shares.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from securefed.errors import ProtocolError

if TYPE_CHECKING:
    from securefed.crypto.entropy import Stream

PRIME = 2**256 + 297
"""The smallest prime above 2^256: every 32-byte secret is a field element."""

SECRET_BYTES, SHARE_BYTES = 32, 33
_DRAWN_BYTES = 64
"""Read per coefficient: reduced modulo the prime it is uniform up to 2^-255."""
_DOMAIN = b"securefed share v1"


def split(secret: bytes, threshold: int, points: Sequence[int], stream: Stream) -> dict[int, bytes]:
    """One share for each point; any `threshold` of them give the secret back, fewer say nothing about it.

    Args:
        secret: 32 bytes. points: distinct, 1 .. 2^32; the holders' x-coordinates. stream: fresh.

    Returns:
        point -> 33 bytes, big-endian.

    Raises:
        ProtocolError: wrong lengths, a threshold outside 1 .. len(points), or points that repeat.
    """
    if len(secret) != SECRET_BYTES:
        raise ProtocolError(f"a secret has {SECRET_BYTES} bytes, got {len(secret)}")
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ProtocolError(f"the threshold lies in 1 .. {len(points)} holders, got {threshold}")
    drawn = stream.bytes(_DRAWN_BYTES * (threshold - 1))
    coefficients = [
        int.from_bytes(drawn[i : i + _DRAWN_BYTES], "big") % PRIME for i in range(0, len(drawn), _DRAWN_BYTES)
    ]
    coefficients.append(int.from_bytes(secret, "big"))  # the constant term, last in Horner's order
    return {x: _evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in points}


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = value * x + coefficient  # points are small: one reduction at the end is cheaper than many
    return value % PRIME


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret that these shares are of; the first `threshold` of them by point are used.

    Shares are not checked against each other: commitments say whether one is wrong (`commit`).

    Raises:
        ProtocolError: too few, a point or a share out of range, or a result that no secret has.
    """
    return combine_many([shares], threshold)[0]


def combine_many(several: Iterable[Mapping[int, bytes]], threshold: int) -> list[bytes]:
    """`combine` for several secrets; weights of equal sets of points are computed once."""
    return [_combine(shares, threshold) for shares in several]


def _combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    if threshold < 1 or len(shares) < threshold:
        raise ProtocolError(f"{threshold} shares are needed, got {len(shares)}")
    points = tuple(sorted(shares)[:threshold])
    _check_points(points)
    total = 0
    for x, weight in zip(points, _weights(points), strict=True):
        if len(shares[x]) != SHARE_BYTES or (value := int.from_bytes(shares[x], "big")) >= PRIME:
            raise ProtocolError(f"the share of point {x} is malformed")
        total += value * weight
    total %= PRIME
    if total >= 1 << (8 * SECRET_BYTES):
        raise ProtocolError("these shares are of no secret; at least one of them is wrong")
    return total.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)  # a drop-out among n = 1000 clients opens secrets of some 50 sets of holders
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at zero, prod_{j != i} x_j / (x_j - x_i), with one inversion for all of them.

    The points are public, so remembering them leaks nothing.
    """
    above = math.prod(points) % PRIME
    below = [x * math.prod(other - x for other in points if other != x) % PRIME for x in points]
    before = list(accumulate(below, lambda product, value: product * value % PRIME, initial=1))
    inverse, weights = pow(before.pop(), -1, PRIME), []
    for value, product in zip(reversed(below), reversed(before), strict=True):
        weights.append(above * inverse * product % PRIME)
        inverse = inverse * value % PRIME
    return tuple(reversed(weights))


def commit(share: bytes, context: bytes) -> bytes:
    """SHA-256 of a share in its context: binding, and hiding because a share has 256 random bits."""
    return hashlib.sha256(
        b"".join((_DOMAIN, len(context).to_bytes(4, "little"), context, bytes(share)))
    ).digest()


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) < len(points):
        raise ProtocolError("two shares have the same point")
    for x in points:
        if not 1 <= x <= 1 << 32:
            raise ProtocolError(f"a point lies in 1 .. 2^32, got {x}; point 0 is the secret itself")
