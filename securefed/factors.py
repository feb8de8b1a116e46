"""Distances between low-rank adapters as the model feels them: in product space B A, without forming it.

Two clients whose factors are rotated against each other (B R and R^-1 A) change the model in the same way
and look far apart factor by factor; a small step in B matters as much as the A it is multiplied with. The
change that a client makes to a weight matrix, B_i A_i - B A about the global factors B and A, has rank 2 r
at most, and inner products of such changes need only products of their thin factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from securefed.layout import Layout
from securefed.rows import Rows, RowSource, as_rows

A_END, B_END = ".lora_A", ".lora_B"


@dataclass(frozen=True, eq=False)
class FactorPair:
    """One adapted matrix: where its factors lie in an update, and their global values.

    Attributes:
        a, b: the columns of A (r, in) and B (out, r) in an update, row by row; None for a factor that is
            not in it (frozen, or another round's turn).
        base_a, base_b: the global A and B that the clients started from.
        scale: what the model multiplies B A with (alpha / r, or alpha / sqrt(r)).
    """

    a: slice | None
    b: slice | None
    base_a: torch.Tensor = field(repr=False)
    base_b: torch.Tensor = field(repr=False)
    scale: float = 1.0

    def __post_init__(self) -> None:
        (r, _), (_, also) = self.base_a.shape, self.base_b.shape
        if r != also:
            raise ValueError(f"A has {r} rows and B {also} columns; both are the rank")
        for name, where, size in (("A", self.a, self.base_a.numel()), ("B", self.b, self.base_b.numel())):
            if where is not None and where.stop - where.start != size:
                raise ValueError(f"{name} has {size} numbers, {where.stop - where.start} columns are named")


@dataclass(frozen=True, eq=False)
class AdapterSpace:
    """How to read an update of adapters: its pairs of factors, and the columns that are no factor."""

    pairs: tuple[FactorPair, ...]
    rest: tuple[slice, ...] = ()

    @classmethod
    def of(cls, layout: Layout, base: Mapping[str, torch.Tensor], scale: float = 1.0) -> AdapterSpace:
        """The space of updates with this layout; factors are the names that end in .lora_A and .lora_B.

        Args:
            layout: the coordinates of an update; may hold one factor of a pair only.
            base: the global value of every factor, also of those that the layout leaves out.
            scale: what the model multiplies B A with.

        Raises:
            ValueError: a factor's partner has no global value.
        """
        pairs, rest = [], []
        stems = sorted(
            {n.removesuffix(A_END).removesuffix(B_END) for n in layout.names if n.endswith((A_END, B_END))}
        )
        for stem in stems:
            a, b = stem + A_END, stem + B_END
            if a not in base or b not in base:
                raise ValueError(
                    f"no global value of {a if a not in base else b}; give both factors of a pair"
                )
            where = [layout.slice_of(n) if n in layout.names else None for n in (a, b)]
            pairs.append(FactorPair(where[0], where[1], base[a].detach(), base[b].detach(), scale))
        rest = [layout.slice_of(n) for n in layout.names if not n.endswith((A_END, B_END))]
        return cls(tuple(pairs), tuple(rest))


def adapter_gram(rows: Rows, space: AdapterSpace) -> torch.Tensor:
    """Inner products of the changes that n updates make to the model, float64 (n, n), about no change.

    For a pair, <B_i A_i - B A, B_j A_j - B A> in the Frobenius inner product, times scale squared; for the
    other columns, plain inner products; all added up. `squared_distances` of it are
    sum ||scale (B_i A_i - B_j A_j)||_F^2 + |rest_i - rest_j|^2.

    Cost: (2 r n)^2 (in + out) per pair, against n^2 in x out for the products themselves.
    """
    source = as_rows(rows)
    total = torch.zeros(source.n, source.n, dtype=torch.float64, device=source.device)
    for pair in space.pairs:
        total += pair.scale**2 * _pair_gram(source, pair)
    for columns in space.rest:
        block = source.block(columns.start, columns.stop).double()
        total += block @ block.T
    return (total + total.T) / 2


def _pair_gram(source: RowSource, pair: FactorPair) -> torch.Tensor:
    """With B_i A_i - B A = dB_i (A + dA_i) + B dA_i = [dB_i, B] [A + dA_i; dA_i], nothing cancels."""
    n, rank = source.n, pair.base_a.shape[0]
    base_a, base_b = (t.to(source.device).double() for t in (pair.base_a, pair.base_b))
    step_a, step_b = _steps(source, pair.a, base_a), _steps(source, pair.b, base_b)
    left = torch.cat([step_b, base_b.expand(n, -1, -1)], dim=2)  # (n, out, 2r)
    right = torch.cat([base_a + step_a, step_a], dim=1)  # (n, 2r, in)
    thin = left.transpose(1, 2).reshape(n * 2 * rank, -1)
    wide = right.reshape(n * 2 * rank, -1)
    both = (thin @ thin.T) * (wide @ wide.T)
    return both.view(n, 2 * rank, n, 2 * rank).sum(dim=(1, 3))


def _steps(source: RowSource, where: slice | None, base: torch.Tensor) -> torch.Tensor:
    """The rows' changes of one factor, float64 (n, *base.shape); zero where the update leaves it out."""
    if where is None:
        return torch.zeros(source.n, *base.shape, dtype=torch.float64, device=source.device)
    return source.block(where.start, where.stop).double().view(source.n, *base.shape)
