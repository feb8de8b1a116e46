"""From events to epsilon: the one door to the accountants, which says which of them answered.

GDP (the central-limit approximation) is absent on purpose: it under-reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

from securefed.errors import PrivacyError
from securefed.privacy.events import Accountant, BestOf, Event, NonPrivate, SampledGaussian, covers, merge


@dataclass(frozen=True, slots=True)
class Spent:
    """An epsilon with the delta it holds at and the accountant that really gave it."""

    epsilon: float
    delta: float
    accountant: Accountant


def epsilon(events: Iterable[Event], delta: float, accountant: Accountant | None = None) -> Spent:
    """An upper bound on what the composition of these events spends at delta.

    Equal events are merged first and the answer is remembered, so that asking again is cheap. Where the
    accountant asked for fails numerically, RDP's cruder upper bound is given and named.

    Args:
        events: any order; none, or none with steps, spend nothing.
        delta: in (0, 1).
        accountant: "pld" (tight), "prv" (Opacus), "rdp" (cruder, always there); by default the tightest
            that is valid for every event: "pld" for sampled Gaussians, "rdp" for the rest and for mixtures.

    Raises:
        PrivacyError: delta out of range, an unknown accountant or one not valid for an event, or no
            accountant gives a finite bound although there is noise.

    >>> round(epsilon([SampledGaussian(1.0, 0.01, 1000)], 1e-5).epsilon, 2)
    1.83
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta must lie strictly between 0 and 1, got {delta!r}")
    merged = merge(events)
    if accountant is None:
        accountant = "pld" if covers("pld", merged) else "rdp"
    if accountant not in get_args(Accountant):
        raise PrivacyError(f"no accountant {accountant!r}; choose pld, prv or rdp (gdp under-reports)")
    for event in merged:
        if accountant not in event.ACCOUNTANTS:
            valid = ", ".join(event.ACCOUNTANTS)
            raise PrivacyError(
                f"accountant {accountant} is not valid for {event.KIND}; choose one of {valid}"
            )
    return _epsilon(merged, delta, accountant)


def epsilon_of(events: Iterable[Event], delta: float, accountant: Accountant | None = None) -> float:
    """`epsilon(...).epsilon`."""
    return epsilon(events, delta, accountant).epsilon


@lru_cache(maxsize=4096)
def _epsilon(merged: tuple[Event, ...], delta: float, accountant: Accountant) -> Spent:
    noisy = tuple(event for event in merged if _is_noisy(event))
    if len(noisy) < len(merged):  # something left without noise
        return Spent(math.inf, delta, accountant)
    if not noisy:
        return Spent(0.0, delta, accountant)
    candidates: tuple[Accountant, ...] = (accountant,) if accountant == "rdp" else (accountant, "rdp")
    for candidate in candidates:
        try:
            return Spent(_ask(candidate, noisy, delta), delta, candidate)
        except (ArithmeticError, MemoryError):
            continue
    raise PrivacyError(
        f"no accountant gives a finite epsilon at delta={delta:g} for events down to {noisy[0]!r}; add noise"
    )


def _is_noisy(event: Event) -> bool:
    """Whether there is noise in everything that left with this event."""
    if isinstance(event, BestOf):
        return all(_is_noisy(inner) for inner in event.trial)
    return not isinstance(event, NonPrivate) and getattr(event, "noise_multiplier", 1.0) > 0


def _ask(accountant: Accountant, events: tuple[Event, ...], delta: float) -> float:
    if accountant == "rdp":
        from securefed.privacy.renyi import rdp_epsilon

        return rdp_epsilon([event for event in events if not isinstance(event, NonPrivate)], delta)
    gaussians = [event for event in events if isinstance(event, SampledGaussian)]
    if accountant == "pld":
        from securefed.privacy.pld import pld_epsilon

        return pld_epsilon(gaussians, delta)
    from securefed.privacy.opacus_accountants import prv_epsilon

    return prv_epsilon(gaussians, delta)
