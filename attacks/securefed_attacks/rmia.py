"""Membership by relative likelihood: a record's gain from the target over reference models, beside other records' gains.

Zarifzadeh, Liu and Shokri, "Low-cost high-power membership inference attacks" (RMIA), ICML 2024, arXiv 2312.03262: the score of x is the share of population records z with (p(x|target) / p(x)) / (p(z|target) / p(z)) >= gamma, p(x)
being the average over reference models. Works with a few references where LiRA needs dozens.

Adversary: sees the final model and has records of the same distribution, and models trained on such.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def rmia(
    target: Floats,
    references: Floats,
    population_target: Floats,
    population_references: Floats,
    *,
    included: Bools | None = None,
    gamma: float = 1.0,
    offline_a: float = 0.3,
) -> Floats:
    """A score in [0, 1] for each record, (n,): higher where it is treated like a member.

    Args:
        target: (n,), the target model's probabilities of the true labels, in evaluation mode. references: (s, n), those of
            reference models. population_target: (m,), population_references: (s, m), the same of records z that no
            model was trained on.
        included: (s, n), which reference was trained on which record (online); None if none was (offline), where the
            missing half of p(x) is estimated from the other as ((1 + a) p_out + 1 - a) / 2.
        gamma: how much more likely; 1 or 2 in the paper. offline_a: a above, in [0, 1]; fitted on reference models.

    Raises:
        ValueError: other shapes, numbers that are no probabilities, or a record that every reference or none was trained on (online).
    """
    _check(target, references, population_target, population_references, included)
    if gamma < 1 or not 0 <= offline_a <= 1:
        raise ValueError(f"rmia needs gamma >= 1 and 0 <= offline_a <= 1; got {gamma}, {offline_a}")
    if included is None:
        average = ((1 + offline_a) * references.mean(0) + 1 - offline_a) / 2
    else:
        inside = np.where(included, references, 0).sum(0) / included.sum(0)
        outside = np.where(included, 0, references).sum(0) / (~included).sum(0)
        average = (inside + outside) / 2
    mine = _ratio(target, average)
    others = np.sort(_ratio(population_target, population_references.mean(0)))
    beaten: Floats = np.searchsorted(others, mine / gamma, side="right") / len(others)
    return beaten


def _ratio(above: Floats, below: Floats) -> Floats:
    found: Floats = above / np.maximum(below, 1e-300)
    return found


def _check(
    target: Floats, references: Floats, beside: Floats, beside_references: Floats, included: Bools | None
) -> None:
    s = len(references)
    if (
        references.shape != (s, *target.shape)
        or beside_references.shape != (s, *beside.shape)
        or not len(beside)
    ):
        raise ValueError(
            "needs target (n,), references (s, n), population (m,) and its references (s, m), m >= 1; got "
            f"{target.shape}, {references.shape}, {beside.shape}, {beside_references.shape}"
        )
    for values in (target, references, beside, beside_references):
        if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 1 + 1e-9:
            raise ValueError("rmia takes probabilities of the true label, in [0, 1]; found others")
    if included is not None:
        counts = included.sum(0)
        if included.shape != references.shape or int(counts.min()) == 0 or int(counts.max()) == s:
            raise ValueError(
                "online rmia needs every record in some reference models and out of others; "
                f"found {int(counts.min())} to {int(counts.max())} of {s}. Use halves(), or included=None"
            )


def log_to_probability(confidence: Floats) -> Floats:
    """Probabilities of the true label from `lira.confidence`, log p - log(1 - p)."""
    found: Floats = 1 / (1 + np.exp(-np.clip(confidence, -math.log(1e300), None)))
    return found
