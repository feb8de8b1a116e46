"""The server's side of a step of the federation's DP-SGD: the mean of the clients' parts, with its noise, journaled.

It charges nothing: each client charges its own records before it samples them, in every attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from securefed.crypto.entropy import Entropy
from securefed.errors import PrivacyError, ProtocolError
from securefed.privacy.chain import EMPTY
from securefed.privacy.journal import Journal
from securefed.privacy.ledger import Ledger
from securefed.privacy.step_noise import StepEvent, StepNoise
from securefed.types import Collected, Vector


@dataclass(frozen=True)
class StepRelease:
    """One noisy mean a step.

    Attributes:
        noise: the run's. sizes: coordinates of each round's update.
        ledger: where the clients charge; here only held to its own past.
        journal: where a released step is kept until a checkpoint holds it; None before the run has a folder.
    """

    noise: StepNoise
    sizes: Sequence[int]
    ledger: Ledger | None = field(default=None, repr=False)
    journal: Journal | None = field(default=None, repr=False)

    def kept_in(self, folder: Path) -> StepRelease:
        """The same, with its journal in this run's folder."""
        return replace(self, journal=Journal(folder / "released"))

    def event_of(self, round: int) -> StepEvent:
        """What a round's step spends, for every record of its cohort."""
        return self.noise.event(self.sizes[round])

    def stored(self, round: int) -> Vector | None:
        """The step that was released before a crash; applied again unchanged, at no charge.

        Raises:
            PrivacyError: the ledger does not hold what was charged for it: it was restored from an older copy.
        """
        found = None if self.journal is None else self.journal.read(round)
        if found is None:
            return None
        vector, head = found
        if self.ledger is not None:
            self.ledger.check_grown(head)
        return vector

    def forget(self, before_round: int) -> None:
        """A checkpoint holds what came of the steps before this round."""
        if self.journal is not None:
            self.journal.clear(before_round)

    def release(self, round: int, collected: Collected, entropy: Entropy) -> Vector:
        """The mean over the survivors, who are public, float32 (d,), on disk before it is returned.

        Raises:
            PrivacyError: too few survivors for the claim, or shared noise in a sum that shows its parts.
            ProtocolError: nobody's part came.
        """
        n = len(collected.survivors)
        if n == 0:
            raise ProtocolError(f"round {round}: no client's sum survived")
        total = collected.total
        if self.noise.kind == "central":
            stream = entropy.stream("step noise", round)
            total = total + self.noise.deviation * stream.normal(len(total))
        elif collected.updates is not None:
            raise PrivacyError("noise shared among clients needs a sum that hides them; use masking or ckks")
        else:
            self.noise.check_survivors(n)
        vector: Vector = (total / n).astype("<f4")
        if self.journal is not None:
            self.journal.write(round, vector, EMPTY if self.ledger is None else self.ledger.head())
        return vector
