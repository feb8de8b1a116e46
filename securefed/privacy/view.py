"""One run's side of the ledger: what a result carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from securefed.privacy.events import Accountant, Event, Unit
from securefed.privacy.ledger import Ledger

if TYPE_CHECKING:
    from securefed.privacy.statement import Statement


@dataclass(frozen=True)
class RunView:
    """The ledger's answers about one run; each reads the file again, so they are never stale."""

    ledger: Ledger
    run: str

    @property
    def unit(self) -> Unit:
        """The unit the run is recorded at."""
        return self.ledger.unit(self.run)

    def epsilon(
        self,
        delta: float,
        *,
        client: int | None = None,
        unit: Unit | None = None,
        accountant: Accountant | None = None,
    ) -> float:
        """`Ledger.epsilon` of this run, at the unit it is recorded at."""
        own = unit or self.unit
        return self.ledger.epsilon(delta, client=client, unit=own, accountant=accountant, run=self.run)

    def statement(self, delta: float, accountant: Accountant | None = None) -> Statement:
        """`Ledger.statement` of this run."""
        return self.ledger.statement(delta, self.run, accountant)

    def events(self, *, client: int | None = None) -> tuple[Event, ...]:
        """This run's events, in the order of reservation."""
        return self.ledger.events(run=self.run, client=client, unit=self.unit)
