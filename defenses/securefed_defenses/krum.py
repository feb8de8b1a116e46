"""Rules that score a row by its distances to its nearest neighbours: Krum, Multi-Krum, Bulyan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from securefed.gram import squared_distances
from securefed_defenses import kernels
from securefed_defenses.base import GramRule
from securefed_defenses.given import Given


def scores(distances: torch.Tensor, f: int) -> torch.Tensor:
    """Krum's score of each row: the sum of the squared distances to its n - f - 2 nearest other rows.

    At least one neighbour counts: where Bulyan has few rows left, the formula would leave none.
    """
    near = max(1, len(distances) - f - 2)
    return distances.sort(dim=1).values[:, 1 : 1 + near].sum(1)  # column 0 is the row itself


def ranking(distances: torch.Tensor, f: int) -> torch.Tensor:
    """Row indices from the best score to the worst.

    Where one neighbour counts, two rows nearest to each other always tie; then the one nearer to all others
    goes first, so that the order of the rows does not decide.
    """
    by_total = distances.sum(1).argsort(stable=True)
    return by_total[scores(distances, f)[by_total].argsort(stable=True)]


@dataclass(frozen=True)
class _Krum(GramRule):
    f: int

    def least(self, f: int) -> int:
        return 2 * f + 3

    def bound(self) -> str:
        return "2f + 3"


@dataclass(frozen=True)
class Krum(_Krum):
    """The row whose n - f - 2 nearest neighbours are nearest. Weights are not read.

    Tolerates f with 2f + 2 < n. The result is always one client's own update, so nothing is averaged: a
    price in accuracy even without liars. Cost: the inner products, one reading and one row.

    Source: Blanchard et al., "Machine learning with adversaries", NeurIPS 2017, section 4.

    >>> Krum(f=1)(torch.tensor([[0.0], [1.0], [1.4], [2.5], [99.0]]))
    tensor([1.])
    """

    name: ClassVar[str] = "krum"

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(gram), dtype=torch.float64)
        out[ranking(squared_distances(gram), self.f)[0]] = 1
        return out


@dataclass(frozen=True)
class MultiKrum(_Krum):
    """The mean of the m rows with the smallest Krum scores. Weights are not read.

    Tolerates f with 2f + 2 < n. `m` is 1 ... n - f; None is n - f, the most that may be honest.

    Source: Blanchard et al., NeurIPS 2017, section 4 ("m-Krum").

    >>> MultiKrum(f=1, m=2)(torch.tensor([[0.0], [1.0], [1.4], [2.5], [99.0]]))
    tensor([1.2000])
    """

    m: int | None = None
    name: ClassVar[str] = "multi_krum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m is not None and self.m < 1:
            raise ValueError(f"multi_krum: m must be at least 1, found {self.m}")

    def check(self, n: int) -> None:
        super().check(n)
        if self.m is not None and self.m > n - self.f:
            raise ValueError(
                f"multi_krum needs m <= n - f, got m={self.m}, n={n}, f={self.f}; lower m or leave it out"
            )

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        m = self.m or len(gram) - self.f
        out = torch.zeros(len(gram), dtype=torch.float64)
        out[ranking(squared_distances(gram), self.f)[:m]] = 1 / m
        return out


@dataclass(frozen=True)
class Bulyan(_Krum):
    """Krum picks n - 2f rows one after another; of these, the n - 4f closest to each coordinate's median.

    Tolerates f with 4f + 2 < n. Weights are not read. `weights_from_gram` says which rows are picked (each
    1 / (n - 2f)); the second stage then looks at coordinates, so the result is no weighted sum of rows.

    Source: El Mhamdi, Guerraoui and Rouault, "The hidden vulnerability of distributed learning in
    Byzantium", ICML 2018, section 4.

    >>> Bulyan(f=1)(torch.tensor([[0.0], [1.0], [2.1], [3.3], [4.6], [6.0], [99.0]]))
    tensor([3.3333])
    """

    name: ClassVar[str] = "bulyan"

    def least(self, f: int) -> int:
        return 4 * f + 3

    def bound(self) -> str:
        return "4f + 3"

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        n = len(gram)
        distances, left, out = squared_distances(gram), list(range(n)), torch.zeros(n, dtype=torch.float64)
        for _ in range(n - 2 * self.f):
            among = torch.tensor(left)
            best = left[int(ranking(distances[among][:, among], self.f)[0])]
            out[best] = 1 / (n - 2 * self.f)
            left.remove(best)
        return out

    def finish(self, given: Given, found: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        picked = self.solve(found.cpu(), given.weights).nonzero().flatten().tolist()
        keep = len(picked) - 2 * self.f
        return kernels.by_columns(
            given.rows.take(picked), lambda b: kernels.mean_around_median(b, keep)
        ), state
