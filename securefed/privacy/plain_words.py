"""What an epsilon means, in sentences for somebody who meets it for the first time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from securefed.privacy.events import (
    Accountant,
    BestOf,
    CentralGaussian,
    CorrelatedGaussian,
    Event,
    NonPrivate,
    SharedGaussian,
    Unit,
)
from securefed.privacy.words import CENTRAL, held_against, is_any, is_distributed

ACCOUNTANTS: dict[Accountant, str] = {
    "pld": "PLD, which composes the losses of all steps numerically and rounds up",
    "prv": "PRV, which composes the losses of all steps numerically and adds its error",
    "rdp": "RDP, which adds up Renyi divergences; cruder than PLD, and valid for every mechanism here",
}


def reading(epsilon: float, delta: float, unit: Unit) -> str:
    """The guarantee itself, as odds."""
    one = "record" if unit == "example" else "client"
    if math.isinf(epsilon):
        return f"nothing is promised: what was released may show a whole {one}"
    odds = math.exp(epsilon) if epsilon < 700 else math.inf
    factor = f"{odds:.3g}" if odds < 1e6 else f"e^{epsilon:.4g}"
    weak = ", which protects little against somebody who tries" if epsilon > 10 else ""
    return (
        f"whatever is concluded from what was released, whether one {one} was in it changes its odds by a factor of at "
        f"most {factor}{weak}, but for a failure of probability about {delta:g}"
    )


def trust_model(unit: Unit, clients: int, own_noise: bool, events: Sequence[Event]) -> str:
    """Who has to be honest for it to hold."""
    if is_any(events, CentralGaussian):
        return "the server is trusted: it sees the sum of every client before it adds the noise"
    if is_any(events, SharedGaussian):
        return (
            "whoever holds the key is trusted to open nothing but the agreed sums; more than the agreed number of clients "
            "must not pool what they know, or leave out their share of the noise"
        )
    if is_distributed(events):
        return (
            "no server is trusted; more than the agreed number of clients must not pool what they know, or leave out "
            "their share of the noise"
        )
    if is_any(events, CorrelatedGaussian):
        return (
            "the server is trusted: it sees every update, clips it, adds the noise, keeps the noise's state secret and asks "
            "no client sooner than promised"
        )
    if unit == "client" and (not own_noise or held_against(events) == CENTRAL):
        return "the server is trusted: it sees every update, clips it and adds the noise"
    if unit == "example" and clients == 1:
        return "whoever runs the training is trusted with the records; nobody is who sees what leaves it"
    return "each client trusts its own machine and software, and nobody else"


def amplification(unit: Unit, clients: int, own_noise: bool, events: Sequence[Event]) -> str:
    """Whether secret sampling made epsilon smaller, and where it is not counted."""
    inner = [e for event in events for e in (event.trial if isinstance(event, BestOf) else (event,))]
    rates = sorted({e.sample_rate for e in inner if not isinstance(e, NonPrivate) and e.steps})
    below = [rate for rate in rates if rate < 1]
    if not rates:
        return "none to speak of: nothing was released with noise"
    if not below and all(isinstance(e, CorrelatedGaussian) for e in inner):
        return "absent, none is claimed: who is in which round is a public schedule"
    if not below and unit == "client" and all(isinstance(e, CentralGaussian) for e in inner):
        return "absent, none is claimed: who is in which round is public, and a client is charged for its own rounds only"
    if not below:
        who = (
            "every record"
            if unit == "example"
            else "every client"
            if own_noise
            else "every client, cohort or not"
        )
        seen = "; who takes part is known to the server" if is_distributed(events) else ""
        return f"absent: each step counts as having used {who}{seen}"
    chance = " or ".join(f"{rate:.4g}" for rate in below)
    if unit == "client" and not is_distributed(events) and not own_noise:
        return f"counted: a client is in a round with chance {chance}, drawn in secret; void for whoever knows who took part"
    told = "; absent for the choice of clients, which the server makes" if clients > 1 else ""
    return f"counted: a record is in a step with chance {chance}, drawn in secret{told}"


def tuning(events: Sequence[Event]) -> str:
    """Whether looking for good settings was paid for."""
    searches = sum(event.steps for event in events if isinstance(event, BestOf))
    if not searches:
        return (
            "not charged: if settings were tried on these records and the best kept, epsilon is larger than this "
            "(runs in this ledger add up below; the choice among them comes on top)"
        )
    return f"charged: {searches} search{'es' if searches > 1 else ''} in this run; tries outside this ledger are not"
