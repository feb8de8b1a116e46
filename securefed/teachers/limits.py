"""What calls to a teacher may cost: how fast, how often again, how much in all. Clocks are passed in, so tests never wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

Clock = Callable[[], float]
"""Seconds from any fixed moment, never going back."""

Sleep = Callable[[float], None]


@dataclass
class RateLimit:
    """At most `per_second` calls a second on average, `burst` of them at once: a bucket of tokens.

    Attributes:
        waited_s: seconds slept so far.

    Raises:
        ValueError: a rate or burst that allows no call.
    """

    per_second: float = math.inf
    burst: int = 1
    clock: Clock = time.monotonic
    sleep: Sleep = time.sleep
    waited_s: float = 0.0
    _tokens: float = field(default=0.0, repr=False)
    _seen: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.per_second > 0 or self.burst < 1:
            raise ValueError(
                f"a rate limit needs per_second > 0 and burst >= 1, found {self.per_second} and {self.burst}"
            )
        self._tokens = float(self.burst)

    def wait(self) -> None:
        """Returns when the next call may be made, and counts it."""
        if math.isinf(self.per_second):
            return
        self._refill()
        if self._tokens < 1:
            self.pause((1 - self._tokens) / self.per_second)
            self._refill()
        self._tokens -= 1

    def pause(self, seconds: float) -> None:
        """Sleeps, and remembers for how long."""
        if seconds > 0:
            self.sleep(seconds)
            self.waited_s += seconds

    def _refill(self) -> None:
        now = self.clock()
        passed = 0.0 if self._seen is None else now - self._seen
        self._tokens, self._seen = min(float(self.burst), self._tokens + passed * self.per_second), now


@dataclass(frozen=True)
class Retries:
    """How often a failed call is made again, and the pauses before: base x factor^i, at most `longest_s`, each with jitter.

    Attributes:
        attempts: calls in all for one record, >= 1. jitter: a pause is drawn between (1 - jitter) of it and all of it, so that
            many clients do not come back at once. seed: of that draw.
    """

    attempts: int = 3
    base_s: float = 1.0
    factor: float = 2.0
    longest_s: float = 60.0
    jitter: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base_s < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ValueError(
                f"retries need attempts >= 1, base_s >= 0, factor >= 1 and jitter in [0, 1], found {self}"
            )

    def pauses(self) -> Iterator[float]:
        """The pause before each further attempt, attempts - 1 of them."""
        generator = np.random.default_rng(self.seed)
        for i in range(self.attempts - 1):
            whole = min(self.longest_s, self.base_s * self.factor**i)
            yield whole * (1 - self.jitter * float(generator.random()))


@dataclass
class Spending:
    """How many calls, and how much cost, a job may make; counted before each call, so it is never exceeded."""

    max_calls: int | None = None
    max_cost: float = math.inf
    calls: int = 0
    cost: float = 0.0

    def allows(self, cost: float) -> bool:
        """Whether one more call of this cost is within both."""
        within = self.max_calls is None or self.calls < self.max_calls
        return within and self.cost + cost <= self.max_cost * (1 + 1e-12)

    def take(self, cost: float) -> None:
        """Counts a call that is about to be made."""
        self.calls += 1
        self.cost += cost
