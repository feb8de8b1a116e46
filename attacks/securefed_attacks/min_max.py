"""Attacks that stay as close as honest rows are to each other, and go as far as that allows.

A liar's row is mean + gamma p for a fixed direction p. Its squared distance to each honest row is a
parabola in gamma, so the largest gamma is found exactly, not by halving as in the paper.

Source: Shejwalkar and Houmansadr, "Manipulating the Byzantine: optimizing model poisoning attacks and
defenses for federated learning", NDSS 2021, sections 4.2 and 4.3 (Min-Max, Min-Sum).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from securefed_attacks.base import Knowledge, Line, Seen
from securefed_attacks.byzantine import spread

Perturbation = Literal["std", "unit", "sign"]
"""Minus the spread of each coordinate, minus the mean's direction, or minus its signs."""


@dataclass(frozen=True)
class _Close(Line):
    perturbation: Perturbation = "std"
    knowledge: ClassVar[Knowledge] = "omniscient"
    from_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.perturbation not in ("std", "unit", "sign"):
            raise ValueError(
                f'{self.name}: perturbation is "std", "unit" or "sign", found {self.perturbation!r}'
            )

    def check(self, h: int, f: int) -> None:
        if h < 2:
            raise ValueError(f"{self.name}: needs h >= 2 honest rows with distances, got h={h}, f={f}")

    def direction(self, seen: Seen) -> torch.Tensor:
        if self.perturbation == "std":
            return -spread(seen.honest)
        mean = seen.honest.mean(0)
        return -mean.sign() if self.perturbation == "sign" else -mean / mean.norm().clamp_min(1e-30)


@dataclass(frozen=True)
class MinMax(_Close):
    """The liar's largest distance to an honest row is that between the two honest rows furthest apart.

    >>> MinMax()(torch.tensor([[1.0], [2.0], [7.0]]), f=1).round(decimals=3)
    tensor([[1.]])
    """

    name: ClassVar[str] = "min_max"

    def strength(self, seen: Seen, direction: torch.Tensor) -> float:
        distances, pull, length = _parabolas(seen.honest, direction)
        to_mean = _to_mean(distances)
        limit = distances.max()
        return _largest_root(length, pull, to_mean - limit)


@dataclass(frozen=True)
class MinSum(_Close):
    """The liar's sum of squared distances to honest rows is the largest that an honest row has.

    >>> MinSum()(torch.tensor([[0.0], [1.0], [5.0]]), f=1).round(decimals=3)
    tensor([[-1.]])
    """

    name: ClassVar[str] = "min_sum"

    def strength(self, seen: Seen, direction: torch.Tensor) -> float:
        distances, pull, length = _parabolas(seen.honest, direction)
        excess = _to_mean(distances).sum() - distances.sum(1).max()
        return _largest_root(len(distances) * length, pull.sum(0, keepdim=True), excess.reshape(1))


def _parabolas(
    honest: torch.Tensor, direction: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """|mean + g p - x_i|^2 = |mean - x_i|^2 + 2 g pull_i + g^2 length: distances (h, h), pull (h,), length."""
    from securefed.gram import gram

    mean = honest.mean(0)
    rows = torch.cat([honest - mean, direction[None]]).to(
        torch.float64 if honest.dtype == torch.float64 else torch.float32
    )
    products = gram(rows)
    inner, lengths = products[:-1, :-1], products.diagonal()[:-1]
    distances = (lengths[:, None] + lengths[None] - 2 * inner).clamp_min(0)
    return distances, -products[-1, :-1], products[-1, -1]


def _to_mean(distances: torch.Tensor) -> torch.Tensor:
    """Squared distances of the rows to their mean, from those between them (h, h)."""
    h = len(distances)
    return distances.mean(1) - distances.sum() / (2 * h * h)


def _largest_root(length: torch.Tensor, pull: torch.Tensor, excess: torch.Tensor) -> float:
    """The largest g with length g^2 + 2 pull_i g + excess_i <= 0 for all i; 0 where nothing can move.

    At g = 0 all hold: the mean is within the honest rows' own distances.
    """
    if float(length) <= 0:
        return 0.0
    roots = (-pull + (pull.square() - length * excess).clamp_min(0).sqrt()) / length
    return max(0.0, float(roots.min()))
