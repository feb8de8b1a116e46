"""The section on epsilon: the claim, what was refuted, and what could have been refuted at best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from securefed_attacks.audit.belonging import Membership
from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.recipe import Recipe
from securefed_attacks.audit.verdict import Finding
from securefed_attacks.epsilon_bounds import (
    canaries_needed,
    one_run_ceiling,
    one_run_epsilon_of_scores,
)

SHARES = 8
"""Numbers of guesses that `one_run_epsilon_of_scores` tries."""
CONFIDENCE = 0.95
MOST_RECORDS = 20_000
"""Beyond so many records with coins no need is counted: at usual deltas more of them show no more."""


@dataclass(frozen=True)
class Epsilon:
    """Claim, bound and ceiling at one delta.

    Attributes:
        bound: the best lower bound over attacks and views, which share the confidence; None without coins.
        ceiling: what the audit could have shown at best; None without coins. needed: records with coins
            that could refute the claim; None where 20,000 could not. by: attack and view of the bound.
    """

    claimed: float | None
    delta: float
    bound: float | None
    ceiling: float | None
    needed: int | None
    records: int
    by: str = ""


def bound_epsilon(
    results: Sequence[Membership], candidates: Candidates | None, claimed: float | None, recipe: Recipe
) -> Epsilon:
    """The one-run bound of Steinke et al. 2023 from the membership scores, where membership was a fair coin.

    Each attack on each view is a test of its own, so they share the confidence.
    """
    chosen = [r for r in results if covered(r.view, recipe)]
    n = 0 if candidates is None else len(candidates)
    needed = _needed(claimed, recipe.delta, max(1, len(chosen)))
    if candidates is None or not candidates.coins or candidates.member is None or not chosen:
        return Epsilon(claimed, recipe.delta, None, None, needed, n)
    level = 1 - (1 - CONFIDENCE) / len(chosen)
    found = [(one_run_epsilon_of_scores(r.scores, candidates.member, recipe.delta, level), r) for r in chosen]
    bound, best = max(found, key=lambda pair: pair[0])
    ceiling = one_run_ceiling(n, recipe.delta, level, SHARES)
    return Epsilon(claimed, recipe.delta, bound, ceiling, needed, n, f"{best.attack}, {best.view}")


def covered(view: str, recipe: Recipe) -> bool:
    """Whether the claim is about this view: what is seen before the noise has none."""
    late = recipe.observed in ("update", "clipped") and bool(recipe.noise_multiplier)
    return view == "noised" if late else True


def _needed(claimed: float | None, delta: float, tests: int) -> int | None:
    if claimed is None:
        return None
    level = 1 - (1 - CONFIDENCE) / tests
    if one_run_ceiling(MOST_RECORDS, delta, level, SHARES) <= claimed:
        return None
    return canaries_needed(claimed, delta, level, SHARES)


def judge(found: Epsilon) -> list[Finding]:
    """One finding where epsilon was claimed; none where not."""
    if found.claimed is None:
        return []
    claim = f"epsilon {found.claimed:g} at delta {found.delta:g}"
    more = (
        f"at least {found.needed} of them" if found.needed else f"and {MOST_RECORDS:,} of them would not do"
    )
    if found.bound is None or found.ceiling is None:
        return [
            Finding(
                "UNDERPOWERED",
                "epsilon",
                "",
                f"{claim} can only be refuted by records that were put in or left out by a fair coin each "
                f"(coins=True, --coins), {more}",
            )
        ]
    if found.bound > found.claimed:
        return [
            Finding(
                "FAIL",
                "epsilon",
                "",
                f"{claim} is refuted: epsilon is above {found.bound:.2f} with 95 % confidence ({found.by})",
            )
        ]
    if found.ceiling <= found.claimed:
        return [
            Finding(
                "UNDERPOWERED",
                "epsilon",
                "",
                f"{found.records} records can show at most {found.ceiling:.2f}, so {claim} cannot be refuted; {more}",
            )
        ]
    return [
        Finding(
            "NO EVIDENCE",
            "epsilon",
            "",
            f"{claim} was not refuted: the bound is {found.bound:.2f}, up to {found.ceiling:.2f} could have been seen",
        )
    ]
