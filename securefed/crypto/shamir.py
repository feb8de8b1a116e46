"""Shamir's secret sharing of 32-byte keys (Shamir, "How to share a secret", CACM 1979).

Any `threshold` shares give the secret, fewer say nothing about it: the secret is the constant term of a
random polynomial over the integers modulo a prime just above 2^256. Python's integers do not run in
constant time, so whoever can time this process closely may learn about the secrets in it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from securefed.crypto.entropy import Stream
from securefed.errors import ProtocolError

PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that every 32-byte secret is a field element."""

SECRET_BYTES, SHARE_BYTES = 32, 33
MAX_POINT = 2**32 - 1
_WIDE = 48  # a 384-bit word modulo PRIME is uniform up to a statistical distance of 2^-127


def split(secret: bytes, threshold: int, points: Sequence[int], stream: Stream) -> dict[int, bytes]:
    """One 33-byte share for each point.

    Args:
        secret: 32 uniform bytes, a key or a seed.
        threshold: shares that give the secret back, 1 <= threshold <= len(points).
        points: distinct, public, 1 .. 2^32 - 1; 0 would hold the secret itself.
        stream: fresh secret randomness; the coefficients come from it.

    Raises:
        ProtocolError: any of these out of range.
    """
    if len(secret) != SECRET_BYTES:
        raise ProtocolError(f"shamir: a secret has {SECRET_BYTES} bytes, got {len(secret)}")
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ProtocolError(f"shamir: threshold={threshold} needs 1 <= threshold <= {len(points)} points")
    drawn = stream.bytes(_WIDE * (threshold - 1))
    high_first = [int.from_bytes(drawn[i : i + _WIDE], "big") % PRIME for i in range(0, len(drawn), _WIDE)]
    high_first.append(int.from_bytes(secret, "big"))
    return {x: _evaluate(high_first, x).to_bytes(SHARE_BYTES, "big") for x in points}


def _evaluate(high_first: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in high_first:
        value = value * x + coefficient  # x is small: reducing once at the end is cheaper than each time
    return value % PRIME


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The 32-byte secret, from exactly `threshold` of the shares: those at the lowest points.

    A wrong share among them gives a wrong secret: compare it with something public, and the shares
    with their commitments. Which shares are used does not depend on their order.

    Raises:
        ProtocolError: too few shares, a bad point, a share that is no field element in 33 bytes, or a
            value that no 32-byte secret has.
    """
    return combine_many([shares], threshold)[0]


def combine_many(several: Iterable[Mapping[int, bytes]], threshold: int) -> list[bytes]:
    """`combine` of each; maps over the same points share their Lagrange weights."""
    return [_combine(shares, threshold) for shares in several]


def _combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    _check_points(list(shares))
    if not 1 <= threshold <= len(shares):
        raise ProtocolError(f"shamir: {len(shares)} shares are not the threshold={threshold} it takes")
    points = tuple(sorted(shares)[:threshold])
    values = [_field_element(x, shares[x]) for x in points]
    secret = sum(map(int.__mul__, _weights(points), values)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ProtocolError("shamir: these shares are not of one 32-byte secret")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)  # points are public; a round of n = 1000 with 100 holders keeps about 1 MiB
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights at zero: prod_{j != i} x_j / (x_j - x_i), with one inversion for all."""
    whole = math.prod(points) % PRIME
    below = [x * math.prod(y - x for y in points if y != x) % PRIME for x in points]
    running = [1]
    for value in below:
        running.append(running[-1] * value % PRIME)
    inverse, weights = pow(running[-1], -1, PRIME), []
    for value, before in zip(reversed(below), reversed(running[:-1]), strict=True):
        weights.append(whole * inverse * before % PRIME)
        inverse = inverse * value % PRIME
    return tuple(reversed(weights))


def commit(share: bytes, context: bytes) -> bytes:
    """A 32-byte commitment to a share, bound to its context (run, round, owner, holder, kind).

    It hides the share as long as the share cannot be guessed, which holds for shares of a uniform
    secret; it binds because SHA-256 resists collisions.
    """
    header = b"securefed share commitment" + len(context).to_bytes(4, "big")
    return hashlib.sha256(b"".join((header, context, share))).digest()


def _field_element(x: int, share: bytes) -> int:
    if len(share) != SHARE_BYTES:
        raise ProtocolError(f"shamir: the share at point {x} has {len(share)} bytes, expected {SHARE_BYTES}")
    value = int.from_bytes(share, "big")
    if value >= PRIME:
        raise ProtocolError(f"shamir: the share at point {x} is not below the prime")
    return value


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points):
        raise ProtocolError("shamir: a point appears twice")
    for x in points:
        if not 1 <= x <= MAX_POINT:
            raise ProtocolError(f"shamir: a point lies in 1 .. {MAX_POINT}, found {x}")
