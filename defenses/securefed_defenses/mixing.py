"""Maps that are put before a rule, (n, d) -> (m, d): neighbour mixing, bucketing, and two ways to clip.

All are linear in the rows, with a matrix that follows from inner products (or from nothing), so that a
pipeline reads the rows once for its inner products and once for its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from securefed.gram import squared_distances
from securefed_defenses.base import PreAggregator
from securefed_defenses.clipping import require_positive, shrink
from securefed_defenses.given import About, Given


def _gram(gram: torch.Tensor | None) -> torch.Tensor:
    assert gram is not None  # `about` says that it is measured
    return gram


@dataclass(frozen=True)
class NNM(PreAggregator):
    """Nearest-neighbour mixing: each row becomes the mean of the n - f rows nearest to it, itself included.

    Tolerates f < n/2. It brings the honest rows together, which is what rules behind it need when clients
    hold different data.

    Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, "Fixing by mixing", AISTATS 2023
    (arXiv 2302.01772).

    >>> NNM(f=1)(torch.tensor([[0.0], [1.0], [2.0], [99.0]])).flatten()
    tensor([ 1.,  1.,  1., 34.])
    """

    f: int
    name: ClassVar[str] = "nnm"

    def least(self, f: int) -> int:
        return 2 * f + 1

    def bound(self) -> str:
        return "2f + 1"

    def mix(self, gram: torch.Tensor | None, given: Given) -> torch.Tensor:
        distances = squared_distances(_gram(gram)).fill_diagonal_(-1)  # first of all, a row is near to itself
        keep = len(distances) - self.f
        near = distances.argsort(dim=1, stable=True)[:, :keep]
        return torch.zeros_like(distances).scatter_(1, near, 1 / keep)


@dataclass(frozen=True)
class Bucketing(PreAggregator):
    """Means of random groups of s rows, ceil(n / s) of them; the last may be smaller.

    A liar spoils one group, so the rule behind it still faces f liars, among fewer rows. The groups are
    drawn anew in every call, from the generator; s = 1 draws nothing and changes nothing.

    Source: Karimireddy, He and Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing",
    ICLR 2022, Algorithm 1.

    >>> Bucketing(s=3)(torch.tensor([[0.0], [1.0], [2.0]]), generator=torch.Generator())
    tensor([[1.]])
    """

    s: int
    name: ClassVar[str] = "bucketing"
    about: ClassVar[About | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.s, bool) or not isinstance(self.s, int) or self.s < 1:
            raise ValueError(f"bucketing: s is the rows in a group, a whole number >= 1, found {self.s!r}")

    def rows_out(self, n: int) -> int:
        return -(-n // self.s)

    def mix(self, gram: torch.Tensor | None, given: Given) -> torch.Tensor:
        n = given.rows.n
        if self.s == 1:
            return torch.eye(n, dtype=torch.float64)
        generator = self.draw(given)
        order = torch.randperm(n, generator=generator, device=generator.device).tolist()
        groups = [order[k : k + self.s] for k in range(0, n, self.s)]
        matrix = torch.zeros(len(groups), n, dtype=torch.float64)
        for row, group in zip(matrix, groups, strict=True):
            row[group] = 1 / len(group)
        return matrix


@dataclass(frozen=True)
class Clip(PreAggregator):
    """Each row shortened to length `max_norm` where it is longer. Tolerates nothing by itself.

    >>> Clip(max_norm=1.0)(torch.tensor([[0.5], [-4.0]])).flatten()
    tensor([ 0.5000, -1.0000])
    """

    max_norm: float
    name: ClassVar[str] = "clip"
    about: ClassVar[About | None] = "origin"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, "max_norm", self.max_norm)

    def mix(self, gram: torch.Tensor | None, given: Given) -> torch.Tensor:
        return torch.diag(shrink(_gram(gram).diagonal().sqrt(), self.max_norm))


@dataclass(frozen=True)
class ARC(PreAggregator):
    """Adaptive clipping: the k = floor(2 f (n - f) / n) longest rows are shortened to the next longest one.

    Tolerates f < n/2, and keeps the robustness of the rule behind it, which a fixed clip does not.

    Source: Allouah, Guerraoui, Gupta, Jellouli, Rizk and Stephan, "Adaptive gradient clipping for robust
    federated learning", ICLR 2025 (arXiv 2405.14432).

    >>> ARC(f=1)(torch.tensor([[1.0], [2.0], [3.0], [99.0]])).flatten()
    tensor([1., 2., 3., 3.])
    """

    f: int
    name: ClassVar[str] = "arc"
    about: ClassVar[About | None] = "origin"

    def least(self, f: int) -> int:
        return 2 * f + 1

    def bound(self) -> str:
        return "2f + 1"

    def mix(self, gram: torch.Tensor | None, given: Given) -> torch.Tensor:
        lengths = _gram(gram).diagonal().sqrt()
        n = len(lengths)
        clipped = 2 * self.f * (n - self.f) // n
        limit = lengths.sort().values[n - clipped - 1]
        return torch.diag(shrink(lengths, limit))
