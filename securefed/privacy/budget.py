"""How much may be spent, and whether one more event fits. Pure functions over events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from securefed.errors import PrivacyError
from securefed.privacy.accounting import epsilon_of
from securefed.privacy.calibration import max_steps
from securefed.privacy.events import Accountant, Event, SampledGaussian, covers, merge, steps_of


@dataclass(frozen=True, slots=True)
class Budget:
    """A cap on epsilon at delta, checked before each reservation.

    Attributes:
        epsilon: cap for the run, per record (or client), > 0.
        delta: in (0, 1).
        site_epsilon: cap over all runs of this site on the same data set; 0 = no cap.
        accountant: by which it is counted; where it is not valid for an event, RDP counts instead.

    Raises:
        PrivacyError: a field outside its range.
    """

    epsilon: float
    delta: float
    site_epsilon: float = 0.0
    accountant: Accountant = "pld"

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise PrivacyError(f"a budget's epsilon must be above 0, got {self.epsilon!r}")
        if not 0 < self.delta < 1:
            raise PrivacyError(f"a budget's delta must lie strictly between 0 and 1, got {self.delta!r}")
        if not self.site_epsilon >= 0:
            raise PrivacyError(f"site_epsilon must be >= 0 (0 = no cap), got {self.site_epsilon!r}")


def fits(before: Sequence[Event], event: Event, epsilon: float, budget: Budget) -> bool:
    """Whether `event` after `before` stays within epsilon at the budget's delta.

    For a sampled Gaussian this compares step counts with a remembered maximum, so that a schedule of
    equal rounds asks the accountant once.
    """
    accountant = _counted_by((*before, event), budget)
    if not isinstance(event, SampledGaussian) or event.steps == 0:
        return epsilon_of((*before, event), budget.delta, accountant) <= epsilon
    if math.isinf(epsilon):
        return True
    same: list[SampledGaussian] = []
    others: list[Event] = []
    for earlier in merge(before):
        if isinstance(earlier, SampledGaussian) and _mechanism(earlier) == _mechanism(event):
            same.append(earlier)
        else:
            others.append(earlier)
    steps = event.steps + sum(e.steps for e in same)
    allowed = max_steps(*_mechanism(event), epsilon, budget.delta, accountant, tuple(others))
    return steps <= allowed


def _counted_by(events: Sequence[Event], budget: Budget) -> Accountant:
    """The budget's accountant, or RDP, which is valid for every event, where that one is not."""
    return budget.accountant if covers(budget.accountant, events) else "rdp"


def _mechanism(event: SampledGaussian) -> tuple[float, float]:
    return float(event.noise_multiplier), float(event.sample_rate)


def refusal(who: str, before: Sequence[Event], event: Event, cap: float, budget: Budget) -> str:
    """The line that says what was refused, and what to do."""
    accountant = _counted_by((*before, event), budget)
    spent = epsilon_of(before, budget.delta, accountant)
    after = epsilon_of((*before, event), budget.delta, accountant)
    steps = steps_of(event)
    after_text = f"{after:.4g}" if math.isfinite(after) else "infinity"
    return (
        f"{who} has spent epsilon={spent:.4g} of {cap:g} at delta={budget.delta:g}; {steps} more steps would "
        f"make it {after_text}; stop here, raise the budget or add noise"
    )
