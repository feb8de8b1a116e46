"""Each record's gradient of one tensor, in the form that costs least: products of positions, looked-up rows, or written down.

Of each form: squared norms, and the sum of all records' gradients at given weights. Both are float64, and of the same
numbers: a norm of something else than what is added bounds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

_POSITIONS, _ROWS = 128, 16
"""Positions, or rows, that are widened to float64 at a time."""


@dataclass(frozen=True, eq=False)
class Products:
    """A linear layer's gradients (out, in) as positions' products: b (n, t, out) and a (n, t, in)."""

    b: torch.Tensor = field(repr=False)
    a: torch.Tensor = field(repr=False)

    def squares(self) -> torch.Tensor:
        """Squared norms, float64 (n,), below the true ones by no more than a hair of `MARGIN`.

        A sum over pairs cancels, so its error is put on top: each product of k terms errs by less than k 2^-53 of
        the product of the norms, and by Cauchy and Schwarz all pairs together by that of tr(A A^T) tr(B B^T). What is put
        on is 2^13 times as much: a record whose positions cancel must not be so large in the sum of many that it
        rounds others' parts away.
        """
        positions = self.a.shape[1]
        if positions == 1:
            return _square(self.a) * _square(self.b)
        terms = self.a.shape[2] + self.b.shape[2] + positions**2
        return torch.cat([_pairs(a, b, terms * 2.0**-40) for a, b in self._parts()])

    def add(self, weights: torch.Tensor, total: torch.Tensor) -> None:
        """Adds each record's gradient times its weight, float64 (n,), to `total` (out, in); weight 0 adds nothing, be it finite or not."""
        if not bool(weights.all()):
            used = torch.nonzero(weights).flatten()
            Products(self.b[used], self.a[used]).add(weights[used], total)
            return
        begun = 0
        for a, b in self._parts():
            weighted = b.double() * weights[begun : begun + len(b), None, None]
            total.addmm_(weighted.flatten(0, 1).T, a.double().flatten(0, 1))
            begun += len(b)

    def _parts(self) -> zip[tuple[torch.Tensor, torch.Tensor]]:
        """A few records' (a, b) at a time: what is doubled of them stays in a processor's cache."""
        records = max(1, _POSITIONS // self.a.shape[1])
        return zip(self.a.split(records), self.b.split(records), strict=True)


def _pairs(a: torch.Tensor, b: torch.Tensor, error: float) -> torch.Tensor:
    """Sum over pairs of positions of (A A^T) * (B B^T), and `error` times both traces on top; float64 (n,)."""
    a, b = a.double(), b.double()
    between_a, between_b = torch.bmm(a, a.transpose(1, 2)), torch.bmm(b, b.transpose(1, 2))
    traces = between_a.diagonal(dim1=1, dim2=2).sum(1) * between_b.diagonal(dim1=1, dim2=2).sum(1)
    return between_a.mul_(between_b).sum((1, 2)).add_(traces, alpha=error)


@dataclass(frozen=True, eq=False)
class Rows:
    """Gradients as they are, (n, *shape)."""

    rows: torch.Tensor = field(repr=False)

    def squares(self) -> torch.Tensor:
        """Squared norms, float64 (n,)."""
        return _square(self.rows)

    def add(self, weights: torch.Tensor, total: torch.Tensor) -> None:
        """Adds each record's gradient times its weight, float64 (n,), to `total` (*shape); weight 0 adds nothing, be it finite or not."""
        used = slice(None) if bool(weights.all()) else torch.nonzero(weights).flatten()
        total.add_(torch.tensordot(weights[used], self.rows[used].double(), 1))


@dataclass(frozen=True, eq=False)
class Lookups:
    """An embedding's gradients (words, h): of each record its rows at the words that it looked up.

    What falls on one word of one record is added up first, once for norms and sums: raw positions that cancel
    would go into the sum of all records larger than the norm says.

    Attributes:
        sums: float64 (k, h). record, word: int64 (k,), whose and where. records: n.
    """

    sums: torch.Tensor = field(repr=False)
    record: torch.Tensor = field(repr=False)
    word: torch.Tensor = field(repr=False)
    records: int

    @staticmethod
    def of(b: torch.Tensor, words: torch.Tensor, padding: int | None) -> Lookups:
        """From each position's gradient (n, t, h) and word (n, t); the padding word has none."""
        if padding is not None:
            b = b * (words != padding)[..., None]
        record = torch.arange(len(b), device=b.device)[:, None].expand_as(words)
        keys, place = torch.unique(
            torch.stack([record.flatten(), words.flatten()]), dim=1, return_inverse=True
        )
        sums = b.new_zeros((keys.shape[1], b.shape[2]), dtype=torch.float64)
        sums.index_add_(0, place, b.double().flatten(0, 1))
        return Lookups(sums, keys[0], keys[1], len(b))

    def squares(self) -> torch.Tensor:
        """Squared norms, float64 (n,)."""
        return self.sums.new_zeros(self.records).index_add_(0, self.record, self.sums.square().sum(1))

    def add(self, weights: torch.Tensor, total: torch.Tensor) -> None:
        """Adds each record's gradient times its weight, float64 (n,), to `total` (words, h); weight 0 adds nothing, be it finite or not."""
        used = weights[self.record] != 0
        total.index_add_(0, self.word[used], self.sums[used] * weights[self.record[used], None])


RecordGradients = Products | Rows | Lookups


def linear(a: torch.Tensor, b: torch.Tensor) -> RecordGradients:
    """Of a layer whose weight is (out, in), from inputs a (n, t, in) and output gradients b (n, t, out).

    Rows where writing them down takes fewer numbers than the products of positions cost, else the products.
    """
    positions, inner, outer = a.shape[1], a.shape[2], b.shape[2]
    if positions > 1 and inner * outer <= 2 * positions * (inner + outer):
        return Rows(linear_rows(a.to(b.dtype), b))
    return Products(b, a)


def linear_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Each record's gradient (n, out, in), from inputs a (n, t, in) and output gradients b (n, t, out).

    Where `out` is the long side, as in LoRA's B, the transposed product is four times as fast on a CPU: batched matrix
    products are laid out for a long right side.
    """
    if b.shape[2] > a.shape[2]:
        return torch.bmm(a.transpose(1, 2), b).transpose(1, 2)
    return torch.bmm(b.transpose(1, 2), a)


def by_position(x: torch.Tensor) -> torch.Tensor:
    """(n, t, features): all dimensions between the first and the last are positions."""
    return x[:, None] if x.dim() == 2 else x.flatten(1, -2)


def _square(rows: torch.Tensor) -> torch.Tensor:
    """Squared norms, float64 (n,)."""
    if not len(rows):
        return rows.new_zeros(0, dtype=torch.float64)
    return torch.cat([r.flatten(1).double().square().sum(1) for r in rows.split(_ROWS)])
