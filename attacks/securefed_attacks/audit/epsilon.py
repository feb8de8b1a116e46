"""The section on epsilon: the claim, what was refuted, and what could have been refuted at best."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from securefed_attacks.audit.belonging import Membership
from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.shift import Shift
from securefed_attacks.audit.verdict import Finding, Verdict
from securefed_attacks.canaries import family_confidence, one_run_audit
from securefed_attacks.epsilon_bounds import SHARES, canaries_needed, one_run_ceiling

CONFIDENCE = 0.95
MOST_RECORDS = 20_000
"""Beyond so many records with coins no need is counted: at usual deltas more of them show no more."""
UNFAIR = 1e-3
"""Fair coins fall as unevenly as the memberships given with less than this chance: then they were no fair coins."""


@dataclass(frozen=True)
class Epsilon:
    """Claim, bound and ceiling at one delta.

    Attributes:
        bound: the best lower bound over attacks and views, which share the confidence; None without coins.
        ceiling: what the audit could have shown at best; None without coins. needed: records with coins
            that could refute the claim; None where 20,000 could not. by: attack and view of the bound.
        unfair: why the memberships cannot have been fair coins, "" where they can.
    """

    claimed: float | None
    delta: float
    bound: float | None
    ceiling: float | None
    needed: int | None
    records: int
    by: str = ""
    unfair: str = ""


def bound_epsilon(
    results: Sequence[Membership],
    candidates: Candidates | None,
    claimed: float | None,
    delta: float,
    covered: Collection[str],
    shift: Shift | None = None,
) -> Epsilon:
    """The one-run bound of Steinke et al. 2023 from the membership scores, where membership was a fair coin.

    Each attack on each view is a test of its own, so they share the confidence.

    Args:
        covered: the views that the claim is about. shift: what a classifier that never saw the model can tell.
    """
    chosen = [r for r in results if r.view in covered]
    n = 0 if candidates is None else len(candidates)
    needed = _needed(claimed, delta, max(1, len(chosen)))
    unfair = "" if candidates is None or not candidates.coins else _unfair(candidates, shift)
    if candidates is None or not candidates.coins or candidates.member is None or not chosen or unfair:
        return Epsilon(claimed, delta, None, None, needed, n, unfair=unfair)
    level = family_confidence(CONFIDENCE, len(chosen))
    told = math.inf if claimed is None else claimed
    audits = [
        (one_run_audit(r.scores, candidates.member, delta=delta, confidence=level, claimed=told), r)
        for r in chosen
    ]
    best, by = max(audits, key=lambda pair: pair[0].bound)
    return Epsilon(claimed, delta, best.bound, best.ceiling, needed, n, f"{by.attack}, {by.view}")


def _unfair(candidates: Candidates, shift: Shift | None) -> str:
    """A bound from coins that were not fair refutes anything: guessing the larger group is enough."""
    from scipy import stats

    members, n = len(candidates.members), len(candidates)
    if stats.binomtest(members, n, 0.5).pvalue < UNFAIR:
        return f"{members} members of {n} records are not what a fair coin for each gives"
    if shift is not None and shift.shifted:
        return f"members and others differ without the model (AUC {shift.auc}), which coins do not make them"
    return ""


def _needed(claimed: float | None, delta: float, tests: int) -> int | None:
    if claimed is None:
        return None
    level, shares = family_confidence(CONFIDENCE, tests), len(SHARES)
    if one_run_ceiling(MOST_RECORDS, delta, level, shares) <= claimed:
        return None
    return canaries_needed(claimed, delta, level, shares)


def judge(found: Epsilon) -> list[Finding]:
    """One finding where epsilon was claimed; none where not."""
    if found.claimed is None:
        return []
    verdict, reason = _judged(found, f"epsilon {found.claimed:g} at delta {found.delta:g}")
    return [Finding(verdict, "epsilon", "", reason)]


def _judged(found: Epsilon, claim: str) -> tuple[Verdict, str]:
    assert found.claimed is not None
    more = (
        f"at least {found.needed} of them" if found.needed else f"and {MOST_RECORDS:,} of them would not do"
    )
    if found.bound is None or found.ceiling is None:
        coins = "records that were put in or left out by a fair coin each (coins=True, --coins)"
        no = f"; {found.unfair}" if found.unfair else ""
        return "UNDERPOWERED", f"{claim} can only be refuted by {coins}, {more}{no}"
    if found.bound > found.claimed:
        return "FAIL", (
            f"{claim} is refuted: epsilon is above {found.bound:.2f} with 95 % confidence ({found.by})"
        )
    if found.ceiling <= found.claimed:
        return "UNDERPOWERED", (
            f"{found.records} records can show at most {found.ceiling:.2f}, so {claim} cannot be refuted; {more}"
        )
    return "NO EVIDENCE", (
        f"{claim} was not refuted: the bound is {found.bound:.2f}, up to {found.ceiling:.2f} could have been seen"
    )
