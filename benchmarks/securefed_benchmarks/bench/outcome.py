"""What a cell gave. Apart from what plays it, so that the bench itself starts without heavy libraries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Scores by name, and curves as points.

    Attributes:
        seconds, cpu_seconds: the cell's own, without the start of its worker.
    """

    scores: dict[str, float]
    curves: dict[str, list[list[float]]]
    seconds: float
    cpu_seconds: float
