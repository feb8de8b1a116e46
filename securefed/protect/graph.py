"""Who masks with whom: how many neighbours, how many shares, and the graph that everybody recomputes.

Bell, Bonawitz, Gascon, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead" (CCS 2020): clients on a randomly permuted circle mask and share with the k/2 next on each side
(a Harary graph), so that work and bytes grow with k and not with n.

The sizes come from hypergeometric tails and union bounds over all clients, for colluders and drop-outs
that are spread at random over the circle. Two ways an adversary does better than random, and by how much:

- **Grinding.** The graph follows from a seed, a hash over every client's fresh keys. Whoever speaks last
  (a colluding client, or the server that chooses which advertisements to leave out) can try 2^w variants,
  at one hash and one permutation each, and keep the graph it likes best. By the union bound the privacy of
  2^-40 becomes 2^(w - 40): w = 20 leaves 2^-20. The roster is frozen before, so nobody can add keys.
- **Choosing who "drops" once the graph is known.** A lying server can pretend that both runs of k/2
  clients around an arc are gone, and learn that arc's sum. Each client therefore opens a share of a
  survivor's own mask only where `threshold` holders of it survive. With threshold > k/2 + 1 + x every
  survivor keeps more than x living neighbours on each side, so that an arc can be cut off only where
  more than x colluders sit within k/2 places. `Neighbourhood.cut_colluders` is that x + 1; it is small for
  small k. Where the server may choose the drops, take the complete graph (k = n - 1).
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.errors import ProtocolError

COMPLETE = 32
"""Up to this many clients everybody is everybody's neighbour."""

PRIVACY, FAILURE = 2.0**-40, 2.0**-20
"""The chance, over graph, colluders and drop-outs, that anything leaks; that a round cannot be unmasked."""


@dataclass(frozen=True)
class Neighbourhood:
    """Sizes for a cohort: neighbours, shares that open a secret, signatures on one digest.

    A secret is shared among its owner and the k neighbours, k + 1 holders.
    """

    k: int
    threshold: int
    quorum: int

    @property
    def cut_colluders(self) -> int:
        """Colluders within k/2 places that a server needs to cut a survivor off by chosen drops, at least.

        0 says that chosen drops alone suffice. In the complete graph there is no arc to cut.
        """
        return max(0, self.threshold - 1 - self.k // 2)


@lru_cache(maxsize=1024)
def neighbourhood(n: int, gamma: float, drop: float = 0.1) -> Neighbourhood:
    """The fewest neighbours, with their largest threshold, that keep a cohort private and alive.

    Privacy (2^-40 in all): no honest client has `threshold` colluders among its neighbours, and the honest
    survivors stay connected. Liveness (2^-20): every secret keeps `threshold` holders after the drops.
    The quorum is above (n + gamma n) / 2, so two digests cannot both have one unless an honest client
    signs twice; thus the semi-honest bound is enough in each neighbourhood. Of the thresholds that keep
    the round alive the largest is taken: the margin goes to privacy.

    Args:
        n: clients in the cohort, at least 2.
        gamma: share of the cohort that colludes with the server, rounded down to clients.
        drop: share that vanishes, whoever and whenever; rounded down to clients.

    Raises:
        ProtocolError: a value out of range; or gamma + 2 drop >= 1: the quorum could not be reached.
    """
    if n < 2:
        raise ProtocolError(f"masking needs a cohort of at least 2 clients, got n={n}")
    if min(gamma, drop) < 0 or not gamma + 2 * drop < 1:
        raise ProtocolError(
            f"masking needs gamma + 2 drop < 1, both at least 0, got gamma={gamma}, drop={drop}; else no quorum is left"
        )
    corrupt, gone = _share(gamma, n), _share(drop, n)
    quorum = _share(1 + gamma, n) // 2 + 1
    if n > COMPLETE:
        for k in range(2, n - 1, 2):
            threshold = _largest_threshold(n, k, gone)
            if threshold and leak_chance(n, k, threshold, corrupt, gone) <= PRIVACY:
                return Neighbourhood(k, threshold, quorum)
    return Neighbourhood(n - 1, quorum, quorum)  # fewer than a quorum is an abort, so this costs no round


def _largest_threshold(n: int, k: int, gone: int) -> int | None:
    thresholds = range(2, k + 2)  # the chance of failure grows with the threshold
    alive = bisect_right(thresholds, FAILURE, key=lambda t: failure_chance(n, k, t, gone))
    return thresholds[alive - 1] if alive else None


def leak_chance(n: int, k: int, threshold: int, corrupt: int, gone: int) -> float:
    """Bound on the chance that colluders open an honest secret or that the honest survivors fall apart.

    The second needs two disjoint runs of k/2 places without an honest survivor; there are at most
    n (n - 1) / 2 pairs of runs, and k given places are all among r random ones with chance
    C(n - k, r - k) / C(n, r).
    """
    opened = n * _tail(n - 1, corrupt, k, threshold)
    removed = corrupt + gone
    if removed < k:
        return opened
    runs = _log_choose(n - k, removed - k) - _log_choose(n, removed)
    return opened + n * (n - 1) / 2 * math.exp(runs)


def failure_chance(n: int, k: int, threshold: int, gone: int) -> float:
    """Bound on the chance that some secret keeps fewer than `threshold` holders after `gone` random drops.

    A survivor is a holder of its own secret; of a client that is gone only neighbours are left.
    """
    survivors = (n - gone) * _tail(n - 1, gone, k, k - threshold + 2)
    return survivors + gone * _tail(n - 1, gone - 1, k, k - threshold + 1)


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """P[at least `least` of the `drawn` are among the `marked`], hypergeometric."""
    if least <= 0:
        return 1.0
    if marked < least:
        return 0.0
    whole = _log_choose(population, drawn)
    return math.fsum(
        math.exp(_log_choose(marked, i) + _log_choose(population - marked, drawn - i) - whole)
        for i in range(max(least, drawn + marked - population), min(drawn, marked) + 1)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _share(share: float, n: int) -> int:
    return math.floor(share * n + 1e-9)  # 0.29 x 100 is 29 clients, whatever binary floats say


def regular_graph(clients: Sequence[int], k: int, seed: bytes) -> dict[int, tuple[int, ...]]:
    """Client -> its k neighbours, ascending; the same for everybody who has the seed.

    The clients stand on a circle in a random order and are joined to the k/2 next on each side.

    Args:
        clients: distinct indices; their order does not matter.
        k: even, or at least n - 1 for the complete graph.
        seed: the joint randomness of the round, public; at least 16 bytes. See the module's text on what
            can be ground.

    Raises:
        ProtocolError: a client twice, k odd or below 2 where the graph is not complete, a short seed.
    """
    order = sorted(clients)
    n = len(order)
    if len(set(order)) != n:
        raise ProtocolError("graph: a client is listed twice")
    if len(seed) < 16:
        raise ProtocolError(f"graph: the seed has {len(seed)} bytes, at least 16 are needed")
    if k >= n - 1:
        return {c: tuple(other for other in order if other != c) for c in order}
    if k < 2 or k % 2:
        raise ProtocolError(
            f"graph: k={k} must be even and at least 2, or n - 1 = {n - 1} for the complete graph"
        )
    stream = Stream(hashlib.sha256(b"securefed neighbourhood graph" + seed).digest())
    circle: NDArray[np.int64] = np.asarray(order, np.int64)[stream.permutation(n)]
    steps = [s for s in range(-k // 2, k // 2 + 1) if s]
    rows = np.sort(np.stack([np.roll(circle, s) for s in steps], axis=1), axis=1)
    return {int(c): tuple(map(int, row)) for c, row in zip(circle, rows, strict=True)}
