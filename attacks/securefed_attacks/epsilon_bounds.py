"""Lower bounds on epsilon from what an attack got right: what no (epsilon, delta)-DP mechanism would allow.

Every bound is one-sided: with the stated confidence the true epsilon is not below it. None is an upper
bound, and zero is no sign of safety; `one_run_ceiling` says how much an audit could have shown at best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

MOST_EPSILON = 64.0
"""No audit of a feasible size distinguishes more; the search ends here."""

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Which parts of the canaries are guessed, one after another, where none is asked for."""


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a proportion with k of n successes (Clopper and Pearson 1934).

    >>> low, high = clopper_pearson(0, 100)
    >>> low, round(high, 4)
    (0.0, 0.0362)
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"k of n successes needs 0 <= k <= n and n >= 1, got k={k}, n={n}")
    tail = (1 - checked(confidence)) / 2
    low = 0.0 if k == 0 else float(stats.beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(stats.beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def epsilon_from_counts(
    true_positives: int,
    members: int,
    false_positives: int,
    nonmembers: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """A lower bound on epsilon from one fixed test, each trial an independent run of the mechanism.

    For every test of an (epsilon, delta)-DP mechanism TPR <= e^epsilon FPR + delta, and the same for the
    complementary events (Kairouz, Oh and Viswanath 2015, Theorem 2.1); the rates are replaced by the ends
    of their one-sided Clopper-Pearson intervals, which hold together with `confidence` (Nasr et al. 2021,
    section 4).

    >>> round(epsilon_from_counts(90, 100, 1, 100, 1e-5), 2)
    2.72
    """
    check_delta(delta)
    joint = (1 + checked(confidence)) / 2  # each side may fail with half of what is left (union bound)
    two_sided = 2 * joint - 1
    tpr_low = clopper_pearson(true_positives, members, two_sided)[0]
    fpr_high = clopper_pearson(false_positives, nonmembers, two_sided)[1]
    positive = _log_ratio(tpr_low - delta, fpr_high)
    negative = _log_ratio(1 - fpr_high - delta, 1 - tpr_low)
    return max(0.0, positive, negative)


def one_run_epsilon(correct: int, guesses: int, m: int, delta: float, confidence: float = 0.95) -> float:
    """A lower bound on epsilon from a single training run with m canaries, each in or out by a fair coin.

    Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv 2305.08846),
    Theorem 5.2: if the mechanism is (epsilon, delta)-DP for adding or removing a record, the number of
    correct ones among r guesses is above v with probability at most `one_run_p_value`.

    Args:
        correct: right guesses (v). guesses: canaries guessed at all (r <= m), the others were left out.
        m: canaries whose coins were independent of everything else.

    Returns:
        epsilon >= 0: the largest that is refuted at this confidence (0 if none is).

    >>> round(one_run_epsilon(1000, 1000, 1000, 1e-5, 0.95), 2)
    5.78
    """
    check_counts(correct, guesses, m)
    level = 1 - checked(confidence)
    if one_run_p_value(correct, guesses, m, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, MOST_EPSILON
    while high - low > 1e-6:
        middle = (low + high) / 2
        if one_run_p_value(correct, guesses, m, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


def one_run_p_value(correct: int, guesses: int, m: int, epsilon: float, delta: float) -> float:
    """How likely (epsilon, delta)-DP lets this many guesses be right, at most (Steinke et al. 2023, Theorem 5.2).

    With B ~ Binomial(guesses, e^epsilon / (1 + e^epsilon)): P[B >= correct] + 2 m delta alpha, where alpha
    is the largest over i = 1 .. m of P[correct - i <= B < correct] / i.
    """
    check_counts(correct, guesses, m)
    check_delta(delta)
    if correct == 0:
        return 1.0
    success = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, success))
    below = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, success)  # B = correct - 1, ..., 0
    steps = np.arange(1, correct + 1)
    alpha = float((np.cumsum(below) / steps).max())  # past i = correct the sum stays and i grows
    return min(1.0, tail + 2 * m * delta * alpha)


def one_run_ceiling(m: int, delta: float, confidence: float = 0.95, tests: int = 1) -> float:
    """What an audit with m canaries would say if every guess were right: it can never refute a larger epsilon.

    Args:
        tests: how many numbers of guesses are tried (`one_run_epsilon_of_scores`); each costs confidence.
    """
    return one_run_epsilon(m, m, m, delta, 1 - (1 - checked(confidence)) / tests)


def canaries_needed(epsilon: float, delta: float, confidence: float = 0.95, tests: int = 1) -> int:
    """The smallest m whose ceiling is above epsilon: with fewer canaries a claim of epsilon cannot be refuted.

    Raises:
        ValueError: beyond a million canaries: no single run refutes such an epsilon.
    """
    low, high = 1, 1
    while one_run_ceiling(high, delta, confidence, tests) <= epsilon:
        low, high = high, 2 * high
        if high > 1_000_000:
            raise ValueError(f"no audit of a million canaries can refute epsilon={epsilon:g}")
    while high - low > 1:
        middle = (low + high) // 2
        if one_run_ceiling(middle, delta, confidence, tests) > epsilon:
            high = middle
        else:
            low = middle
    return high


def one_run_epsilon_of_scores(
    scores: ArrayLike,
    included: ArrayLike,
    delta: float,
    confidence: float = 0.95,
    shares: Sequence[float] = SHARES,
) -> float:
    """The best one-run bound over several numbers of guesses, with the confidence split between them.

    For a share s of m canaries, half of the s m guesses are "in" (the highest scores) and half "out" (the
    lowest). Which share is best is not known in advance; trying them all costs a Bonferroni correction,
    else the best of many would be a bound that fails more often than it says.

    Args:
        scores: (m,), higher where the auditor believes the canary was in. included: (m,), the coins.
    """
    m = np.asarray(scores).size
    level = 1 - (1 - checked(confidence)) / len(shares)
    counts = [best_guesses(scores, included, share) for share in shares]
    return max(one_run_epsilon(correct, guesses, m, delta, level) for correct, guesses in counts)


def best_guesses(scores: ArrayLike, included: ArrayLike, share: float) -> tuple[int, int]:
    """(right guesses, guesses) where a share of the canaries is guessed: the highest scores in, as many lowest out.

    Equal scores are taken in a shuffled order: the order in which canaries are handed over often tells their coins
    (those that are in first), and a guess must not.

    Raises:
        ValueError: not one score, a number, and one coin for each canary.
    """
    found, coins = np.asarray(scores, np.float64).ravel(), np.asarray(included).ravel().astype(bool)
    m = found.size
    if m < 1 or coins.size != m or np.isnan(found).any():
        raise ValueError(f"one coin and one score (a number) per canary: found {coins.size} and {m}")
    order = np.lexsort((np.random.default_rng([m, 0x71E5]).permutation(m), found))
    half = max(1, round(share * m / 2)) if m > 1 else 1
    out, inside = order[:half], order[max(half, m - half) :]
    return int((~coins[out]).sum() + coins[inside].sum()), out.size + inside.size


def _log_ratio(above: float, below: float) -> float:
    return math.log(above / below) if above > 0 and below > 0 else -math.inf


def check_counts(correct: int, guesses: int, m: int) -> None:
    """Raises ValueError unless 0 <= correct <= guesses <= m and m >= 1."""
    if not 0 <= correct <= guesses <= m or m < 1:
        raise ValueError(
            f"needs 0 <= correct <= guesses <= m and m >= 1, got correct={correct}, guesses={guesses}, m={m}"
        )


def check_delta(delta: float) -> None:
    """Raises ValueError unless delta is in [0, 1)."""
    if not 0 <= delta < 1:
        raise ValueError(f"delta lies in [0, 1), got {delta}")


def checked(confidence: float) -> float:
    """The confidence itself, in (0, 1).

    Raises:
        ValueError: it is not.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies strictly between 0 and 1, got {confidence}")
    return confidence
