"""The server's mechanism whose noise is correlated over rounds: one charge for the whole run, before its first round.

Unit, clip and adversary are `ServerMechanism`'s; cohorts are dealt out in turn (`dealing`), so nothing is sampled and
nothing amplified. What each round releases is one row of one Gaussian mechanism (`matrix_factorization`): a round must
therefore be released once only, and each with the noise state that the one before it left. Order within a
round: the next round's state is on disk first, then the release is settled in the ledger, then it is handed out.
A crash before the settlement draws the round anew from the state it began with, since nothing had left; one after it
applies the stored release again. The ledger names the rounds that were released and the digest of each, so that
an older state, checkpoint or ledger is refused instead of drawing noise twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from securefed.crypto.entropy import Entropy
from securefed.errors import PrivacyError
from securefed.privacy.budget import Budget
from securefed.privacy.client_level import clip_update
from securefed.privacy.correlated_noise import CorrelatedNoise, correlated_noise
from securefed.privacy.dealing import Deal
from securefed.privacy.events import CorrelatedGaussian
from securefed.privacy.journaled_release import JournaledRelease
from securefed.privacy.ledger import Ledger
from securefed.privacy.noise_state import KeptState, NoiseStates
from securefed.types import SERVER, Collected, Vector


@dataclass(frozen=True)
class CorrelatedRelease(JournaledRelease):
    """Charges the run once, and releases one noised mean a round.

    Attributes:
        noise_multiplier: deviation of the noise over max_norm x the sensitivity of the whole run.
        deal: who is in which round.
    """

    ledger: Ledger
    run: str
    noise_multiplier: float
    max_norm: float
    deal: Deal
    budget: Budget | None
    clip: None = None

    @property
    def event(self) -> CorrelatedGaussian:
        """What the whole run spends."""
        return self.deal.event(self.noise_multiplier)

    @property
    def states(self) -> NoiseStates:
        """Where the noise's state is kept, beside the ledger."""
        return NoiseStates(self.ledger.path.parent / "noise" / self.run, self.deal.digest)

    def stored(self, round: int) -> Vector | None:
        """The round's vector if it was released before a crash; applied again unchanged."""
        found = super().stored(round)
        if found is not None:
            self._forget(round)
        return found

    def reserve(self, round: int) -> int:
        """Charges the whole run before its first round; later rounds are noted at no charge.

        Raises:
            BudgetExceeded: the whole run does not fit. Nothing is charged.
            PrivacyError: the round was released before, or its noise state or the run's charge is not of the round before.
        """
        if round in self.ledger.released(self.run, SERVER):
            raise PrivacyError(
                f"round {round} of run {self.run} was released before, and a second release under the same noise is not "
                "covered; resume from the newest checkpoint, or start a new run"
            )
        if round > 0:
            self._kept(round)
        charged = self.event in self.ledger.events(run=self.run, unit="client")
        if not charged and round > 0:
            raise PrivacyError(
                f"the privacy ledger {self.ledger.path} does not hold the charge of run {self.run}; restore its newest copy"
            )
        if not charged:
            self.ledger.settle(self._reserve(round, self.event), steps_taken=1)
        noted = replace(self.event, steps=0)
        return self.ledger.reserve(run=self.run, client=SERVER, round=round, event=noted)

    def release(self, reservation: int, round: int, collected: Collected, entropy: Entropy) -> Vector:
        """The noised mean of the survivors' updates, float32 (d,), journaled before it is returned.

        Each update is clipped here again: the sensitivity must not rest on what a client says it did.

        Raises:
            PrivacyError: a client that is not of this round, or a protection that hid the updates.
        """
        if collected.updates is None:
            raise PrivacyError('correlated noise needs to bound each update; use protection = "plain"')
        strangers = sorted(set(collected.survivors) - set(self.deal.cohort(round)))
        if strangers:
            raise PrivacyError(
                f"client {strangers[0]} is not of round {round}'s cohort, and its rounds would lie closer than "
                f"{self.deal.separation}; take part only when dealt out"
            )
        total = np.zeros(collected.total.shape[0])
        for client in collected.survivors:
            total += clip_update(collected.updates[client], self.max_norm).vector
        state = self._state(round, len(total))
        noise, following = state.step(entropy.stream("correlated noise", round))
        vector: Vector = ((total + noise) / self.deal.size).astype("<f4")
        if not bool(np.isfinite(vector).all()):
            raise PrivacyError("the sum of clipped updates is not a finite vector (d,); nothing is released")
        data = np.ascontiguousarray(vector).tobytes()
        if round + 1 < self.deal.rounds:
            digest = hashlib.sha256(data).hexdigest()
            self.states.write(round + 1, KeptState(following.secret_bytes(), digest, self.ledger.head()))
        self.ledger.settle(reservation, steps_taken=0, payload=data)
        self._forget(round)
        return vector

    def _kept(self, round: int) -> KeptState:
        """The state that the release before this round left.

        Raises:
            PrivacyError: it is lost, of another time, or the ledger is older than it.
        """
        kept = self.states.read(round)
        self.ledger.check_grown(kept.head)
        if self.ledger.released(self.run, SERVER).get(round - 1) != kept.released:
            raise PrivacyError(
                f"the noise state of round {round} in {self.states.folder} is not the one that run {self.run}'s last release "
                "left; restore the newest copy, or start a new run, which is charged anew"
            )
        return kept

    def _state(self, round: int, dimension: int) -> CorrelatedNoise:
        fresh = correlated_noise(self.deal.factor, self.max_norm, self.noise_multiplier, dimension)
        if round == 0:
            return fresh
        found = fresh.restored(self._kept(round).secret)
        if found.round != round:
            raise PrivacyError(
                f"the noise state kept for round {round} is of round {found.round}; restore the newest copy"
            )
        return found

    def _forget(self, round: int) -> None:
        """A released round's own state is of no more use; after the last round, none is."""
        self.states.forget(round + 1 if round + 1 < self.deal.rounds else None)
