"""Who sums with whom: groups from joint randomness, drawn once, after the roster is frozen.

Every client commits to a nonce, and opens it once it has seen everyone's commitment: commit-and-reveal coin
tossing (Blum 1981). Groups are a hash of the roster, the run and all nonces, so one honest client's nonce
makes them uniform. What can still be ground: whoever opens last sees the groups before all others and may
refuse. Then nobody has groups and the run does not begin; each refused ceremony is one more draw for those who
refuse, by name. The run's name and the roster are bound by every commitment, so choosing them gains nothing.
`ceremony.py` carries the two messages, signed.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from securefed.crypto.encoding import Writer
from securefed.errors import ProtocolError

NONCE = 32
"""Bytes of a client's share of the randomness."""
_DOMAIN = b"securefed groups v1"
Groups = tuple[tuple[int, ...], ...]
"""Each group's clients, ascending; group j is the j-th."""


def commitment(nonce: bytes, client: int, run: str, roster: bytes) -> bytes:
    """What a client publishes first: binding and, as the nonce has 256 bits, hiding (random oracle).

    Run and roster are in it, so both are fixed before any nonce is known.
    """
    writer = Writer().raw(_DOMAIN + b" commit").text(run).raw(roster)
    return hashlib.sha256(writer.u32(client).raw(nonce).finish()).digest()


def joint_seed(
    run: str, roster: bytes, commitments: Mapping[int, bytes], nonces: Mapping[int, bytes]
) -> bytes:
    """The seed that nobody chose, 32 bytes.

    Args:
        roster: digest of the frozen roster. commitments, nonces: client -> what it published, first and then.

    Raises:
        ProtocolError: a client did not open its commitment, or opened another; no groups are drawn then.
    """
    writer = Writer().raw(_DOMAIN + b" seed").text(run).raw(roster).u32(len(commitments))
    for client in sorted(commitments):
        nonce = nonces.get(client, b"")
        opens = hmac.compare_digest(commitment(nonce, client, run, roster), commitments[client])
        if len(nonce) != NONCE or not opens:
            raise ProtocolError(
                f"grouped: client {client} did not open its commitment; without it no groups are drawn, "
                "begin again without this client"
            )
        writer.u32(client).raw(nonce)
    return hashlib.sha256(writer.finish()).digest()


def cut(clients: Iterable[int], size: int, seed: bytes) -> Groups:
    """The cohort in n // size groups of `size` or more, by order of H(seed, client).

    Raises:
        ProtocolError: fewer than two groups.
    """
    shuffled = sorted(
        clients, key=lambda k: hashlib.sha256(_DOMAIN + b" order" + seed + k.to_bytes(8, "little")).digest()
    )
    sizes, start, groups = group_sizes(len(shuffled), size), 0, []
    for g in sizes:
        groups.append(tuple(sorted(shuffled[start : start + g])))
        start += g
    return tuple(groups)


def group_sizes(n: int, size: int) -> tuple[int, ...]:
    """How many clients each group has; what does not divide is spread, one more each.

    Raises:
        ProtocolError: fewer than two groups.
    """
    m = n // size
    if m < 2:
        raise ProtocolError(
            f"grouped: {n} clients make no two groups of {size}; add clients, lower size, or use masking"
        )
    return tuple(n // m + (j < n % m) for j in range(m))


def partition_rank(partitions: Sequence[Groups]) -> int:
    """Rank of all group memberships seen: how many independent sums of clients the server knows.

    At rank n it knows everyone whose update does not change between rounds.
    """
    clients = sorted({k for groups in partitions for group in groups for k in group})
    rows = [[float(k in group) for k in clients] for groups in partitions for group in set(groups)]
    return int(np.linalg.matrix_rank(np.array(rows))) if rows else 0


def thin_group_probability(sizes: Sequence[int], corrupt: int, honest: int) -> float:
    """Probability that a uniform cut leaves some group with fewer than `honest` honest clients.

    Multivariate hypergeometric, exact: of the C(n, c) places of the corrupt, those where each group keeps enough
    are the coefficient of x^c in the product over groups of sum_(i <= g - honest) C(g, i) x^i.
    """
    ways = [1] + [0] * corrupt
    for g in sizes:
        room = [math.comb(g, i) for i in range(max(g - honest, -1) + 1)]
        ways = [sum(ways[c - i] * w for i, w in enumerate(room[: c + 1])) for c in range(corrupt + 1)]
    return float(1 - Fraction(ways[corrupt], math.comb(sum(sizes), corrupt)))
