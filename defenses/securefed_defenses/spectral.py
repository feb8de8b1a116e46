"""Rules that look for the direction in which the rows spread most: CAF and divide-and-conquer (DnC).

The spread's main direction is an eigenvector of the d x d covariance, whose nonzero part is that of the
n x n matrix of centred inner products: exact, and no power iteration over d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from securefed.gram import gram
from securefed.rows import MatrixRows, RowSource, combine
from securefed_defenses.base import GramRule
from securefed_defenses.given import Given


def main_spread(gram: torch.Tensor, weights: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The largest eigenvalue of the rows' weighted covariance, and each row's squared part along it.

    Args:
        gram: inner products about any point. weights: (n,) >= 0, sum one: mean and covariance are weighted.
    """
    mixed = gram @ weights
    about_mean = gram - mixed[:, None] - mixed[None, :] + weights @ mixed
    root = weights.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * about_mean * root[None, :])
    top = float(values[-1].clamp_min(0))
    if top == 0:
        return 0.0, torch.zeros_like(weights)
    along = about_mean @ (root * vectors[:, -1]) / top**0.5  # <x_i - mean, v> with v of length one
    return top, along.square()


@dataclass(frozen=True)
class CAF(GramRule):
    """The weighted mean whose covariance is smallest, while rows far out in its main direction fade.

    Tolerates f < n/2 without being told a bound on the honest covariance. Weights of clients are not read.
    Each step takes the main direction of the weighted covariance, and multiplies every row's weight by
    one minus its squared part along it over the largest such part of a row still in, until the weights sum
    to n - 2f: at most n steps, since each puts a row out.

    Source: Allouah, Guerraoui and Stephan, "Towards trustworthy federated learning with untrusted
    participants", ICML 2025; the direction is exact here, not iterated.

    >>> CAF(f=1)(torch.tensor([[0.0], [1.0], [2.0], [99.0]]))
    tensor([1.0101])
    """

    f: int
    name: ClassVar[str] = "caf"

    def least(self, f: int) -> int:
        return 2 * f + 1

    def bound(self) -> str:
        return "2f + 1"

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        n = len(gram)
        left = torch.ones(n, dtype=torch.float64)
        best, smallest = left / n, float("inf")
        while True:
            now = left / left.sum()
            spread, parts = main_spread(gram, now)
            if spread < smallest:
                best, smallest = now, spread
            top = parts[left > 0].max()  # a row that is out already, far away, would stop all fading
            if top <= 0:
                return best
            left = left * (1 - parts / top).clamp_min(0)
            if left.sum() <= n - 2 * self.f or self.f == 0:
                return best


@dataclass(frozen=True)
class DnC(GramRule):
    """The mean of the rows with the smallest parts along the main direction of the spread.

    Tolerates f < n/2 liars that push one way, which is what lies that hide in the crowd must do to add up.
    Liars far out in several directions at once are more than one pass can see: put `arc` or `nnm` before
    it. Weights of clients are not read.

    Attributes:
        f: liars. filter: rows taken away per pass, as a multiple of f (the paper's c).
        iterations: passes over different coordinates; only rows kept by all of them are averaged.
        subsample: coordinates a pass looks at, drawn from the generator so that a liar cannot prepare for
            them (the paper's b); None looks at all of them, in one pass and without a draw.

    Source: Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021, Algorithm 2.

    >>> DnC(f=1)(torch.tensor([[0.0], [1.0], [2.0], [99.0]]))
    tensor([1.])
    """

    f: int
    filter: float = 1.0
    iterations: int = 1
    subsample: int | None = None
    name: ClassVar[str] = "dnc"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1 or self.filter <= 0:
            raise ValueError(
                f"dnc: iterations >= 1 and filter > 0, found iterations={self.iterations}, filter={self.filter}"
            )
        if self.subsample is not None and self.subsample < 1:
            raise ValueError(f"dnc: subsample counts coordinates, at least 1, found {self.subsample}")
        if self.subsample is None and self.iterations > 1:
            raise ValueError(
                f"dnc: iterations={self.iterations} passes over all coordinates are all the same; set subsample"
            )

    @property
    def removed(self) -> int:
        """Rows that one pass takes away."""
        return int(self.filter * self.f)

    def least(self, f: int) -> int:
        return max(2 * f + 1, int(self.filter * f) * self.iterations + 1)

    def bound(self) -> str:
        return "max(2f + 1, iterations x int(filter x f) + 1)"

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        n = len(gram)
        _, parts = main_spread(gram, torch.full((n,), 1 / n, dtype=torch.float64))
        keep = parts.argsort(stable=True)[: n - self.removed]
        out = torch.zeros(n, dtype=torch.float64)
        out[keep] = 1 / len(keep)
        return out

    def finish(self, given: Given, found: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        if self.subsample is None or self.subsample >= given.rows.d:
            return super().finish(given, found, state)
        kept = torch.ones(given.rows.n, dtype=torch.bool)
        for _ in range(self.iterations):
            sample = _columns(given.rows, self._draw_columns(given))
            kept &= self.solve(gram(MatrixRows(sample), sample[0]).cpu(), given.weights) > 0
        return combine(kept.double() / kept.sum(), given.rows), state

    def _draw_columns(self, given: Given) -> torch.Tensor:
        """Sorted indices of `subsample` different coordinates."""
        generator = self.draw(given)
        assert self.subsample is not None
        chosen: set[int] = set()
        while len(chosen) < self.subsample:  # without a permutation of d numbers, which may be gigabytes
            more = self.subsample - len(chosen)
            chosen |= set(
                torch.randint(given.rows.d, (more,), generator=generator, device=generator.device).tolist()
            )
        return torch.tensor(sorted(chosen), device=given.rows.device)


def _columns(rows: RowSource, index: torch.Tensor) -> torch.Tensor:
    """The columns with these sorted indices, (n, len(index))."""
    parts = []
    for columns, block in rows.blocks():
        low, high = torch.searchsorted(
            index, torch.tensor([columns.start, columns.stop], device=index.device)
        )
        if high > low:
            parts.append(block[:, index[low:high] - columns.start])
    return torch.cat(parts, dim=1)
