"""An attacker who knows the rule: the strength of an attack that hurts this very pipeline most.

Source for the idea: Fang et al. (USENIX Security 2020) and Shejwalkar and Houmansadr (NDSS 2021) search the
strength by halving; here a grid finds the right hill and golden section climbs it, for any rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from securefed_attacks.base import Byzantine, Knowledge, Line, Seen, require_number
from securefed_attacks.damage import Field, Goal, Rule, Score, scorer

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        strength: the best one. score: what it does (see `Goal`).
        evaluations: strengths tried. cheap: whether no column was touched while trying.
    """

    strength: float
    score: float
    evaluations: int
    cheap: bool


@dataclass(frozen=True)
class Optimal(Byzantine):
    """A `Line` attack (`ipm`, `alie`, `sign_flip`, `min_max`, ...) at the strength that hurts a rule most.

    The given attack's own strength is only one of those tried. The score is what the rule's result is away
    from the honest mean ("distance"), or against it ("reverse"). No column is ever left out: where the rule's
    result is a weighted sum of rows (Krum, geometric median, NNM before them, ...), all is worked out on
    inner products and d does not matter; a coordinate-wise rule sees all real columns at every strength.

    Attributes:
        attack: the line. aggregator: the rule, or a pipeline, as deployed, so with the declared f.
        low, high: strengths searched, 0 < low < high, in the attack's own unit. Against a rule without a
            bound (the mean) damage grows for ever, and the answer is `high`.
        grid: strengths tried first, evenly spaced in their logarithm. refine: golden-section steps around
            the best of them. 0 takes many where no column is touched, else 10 and 8.
        goal: what the liars want.

    >>> from securefed.aggregation import Mean
    >>> from securefed_attacks.byzantine import IPM
    >>> Optimal(IPM(), Mean(), high=50.0)(torch.tensor([[1.0], [3.0]]), f=1)
    tensor([[-100.]])
    """

    attack: Line
    aggregator: Rule
    low: float = 0.01
    high: float = 100.0
    grid: int = 0
    refine: int = 0
    goal: Goal = "distance"
    name: ClassVar[str] = "optimal"
    knowledge: ClassVar[Knowledge] = "omniscient"
    parts: ClassVar[Mapping[str, str]] = {"attack": "attack", "aggregator": "aggregator"}
    """Fields that hold other components, and their kind: the registry builds them."""

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Line):
            name = getattr(self.attack, "name", type(self.attack).__name__)
            raise ValueError(
                f"optimal: {name} has no strength along a line; use ipm, alie, sign_flip, min_max, min_sum or fang_krum"
            )
        if not callable(self.aggregator):
            raise ValueError(f"optimal: {self.aggregator!r} is no rule that can be called")
        require_number(self.name, "low", self.low, 0, strict=True)
        require_number(self.name, "high", self.high, self.low, strict=True)
        for what, value in (("grid", self.grid), ("refine", self.refine)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(
                    f"optimal: {what} counts trials, so it is a whole number >= 0, found {value!r}"
                )
        if self.goal not in ("distance", "reverse"):
            raise ValueError(f'optimal: goal is "distance" or "reverse", found {self.goal!r}')

    def check(self, h: int, f: int) -> None:
        self.attack.check(h, f)

    def craft(self, seen: Seen) -> torch.Tensor:
        place = self._field(seen)
        return self.attack.at(seen, place.direction, self._search(place).strength)

    def search(self, honest: torch.Tensor, f: int, generator: torch.Generator | None = None) -> Found:
        """The best strength against these honest rows (h, d), and what it does.

        Raises:
            ValueError: as for a call.
        """
        self.check(len(honest), f)
        return self._search(self._field(Seen(honest.detach(), f, generator=generator)))

    def _field(self, seen: Seen) -> Field:
        seed = 0 if seen.generator is None else int(seen.draw(1) * 2**24)
        return Field(self.attack, seen, self.aggregator, self.goal, seed)

    def _search(self, place: Field) -> Found:
        seen = place.seen
        own = self.attack.strength(seen, place.direction)
        score, cheap = scorer(place, probe=math.sqrt(self.low * self.high))
        tried = Tried(score)
        for strength in self._first(cheap):
            tried(strength)
        if self.low <= own <= self.high:
            tried(own)
        self._climb(tried, self.refine or (40 if cheap else 8))
        best = tried.best()
        return Found(best, tried.scores[best], len(tried.scores), cheap)

    def _first(self, cheap: bool) -> list[float]:
        """The grid, from low to high, evenly spaced in the logarithm."""
        count = self.grid or (200 if cheap else 10)
        if count == 1:
            return [self.high]
        ratio = math.log(self.high / self.low) / (count - 1)
        return [self.low * math.exp(ratio * k) for k in range(count - 1)] + [self.high]

    def _climb(self, tried: Tried, steps: int) -> None:
        """Golden section between the neighbours of the best strength so far; every value is kept."""
        low, high = tried.around()
        a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        for _ in range(steps):
            if high - low <= 1e-6 * high:
                return
            if tried(a) > tried(b):
                high, b = b, a
                a = high - GOLDEN * (high - low)
            else:
                low, a = a, b
                b = low + GOLDEN * (high - low)


@dataclass
class Tried:
    """A score that remembers what it was asked."""

    score: Score
    scores: dict[float, float] = field(default_factory=dict)

    def __call__(self, strength: float) -> float:
        if strength not in self.scores:
            self.scores[strength] = self.score(strength)
        return self.scores[strength]

    def best(self) -> float:
        """The strength with the highest score; of equal ones, the smallest."""
        return min(self.scores, key=lambda s: (-self.scores[s], s))

    def around(self) -> tuple[float, float]:
        """The tried strengths on both sides of the best one."""
        ordered = sorted(self.scores)
        at = ordered.index(self.best())
        return ordered[max(0, at - 1)], ordered[min(len(ordered) - 1, at + 1)]
