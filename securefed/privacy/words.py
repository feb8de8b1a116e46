"""Events in plain words, for statements."""

from __future__ import annotations

from collections.abc import Sequence

from securefed.privacy.events import (
    BestOf,
    CentralGaussian,
    CorrelatedGaussian,
    DiscreteGaussianSum,
    Event,
    NonPrivate,
    Relation,
    SampledGaussian,
    SharedGaussian,
    SkellamSum,
)

DISTRIBUTED = (
    "against everyone, the server included, who sees only sums over the agreed minimum of clients, as long "
    "as no more clients than assumed pool what they know"
)
SHARED = (
    "against everyone, the server included, who sees only decrypted sums over the agreed minimum of clients, as long "
    "as whoever holds the key opens nothing else and no more clients than assumed pool what they know"
)
CENTRAL = "against other clients and outsiders, not against the server, which sees the sum of every client before it adds the noise"


def describe(event: Event) -> str:
    """What left, how often, and behind which noise."""
    if isinstance(event, NonPrivate):
        return "a release without noise"
    if isinstance(event, CorrelatedGaussian):
        return (
            f"{event.steps} banded matrix factorization over {event.rounds} rounds ({event.bands} bands), Gaussian noise "
            f"by the server, correlated over rounds, noise multiplier {event.noise_multiplier:.4g} over the sensitivity of "
            f"the whole run; cohorts are dealt out in turn: a client takes part at most {event.participations} times, at "
            f"least {event.separation} rounds apart"
        )
    if isinstance(event, SampledGaussian):
        whose = {SharedGaussian: ", in shares that clients encrypt", CentralGaussian: ", by the server"}
        return (
            f"{event.steps} Gaussian steps{whose.get(type(event), '')}, noise multiplier {event.noise_multiplier:.4g}, "
            f"sample rate {event.sample_rate:.4g}"
        )
    if isinstance(event, BestOf):
        trials = "; ".join(describe(inner) for inner in event.trial)
        return f"{event.steps} search(es) of about {event.mean:g} trials, only the best released ({trials})"
    total = event.variance * (event.shares if isinstance(event, DiscreteGaussianSum) else 1)
    sampling = "no amplification by sampling"
    if event.sample_rate < 1:
        sampling = f"records sampled in secret at rate {event.sample_rate:.4g}"
    name = "Skellam" if isinstance(event, SkellamSum) else "distributed discrete Gaussian"
    return (
        f"{event.steps} {name} sums, noise multiplier {total**0.5 / event.sensitivity:.4g} over the "
        f"sensitivity after rounding, {sampling}"
    )


def held_against(events: Sequence[Event]) -> str | None:
    """Against whom it holds, where the events say who added the noise; None where whoever trained did."""
    if is_any(events, CentralGaussian):  # the weakest counts
        return CENTRAL
    if is_any(events, SharedGaussian):
        return SHARED
    return DISTRIBUTED if is_distributed(events) else None


def is_any(events: Sequence[Event], *kinds: type) -> bool:
    """Whether any of these, or of the trials in them, is of one of these kinds."""
    flat = (inner for event in events for inner in (event.trial if isinstance(event, BestOf) else (event,)))
    return any(isinstance(event, kinds) for event in flat)


def is_distributed(events: Sequence[Event]) -> bool:
    """Whether the noise of any of these was added by clients, inside a secure or an encrypted sum."""
    return is_any(events, SkellamSum, DiscreteGaussianSum, SharedGaussian)


def is_one_noise(events: Sequence[Event]) -> bool:
    """Whether any of these has one noise for the sum of several clients."""
    return is_distributed(events) or is_any(events, CentralGaussian)


def relation_of(events: Sequence[Event]) -> str:
    """Which neighbours the composition of these events speaks about."""
    met: dict[str, None] = {}
    for event in events:
        inner = event.trial if isinstance(event, BestOf) else (event,)
        met |= dict.fromkeys(one.RELATION.value for one in inner)
    return "; for other releases ".join(met) or Relation.ZERO_OUT.value
