"""Numbers for people: scores, epsilons, amounts of data, durations."""

from __future__ import annotations

import math
from typing import Any


def score(value: Any) -> str:
    """A score in three digits; a dash where there is none."""
    if value is None or isinstance(value, str):
        return str(value or "–")
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def small(value: float) -> str:
    """A delta: 1e-5 rather than 1e-05 or 0.00001."""
    if value >= 0.01:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def spent(value: Any) -> str:
    """An epsilon, rounded up, so that what is read is never less than what was spent."""
    found = float(value)
    return f"{math.ceil(found * 100) / 100:.2f}" if math.isfinite(found) else "infinite"


def count(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def mib(value: float) -> str:
    """An amount of data."""
    if value >= 1024:
        return f"{value / 1024:,.1f} GiB"
    return (
        f"{value:,.1f} MiB"
        if value >= 10
        else f"{value:.2f} MiB"
        if value >= 0.1
        else f"{value * 1024:.1f} KiB"
    )


def clock(seconds: float) -> str:
    """A duration in the two units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole // 60 % 60} min"
    )
