"""What every release of one noisy vector a round shares: charged first, journaled before it is handed out, re-sent as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from securefed.types import SERVER, Vector

if TYPE_CHECKING:
    from securefed.privacy.budget import Budget
    from securefed.privacy.events import Event
    from securefed.privacy.ledger import Ledger
    from securefed.privacy.moving_clip import MovingClip


class JournaledRelease(ABC):
    """The ledger's side of a mechanism; what is added up and noised is the subclass's.

    Attributes:
        clip: where it moves with the norms, and is part of what is journaled; None for a fixed one.
    """

    ledger: Ledger
    run: str
    budget: Budget | None
    clip: MovingClip | None

    @property
    @abstractmethod
    def event(self) -> Event:
        """What one round spends."""

    def stored(self, round: int) -> Vector | None:
        """The round's vector if it was journaled before a crash; applied again unchanged."""
        payload = self.ledger.outbox(self.run, SERVER, round)
        if payload is None:
            return None
        vector = np.frombuffer(payload, "<f4").copy()
        return vector if self.clip is None else self.clip.take(vector)

    def admit(self) -> None:
        """Raises BudgetExceeded where not even one round fits; charges nothing."""
        self._admit(self.event)

    def reserve(self, round: int) -> int:
        """Charges the round before anything is trained. Raises BudgetExceeded, charging nothing."""
        return self._reserve(round, self.event)

    def _admit(self, event: Event, *beside: Event) -> None:
        if self.budget is not None:
            self.ledger.admit(run=self.run, client=SERVER, event=event, budget=self.budget, beside=beside)

    def _reserve(self, round: int, event: Event) -> int:
        return self.ledger.reserve(run=self.run, client=SERVER, round=round, event=event, budget=self.budget)

    def _settle(self, reservation: int, payload: Vector) -> None:
        data = np.ascontiguousarray(payload, "<f4").tobytes()
        self.ledger.settle(reservation, steps_taken=1, payload=data)
