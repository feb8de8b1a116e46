"""The matrix-factorization mechanism audited: canary clients in as many rounds as they may take part in.

There is no job around it: whoever selects clients calls `CorrelatedNoise` once a round, as here. What a listener has
of it is every round's noised sum; multiplied by the factor C they are C x + z with independent noise, and a canary is
heard best along C's own columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import securefed as sf
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.privacy import client_level
from securefed.privacy.correlated_noise import check_participation, correlated_noise
from securefed.privacy.matrix_factorization import BandedToeplitz, Participation, square_root
from securefed.privacy.records import ShardKey
from securefed.types import SERVER
from securefed_attacks.canaries import Canaries
from securefed_benchmarks.own_paths import CLIP, DELTA, FAR, Released


@dataclass(frozen=True)
class Factored:
    """DP-FTRL with a banded square root: each canary is a client, in every round that it may be in."""

    noise_multiplier: float
    rounds: int = 12
    separation: int = 4

    @property
    def factor(self) -> BandedToeplitz:
        """As many bands as the separation, and no bound on participations but the run's length."""
        return square_root(Participation(self.rounds, self.separation, self.rounds), self.separation)

    def __call__(self, canaries: Canaries, folder: Path, entropy: Entropy | None = None) -> Released:
        """Plays the rounds, charged once before the first; the ledger is a file beside the folder."""
        secret, factor = entropy or SystemEntropy(), self.factor
        with sf.Ledger(folder.with_suffix(".sqlite")) as ledger:
            ledger.register("audit", {SERVER: ShardKey("ab" * 32, canaries.m)}, "canaries", "client")
            event = factor.event(self.noise_multiplier)
            reservation = ledger.reserve(run="audit", client=SERVER, round=0, event=event)
            sums, taken = self._play(factor, canaries, secret)
            ledger.settle(reservation, steps_taken=1)
            claimed, events = ledger.epsilon(DELTA, unit="client", run="audit"), ledger.events(unit="client")
        heard = np.array([np.convolve(column, factor.coefficients)[: self.rounds] for column in sums.T]).T
        pattern = np.zeros(self.rounds)
        pattern[list(taken)] = 1
        weight = np.convolve(pattern, factor.coefficients)[: self.rounds]
        moved = weight @ heard / np.linalg.norm(weight)
        return Released(moved, CLIP * factor.sensitivity, claimed, events)

    def _play(
        self, factor: BandedToeplitz, canaries: Canaries, secret: Entropy
    ) -> tuple[NDArray[np.float64], tuple[int, ...]]:
        """(every round's noised sum, (rounds, d); the rounds in which the canaries were)."""
        noise = correlated_noise(factor, CLIP, self.noise_multiplier, canaries.d)
        updates = [
            client_level.clip_update(canaries.contribution(j, FAR * CLIP), CLIP).vector
            for j in range(canaries.m)
        ]
        together = np.sum(updates, axis=0, dtype=np.float64)
        taken: tuple[int, ...] = ()
        sums = np.zeros((self.rounds, canaries.d))
        for round in range(self.rounds):
            drawn, noise = noise.step(secret.stream("correlated noise", round))
            sums[round] = drawn
            if factor.participation.allows(taken, round):
                check_participation(factor, taken, round, 0)
                sums[round] += together
                taken = (*taken, round)
        return sums, taken
