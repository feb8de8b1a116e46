"""What a server of grouped masking hands to its rule: the means of fixed groups, by the protocol or by its arithmetic.

Hundreds of rounds of key agreement and signatures only to learn how a rule fares would be hours of a benchmark. The
sum that masking decodes is the sum of the clipped updates, each coordinate of each client rounded to a step of
`value_range / levels`; so group means in float64 differ from the protocol's by less than one step. A test and one
whole run by the protocol (`path = "masking"`) hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import exchange
from securefed.protect.drawing import Groups, cut
from securefed.protect.grouped import Grouped, OpenGrouped
from securefed.protect.masking.fixedpoint import levels_for
from securefed.types import RoundParameters, Update

Means = Callable[[torch.Tensor], torch.Tensor]
"""Updates (n, d) -> group means (m, d)."""


def drawn(n: int, size: int, seed: int) -> Groups:
    """The groups of an experiment: cut as the protection cuts them, from a seed that all rules share."""
    return cut(range(n), size, seed.to_bytes(32, "little"))


def poisoned(groups: Groups, liars: range) -> int:
    """How many groups hold a liar."""
    return sum(any(k in liars for k in group) for group in groups)


@dataclass(frozen=True)
class Arithmetic:
    """Group means as the protocol's sums would give them, without keys, masks and coins."""

    groups: Groups
    value_range: float = Grouped.value_range

    def __call__(self, updates: torch.Tensor) -> torch.Tensor:
        clipped = updates.double().clamp(-self.value_range, self.value_range)
        return torch.stack([clipped[list(group)].mean(0) for group in self.groups]).to(updates.dtype)


@dataclass
class Protocol:
    """Group means through the real sessions: keys, shares, masks, signatures."""

    opened: OpenGrouped
    round: int = 0
    _entropy: SystemEntropy = field(default_factory=SystemEntropy, repr=False)

    @classmethod
    def of(cls, groups: Groups, size: int) -> Protocol:
        """Fresh parties in these groups."""
        clients = range(sum(len(group) for group in groups))
        return cls(Grouped(size=size).open("claims", clients, SystemEntropy()).with_groups(groups))

    def __call__(self, updates: torch.Tensor) -> torch.Tensor:
        n, d = updates.shape
        base = RoundParameters(
            "claims", self.round, tuple(range(n)), d, bytes(32).hex(), bytes(32).hex(), (1.0,) * n
        )
        sent = {k: Update(k, self.round, row.numpy()) for k, row in enumerate(updates)}
        collected = exchange(self.opened, base, sent, self._entropy)
        self.round += 1
        assert collected.groups is not None
        means = [torch.from_numpy(g.total / g.weight) for g in collected.groups.values()]
        return torch.stack(means).to(updates.dtype)


def step(groups: Groups, value_range: float = Grouped.value_range, bits: int = Grouped.bits) -> float:
    """The largest difference between a coordinate of the two: one step of the coarsest group's quantizer."""
    return value_range / levels_for(max(len(group) for group in groups), bits)
