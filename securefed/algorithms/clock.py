"""A simulated clock: how long each client takes for one round's work, from the public seed alone.

Nothing of the data enters (no record count, no loss), so when a client is ready tells nothing about its records.
Client k's slowness is lognormal over clients, times `slowdown` for the stragglers among them; each turn of work
varies around it. Nguyen et al. 2022 (arXiv 2106.06639, section 5) simulate such delays; the paper's are half-normal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from securefed.config import ClockConfig

_WHO, _TURN = 0xC10C, 0xC10D  # labels that keep the streams of one seed apart


@dataclass(frozen=True)
class Clock:
    """The times of one federation.

    Attributes:
        seed: of the experiment. clients: n.
    """

    config: ClockConfig
    seed: int
    clients: int

    def duration(self, client: int, turn: int) -> float:
        """Simulated seconds of this client's work, from the model's arrival to its update being ready.

        Args:
            turn: counts a client's turns (or rounds), 0-based.
        """
        generator = np.random.default_rng([self.seed, _TURN, client, turn])
        jitter = math.exp(self.config.jitter * float(generator.standard_normal()))
        return self.config.seconds * slowness(self)[client] * jitter

    def round_seconds(self, cohort: Iterable[int], round: int) -> float:
        """A synchronous round lasts as long as the slowest of its cohort; nobody: no time."""
        return max((self.duration(k, round) for k in cohort), default=0.0)


@lru_cache(maxsize=8)
def slowness(clock: Clock) -> tuple[float, ...]:
    """Each client's time over that of a median client; `stragglers` of them, rounded, are `slowdown` times slower."""
    c, generator = clock.config, np.random.default_rng([clock.seed, _WHO])
    found = np.exp(c.spread * generator.standard_normal(clock.clients))
    slow = generator.choice(clock.clients, round(c.stragglers * clock.clients), replace=False)
    found[slow] *= c.slowdown
    return tuple(float(x) for x in found)
