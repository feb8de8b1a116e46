"""A bound on epsilon from many independent runs with one canary, half of them with it and half without.

The oldest audit and the tightest, at the price of the runs: no canary disturbs another, and delta costs nothing
but itself. Jagielski, Ullman and Oprea 2020 (arXiv 2006.07709); Nasr et al. 2021 (arXiv 2101.04535).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from securefed_attacks.canaries import DPAudit
from securefed_attacks.epsilon_bounds import epsilon_from_counts

CANDIDATES = 64
"""Thresholds that are tried on the runs that choose one."""


def many_runs_audit(
    present: ArrayLike,
    absent: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    claimed: float,
    threshold: float | None = None,
) -> DPAudit:
    """The verdict over one score of each run, higher where the canary is believed in.

    Without a threshold the first half of either side's runs chooses it and the second half alone makes the bound: chosen
    and bounded on the same runs it would fail more often than it says.

    Args:
        present, absent: (n,) and (k,), scores of runs with and without the canary, in any order that has nothing
            to do with them. threshold: fixed before the runs, to use all of them.

    Raises:
        ValueError: scores that are not numbers; fewer than 4 runs on a side (2 with a threshold).
    """
    inside, outside = _scores("present", present, threshold), _scores("absent", absent, threshold)
    if threshold is None:
        (first, inside), (second, outside) = _halves(inside), _halves(outside)
        threshold = _best_threshold(first, second, delta, confidence)
    found = int((inside > threshold).sum()), int((outside > threshold).sum())
    bound = epsilon_from_counts(found[0], inside.size, found[1], outside.size, delta, confidence)
    ceiling = epsilon_from_counts(inside.size, inside.size, 0, outside.size, delta, confidence)
    runs = inside.size + outside.size
    return DPAudit(claimed, bound, ceiling, runs, runs, found[0] + outside.size - found[1], delta, confidence)


def _scores(name: str, given: ArrayLike, threshold: float | None) -> NDArray[np.float64]:
    found = np.asarray(given, np.float64).ravel()
    least = 4 if threshold is None else 2
    if found.size < least or not np.isfinite(found).all():
        raise ValueError(
            f"{name}: needs finite scores of at least {least} runs, found {found.size}; run more"
        )
    return found


def _halves(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return scores[: scores.size // 2], scores[scores.size // 2 :]


def _best_threshold(
    inside: NDArray[np.float64], outside: NDArray[np.float64], delta: float, confidence: float
) -> float:
    both = np.unique(np.concatenate([inside, outside]))
    tried = both[np.linspace(0, both.size - 1, min(CANDIDATES, both.size)).astype(int)]

    def bound(threshold: float) -> float:
        return epsilon_from_counts(
            int((inside > threshold).sum()),
            inside.size,
            int((outside > threshold).sum()),
            outside.size,
            delta,
            confidence,
        )

    return float(max(tried, key=bound))
