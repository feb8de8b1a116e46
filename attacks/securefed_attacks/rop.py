"""Relocated orthogonal perturbation: a push that centered clipping cannot see shrinking.

Source: Özfatura, Özfatura, Küpçü and Gündüz, "Byzantines can also learn from history: fall of centered
clipping in federated learning", IEEE TIFS 2024 (arXiv 2208.09894).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from securefed_attacks.base import Byzantine, Knowledge, Seen, require_number


@dataclass(frozen=True)
class ROP(Byzantine):
    """A push of fixed length at an angle to a reference, placed between the last aggregate and the mean.

    The reference is `memory` x last aggregate + (1 - memory) x honest mean. The push starts as the vector
    of ones without its part along the reference; the liars send it from the point
    `relocation` x last aggregate + (1 - relocation) x honest mean. In the first round, and in a call without
    `previous`, the reference is the honest mean and the last aggregate zero.

    Attributes:
        angle: between push and reference, degrees in [0, 180].
        relocation, memory: in [0, 1].
        length: of the push, in units of the update. None: the root mean square distance of honest rows to
            their mean (our choice; the paper has clipped momenta, whose radius is the unit).
    """

    angle: float = 90.0
    relocation: float = 1.0
    memory: float = 0.9
    length: float | None = None
    name: ClassVar[str] = "rop"
    knowledge: ClassVar[Knowledge] = "omniscient"
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.angle <= 180:
            raise ValueError(f"rop: angle is in degrees, 0 to 180, found {self.angle!r}")
        for field, value in (("relocation", self.relocation), ("memory", self.memory)):
            if not 0 <= value <= 1:
                raise ValueError(f"rop: {field} must be in [0, 1], found {value!r}")
        if self.length is not None:
            require_number(self.name, "length", self.length, 0, strict=True)

    def craft(self, seen: Seen) -> torch.Tensor:
        mean = seen.honest.mean(0)
        last = torch.zeros_like(mean) if seen.previous is None else seen.previous
        reference = mean if seen.previous is None else self.memory * last + (1 - self.memory) * mean
        place = self.relocation * last + (1 - self.relocation) * mean
        return place + self._length(seen, mean) * self._push(reference)

    def _push(self, reference: torch.Tensor) -> torch.Tensor:
        """A unit vector at `angle` to the reference."""
        along = _unit(reference)
        across = torch.ones_like(along)
        across = _unit(across - (across @ along) * along)
        turn = math.radians(self.angle)
        push: torch.Tensor = math.sin(turn) * across + math.cos(turn) * along
        return push

    def _length(self, seen: Seen, mean: torch.Tensor) -> float:
        if self.length is not None:
            return self.length
        return float((seen.honest - mean).square().sum(1).mean().sqrt())


def _unit(vector: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
    return unit
