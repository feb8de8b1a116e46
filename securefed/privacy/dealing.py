"""Cohorts dealt out in turn: a public schedule in which a client's rounds lie apart, for noise that is correlated over rounds.

Nobody draws anything in secret, so nothing is amplified: who is in which round follows from public numbers alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from securefed.errors import PrivacyError
from securefed.privacy.events import CorrelatedGaussian
from securefed.privacy.matrix_factorization import BandedToeplitz, Participation, best_bands

if TYPE_CHECKING:
    from securefed.config import Config

_DEAL = 0xDEA1  # label of the permutation in the experiment's seed


@dataclass(frozen=True)
class Deal:
    """Who is in which round: the clients in a public order, dealt out `size` a round, over and over.

    Two rounds of one client are clients / size apart, rounded down or up.

    Attributes:
        clients: of the federation. size: of every cohort. rounds: of the whole run. separation: promised least
            distance of two rounds of one client, size x separation <= clients. seed: public, of the order.

    Raises:
        PrivacyError: a cohort that comes back sooner than promised, or a field out of range.
    """

    clients: int
    size: int
    rounds: int
    separation: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.size, self.rounds, self.separation) < 1 or self.size * self.separation > self.clients:
            raise PrivacyError(
                f"{self.clients} clients dealt out {self.size} a round come back after {self.clients // max(1, self.size)} "
                f"rounds, sooner than the promised {self.separation}; use a smaller cohort, or promise less"
            )

    def cohort(self, round: int) -> tuple[int, ...]:
        """The clients of a round (0-based), ascending; always `size` of them."""
        places = (round * self.size + np.arange(self.size)) % self.clients
        return tuple(sorted(int(k) for k in self._order[places]))

    @cached_property
    def _order(self) -> NDArray[Any]:
        return np.random.default_rng([self.seed, _DEAL]).permutation(self.clients)

    @property
    def participation(self) -> Participation:
        """What the mechanism may count on: the distance promised, and the rounds of the busiest client."""
        most = -(-self.rounds * self.size // self.clients)
        return Participation(self.rounds, self.separation, most)

    @cached_property
    def factor(self) -> BandedToeplitz:
        """C: the banded square root of the least error; a closed form, so that a resumed run has the same."""
        return best_bands(self.participation)

    @property
    def digest(self) -> str:
        """Names this schedule, SHA-256 in hex."""
        words = (self.clients, self.size, self.rounds, self.separation, self.seed)
        return hashlib.sha256(repr(words).encode()).hexdigest()

    def event(self, noise_multiplier: float) -> CorrelatedGaussian:
        """What the whole run spends."""
        return self.factor.event(noise_multiplier)


def deal_of(config: Config, clients: int) -> Deal:
    """The schedule of a job with `privacy.noise = "correlated"` over `clients` clients.

    Raises:
        PrivacyError: clients would come back sooner than the job promises.
    """
    size = config.clients_per_round or clients
    separation = config.privacy.min_separation or clients // size
    return Deal(clients, size, config.rounds, separation, config.seed)
