"""What an attack's scores prove, with intervals: AUC, the true positive rate at a low false positive rate, ROC.

A score is higher where the attack believes "member". Members and non-members must come from one
distribution and be drawn without regard to the attack; else these numbers measure the shift between the
two and not what the model has learned. Bounds on epsilon are in `securefed_attacks.epsilon_bounds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from securefed_attacks.epsilon_bounds import clopper_pearson as clopper_pearson
from securefed_attacks.epsilon_bounds import one_run_epsilon as one_run_epsilon

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; `low <= value <= high`."""

    value: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, eq=False)
class Roc:
    """The curve of all thresholds, from (0, 0) to (1, 1); records with equal scores enter together.

    Attributes:
        fpr, tpr: float64 (t,), not decreasing. threshold: float64 (t,), a record is called a member from
            this score on; the first is infinite.
        members, nonmembers: how many there were. Rates below 1 / nonmembers cannot be resolved.
    """

    fpr: Floats = field(repr=False)
    tpr: Floats = field(repr=False)
    threshold: Floats = field(repr=False)
    members: int
    nonmembers: int

    @property
    def smallest_fpr(self) -> float:
        """The smallest false positive rate above zero that this many non-members can show."""
        return 1 / self.nonmembers


def split(scores: ArrayLike, members: ArrayLike) -> tuple[Floats, Floats]:
    """(scores of members, scores of non-members), float64.

    Raises:
        ValueError: other lengths, a score that is not a number, or one of the two groups empty.
    """
    s, m = np.asarray(scores, np.float64).ravel(), np.asarray(members).ravel()
    if s.shape != m.shape:
        raise ValueError(f"one membership per score: found {s.size} scores and {m.size} memberships")
    if not np.isin(m, (0, 1)).all():
        raise ValueError("memberships are booleans, or 0 and 1")
    if np.isnan(s).any():
        raise ValueError(
            f"{int(np.isnan(s).sum())} of {s.size} scores are not a number; a record without a score is no evidence"
        )
    inside, outside = s[m.astype(bool)], s[~m.astype(bool)]
    if not inside.size or not outside.size:
        raise ValueError(
            f"found {inside.size} members and {outside.size} non-members; both are needed to tell them apart"
        )
    return inside, outside


def roc(scores: ArrayLike, members: ArrayLike) -> Roc:
    """The receiver operating characteristic, exact, ties counted together.

    >>> curve = roc([3, 2, 2, 1], [1, 1, 0, 0])
    >>> curve.tpr.tolist(), curve.fpr.tolist()
    ([0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0])
    """
    inside, outside = split(scores, members)
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    tpr = 1 - np.searchsorted(np.sort(inside), thresholds, "left") / inside.size
    fpr = 1 - np.searchsorted(np.sort(outside), thresholds, "left") / outside.size
    first = np.zeros(1)
    return Roc(
        np.concatenate([first, fpr]),
        np.concatenate([first, tpr]),
        np.concatenate([first + math.inf, thresholds]),
        inside.size,
        outside.size,
    )


def auc(scores: ArrayLike, members: ArrayLike) -> float:
    """The probability that a random member scores above a random non-member, ties counted half.

    >>> auc([3, 2, 2, 1], [1, 1, 0, 0])
    0.875
    """
    inside, outside = split(scores, members)
    return float(_placements(inside, outside).mean())


def auc_interval(scores: ArrayLike, members: ArrayLike, confidence: float = 0.95) -> Interval:
    """AUC with a two-sided interval.

    DeLong, DeLong and Clarke-Pearson 1988 give the variance without assumptions on the scores; the
    interval is symmetric on the logit scale, so it stays in [0, 1] (Pepe 2003, section 5.2.4). Where the
    estimate is 0 or 1 that variance is zero and says nothing: there the interval is widened to what as
    many successes in as many independent pairs as the smaller group has would leave open.
    """
    inside, outside = split(scores, members)
    of_members, of_others = _placements(inside, outside), _placements(-outside, -inside)
    value = float(of_members.mean())
    m, n = inside.size, outside.size
    low, high = clopper_pearson(round(value * min(m, n)), min(m, n), confidence)
    if 0 < value < 1 and m > 1 and n > 1:
        deviation = math.sqrt(of_members.var(ddof=1) / m + of_others.var(ddof=1) / n)
        half = _z(confidence) * deviation / (value * (1 - value))
        centre = math.log(value / (1 - value))
        low, high = (1 / (1 + math.exp(-x)) for x in (centre - half, centre + half))
    return Interval(value, min(low, value), max(high, value), confidence)


def tpr_at_fpr(scores: ArrayLike, members: ArrayLike, fpr: float) -> float:
    """The largest true positive rate of a threshold whose false positive rate is at most `fpr`.

    With fewer than 1 / fpr non-members the threshold lies above all of them; see `Roc.smallest_fpr`.

    >>> tpr_at_fpr([3, 2, 2, 1], [1, 1, 0, 0], 0.1)
    0.5
    """
    return tpr_interval(scores, members, fpr).value


def tpr_interval(scores: ArrayLike, members: ArrayLike, fpr: float, confidence: float = 0.95) -> Interval:
    """The true positive rate at the threshold of `tpr_at_fpr`, with its Clopper-Pearson interval.

    The threshold is set by the non-members alone, so the members are a fair sample of what lies above it
    and the interval is exact for that threshold. The threshold's own false positive rate is an estimate:
    `fpr_interval` has its interval.

    Raises:
        ValueError: fpr outside [0, 1].
    """
    inside, outside = split(scores, members)
    above = int((inside > _threshold(outside, fpr)).sum())
    return Interval(above / inside.size, *clopper_pearson(above, inside.size, confidence), confidence)


def fpr_interval(scores: ArrayLike, members: ArrayLike, fpr: float, confidence: float = 0.95) -> Interval:
    """The false positive rate that the threshold of `tpr_at_fpr` really has, from order statistics.

    With k of n non-members above it, the true rate has a Beta(k + 1, n - k) distribution if scores are
    continuous, whatever theirs is (David and Nagaraja 2003, section 2.1).
    """
    _, outside = split(scores, members)
    above, n = int((outside > _threshold(outside, fpr)).sum()), outside.size
    tail = (1 - _checked(confidence)) / 2
    low, high = stats.beta.ppf([tail, 1 - tail], above + 1, n - above)
    value = above / n
    return Interval(value, min(float(low), value), max(float(high), value), confidence)


def balanced_accuracy(scores: ArrayLike, members: ArrayLike) -> float:
    """The best mean of true positive and true negative rate over all thresholds, chosen on these scores.

    Chosen and measured on the same records it is optimistic; print it beside AUC, never instead.
    """
    curve = roc(scores, members)
    return float(((curve.tpr + 1 - curve.fpr) / 2).max())


def exposure(canary: float, references: ArrayLike) -> float:
    """Bits by which a canary's rank is better than chance: log2 |R| - log2 rank (lower loss = better rank).

    Carlini et al. 2019, "The Secret Sharer", section 4.2, with the rank among sampled references, section
    4.3: it cannot exceed log2 of one more than their number, and its expectation for a canary that was not
    trained on is about 1.44 bits.

    Args:
        canary: its loss. references: losses of canaries of the same format that were not trained on.

    >>> exposure(0.5, [1.0, 2.0, 3.0])
    2.0
    """
    others = np.asarray(references, np.float64).ravel()
    if not others.size or np.isnan(others).any() or math.isnan(canary):
        raise ValueError("exposure needs a canary's loss and at least one reference, all of them numbers")
    rank = 1 + int((others < canary).sum()) + int((others == canary).sum()) / 2
    return math.log2(others.size + 1) - math.log2(rank)


def bootstrap_interval(
    values: ArrayLike, generator: np.random.Generator, confidence: float = 0.95, repeats: int = 2000
) -> Interval:
    """The mean of independent values with its percentile bootstrap interval (Efron 1979).

    Below about ten values it covers less often than it says (of three, seven times of ten).

    Raises:
        ValueError: fewer than two values: nothing can be said of their spread.
    """
    found = np.asarray(values, np.float64).ravel()
    if found.size < 2:
        raise ValueError(f"an interval needs at least 2 values, found {found.size}; run more seeds")
    means = found[generator.integers(0, found.size, (repeats, found.size))].mean(1)
    tail = (1 - _checked(confidence)) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    value = float(found.mean())
    return Interval(value, min(float(low), value), max(float(high), value), confidence)


def _placements(inside: Floats, outside: Floats) -> Floats:
    """For each member the share of non-members below it, ties half (Mann-Whitney)."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, "left")
    not_above = np.searchsorted(ordered, inside, "right")
    placed: Floats = (below + not_above) / (2 * outside.size)
    return placed


def _threshold(outside: Floats, fpr: float) -> float:
    """The score that at most a share `fpr` of the non-members exceeds."""
    if not 0 <= fpr <= 1:
        raise ValueError(f"a false positive rate lies in [0, 1], got {fpr}")
    allowed = math.floor(fpr * outside.size + 1e-9)
    return -math.inf if allowed >= outside.size else float(np.sort(outside)[::-1][allowed])


def _z(confidence: float) -> float:
    quantile: Any = stats.norm.ppf((1 + _checked(confidence)) / 2)
    return float(quantile)


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies strictly between 0 and 1, got {confidence}")
    return confidence
