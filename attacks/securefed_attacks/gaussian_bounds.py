"""Bounds from one run for mechanisms that claim Gaussian noise: tighter than (epsilon, delta) knows how to be.

A Gaussian mechanism of sensitivity 1 and deviation 1 / mu is mu-GDP (Dong, Roth and Su 2022, arXiv 1905.02383):
no test of one coin beats the trade-off curve of N(0, 1) against N(mu, 1). An audit of that whole
curve refutes more than one of a single point of it: Mahloujifar, Melis and Chaudhuri 2024 (arXiv 2410.22235),
"Auditing f-Differential Privacy in One Run". Valid for compositions of Gaussian mechanisms at sample rate 1, which are
mu-GDP exactly; a sampled Gaussian is not GDP, and a bound from here does not speak of it.
"""

from __future__ import annotations

import math

from scipy import special

from securefed_attacks.epsilon_bounds import MOST_EPSILON, check_counts, check_delta, checked

MOST_MU = 10.0
"""Epsilon at any usable delta is above `MOST_EPSILON` there; the search ends."""


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The smallest delta at which a mu-GDP mechanism is (epsilon, delta)-DP (Dong et al. 2022)."""
    if mu <= 0:
        return 0.0
    return float(
        special.ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * special.ndtr(-mu / 2 - epsilon / mu)
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at which a mu-GDP mechanism is (epsilon, delta)-DP; 0 if delta alone covers it.

    >>> round(gaussian_epsilon(0.501, 1e-5), 2)
    2.0
    """
    check_delta(delta)
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, MOST_EPSILON
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return low


def one_run_mu(correct: int, guesses: int, m: int, confidence: float = 0.95) -> float:
    """A lower bound on mu from a single run with m canaries, each in or out by a fair coin; 0 if nothing is refuted.

    Args:
        correct: right guesses. guesses: canaries guessed at all; the others were left out.
    """
    check_counts(correct, guesses, m)
    level = 1 - checked(confidence)
    if not refutes(0.0, correct, guesses, m, level):
        return 0.0
    low, high = 0.0, MOST_MU
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refutes(middle, correct, guesses, m, level) else (low, middle)
    return low


def refutes(mu: float, correct: int, guesses: int, m: int, level: float) -> bool:
    """Whether no mu-GDP mechanism lets this many guesses, or more, be right with probability `level`.

    Let p_w be the probability of w right guesses, A_i the sum over w >= i of (w / m) p_w, and B_i the sum over
    w >= i - 1 of ((guesses - w) / m) p_w. Whether coin j was guessed right in a run that ends with w >= i right
    guesses is a test of coin j, whose mirror image is a wrong guess in a run that ends with w - 1; averaged
    over coins, f-DP says A_i <= 1 - f(B_i). So a tail of probability `level` above `correct` forces mass below
    it, step by step; if more than 1 is forced, the tail was impossible.
    """
    if correct == 0:
        return False
    right, wrong = correct * level / m, (guesses - correct) * level / m
    for i in range(correct, 0, -1):
        needed = max(wrong, float(special.ndtr(special.ndtri(right) - mu)))
        right += (i - 1) / (guesses - i + 1) * (needed - wrong)
        wrong = needed
        if (right + wrong) * m > guesses:
            return True
    return False


def one_run_epsilon_gaussian(
    correct: int, guesses: int, m: int, delta: float, confidence: float = 0.95
) -> float:
    """`one_run_mu` as an epsilon at delta: what a Gaussian mechanism that leaks so much spends at least."""
    return gaussian_epsilon(one_run_mu(correct, guesses, m, confidence), delta)


def gaussian_ceiling(m: int, delta: float, confidence: float = 0.95, tests: int = 1) -> float:
    """What an audit of a Gaussian claim would say if every guess were right.

    Args:
        tests: how many numbers of guesses are tried; each costs confidence.
    """
    return one_run_epsilon_gaussian(m, m, m, delta, 1 - (1 - checked(confidence)) / tests)
