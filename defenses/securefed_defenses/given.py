"""One call's input: rows, weights, randomness, and the inner products that rules measure on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from securefed.factors import adapter_gram
from securefed.gram import centred_gram, gram
from securefed.rows import MappedRows, RowSource, bad_rows
from securefed.types import RoundContext

Space = Literal["factor", "product"]
"""Where distances between adapters are measured: update by update as they come, or as the change B A that
they make to the model (`securefed.factors`). The rows are combined as they come in either case."""

About = Literal["any", "origin"]
"""The point that inner products are taken about: any in the midst of the rows (a rule that only looks at
distances), or the origin (a rule that looks at lengths or angles)."""


@dataclass(frozen=True, eq=False)
class Given:
    """One call's input, checked.

    Attributes:
        rows: finite rows (n, d).
        weights: the clients' public weights, float64 (n,) on the CPU, sum one; equal when called plainly.
        generator: seeded randomness, for rules that draw.
        context: the round's context; None when called plainly.
    """

    rows: RowSource
    weights: torch.Tensor
    generator: torch.Generator | None = None
    context: RoundContext | None = None

    def keep(self, index: Sequence[int]) -> Given:
        """The same without the other rows."""
        weights, context = self.weights[list(index)], self.context
        if context is not None:
            clients, public = context.clients, context.weights
            context = dataclasses.replace(
                context, clients=tuple(clients[i] for i in index), weights=tuple(public[i] for i in index)
            )
        if float(weights.sum()) <= 0:
            raise ValueError(
                "the rows that are left weigh nothing; give at least one client a weight above 0"
            )
        return Given(self.rows.take(index), weights / weights.sum(), self.generator, context)

    def map(self, matrix: torch.Tensor) -> Given:
        """`matrix @ rows`; clients keep their weight where each still has its own row, else all are equal."""
        weights = self.weights
        if matrix.shape[0] != matrix.shape[1]:
            weights = torch.full((len(matrix),), 1 / len(matrix), dtype=torch.float64)
        return Given(MappedRows(matrix, self.rows), weights, self.generator, self.context)


def measure(given: Given, about: About, space: Space) -> torch.Tensor:
    """Inner products of the rows about the origin, or about a point in their midst.

    In product space the point is always the origin, no change to the model.

    Raises:
        ValueError: product space was asked for and the context does not say where the factors lie.
    """
    if space == "product":
        if given.context is None or given.context.space is None:
            raise ValueError(
                'space = "product" needs RoundContext.space, the places and global values of the factors; '
                'use step with it, or space = "factor"'
            )
        return adapter_gram(given.rows, given.context.space)
    return centred_gram(given.rows) if about == "any" else gram(given.rows)


def check_space(name: str, space: str) -> None:
    """Raises ValueError unless it is one of the two."""
    if space not in ("factor", "product"):
        raise ValueError(f'{name}: space is "factor" or "product", found {space!r}')


def unmeasured(rows: RowSource, found: torch.Tensor) -> list[int]:
    """Rows without a finite length: those that hold a NaN or an infinity, or are too long for float64.

    Inner products show whether there are any; which they are takes another reading only then.
    """
    lengths = found.diagonal()
    if bool(torch.isfinite(lengths).all()):
        return []
    bad = bad_rows(rows)
    if bad:
        return bad
    lengths = gram(rows).diagonal()
    return [int(i) for i in (~torch.isfinite(lengths)).nonzero()] or list(range(rows.n))


def equal_weights(n: int) -> torch.Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


def public_weights(n: int, context: RoundContext) -> torch.Tensor:
    """The context's weights, checked with its clients, summing to one."""
    clients, weights = context.clients, context.weights
    if len(clients) != n or len(weights) != n:
        raise ValueError(
            f"n={n} rows, but the context names {len(clients)} clients and {len(weights)} weights; one each"
        )
    if len(set(clients)) != n:
        twice = sorted({c for c in clients if clients.count(c) > 1})
        raise ValueError(f"client {twice[0]} is there {clients.count(twice[0])} times; an update counts once")
    total = math.fsum(weights)
    if not math.isfinite(total) or total <= 0 or min(weights) < 0:
        raise ValueError("weights must be finite, 0 or more, and not all 0")
    return torch.tensor(weights, dtype=torch.float64) / total
