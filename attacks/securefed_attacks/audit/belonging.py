"""The section on membership: every attack on every view, with intervals, and what they allow to say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.shift import FEWEST, Shift
from securefed_attacks.audit.verdict import Finding
from securefed_attacks.membership import (
    CalibratedLoss,
    Evidence,
    LiRAOffline,
    LiRAOnline,
    Loss,
    MembershipAttack,
    UpdateCosine,
)
from securefed_attacks.statistics import (
    Interval,
    Roc,
    auc_interval,
    clopper_pearson,
    fpr_interval,
    roc,
    tpr_interval,
)

ATTACKS: tuple[MembershipAttack, ...] = (
    Loss(),
    CalibratedLoss(),
    UpdateCosine(),
    LiRAOffline(),
    LiRAOnline(),
)
RATES = (0.01, 0.001)
"""False positive rates that are printed; the verdict asks for those down to the smallest one asked."""
TIMES = 10
"""LEAKS from where the true positive rate is surely this many times the false positive rate."""
LEVEL = 0.05
"""Chance, over all tests of an audit together, that nothing leaks and LEAKS is said."""
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class AtRate:
    """The true positive rate at one false positive rate; `resolved`: enough non-members to show that rate."""

    fpr: float
    tpr: Interval
    real_fpr: Interval
    resolved: bool


@dataclass(frozen=True, eq=False)
class Membership:
    """One attack on one view.

    Attributes:
        auc, rates: at 95 % each. curve: the whole ROC. leaks: the rates at which LEAKS holds jointly.
        scores: (n,), float64, of the records that were asked.
    """

    view: str
    attack: str
    auc: Interval
    rates: tuple[AtRate, ...]
    curve: Roc = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    leaks: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Belonging:
    """The whole section. `detectable`: smallest true positive rate that would have been LEAKS, at the smallest rate."""

    results: tuple[Membership, ...]
    findings: tuple[Finding, ...]
    members: int
    others: int
    smallest_fpr: float
    tests: int
    detectable: float | None
    shift: Shift | None = None
    not_made: Mapping[str, str] = field(default_factory=dict)

    def best(self, view: str) -> Membership | None:
        """The attack of the largest AUC on this view."""
        found = [r for r in self.results if r.view == view]
        return max(found, key=lambda r: r.auc.value, default=None)


def judge(
    evidence: Mapping[str, Evidence],
    candidates: Candidates,
    smallest_fpr: float,
    shift: Shift,
    not_made: Mapping[str, str],
) -> Belonging:
    """Every attack that the evidence of a view allows, and a finding for each view.

    Args:
        evidence: view -> what it shows of all candidates. smallest_fpr: that the verdict must be able to judge.
    """
    assert candidates.member is not None
    members, others = len(candidates.members), len(candidates.others)
    played = [
        (view, attack, e) for view, e in evidence.items() for attack in ATTACKS if not attack.missing(e)
    ]
    asked = tuple(r for r in sorted({*RATES, smallest_fpr}, reverse=True) if r >= smallest_fpr)
    tests = max(1, len(played) * len(asked))
    results = tuple(
        _measure(view, attack, attack(e), candidates.member, asked, tests) for view, attack, e in played
    )
    detectable = None if shift.auc is None else smallest_detectable(members, others, smallest_fpr, tests)
    findings = tuple(
        _finding(
            view, [r for r in results if r.view == view], members, others, smallest_fpr, detectable, shift
        )
        for view in dict.fromkeys(v for v, _, _ in played)
    )
    return Belonging(results, findings, members, others, smallest_fpr, tests, detectable, shift, not_made)


def _measure(
    view: str,
    attack: MembershipAttack,
    scores: NDArray[np.float64],
    member: Bools,
    asked: Sequence[float],
    tests: int,
) -> Membership:
    outside = int((~member).sum())
    rates = []
    for rate in sorted({*RATES, *asked}, reverse=True):
        tpr, real = tpr_interval(scores, member, rate), fpr_interval(scores, member, rate)
        rates.append(AtRate(rate, tpr, real, outside * rate >= 1 - 1e-9))
    leaks = tuple(r for r in asked if outside * r >= 1 - 1e-9 and _leaks(scores, member, r, tests))
    return Membership(
        view, attack.name, auc_interval(scores, member), tuple(rates), roc(scores, member), scores, leaks
    )


def _leaks(scores: NDArray[np.float64], member: Bools, rate: float, tests: int) -> bool:
    """The joint test: the rate's interval is above ten times the asked false positive rate, and above the real one's."""
    level = 1 - LEVEL / tests
    tpr = tpr_interval(scores, member, rate, level)
    return tpr.low > max(TIMES * rate, fpr_interval(scores, member, rate, level).high)


def smallest_detectable(members: int, others: int, rate: float, tests: int) -> float | None:
    """The smallest true positive rate at which `judge` would say LEAKS; None where no outcome could."""
    if not members or others * rate < 1 - 1e-9:
        return None
    from scipy import stats

    level = 1 - LEVEL / tests
    above = math.floor(rate * others + 1e-9)
    real = float(stats.beta.ppf((1 + level) / 2, above + 1, others - above)) if above < others else 1.0
    bound = max(TIMES * rate, real)
    low, high = 0, members + 1
    while low < high:  # the interval's lower end grows with the hits
        middle = (low + high) // 2
        if middle <= members and clopper_pearson(middle, members, level)[0] <= bound:
            low = middle + 1
        else:
            high = middle
    return low / members if low <= members else None


def _finding(
    view: str,
    results: Sequence[Membership],
    members: int,
    others: int,
    rate: float,
    detectable: float | None,
    shift: Shift,
) -> Finding:
    found = [r for r in results if r.leaks]
    if shift.auc is None:  # nothing can be told from a difference that the model did not make
        return Finding("UNDERPOWERED", "membership", view, too_few(members, others, rate))
    if found and shift.shifted:
        return Finding(
            "UNDERPOWERED",
            "membership",
            view,
            f"{found[0].attack} separates them, but so does a classifier that never saw the model (AUC {shift.auc}): "
            "members and non-members are not from one distribution; draw both from one source at random",
        )
    if found:
        best = max(found, key=lambda r: r.auc.value)
        at = next(a for a in best.rates if a.fpr == best.leaks[0])
        return Finding(
            "LEAKS",
            "membership",
            view,
            f"{best.attack}: true positive rate {at.tpr} at {at.fpr:.3g} false positives, AUC {best.auc}",
        )
    if detectable is None:
        return Finding("UNDERPOWERED", "membership", view, too_few(members, others, rate))
    if shift.shifted:
        return Finding(
            "UNDERPOWERED",
            "membership",
            view,
            f"members and non-members differ without the model (AUC {shift.auc}); a shift can hide an effect as well as make one",
        )
    best = max(results, key=lambda r: r.auc.value)
    weak = ", above chance, yet below the bound of a leak" if best.auc.low > 0.5 else ""
    return Finding(
        "NO EVIDENCE",
        "membership",
        view,
        f"best attack {best.attack}, AUC {best.auc}{weak}; a true positive rate of {detectable:.3f} at {rate:.3g} false positives would have been seen",
    )


def too_few(members: int, others: int, rate: float) -> str:
    """What is missing for this false positive rate, in words."""
    if not others:
        return f"all {members} candidates are members; non-members of the same distribution are needed to compare with"
    if not members:
        return f"none of the {others} candidates is a member; records that were trained on are needed"
    needed = math.ceil(1 / rate)
    if others < needed:
        return f"a false positive rate of {rate:.3g} needs at least {needed} non-members, found {others}: {needed - others} more"
    if members < FEWEST:
        return (
            f"{members} members are too few to see whether they differ from the others without the model; "
            f"hand over at least {FEWEST}"
        )
    return f"{members} members cannot show a rate surely above {TIMES} x {rate:.3g}; hand over more"
