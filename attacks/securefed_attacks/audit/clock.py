"""The audit's time: what it may take, what it has taken, and who is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[float, str], None]
"""Called with the seconds since the start and what is being done now."""


@dataclass
class Clock:
    """A budget in seconds; None for no limit. `now` is injected in tests.

    A stage asks `allows` with its estimate before it starts, so that an audit ends near its budget with a
    list of what it left out, and never silently with less.
    """

    budget_s: float | None = None
    progress: Progress | None = None
    now: Callable[[], float] = time.monotonic
    left_out: list[str] = field(default_factory=list)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.now()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.now() - self.began

    @property
    def left(self) -> float:
        """Seconds that remain; infinite without a budget."""
        return float("inf") if self.budget_s is None else self.budget_s - self.spent

    def tell(self, what: str) -> None:
        """Says what is being done now."""
        if self.progress is not None:
            self.progress(self.spent, what)

    def part(self, share: float) -> Clock:
        """A clock that may use this share of what is left; what it leaves out is on the same list."""
        budget = None if self.budget_s is None else self.spent + share * max(0.0, self.left)
        part = Clock(budget, self.progress, self.now, self.left_out)
        part.began = self.began
        return part

    def allows(self, seconds: float, what: str) -> bool:
        """Whether something of about this length still fits; if not, it is put on the list."""
        if seconds <= self.left:
            return True
        self.left_out.append(
            f"{what}: needs about {max(1, round(seconds))} s, {max(0, round(self.left))} s of the time budget were left"
        )
        return False
