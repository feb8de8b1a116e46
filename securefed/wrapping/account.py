"""A loop's account in the site's ledger: steps are reserved in small portions, each before its first step.

A crash, a kill or a stop loses what was reserved and not taken, at most one portion: the ledger then
overstates by that much, and never understates. `close` settles what was taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from securefed.errors import BudgetExceeded, PrivacyError
from securefed.privacy.budget import Budget
from securefed.privacy.events import SampledGaussian
from securefed.privacy.ledger import Ledger
from securefed.privacy.records import ShardKey

CLIENT = 0
"""A loop over one data set is a federation of one, so its only client is number 0."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the account is opened for; all of it is public.

    Attributes:
        dataset: the data set's name in the ledger. shard: its digest and number of records.
        noise_multiplier, sample_rate: of each step. steps: of the whole plan.
        budget: caps on epsilon; infinite where only the noise was given.
        portion: steps reserved at once.
    """

    dataset: str
    shard: ShardKey
    noise_multiplier: float
    sample_rate: float
    steps: int
    budget: Budget
    portion: int


class Account:
    """Reserves before each portion's first step, counts, and settles.

    Args:
        run: its identity; the same after a resumption, so that all its spending is one run's.
        taken: steps that the resumed checkpoint has seen; they and whatever else the run reserved stay charged.
    """

    def __init__(self, ledger: Ledger, run: str, terms: Terms, taken: int = 0) -> None:
        self.ledger, self.run, self.terms, self.taken = ledger, run, terms, taken
        self._reservation: int | None = None
        self._reserved = self._used = 0
        self._closed = self._registered = self._started = False

    @property
    def left(self) -> int:
        """Steps of the plan that have not been taken."""
        return self.terms.steps - self.taken

    @property
    def started(self) -> bool:
        """Whether this process has reserved anything."""
        return self._started

    def before_step(self) -> None:
        """Makes sure that the next step is on disk as spent, reserving another portion where needed.

        Raises:
            BudgetExceeded: the plan's steps are taken, or the budget (of this run or of the site) is.
            PrivacyError: the account is closed.
        """
        if self._closed:
            raise PrivacyError("this private training is closed; call make_private again for another run")
        if self.left <= 0:
            raise BudgetExceeded(
                f"all {self.terms.steps} planned steps are taken; plan more epochs or steps in a new run (it adds to the same account)"
            )
        if self._used < self._reserved:
            return
        self.settle()
        self._register()
        portion = min(self.terms.portion, self.left)
        try:
            self._reservation = self._reserve(portion)
        except BudgetExceeded:
            if portion == 1:
                raise
            portion = 1  # the budget's last steps one by one
            self._reservation = self._reserve(portion)
        self._reserved, self._used, self._started = portion, 0, True

    def _reserve(self, portion: int) -> int:
        event = SampledGaussian(self.terms.noise_multiplier, self.terms.sample_rate, portion)
        return self.ledger.reserve(
            run=self.run, client=CLIENT, round=self.taken, event=event, budget=self.terms.budget
        )

    def after_step(self) -> None:
        """Counts a step that was released."""
        if self._used >= self._reserved:
            raise PrivacyError("a step was taken that no reservation covers")
        self._used += 1
        self.taken += 1
        if self._used == self._reserved:
            self.settle()

    def settle(self) -> None:
        """Marks the open portion finished; its untaken steps stay charged, and the next step reserves anew."""
        if self._reservation is None:
            return
        self.ledger.settle(self._reservation, steps_taken=self._used)
        self._reservation, self._reserved, self._used = None, 0, 0

    def close(self) -> None:
        """Settles; no step can follow."""
        self._closed = True
        self.settle()

    def charges(self) -> int:
        """Reservations of the run so far, which a checkpoint holds the ledger to."""
        self._register()
        return self.ledger.charges(self.run)

    def epsilon(self, delta: float) -> float:
        """What the run has spent, everything reserved included; 0 before its first step."""
        self._register()
        return self.ledger.epsilon(delta, run=self.run, accountant=self.terms.budget.accountant)

    def _register(self) -> None:
        if not self._registered:
            self.ledger.register(self.run, {CLIENT: self.terms.shard}, self.terms.dataset, "example")
            self._registered = True
