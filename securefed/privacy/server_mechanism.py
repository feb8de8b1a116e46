"""The server's own mechanism for client-level DP: clip every update, add, add noise, journal, release.

Unit of privacy: a whole client (add/remove). Adversary: other clients and outsiders, who see the
released models; not the server, which sees the updates it clips and adds.
McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models" (arXiv 1710.06963),
with Poisson-sampled cohorts and the fixed denominator of their estimator f_f.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from securefed.errors import PrivacyError
from securefed.privacy.client_level import clip_update, noisy_mean
from securefed.privacy.events import SampledGaussian
from securefed.types import SERVER, Collected, Vector

if TYPE_CHECKING:
    from securefed.config import Config
    from securefed.crypto.entropy import Entropy
    from securefed.privacy.budget import Budget
    from securefed.privacy.ledger import Ledger


@dataclass(frozen=True)
class ServerMechanism:
    """Reserves, releases and journals one Gaussian release a round.

    Attributes:
        sample_rate: probability with which each client is in a round's cohort.
        expected_clients: the public constant denominator, sample_rate x clients; never the number
            that happened to be drawn.
    """

    ledger: Ledger
    run: str
    noise_multiplier: float
    max_norm: float
    sample_rate: float
    expected_clients: float
    budget: Budget | None

    @property
    def event(self) -> SampledGaussian:
        """What one round spends."""
        return SampledGaussian(self.noise_multiplier, self.sample_rate, 1)

    def stored(self, round: int) -> Vector | None:
        """The round's noised aggregate if it was journaled before a crash; applied again unchanged."""
        payload = self.ledger.outbox(self.run, SERVER, round)
        return None if payload is None else np.frombuffer(payload, "<f4").copy()

    def reserve(self, round: int) -> int:
        """Charges the round before anything is trained. Raises BudgetExceeded, charging nothing."""
        return self.ledger.reserve(
            run=self.run, client=SERVER, round=round, event=self.event, budget=self.budget
        )

    def release(self, reservation: int, round: int, collected: Collected, entropy: Entropy) -> Vector:
        """The noised mean of the survivors' updates, float32 (d,), journaled before it is returned.

        Each update is clipped here again: the sensitivity must not rest on what a client says it did.

        Raises:
            PrivacyError: the protection hid the updates, so that their norms cannot be bounded here.
        """
        if collected.updates is None:
            raise PrivacyError(
                'client-level noise at the server needs to bound each update; use protection = "plain"'
            )
        size = collected.total.shape[0]
        total = np.zeros(size)
        for client in collected.survivors:
            total += clip_update(collected.updates[client], self.max_norm).vector
        stream = entropy.stream("client-level noise", round)
        vector = noisy_mean(total, self.max_norm, self.noise_multiplier, self.expected_clients, stream)
        payload = np.ascontiguousarray(vector, "<f4").tobytes()
        self.ledger.settle(reservation, steps_taken=1, payload=payload)
        return vector


def server_mechanism(
    config: Config, noise_multiplier: float, budget: Budget | None, ledger: Ledger, run: str, clients: int
) -> ServerMechanism:
    """The mechanism of a job whose unit is the client, over `clients` clients."""
    rate = (config.clients_per_round or clients) / clients
    return ServerMechanism(
        ledger, run, noise_multiplier, config.privacy.max_grad_norm, rate, rate * clients, budget
    )
