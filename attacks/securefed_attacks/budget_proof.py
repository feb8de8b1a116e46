"""A leakage budget held against the update it was made for: the prediction is proved, or refuted, by what is read.

The truth is known to whoever audits its own client; the control is the truth of another client, whose tokens the
same update must not name. Without the control "the true tokens are near" would be luck that nobody counted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from securefed_attacks.leakage_budget import LeakageBudget
from securefed_attacks.span_tokens import TokenBag

BEYOND_CONTROL = 3.0
"""Ranking leaks where it names true tokens this many times as often as a wrong update's ..."""
CHANCE = 0.01
"""... and more often than chance would, by Fisher's exact test: a few hits of a short text prove nothing."""


@dataclass(frozen=True)
class BudgetProof:
    """What the actual update gave away, beside what was predicted.

    Attributes:
        budget: the prediction. rank: independent combinations that the update really holds.
        found: true tokens named for certain. false: others named.
        ranked: share of the truth among as many nearest tokens. control: the same share for the control's tokens.
        leaks: "exact", "ranking" or "nothing", as measured. holds: whether that is what was predicted.
    """

    budget: LeakageBudget
    rank: int
    found: int
    false: int
    ranked: float
    control: float
    leaks: str
    holds: bool


def prove_budget(
    budget: LeakageBudget,
    bag: TokenBag,
    truth: Collection[int],
    control: Collection[int],
    *,
    texts: int = 1,
) -> BudgetProof:
    """Holds a prediction against the tokens read from the update it was made for.

    Args:
        budget: from `lora_budget`. bag: from `token_bag`. truth: tokens of the client's data.
        control: tokens of somebody else's data; those that are true too count for neither side.
        texts: records in the batch; one token of each may be missing (a last token without a loss on it).

    Raises:
        ValueError: no truth, or a control of nothing but true tokens.
    """
    true, other = set(truth), set(control) - set(truth)
    if not true or not other:
        raise ValueError(
            "a proof needs the batch's tokens and a control with tokens of its own; "
            f"got {len(true)} and {len(other)}"
        )
    named, nearest = set(bag.tokens), set(bag.nearest(len(true)))
    found, false = len(named & true), len(named - true)
    ranked, beside = len(nearest & true) / len(true), len(nearest & other) / len(other)
    chance = len(true) / len(bag.ranking)
    if found and found >= len(true) - texts and not false:
        leaks = "exact"
    elif ranked > BEYOND_CONTROL * max(beside, chance) and _surely(
        len(nearest & true), len(true), len(nearest & other), len(other)
    ):
        leaks = "ranking"
    else:
        leaks = "nothing"
    return BudgetProof(budget, bag.rank, found, false, ranked, beside, leaks, leaks == budget.verdict)


def _surely(hits: int, of: int, beside: int, of_beside: int) -> bool:
    """Whether so many hits are surely more frequent than the control's."""
    from scipy import stats

    table = [[hits, of - hits], [beside, of_beside - beside]]
    return float(stats.fisher_exact(table, alternative="greater").pvalue) < CHANCE
