"""Who shares with whom: everybody where the cohort is small, else a k-regular random graph.

Every party computes it from the hash over all advertisements, so a server cannot draw it. It can
choose whom to leave out, and colluding clients can try many keys, each try costing one hash: 2^w
tries weaken the probabilities behind the tables by w bits at most (SECURITY.md).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

from securefed.protect.graph import regular_graph


@dataclass(frozen=True)
class Topology:
    """The graph over the clients that advertised, ascending, with at most k neighbours each."""

    clients: tuple[int, ...]
    k: int
    seed: bytes = field(repr=False)
    _holders: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return len(self.clients) - 1 <= self.k

    @cached_property
    def _neighbours(self) -> dict[int, tuple[int, ...]]:
        return regular_graph(self.clients, self.k, self.seed)

    def holders(self, client: int) -> tuple[int, ...]:
        """The client and its neighbours, ascending: those who hold shares of its secrets."""
        if self.complete:
            return self.clients
        found = self._holders.get(client)
        if found is None:
            found = self._holders[client] = tuple(sorted((*self._neighbours[client], client)))
        return found

    def alive(self, client: int, among: Set[int]) -> int:
        """How many holders of the client's shares are in this set."""
        return len(among) if self.complete else sum(1 for h in self.holders(client) if h in among)


def points(holders: Sequence[int]) -> dict[int, int]:
    """holder -> x of its Shamir share: its place in the neighbourhood, from 1."""
    return {holder: x for x, holder in enumerate(holders, 1)}
