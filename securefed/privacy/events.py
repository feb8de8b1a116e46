"""What a mechanism did, as plain facts. An event computes nothing; accountants compute from events.

An event names the accountants whose theorem covers it; an event that cannot be read back is an error,
never a zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
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
    ZERO_OUT = "replace one's contribution by zero (the number of records and clients is public)"


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """`steps` identical releases of a Poisson-sampled sum plus Gaussian noise.

    Its bounds are those of add/remove. Stated is zero-out: the noise is divided by a public number of
    records, which adding or removing one outright would change.

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
    RELATION: ClassVar[Relation] = Relation.ZERO_OUT

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise PrivacyError(
                f"noise_multiplier must be a finite number >= 0, got {self.noise_multiplier!r}"
            )
        _check_rate(self.sample_rate)
        _check_steps(self.steps)


@dataclass(frozen=True, slots=True)
class SharedGaussian(SampledGaussian):
    """The same releases, of a sum that is decrypted once: the noise is what the clients' shares add up to.

    Its multiplier counts the shares of the fewest clients that a sum may hold, less those assumed to tell theirs.
    """

    KIND: ClassVar[str] = "shared-gaussian"


@dataclass(frozen=True, slots=True)
class CentralGaussian(SampledGaussian):
    """The same releases, whose noise the server adds to a sum of records that it sees before."""

    KIND: ClassVar[str] = "central-gaussian"


@dataclass(frozen=True, slots=True)
class CorrelatedGaussian(SampledGaussian):
    """A whole run as one Gaussian release (`matrix_factorization`), whose noise is correlated over its rounds.

    Attributes:
        noise_multiplier: over the sensitivity of the whole run. sample_rate: 1, for nothing is sampled.
        rounds: of the run. bands: rounds that a round's noise depends on.
        separation, participations: least distance and largest number of one client's rounds.
    """

    rounds: int
    bands: int
    separation: int
    participations: int

    KIND: ClassVar[str] = "correlated-gaussian"

    def __post_init__(self) -> None:
        SampledGaussian.__post_init__(self)
        for name in ("rounds", "bands", "separation", "participations"):
            _check_steps(getattr(self, name))
        if self.sample_rate != 1:
            raise PrivacyError(f"correlated noise is not amplified, got sample_rate={self.sample_rate!r}")


@dataclass(frozen=True, slots=True)
class NonPrivate:
    """Something left without noise: from here on epsilon is infinite."""

    KIND: ClassVar[str] = "non-private"
    ACCOUNTANTS: ClassVar[tuple[Accountant, ...]] = ("pld", "prv", "rdp")
    RELATION: ClassVar[Relation] = Relation.ZERO_OUT


@dataclass(frozen=True, slots=True)
class SkellamSum:
    """`steps` releases of a sum of integer vectors plus Skellam noise.

    Relation: one client's (or record's) vector is replaced by zero; clients still take part and add their noise.

    Attributes:
        sensitivity: bound on one vector's L2 norm *after* rounding to integers, > 0.
        sensitivity_l1: bound on its L1 norm, >= the L2 bound.
        variance: of the whole honest noise in one coordinate, > 0 (the sum of the honest clients' shares).
        steps: releases, >= 0.
        slack: total-variation distance of one release's noise from exact Skellam noise, >= 0; it is
            charged to delta.
        sample_rate: probability with which each record joins a release, independently and in secret, in
            (0, 1]. Cohorts that the server picks are not sampled in secret: 1.

    Raises:
        PrivacyError: a field outside its range.
    """

    sensitivity: float
    sensitivity_l1: float
    variance: float
    steps: int
    slack: float = 0.0
    sample_rate: float = 1.0

    KIND: ClassVar[str] = "skellam-sum"
    ACCOUNTANTS: ClassVar[tuple[Accountant, ...]] = ("rdp",)
    RELATION: ClassVar[Relation] = Relation.ZERO_OUT

    def __post_init__(self) -> None:
        _check_positive(
            sensitivity=self.sensitivity, sensitivity_l1=self.sensitivity_l1, variance=self.variance
        )
        _check_slack(self.slack)
        _check_rate(self.sample_rate)
        _check_steps(self.steps)


@dataclass(frozen=True, slots=True)
class DiscreteGaussianSum:
    """`steps` releases of a sum of integer vectors plus `shares` discrete Gaussians each.

    Relation: one client's (or record's) vector is replaced by zero; clients still take part and add their noise.

    Attributes:
        sensitivity: bound on one vector's L2 norm *after* rounding to integers, > 0.
        dimension: length of the vectors, >= 1.
        variance: parameter of one honest client's N_Z(0, variance), >= 1/4.
        shares: honest clients whose noise is in every sum, >= 1.
        steps, slack, sample_rate: as for `SkellamSum`.

    Raises:
        PrivacyError: a field outside its range.
    """

    sensitivity: float
    dimension: int
    variance: float
    shares: int
    steps: int
    slack: float = 0.0
    sample_rate: float = 1.0

    KIND: ClassVar[str] = "discrete-gaussian-sum"
    ACCOUNTANTS: ClassVar[tuple[Accountant, ...]] = ("rdp",)
    RELATION: ClassVar[Relation] = Relation.ZERO_OUT

    def __post_init__(self) -> None:
        _check_positive(sensitivity=self.sensitivity, variance=self.variance)
        if self.variance < 0.25:
            raise PrivacyError(
                f"shares of discrete Gaussian noise need a variance >= 1/4 each, got {self.variance!r}; "
                "use a finer quantizer, or Skellam noise, which has no such floor"
            )
        for name, value in (("dimension", self.dimension), ("shares", self.shares)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PrivacyError(f"{name} must be a whole number >= 1, got {value!r}")
        _check_slack(self.slack)
        _check_rate(self.sample_rate)
        _check_steps(self.steps)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise PrivacyError(f"{name} must be a finite number above 0, got {value!r}")


def _check_slack(slack: float) -> None:
    if not 0 <= slack < 1:
        raise PrivacyError(f"slack is a distance in [0, 1), got {slack!r}")


def _check_rate(sample_rate: float) -> None:
    if not 0 < sample_rate <= 1:
        raise PrivacyError(f"sample_rate must lie in (0, 1], got {sample_rate!r}")


def _check_steps(steps: object) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise PrivacyError(f"steps must be a whole number >= 0, got {steps!r}")


@dataclass(frozen=True, slots=True)
class BestOf:
    """`steps` times: a secret, random number of trial runs of which only the best one's output left.

    The number of trials is drawn from a truncated negative binomial of this shape (0: logarithmic, 1:
    geometric), or from a Poisson (shape infinity). `tuning.py` has the theorem, and what it asks for.

    Attributes:
        trial: what one trial spends, all hyper-parameters that may be tried included; merged, without
            NonPrivate and without another BestOf.
        mean: expected number of trials; >= 1 (Poisson: > 0).
        shape: > -1, or infinity.
        steps: how often such a search was run, >= 0.

    Raises:
        PrivacyError: a field outside its range.
    """

    trial: tuple[Release, ...]
    mean: float
    shape: float
    steps: int

    KIND: ClassVar[str] = "best-of"
    ACCOUNTANTS: ClassVar[tuple[Accountant, ...]] = ("rdp",)
    RELATION: ClassVar[Relation] = Relation.ZERO_OUT

    def __post_init__(self) -> None:
        if not self.trial or not all(isinstance(event, Release) for event in self.trial):
            raise PrivacyError(
                "a trial is at least one noised release; releases without noise cannot be tuned"
            )
        _check_positive(mean=self.mean)
        if not self.shape > -1 or (self.mean < 1 and self.shape != math.inf):
            raise PrivacyError(
                f"a number of trials has shape > -1 and, but for Poisson, mean >= 1, got shape={self.shape!r}, "
                f"mean={self.mean!r}"
            )
        _check_steps(self.steps)

    @property
    def slack(self) -> float:
        """Expected distance of all trials' noise from its law: a trial's, times the expected number of trials."""
        return self.mean * sum(event.steps * getattr(event, "slack", 0.0) for event in self.trial)


Release = SampledGaussian | SkellamSum | DiscreteGaussianSum
"""Noised releases."""

Stepped = Release | BestOf
"""Events that are a number of equal mechanisms."""

Event = Stepped | NonPrivate


def to_json(event: Event) -> str:
    """One line of JSON that `from_json` reads back to an equal event, in any later version."""
    return json.dumps({"version": VERSION, **_tree(event)})


def _tree(event: Event) -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": event.KIND}
    for field in fields(event):
        value = getattr(event, field.name)
        if field.name == "trial":
            tree[field.name] = [_tree(inner) for inner in value]
        elif field.name in _WHOLE:
            tree[field.name] = value
        else:
            tree[field.name] = float(value) if math.isfinite(value) else "infinity"
    return tree


def from_json(text: str) -> Event:
    """The event written by `to_json`.

    Raises:
        PrivacyError: not JSON, another version, an unknown kind, missing or extra fields, bad values.

    >>> from_json(to_json(SampledGaussian(1.0, 0.1, 3)))
    SampledGaussian(noise_multiplier=1.0, sample_rate=0.1, steps=3)
    """
    try:
        tree = json.loads(text)
        version = tree.pop("version")
        if version != VERSION:
            raise PrivacyError(f"unknown privacy event of version {version!r}; update SecureFed to read it")
        return _event(tree)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PrivacyError("a privacy event cannot be read; the ledger entry is damaged") from None


def _event(tree: dict[str, Any]) -> Event:
    kind = tree.pop("kind")
    classes: dict[str, type[Event]] = {c.KIND: c for c in _CLASSES}
    if kind not in classes:
        raise PrivacyError(f"unknown privacy event {kind!r}; update SecureFed to read it")
    if "trial" in tree:
        tree["trial"] = tuple(_event(inner) for inner in tree["trial"])
    if tree.get("shape") == "infinity":
        tree["shape"] = math.inf
    return classes[kind](**tree)


_CLASSES: tuple[type[Event], ...] = (
    SampledGaussian,
    NonPrivate,
    SkellamSum,
    DiscreteGaussianSum,
    BestOf,
    SharedGaussian,
    CentralGaussian,
    CorrelatedGaussian,
)
_WHOLE = ("steps", "dimension", "shares", "rounds", "bands", "separation", "participations")


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same composition with equal mechanisms' steps added up, in a canonical order.

    Events of no steps vanish. Composition does not depend on order, so equal multisets merge equal.
    """
    steps: dict[Stepped, int] = {}
    exposed = False
    for event in events:
        if isinstance(event, NonPrivate):
            exposed = True
            continue
        key = mechanism(event)
        steps[key] = steps.get(key, 0) + event.steps
    kept = sorted((key for key, total in steps.items() if total > 0), key=_by_fields)
    merged = tuple(replace(key, steps=steps[key]) for key in kept)
    return (NonPrivate(), *merged) if exposed else merged


def mechanism(event: Stepped) -> Stepped:
    """The event with no steps: equal for equal mechanisms, numbers as floats where they are real."""
    values: dict[str, Any] = {f.name: getattr(event, f.name) for f in fields(event)}
    for name, value in values.items():
        if name == "trial":
            values[name] = merge(value)
        elif name not in _WHOLE:
            values[name] = float(value)
    return replace(event, **(values | {"steps": 0}))


def _by_fields(event: Stepped) -> tuple[Any, ...]:
    values = [getattr(event, f.name) for f in fields(event) if f.name != "trial"]
    return (_CLASSES.index(type(event)), *values, to_json(event))


def repeat(event: Event, times: int) -> Event:
    """The event happening `times` times, as one event."""
    return event if isinstance(event, NonPrivate) else replace(event, steps=event.steps * times)


def steps_of(event: Event) -> int:
    """Releases in the event; 0 for one that is not counted in steps."""
    return 0 if isinstance(event, NonPrivate) else event.steps


def covers(accountant: Accountant, events: Iterable[Event]) -> bool:
    """Whether the accountant's theorem is valid for every one of these events."""
    return all(accountant in event.ACCOUNTANTS for event in events)
