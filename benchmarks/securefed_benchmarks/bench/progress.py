"""What a person sees while a bench goes: what is to be played, a line a cell, how much is left."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from securefed.tracking.numbers import clock, score
from securefed_benchmarks.bench.grid import Cell, Skipped
from securefed_benchmarks.bench.pool import Answer

SHOWN = ("accuracy", "perplexity", "attack_success", "lira_auc", "loss_auc", "epsilon")


@dataclass
class Progress:
    """Lines to a stream; time left from the seconds that cells of the same grid took."""

    stream: IO[str]
    total: int
    jobs: int
    expected: dict[str, float]
    done: int = 0
    failed: int = 0
    _took: dict[str, list[float]] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)

    def begin(self, cells: Sequence[Cell], skipped: Sequence[Skipped], known: int) -> None:
        """Says what will be played, what is on record, and what cannot be."""
        for cell in cells:
            self._left[cell.grid] = self._left.get(cell.grid, 0) + 1
        text = f"{len(cells)} cells to play, {self.jobs} at a time, about {clock(self.remaining())}"
        self._say(text + (f"; {known} on record" if known else ""))
        for line in tell_skipped(skipped):
            self._say(line)

    def remaining(self) -> float:
        """Seconds left, from what each grid's cells took so far."""
        total = 0.0
        for grid, left in self._left.items():
            took = self._took.get(grid)
            total += left * (sum(took) / len(took) if took else self.expected.get(grid, 0.0))
        return total / max(1, min(self.jobs, os.cpu_count() or 1))

    def cell(self, answer: Answer) -> None:
        """One line: how far, what it was, what came out, time left."""
        self.done += 1
        grid = answer.cell.grid
        self._left[grid] -= 1
        if answer.outcome is not None:
            self._took.setdefault(grid, []).append(answer.outcome.seconds)
            scores = answer.outcome.scores
            told = "  ".join(f"{n.replace('_', ' ')} {score(scores[n])}" for n in SHOWN if n in scores)
        else:
            self.failed += 1
            told = f"FAILED: {answer.error}"
        width = len(str(self.total))
        self._say(
            f"{self.done:>{width}}/{self.total}  {answer.cell!s:<64} {told}  {clock(answer.seconds)}, "
            f"{clock(self.remaining())} left"
        )

    def end(self, used: Mapping[str, float]) -> None:
        """What the workers did with their time; waiting includes the end, when the last cells are others'."""
        whole = sum(used.values())
        if whole > 0:
            shares = ", ".join(f"{100 * seconds / whole:.1f} % {what}" for what, seconds in used.items())
            self._say(f"time of {self.jobs} worker{'s' * (self.jobs > 1)}: {shares}")

    def _say(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()


def tell_skipped(skipped: Sequence[Skipped]) -> list[str]:
    """The impossible configurations by reason: how many, and the first of them."""
    reasons: dict[str, list[Skipped]] = {}
    for one in skipped:
        reasons.setdefault(one.reason, []).append(one)
    lines = []
    for reason, group in reasons.items():
        chosen = ", ".join(f"{k}={v}" for k, v in group[0].labels.items())
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        lines.append(f"skipped  {group[0].grid}: {chosen}{more}: {reason}")
    return lines


def hours(seconds: float) -> str:
    """A duration for someone who decides whether to wait for it."""
    if seconds < 5400:
        return clock(seconds)
    return f"{seconds / 3600:,.1f} hours" if seconds < 360000 else f"{math.ceil(seconds / 3600):,} hours"
