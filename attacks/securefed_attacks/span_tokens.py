"""The bag of tokens in an update, and where they stood if positions are part of the model's input.

After Petrov et al. 2024 ("DAGER", arXiv 2405.15586), sections 4.1 and 4.2, extended to LoRA: where A moved its
rows are combinations of the inputs x, and where it did not (a first round, FFA, B's turn in RoLoRA) the rows of
B's change are combinations of A x. Where a rank ends is swept by `span_check`.

Adversary: sees the update and knows the model it began from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from securefed_attacks.span import SpanFinding, span_basis, span_check, span_distance, steepest_ranks
from securefed_attacks.transformer_reader import Observed, Reader

SWEPT = (0, 1)
"""Positions over which the rank is swept; others are judged at the rank that these agree on."""
EMPTY = 3
"""Positions without a token after which no text is expected to go on."""


@dataclass(frozen=True, eq=False)
class TokenBag:
    """Tokens that were in the batch.

    Attributes:
        tokens: found for certain, ascending; empty where nothing separates them clearly.
        pairs: (position, token) found, where positions are part of the model's input.
        ranking: all tokens, nearest to the span first, (v,). residual: distance over length, (v,).
        rank: dimension of the span. gap: how clear the separation is, 1 where there is none.
        saturated: the update cannot tell tokens apart. ended: no text goes on beyond the positions tried.
    """

    tokens: tuple[int, ...] = field(repr=False)
    pairs: frozenset[tuple[int, int]] = field(repr=False)
    ranking: torch.Tensor = field(repr=False)
    residual: torch.Tensor = field(repr=False)
    rank: int
    gap: float
    saturated: bool
    ended: bool = True

    def at(self, position: int) -> tuple[int, ...]:
        """The tokens that may stand at a position: those found there, or all where positions are not seen."""
        return tuple(sorted(t for p, t in self.pairs if p == position)) if self.pairs else self.tokens

    def nearest(self, count: int) -> tuple[int, ...]:
        """The `count` tokens nearest to the span: what is left where an optimizer has bent it."""
        return tuple(self.ranking[:count].tolist())


def token_bag(
    reader: Reader,
    update: Mapping[str, torch.Tensor],
    *,
    before: Mapping[str, torch.Tensor] | None = None,
    longest: int = 64,
    seconds: float = math.inf,
) -> TokenBag:
    """Which tokens an update was computed on.

    Args:
        reader: the model as it was. update: name -> gradient or change. before: see `Reader.observed`.
        longest: positions tried; `TokenBag.ended` says whether texts may have been longer.
        seconds: wall clock; positions that are not reached by then are left out, and `ended` is False.

    Raises:
        ValueError: the update holds nothing of the first block's projections, or is not finite.
    """
    seen = reader.observed(0, update, before)
    if not seen.direct and not seen.through:
        raise ValueError(
            "the update holds no change of the first attention layer's projections "
            f"({', '.join(reader.blocks[0].projections)}); nothing to check"
        )
    everything = torch.arange(reader.vocabulary)
    if not reader.positional:
        return _bag(check(seen, reader.first(everything))[0])
    return _with_positions(reader, seen, everything, longest, time.monotonic() + seconds)


@dataclass(frozen=True, eq=False)
class Span:
    """The span of a block's inputs at the rank that separated candidates clearly.

    Attributes:
        parts: (A or None, basis): a basis in the input's own space, or in the space that an A maps it to.
    """

    parts: tuple[tuple[torch.Tensor | None, torch.Tensor], ...] = field(repr=False)

    def distance(self, candidates: torch.Tensor) -> torch.Tensor:
        """Share of each candidate's length (v, d) outside the nearest part, float64 (v,)."""
        each = [span_distance(basis, _mapped(candidates, a)) for a, basis in self.parts]
        return torch.stack(each).amin(0)

    @property
    def rank(self) -> int:
        """Of the widest part."""
        return max(len(basis) for _, basis in self.parts)


def steepest(seen: Observed, count: int) -> list[Span]:
    """Spans that end where the singular values fall most, the steepest first, without any candidate."""
    if seen.direct:
        return [Span(((None, span_basis(seen.direct, r)),)) for r in steepest_ranks(seen.direct, count)]
    each = [(a, rows, steepest_ranks([rows], count)) for rows, a in seen.through]
    shared = min(len(ranks) for _, _, ranks in each)
    return [Span(tuple((a, span_basis([rows], ranks[i])) for a, rows, ranks in each)) for i in range(shared)]


def check(seen: Observed, candidates: torch.Tensor) -> tuple[SpanFinding, Span]:
    """`span_check` on whatever is seen, in the input's own space or through each A, and the span it chose."""
    if seen.direct:
        finding = span_check(seen.direct, candidates)
        return finding, Span(((None, span_basis(seen.direct, finding.rank)),))
    findings = [span_check([rows], _mapped(candidates, a)) for rows, a in seen.through]
    clear = [i for i, f in enumerate(findings) if len(f.found)] or list(range(len(findings)))
    parts = [(seen.through[i][1], span_basis([seen.through[i][0]], findings[i].rank)) for i in clear]
    return _united([findings[i] for i in clear]), Span(tuple(parts))


def _mapped(candidates: torch.Tensor, a: torch.Tensor | None) -> torch.Tensor:
    return candidates if a is None else candidates.double() @ a.double().T


def _united(findings: list[SpanFinding]) -> SpanFinding:
    """What any of several spans names: each is clear by itself, and each misses other positions.

    A query has no gradient from a text's first token (softmax over one key), a key none from a position
    that nobody attends to.
    """
    residual = torch.stack([f.residual for f in findings]).amin(0)
    found = torch.unique(torch.cat([f.found for f in findings]))
    found = found[residual[found].argsort()]
    rank, gap = max(f.rank for f in findings), max(f.gap for f in findings)
    return SpanFinding(found, residual.argsort(), residual, rank, gap, all(f.saturated for f in findings))


def _bag(finding: SpanFinding) -> TokenBag:
    return TokenBag(
        tuple(sorted(finding.found.tolist())),
        frozenset(),
        finding.ranking,
        finding.residual,
        finding.rank,
        finding.gap,
        finding.saturated,
    )


def _with_positions(
    reader: Reader, seen: Observed, everything: torch.Tensor, longest: int, deadline: float
) -> TokenBag:
    v = len(everything)
    swept = SWEPT[:longest]
    pooled, span = check(seen, torch.cat([reader.first(everything, p) for p in swept]))
    nearest = pooled.residual.reshape(len(swept), v).amin(0)
    edge = threshold(pooled) if len(pooled.found) else 0.0
    pairs = {(int(i) // v, int(i) % v) for i in pooled.found}
    empty, ended = 0, not edge and pooled.saturated
    for position in range(len(swept), longest):
        if ended or time.monotonic() > deadline:
            break
        residual = span.distance(reader.first(everything, position))
        here = (residual < edge).nonzero().flatten().tolist()
        pairs |= {(position, t) for t in here}
        nearest = torch.minimum(nearest, residual)
        empty = 0 if here else empty + 1
        ended = bool(edge) and empty == EMPTY  # where nothing is clear, every position counts for the ranking
    tokens = tuple(sorted({t for _, t in pairs}))
    return TokenBag(
        tokens,
        frozenset(pairs),
        nearest.argsort(),
        nearest,
        pooled.rank,
        pooled.gap,
        pooled.saturated,
        ended,
    )


def threshold(finding: SpanFinding) -> float:
    """Half way, in orders of magnitude, between the farthest one found and the nearest one left out."""
    inside = float(finding.residual[finding.found].max())
    left = torch.ones(len(finding.residual), dtype=torch.bool)
    left[finding.found] = False
    outside = float(finding.residual[left].min()) if bool(left.any()) else 1.0
    return math.sqrt(max(inside, 1e-9) * max(outside, 1e-9))
