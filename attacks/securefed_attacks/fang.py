"""Attacks made for one rule: against Krum, and against trimmed mean and median.

Source: Fang, Cao, Jia and Gong, "Local model poisoning attacks to Byzantine-robust federated learning",
USENIX Security 2020, section 4 (full knowledge). There they are written for models; here for updates, whose
reference point is zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from securefed_attacks.base import Byzantine, Knowledge, Line, Seen, require_number


@dataclass(frozen=True)
class FangKrum(Line):
    """Minus lambda times the signs of the honest mean, with the largest lambda that Krum still picks.

    The liars support each other (all send the same row), and lambda is halved from the paper's upper bound
    (its Theorem 1) until Krum, told the true f, picks a liar, or it falls below `smallest`.

    Needs h >= 3, so that Krum has a neighbour to count.
    """

    smallest: float = 1e-5
    name: ClassVar[str] = "fang_krum"
    knowledge: ClassVar[Knowledge] = "omniscient"
    from_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self.name, "smallest", self.smallest, 0, strict=True)

    def check(self, h: int, f: int) -> None:
        if h < 3:
            raise ValueError(f"fang_krum: Krum counts n - f - 2 = h - 2 neighbours, got h={h}, f={f}")

    def direction(self, seen: Seen) -> torch.Tensor:
        return -seen.honest.mean(0).sign()

    def strength(self, seen: Seen, direction: torch.Tensor) -> float:
        lengths, inner, distances = _geometry(seen.honest, direction)
        strength = _bound(lengths, distances, len(direction), seen.f)
        while strength > self.smallest and not _picked(strength, lengths, inner, distances, seen.f):
            strength /= 2
        return strength


def _bound(lengths: torch.Tensor, distances: torch.Tensor, d: int, f: int) -> float:
    """Theorem 1's bound on lambda; its m - 2c - 1 counts the honest rows that score a liar, at least one."""
    h = len(distances)
    near = distances.sort(1).values[:, 1 : h - 1].sum(1)
    return math.sqrt(float(near.min()) / (max(1, h - f - 1) * d)) + math.sqrt(float(lengths.max()) / d)


def _geometry(
    honest: torch.Tensor, direction: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """|x_i|^2 (h,), <x_i, direction> with |direction|^2 at the end (h + 1,), and |x_i - x_j|^2 (h, h)."""
    from securefed.gram import centred_gram, gram, squared_distances

    wide = honest if honest.dtype in (torch.float32, torch.float64) else honest.float()
    products = gram(torch.cat([wide, direction[None].to(wide.dtype)]))
    return products.diagonal()[:-1], products[-1], squared_distances(centred_gram(wide))


def _picked(
    strength: float, lengths: torch.Tensor, inner: torch.Tensor, distances: torch.Tensor, f: int
) -> bool:
    """Whether Krum picks a liar at this strength: its score is the smallest of all."""
    h = len(distances)
    keep = h - 2
    to_liar = (lengths - 2 * strength * inner[:-1] + strength**2 * inner[-1]).clamp_min(0)
    liar = torch.cat([distances.new_zeros(f - 1), to_liar]).sort().values[:keep].sum()
    seen = torch.cat([distances, to_liar[:, None].expand(h, f)], 1).sort(1).values[:, 1 : 1 + keep]
    return bool(liar < seen.sum(1).min())


@dataclass(frozen=True)
class FangTrimmedMean(Byzantine):
    """In each coordinate, values just beyond the honest ones, on the side away from the honest mean's sign.

    Against trimmed mean and median alike. Where the honest mean is positive, liars draw uniformly between
    the smallest honest value and `factor` times further down; where it is negative, the other way round.

    Attributes:
        factor: b > 1; the paper's 2.
    """

    factor: float = 2.0
    name: ClassVar[str] = "fang_trimmed_mean"
    knowledge: ClassVar[Knowledge] = "omniscient"

    def __post_init__(self) -> None:
        require_number(self.name, "factor", self.factor, 1, strict=True)

    def craft(self, seen: Seen) -> torch.Tensor:
        low, high = seen.honest.aminmax(dim=0)
        down = seen.honest.mean(0) > 0
        edge = torch.where(down, low, high)
        away = torch.where(down, edge < 0, edge > 0)  # whether the edge lies on the side we push to
        far = torch.where(away, self.factor * edge, edge / self.factor)
        return edge + (far - edge) * seen.draw(seen.f, len(edge))
