"""What a mechanism did, as plain facts. An event computes nothing; accountants compute from events.

An event names the accountants whose theorem covers it; an event that cannot be read back is an error,
never a zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar, Literal

from securefed.errors import PrivacyError

Unit = Literal["example", "client"]
"""What one neighbouring step adds or removes: one record, or everything of one client."""

Accountant = Literal["pld", "prv", "rdp"]
"""Privacy loss distribution, Opacus' privacy random variables, Renyi."""

VERSION = 1


class Relation(Enum):
    """Which data sets count as neighbours."""

    ADD_REMOVE = "add or remove one"
    REPLACE = "replace one"
    ZERO_OUT = "blank one out, its place being known to exist (zero-out; the number of records and clients is public)"


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """`steps` identical releases of a Poisson-sampled sum plus Gaussian noise, relation add/remove.

    Attributes:
        noise_multiplier: standard deviation of the noise over the sensitivity of the sum; >= 0.
        sample_rate: probability with which each record (or client) joins a step, independently; in
            (0, 1], and 1 is the plain Gaussian mechanism.
        steps: releases, >= 0; empty batches count.

    Raises:
        PrivacyError: a field outside its range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    KIND: ClassVar[str] = "sampled-gaussian"
    ACCOUNTANTS: ClassVar[tuple[Accountant, ...]] = ("pld", "prv", "rdp")
    RELATION: ClassVar[Relation] = Relation.ADD_REMOVE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise PrivacyError(
                f"noise_multiplier must be a finite number >= 0, got {self.noise_multiplier!r}"
            )
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(f"sample_rate must lie in (0, 1], got {self.sample_rate!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise PrivacyError(f"steps must be a whole number >= 0, got {self.steps!r}")


@dataclass(frozen=True, slots=True)
class NonPrivate:
    """Something left without noise: from here on epsilon is infinite."""

    KIND: ClassVar[str] = "non-private"
    ACCOUNTANTS: ClassVar[tuple[Accountant, ...]] = ("pld", "prv", "rdp")
    RELATION: ClassVar[Relation] = Relation.ADD_REMOVE


Event = SampledGaussian | NonPrivate


def to_json(event: Event) -> str:
    """One line of JSON that `from_json` reads back to an equal event, in any later version."""
    tree: dict[str, Any] = {"version": VERSION, "kind": event.KIND}
    if isinstance(event, SampledGaussian):
        tree |= {
            "noise_multiplier": float(event.noise_multiplier),
            "sample_rate": float(event.sample_rate),
            "steps": event.steps,
        }
    return json.dumps(tree)


def from_json(text: str) -> Event:
    """The event written by `to_json`.

    Raises:
        PrivacyError: not JSON, another version, an unknown kind, missing or extra fields, bad values.

    >>> from_json(to_json(SampledGaussian(1.0, 0.1, 3)))
    SampledGaussian(noise_multiplier=1.0, sample_rate=0.1, steps=3)
    """
    try:
        tree = json.loads(text)
        version, kind = tree.pop("version"), tree.pop("kind")
        classes: dict[str, type[Event]] = {c.KIND: c for c in (SampledGaussian, NonPrivate)}
        if version != VERSION or kind not in classes:
            raise PrivacyError(
                f"unknown privacy event {kind!r} of version {version!r}; update SecureFed to read it"
            )
        return classes[kind](**tree)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PrivacyError("a privacy event cannot be read; the ledger entry is damaged") from None


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same composition with equal (noise_multiplier, sample_rate) added up, in a canonical order.

    Events of no steps vanish. Composition does not depend on order, so equal multisets merge equal.
    """
    steps: dict[tuple[float, float], int] = {}
    exposed = False
    for event in events:
        if isinstance(event, NonPrivate):
            exposed = True
            continue
        key = (float(event.noise_multiplier), float(event.sample_rate))
        steps[key] = steps.get(key, 0) + event.steps
    merged = tuple(SampledGaussian(s, q, t) for (s, q), t in sorted(steps.items()) if t > 0)
    return (NonPrivate(), *merged) if exposed else merged


def repeat(event: Event, times: int) -> Event:
    """The event happening `times` times, as one event."""
    return replace(event, steps=event.steps * times) if isinstance(event, SampledGaussian) else event
