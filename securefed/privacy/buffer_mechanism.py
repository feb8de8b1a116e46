"""The server's own mechanism where it is public who is in a round: each client is charged for its own rounds only.

Unit, neighbours, adversary and noise are `ServerMechanism`'s. Clients that are ready by the clock are no secret draw, so
nothing amplifies; but a client that is not in a buffer has no influence on that release beyond what earlier ones
told, so it is not charged for it, and one that is in two buffers is charged twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from securefed.privacy.events import CentralGaussian
from securefed.privacy.server_mechanism import ServerMechanism
from securefed.types import Vector


@dataclass(frozen=True, kw_only=True)
class BufferMechanism(ServerMechanism):
    """Gaussian releases over public cohorts.

    Attributes:
        cohorts: who is in each round, ascending, never empty; public constants.
    """

    cohorts: tuple[tuple[int, ...], ...]

    @property
    def event(self) -> CentralGaussian:
        """What one round spends, for everyone in it."""
        return CentralGaussian(self.noise_multiplier, 1.0, 1)

    def stored(self, round: int) -> Vector | None:
        """The round's vector if it was journaled before a crash; applied again unchanged."""
        payload = self.ledger.outbox(self.run, self.cohorts[round][0], round)
        if payload is None:
            return None
        vector = np.frombuffer(payload, "<f4").copy()
        return vector if self.clip is None else self.clip.take(vector)

    def reserve(self, round: int) -> int:
        """Charges everyone in the round before anything is trained; the first one's reservation carries the release.

        Raises:
            BudgetExceeded: somebody's budget does not allow it. Nobody is charged.
        """
        first, *others = self.cohorts[round]
        if self.budget is not None:
            for client in self.cohorts[round]:
                self.ledger.admit(run=self.run, client=client, event=self.event, budget=self.budget)
        for client in others:
            made = self.ledger.reserve(
                run=self.run, client=client, round=round, event=self.event, budget=self.budget
            )
            self.ledger.settle(made, steps_taken=1)
        return self.ledger.reserve(
            run=self.run, client=first, round=round, event=self.event, budget=self.budget
        )
