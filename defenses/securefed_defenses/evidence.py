"""How robust a rule was on given rows, beside what is proved for all rows.

A rule is (f, kappa)-robust if, whichever f of n rows are lies and whatever they hold, the squared distance
between its result and the mean of the others is at most kappa times their variance (mean squared distance
to their mean): Allouah et al., "Fixing by mixing", AISTATS 2023 (arXiv 2302.01772), Definition 2. No rule
has kappa below f / (n - 2f).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from securefed.types import Aggregator
from securefed_defenses.base import Rule
from securefed_defenses.bounds import Source, bound

Attack = Callable[[torch.Tensor, int, torch.Generator | None], torch.Tensor]
"""honest (h, d), f and a generator -> (f, d)."""


@dataclass(frozen=True)
class Kappa:
    """One measurement of a rule.

    Attributes:
        measured: |result - honest mean|^2 / honest variance; infinite where the honest rows are all equal
            and the result is not theirs.
        bound: what holds for every attack, None where we know nothing for this very rule (see `bounds.py`).
        source: whose bound it is.
        floor: f / (n - 2f), below which no rule's bound can be; infinite at 2f >= n.
        n, f: rows in all, lies among them.
    """

    measured: float
    bound: float | None
    floor: float
    n: int
    f: int
    source: Source | None = None


def kappa(
    rule: Aggregator, honest: torch.Tensor, byzantine: torch.Tensor, generator: torch.Generator | None = None
) -> Kappa:
    """Measures a rule on honest rows (h, d) and lies (f, d), put behind them.

    Raises:
        ValueError: the rule refuses the rows, or draws at random and has no generator.
    """
    rows = torch.cat([honest, byzantine.to(honest)])
    result = (rule(rows, generator=generator) if isinstance(rule, Rule) else rule(rows)).double()
    mean = honest.double().mean(0)
    variance = float((honest.double() - mean).square().sum(1).mean())
    distance = float((result - mean).square().sum())
    measured = distance / variance if variance > 0 else (0.0 if distance == 0 else math.inf)
    n, f = len(rows), len(byzantine)
    found, floor = bound(rule, n, f), f / (n - 2 * f) if n > 2 * f else math.inf
    if found is None:
        return Kappa(measured, None, floor, n, f)
    return Kappa(measured, found.kappa, floor, n, f, found.source)


def published_bound(rule: Aggregator, n: int, f: int) -> float | None:
    """The kappa of `bound` where it stands in a paper; None where it does not, or is proved here."""
    found = bound(rule, n, f)
    return found.kappa if found is not None and found.source == "published" else None


@dataclass(frozen=True)
class Breakdown:
    """Where a rule breaks under one attack.

    Attributes:
        tolerated: the most liars that left the result near the honest mean. fraction: tolerated / n.
        refused: True if the rule refuses one liar more; False if it takes it and is led away.
    """

    tolerated: int
    fraction: float
    refused: bool


def breakdown_fraction(
    rule_of_f: Callable[[int], Aggregator],
    attack: Attack,
    rows: torch.Tensor,
    *,
    radii: float = 10.0,
    generator: torch.Generator | None = None,
) -> Breakdown:
    """The largest share of liars that a rule tolerates, by bisection.

    Args:
        rule_of_f: the rule for f liars; return always the same one to see what a wrong f does.
        attack: makes f lies from the honest rows.
        rows: honest rows (n, d); with f liars the first n - f are kept.
        radii: the rule is broken where its result is further from the honest mean than this many honest
            radii (root of the honest variance), or holds a NaN or an infinity.
        generator: for attacks and rules that draw.

    Bisection takes for granted that a rule broken by f liars is broken by more.
    """
    n = len(rows)
    holds, breaks, refused = 0, n, True
    while breaks - holds > 1:
        f = (holds + breaks) // 2
        outcome = _stands(rule_of_f, attack, rows[: n - f], f, radii, generator)
        if outcome is True:
            holds = f
        else:
            breaks, refused = f, outcome is None
    return Breakdown(holds, holds / n, refused)


def _stands(
    rule_of_f: Callable[[int], Aggregator],
    attack: Attack,
    honest: torch.Tensor,
    f: int,
    radii: float,
    generator: torch.Generator | None,
) -> bool | None:
    """Whether the rule stands f liars; None where it refuses them."""
    lies = attack(honest, f, generator)
    try:
        measured = kappa(rule_of_f(f), honest, lies, generator).measured
    except ValueError:
        return None
    return bool(measured <= radii**2)
