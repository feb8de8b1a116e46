"""The server's own mechanism for client-level DP: clip every update, add, add noise, journal, release.

Unit of privacy: a whole client (add/remove). Adversary: other clients and outsiders, who see the
released models; not the server, which sees the updates it clips and adds.
McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models" (arXiv 1710.06963),
with Poisson-sampled cohorts and the fixed denominator of their estimator f_f. Where the clip moves: `moving_clip`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from securefed.errors import PrivacyError
from securefed.privacy.client_level import clip_update, noisy_mean
from securefed.privacy.events import SampledGaussian
from securefed.privacy.journaled_release import JournaledRelease
from securefed.privacy.moving_clip import MovingClip
from securefed.types import Collected, Vector

if TYPE_CHECKING:
    from securefed.config import Config
    from securefed.crypto.entropy import Entropy
    from securefed.privacy.budget import Budget
    from securefed.privacy.ledger import Ledger


@dataclass(frozen=True)
class ServerMechanism(JournaledRelease):
    """Reserves, releases and journals one Gaussian release a round.

    Attributes:
        sample_rate: probability with which each client is in a round's cohort.
        expected_clients: the public constant denominator, sample_rate x clients; never the number
            that happened to be drawn.
        clip: where it moves with the norms; None for max_norm, fixed.
    """

    ledger: Ledger
    run: str
    noise_multiplier: float
    max_norm: float
    sample_rate: float
    expected_clients: float
    budget: Budget | None
    clip: MovingClip | None = None

    @property
    def event(self) -> SampledGaussian:
        """What one round spends."""
        return SampledGaussian(self.noise_multiplier, self.sample_rate, 1)

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
        if self.clip is not None:
            return self._release_moving(self.clip, reservation, round, collected, entropy)
        total = np.zeros(collected.total.shape[0])
        for client in collected.survivors:
            total += clip_update(collected.updates[client], self.max_norm).vector
        stream = entropy.stream("client-level noise", round)
        vector = noisy_mean(total, self.max_norm, self.noise_multiplier, self.expected_clients, stream)
        self._settle(reservation, vector)
        return vector

    def _release_moving(
        self, clip: MovingClip, reservation: int, round: int, collected: Collected, entropy: Entropy
    ) -> Vector:
        """The same at this round's clip, with a noised count of the bits, which moves it."""
        assert collected.updates is not None
        total, bits = np.zeros(collected.total.shape[0] - 1), 0.0
        for client in collected.survivors:
            row = collected.updates[client]
            total += clip_update(row[:-1], clip.value).vector
            bits += min(max(float(row[-1]), -0.5), 0.5)  # the sensitivity must not rest on what a client says
        stream = entropy.stream("client-level noise", round)
        sigma = clip.update_noise(self.noise_multiplier)
        vector = noisy_mean(total, clip.value, sigma, self.expected_clients, stream)
        noisy_bits = bits + clip.count_std * float(entropy.stream("clip count noise", round).normal(1)[0])
        payload = clip.payload(vector, noisy_bits, self.expected_clients)
        self._settle(reservation, payload)
        return clip.take(payload)


def server_mechanism(
    config: Config,
    noise_multiplier: float,
    budget: Budget | None,
    ledger: Ledger,
    run: str,
    clients: int,
    clip: MovingClip | None = None,
) -> ServerMechanism:
    """The mechanism of a job whose unit is the client, over `clients` clients."""
    expected = float(config.clients_per_round or clients)
    return ServerMechanism(
        ledger,
        run,
        noise_multiplier,
        config.privacy.max_grad_norm,
        expected / clients,
        expected,
        budget,
        clip,
    )
