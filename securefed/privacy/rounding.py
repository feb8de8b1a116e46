"""Rounding a vector to integers at random without letting it grow longer than stated.

Each coordinate goes up or down so that its mean is right; rounding lengthens a vector, so the draw is
repeated until the integer vector's norm is within a bound that holds for every draw. That bound, and
not the clipping norm, is the sensitivity that the noise must be scaled to.

Kairouz, Liu and Steinke 2021, arXiv 2102.06387v4, "conditional rounding".
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Stream
from securefed.errors import PrivacyError

BETA = math.exp(-0.5)
"""Bound on the probability of a refused draw; the paper's choice."""

MOST_LEVELS = 2.0**30
_TRIES = 100
_BLOCK = 1 << 15


def rounded_norm_squared(levels: float, dimension: int, beta: float = BETA) -> int:
    """The largest squared L2 norm of a rounded vector of length at most `levels`: an integer.

    With c = levels: min{c^2 + d/4 + sqrt(2 log(1/beta)) (c + sqrt(d)/2), (c + sqrt d)^2}, rounded down, as
    squared norms of integer vectors are integers.

    Args:
        levels: bound on the L2 norm before rounding, in steps of the quantizer, in (0, 2^30].
        dimension: >= 1. beta: in (0, 1).

    Raises:
        PrivacyError: levels out of range.
    """
    if not 0 < levels <= MOST_LEVELS:
        raise PrivacyError(f"levels must lie in (0, 2^30], got {levels!r}; change bits or the clipping norm")
    root = math.sqrt(dimension)
    likely = levels**2 + dimension / 4 + math.sqrt(2 * math.log(1 / beta)) * (levels + root / 2)
    return max(1, math.floor(min(likely, (levels + root) ** 2)))  # 0 would be no vector, and no noise


def l1_bound(norm_squared: int, dimension: int) -> float:
    """The largest L1 norm of an integer vector: at most sqrt(d) times its L2 norm, and the squared norm."""
    return min(math.sqrt(dimension * norm_squared), float(norm_squared))


def round_within(scaled: NDArray[np.float32], norm_squared: int, stream: Stream) -> NDArray[np.int64]:
    """Integers (d,) with mean `scaled` and squared norm at most norm_squared, for certain.

    Means are right up to 2^-24, and up to what refusing long draws costs. A whole number stays as it is; zero
    stays zero. After a hundred refused draws, which has probability below 1e-20, everything is rounded
    towards zero, which never lengthens.

    Raises:
        PrivacyError: not finite, or longer than the bound allows even without rounding.
    """
    if not bool(np.isfinite(scaled).all()):
        raise PrivacyError("a vector with a value that is not finite cannot be rounded; clip it first")
    for _ in range(_TRIES):
        rounded = np.empty(len(scaled), np.int64)
        for start in range(0, len(scaled), _BLOCK):
            block = scaled[start : start + _BLOCK]
            below = np.floor(block)
            up = _uniform(len(block), stream) < block - below
            np.add(below, up, out=rounded[start : start + _BLOCK], casting="unsafe")
        if _norm_squared(rounded) <= norm_squared:
            return rounded
    rounded = np.trunc(scaled).astype(np.int64)
    if _norm_squared(rounded) > norm_squared:
        raise PrivacyError("a vector longer than its clipping norm cannot be rounded; clip it first")
    return rounded


def _norm_squared(rounded: NDArray[np.int64]) -> float:
    """Exact up to 2^53, relatively right beyond; never wraps around."""
    wide = rounded.astype(np.float64)
    return float(wide @ wide)


def _uniform(n: int, stream: Stream) -> NDArray[np.float32]:
    """Uniforms on the multiples of 2^-24 in [0, 1), float32 (n,): a quarter of the words' bytes is enough."""
    words = np.frombuffer(stream.bytes(4 * n), "<u4") >> np.uint32(8)
    uniform: NDArray[np.float32] = np.multiply(words, np.float32(2.0**-24), dtype=np.float32)
    return uniform
