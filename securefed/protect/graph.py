"""Whose masks cancel whose: the graph of neighbours, and how many of them privacy and completion need.

Bell, Bonawitz, Gascon, Lepoint and Raykova 2020 (ePrint 2020/704): each client shares its secrets with k
others, not with all n - 1, and only they can unmask it. The graph is theirs: a ring of the cohort in random
order, in which each is joined to the k/2 before and the k/2 after it (section 3.4, Harary graph).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from securefed.crypto.entropy import Stream
from securefed.errors import ProtocolError

COMPLETE_UP_TO = 32
"""Cohorts of this size or smaller: everybody is everybody's neighbour."""
PRIVACY_BITS, COMPLETION_BITS = 40, 20
_DOMAIN = b"securefed graph v1"


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What each client demands of its neighbours and of the cohort.

    Attributes:
        k: neighbours of each client. threshold: shares that open a secret, of the k + 1 in a neighbourhood
            (its own client's included). quorum: signatures on one digest over the whole cohort.
    """

    k: int
    threshold: int
    quorum: int


@lru_cache(maxsize=256)
def neighbourhood(n: int, gamma: float, drop: float = 0.1, *, chosen_drops: bool = False) -> Neighbourhood:
    """The smallest k that is private and completes for n clients of whom gamma n may collude with the server.

    Privacy fails with probability at most 2^-40 over the random graph, for colluders chosen before it is
    drawn: no client has `threshold` colluding neighbours, and the honest survivors stay connected.
    Completion fails with probability at most 2^-20 when a random share `drop` vanishes: everybody keeps
    `threshold` holders. Since a global quorum of more than (n + gamma n) / 2 signs one digest, a server
    cannot show two lists of survivors, and this bound of the honest-but-curious case is enough (without
    the quorum 2 threshold > k + 1 + colluders would be needed).

    Drops are random here. A server that pretends drops once it knows the graph can silence the honest
    clients of two runs of k/2 places and learn the sum of the arc between them. Clients that open a survivor's
    share only where `threshold` of its holders survive stop it, unless threshold - 1 - k/2 colluders stand in
    each run; `chosen_drops` takes thresholds (and the k they need) for which that happens with chance 2^-40.

    Args:
        n: clients in the cohort, >= 2. gamma: in [0, 0.5). drop: in [0, 1).
        chosen_drops: whether the server may choose who drops, knowing the graph.

    Raises:
        ProtocolError: out of range, or a cohort in which no threshold is both private and reachable.
    """
    if n < 2 or not 0 <= gamma < 0.5 or not 0 <= drop < 1:
        raise ProtocolError(f"needs n >= 2, 0 <= gamma < 0.5 and 0 <= drop < 1, got {n}, {gamma}, {drop}")
    corrupt, gone = math.floor(gamma * n + 1e-9), math.floor(drop * n + 1e-9)
    quorum = (n + corrupt) // 2 + 1
    if n > COMPLETE_UP_TO:
        for k in range(2, n - 1, 2):
            threshold = _threshold(n, k, corrupt, gone, chosen_drops)
            if threshold is not None:
                return Neighbourhood(k, threshold, quorum)
    threshold = max(n // 2 + 1, corrupt + 1)
    if threshold > n - gone:
        raise ProtocolError(
            f"of {n} clients {corrupt} may collude and {gone} may drop: the {n - gone} left cannot reach a "
            f"threshold of {threshold}; lower gamma or drop"
        )
    return Neighbourhood(n - 1, threshold, quorum)


def _threshold(n: int, k: int, corrupt: int, gone: int, chosen_drops: bool) -> int | None:
    """The smallest threshold that is private for this k, if the round then completes; else None."""
    if _disconnection(n, k, corrupt + gone) > 2.0**-PRIVACY_BITS:
        return None
    least = 2
    if chosen_drops:
        least = k // 2 + 1 + _beside(n, k, corrupt)
    for threshold in range(least, k + 2):
        if leak_chance(n, k, threshold, corrupt, gone) <= 2.0**-PRIVACY_BITS:
            return threshold if stuck_chance(n, k, threshold, gone) <= 2.0**-COMPLETION_BITS else None
    return None


def leak_chance(n: int, k: int, threshold: int, corrupt: int, gone: int) -> float:
    """The larger of two bounds: some client has `threshold` colluding neighbours; the honest survivors fall apart."""
    return max(n * _tails(n - 1, corrupt, k)[threshold], _disconnection(n, k, corrupt + gone))


def _disconnection(n: int, k: int, removed: int) -> float:
    """Bound on the chance that the ring falls apart: k/2 in a row removed, at two of its n places."""
    run = 1.0
    for i in range(k // 2):
        run *= max(0, removed - i) / (n - 1 - i)
    return n * n * run * run


def stuck_chance(n: int, k: int, threshold: int, gone: int) -> float:
    """Bound on the chance that `gone` random drops leave some secret with fewer than `threshold` holders.

    A survivor still holds a share of its own secret; of a client that is gone only neighbours are left,
    and its secret is needed as much.
    """
    survivors = (n - gone) * _tails(n - 1, gone, k)[k + 2 - threshold]
    return survivors + (gone * _tails(n - 1, gone - 1, k)[k + 1 - threshold] if gone else 0.0)


def _beside(n: int, k: int, corrupt: int) -> int:
    """The smallest x so that no k/2 places beside a client hold x colluders, but with chance 2^-40."""
    tails = _tails(n - 1, corrupt, k // 2)
    return next(x for x in range(len(tails)) if 2 * n * tails[x] <= 2.0**-PRIVACY_BITS)


@lru_cache(maxsize=64)
def _tails(population: int, marked: int, drawn: int) -> tuple[float, ...]:
    """P[X >= x] for x = 0 .. drawn + 2, X the marked ones among `drawn` of `population` (hypergeometric), exactly."""
    total, above = math.comb(population, drawn), 0
    tails = [0.0, 0.0]
    for i in reversed(range(drawn + 1)):
        above += math.comb(marked, i) * math.comb(population - marked, drawn - i)
        tails.append(above / total)
    return tuple(reversed(tails))


def regular_graph(clients: Sequence[int], k: int, seed: bytes) -> dict[int, tuple[int, ...]]:
    """Each client's k neighbours, ascending, the same for everybody who knows the seed.

    The seed must depend on a contribution of every client, made before any other was seen. Even so, the
    one who speaks last, or a server that chooses whom to count as never joined, can try again: each of g
    tries is a fresh graph, so the table's probabilities grow by the factor g, that is log2 g of the 40 bits.

    Args:
        clients: distinct. k: even and at least 2, or n - 1 for the complete graph. seed: any bytes.

    Raises:
        ProtocolError: k that no ring of this many has.

    >>> regular_graph([4, 5, 6], 2, b"")[5]
    (4, 6)
    """
    n = len(clients)
    if len(set(clients)) < n:
        raise ProtocolError("a client is listed twice")
    if n >= 2 and k == n - 1:
        return {c: tuple(sorted(o for o in clients if o != c)) for c in clients}
    if k < 2 or k % 2 or k > n - 2:
        raise ProtocolError(f"a graph of {n} clients has an even k of 2 .. {n - 2}, or {n - 1}; got {k}")
    ordered = sorted(clients)
    ring = np.array(ordered)[_permutation(n, seed)]
    steps = np.concatenate([np.arange(-(k // 2), 0), np.arange(1, k // 2 + 1)])
    around = np.sort(ring[(np.arange(n)[:, None] + steps) % n], axis=1)
    return {int(c): tuple(map(int, row)) for c, row in zip(ring, around, strict=True)}


def _permutation(n: int, seed: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Uniform up to ties of 64-bit words, which are drawn again, from the seed alone."""
    return Stream(hashlib.sha256(_DOMAIN + seed).digest()).permutation(n)
