"""Rules that average a subset of n - f rows: the tightest one (MDA), or a trusted row's neighbours (MoNNA)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from securefed.gram import squared_distances
from securefed_defenses.base import GramRule
from securefed_defenses.cover import tightest_subset


@dataclass(frozen=True)
class MDA(GramRule):
    """The mean of the n - f rows with the smallest diameter. Weights are not read.

    Tolerates f < n/2. The subset is the exact optimum, found by a search that is exponential in f only in
    the worst case and lists no subsets (see `cover.py`); where several have the smallest diameter, the one
    whose second largest distance is smallest, and so on, so that the order of the rows never matters.

    Source: El Mhamdi, Guerraoui, Guirguis, Hoang and Rouault, "Genuinely distributed Byzantine machine
    learning", PODC 2020; after Rousseeuw 1985 (minimum volume ellipsoid).

    >>> MDA(f=1)(torch.tensor([[0.0], [1.0], [2.0], [99.0]]))
    tensor([1.])
    """

    f: int
    name: ClassVar[str] = "mda"

    def least(self, f: int) -> int:
        return 2 * f + 1

    def bound(self) -> str:
        return "2f + 1"

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        keep = tightest_subset(squared_distances(gram).tolist(), len(gram) - self.f)
        out = torch.zeros(len(gram), dtype=torch.float64)
        out[keep] = 1 / len(keep)
        return out


@dataclass(frozen=True)
class MoNNA(GramRule):
    """The mean of the n - f rows nearest to a trusted row, itself included. Weights are not read.

    Tolerates f < n/2 **given that row `trusted` is honest** (in the paper: the row of the node that
    aggregates). The row is meant by its place in the input.

    Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot and Stephan, "Robust collaborative learning with
    linear gradient overhead", ICML 2023.

    >>> MoNNA(f=1, trusted=1)(torch.tensor([[0.0], [1.0], [2.0], [99.0]]))
    tensor([1.])
    """

    f: int
    trusted: int = 0
    name: ClassVar[str] = "monna"

    def least(self, f: int) -> int:
        return 2 * f + 1

    def bound(self) -> str:
        return "2f + 1"

    def check(self, n: int) -> None:
        super().check(n)
        if not 0 <= self.trusted < n:
            raise ValueError(f"monna: trusted names a row, 0 ... {n - 1}, found {self.trusted} with n={n}")

    def without(self, bad: Sequence[int], n: int) -> Self:
        if self.trusted in bad:
            raise ValueError(
                f"monna: the trusted row {self.trusted} holds a NaN or an infinity; trust another"
            )
        rule = super().without(bad, n)
        return dataclasses.replace(rule, trusted=self.trusted - sum(b < self.trusted for b in bad))

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        near = squared_distances(gram)[self.trusted].clone()
        near[self.trusted] = -1
        keep = near.argsort(stable=True)[: len(gram) - self.f]
        out = torch.zeros(len(gram), dtype=torch.float64)
        out[keep] = 1 / len(keep)
        return out
