"""SignGuard: keep rows of ordinary length whose signs look like most others'."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from securefed.rows import RowSource, combine
from securefed_defenses.base import GramRule
from securefed_defenses.clipping import shrink
from securefed_defenses.flame import median_length
from securefed_defenses.given import About, Given

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SignGuard(GramRule):
    """The mean of the rows that pass two filters, each clipped to the median length of all.

    Tolerates fewer than half of the rows where lies change the length, or the share of positive, zero and
    negative coordinates. Weights are not read. The first filter keeps lengths between `low` and `high` times
    the median; the second keeps the largest cluster of sign shares (mean shift, Comaniciu and Meer 2002).
    Where no row passes both the result is zero, and a warning says so.

    The result is no function of inner products alone: `weights_from_gram` applies the length filter only.

    Attributes:
        low, high: the paper's 0.1 and 3.0.

    All coordinates are counted (the paper draws a tenth of them, for speed).

    Source: Xu, Huang, Song and Lan, "Byzantine-robust federated learning through collaborative malicious
    gradient filtering" (SignGuard), ICDCS 2022, Algorithm 2.

    >>> SignGuard()(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [-1.0, -2.0]])).round(decimals=2)
    tensor([1.3300, 1.3300])
    """

    low: float = 0.1
    high: float = 3.0
    name: ClassVar[str] = "sign_guard"
    about: ClassVar[About] = "origin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.low <= 1 <= self.high:
            raise ValueError(f"sign_guard: 0 <= low <= 1 <= high, found low={self.low}, high={self.high}")

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self._average(gram, range(len(gram)))

    def finish(self, given: Given, found: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        alike = largest_cluster(sign_shares(given.rows))
        return combine(self._average(found.cpu(), alike), given.rows), state

    def _average(self, gram: torch.Tensor, alike: Iterable[int]) -> torch.Tensor:
        lengths, middle = gram.diagonal().sqrt(), median_length(gram)
        usual = (lengths >= self.low * middle) & (lengths <= self.high * middle)
        keep = [i for i in alike if usual[i]]
        out = torch.zeros(len(gram), dtype=torch.float64)
        if not keep:
            logger.warning("sign_guard: no row passes both filters; this round changes nothing")
            return out
        out[keep] = shrink(lengths, middle)[keep] / len(keep)
        return out


def sign_shares(rows: RowSource) -> torch.Tensor:
    """The shares of positive, zero and negative coordinates of each row, float64 (n, 3) on the CPU."""
    counts = torch.zeros(rows.n, 2, dtype=torch.long, device=rows.device)
    for _, block in rows.blocks():
        counts += torch.stack([(block > 0).sum(1), (block < 0).sum(1)], dim=1)
    positive, negative = (counts.cpu().double() / rows.d).unbind(1)
    return torch.stack([positive, 1 - positive - negative, negative], dim=1)


def largest_cluster(points: torch.Tensor) -> list[int]:
    """Indices of the largest cluster by mean shift with a flat window.

    The window's radius is the mean distance from a point to the furthest of its n // 2 nearest (itself
    included). Every point climbs to the mean of the points in its window until it rests; resting places
    closer than the radius to a fuller one join it.
    """
    order = sorted(
        range(len(points)), key=lambda i: points[i].tolist()
    )  # so that ties ignore the rows' order
    points, n = points[order], len(points)
    near = torch.cdist(points, points).sort(dim=1).values[:, max(1, n // 2) - 1]
    radius = float(near.mean()) * (1 + 1e-9) + 1e-12
    places = points.clone()
    for _ in range(300):  # shifts never leave the points' hull and end after finitely many
        inside = (torch.cdist(places, points) <= radius).double()
        moved = inside @ points / inside.sum(1, keepdim=True)
        if float((moved - places).abs().max()) < 1e-3 * radius:
            break
        places = moved
    filling = (torch.cdist(places, points) <= radius).sum(1)
    centres: list[int] = []
    for i in filling.argsort(descending=True, stable=True).tolist():
        if all(float((places[i] - places[c]).norm()) > radius for c in centres):
            centres.append(i)
    label = torch.cdist(points, places[centres]).argmin(1)
    sizes = torch.bincount(label, minlength=len(centres))
    return sorted(order[int(i)] for i in (label == sizes.argmax()).nonzero())
