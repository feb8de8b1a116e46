"""Tokens that a full fine-tuning gives away for free: the rows of the embedding table that moved.

A token that was not in the batch has no gradient in an input embedding (Melis, Song, De Cristofaro and Shmatikov,
"Exploiting unintended feature leakage in collaborative learning", IEEE S&P 2019, section 4.1; Petrov et al. 2024).
Where the table is also the output layer every row moves; then the output's part of all rows lies in the span of the last
hidden states, and the rows that leave this span are those of tokens that were read (own).

Adversary: sees one update, or a sum: a sum of clients gives the union of their bags.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from securefed_attacks.span import span_basis, span_distance, steepest_ranks

DENSE = 0.5
"""Share of rows that moved from which the table counts as tied to the output."""
CLEAR = 30.0
"""In a tied table a read token's row is this many times farther outside than the median row."""


@dataclass(frozen=True, eq=False)
class EmbeddingLeak:
    """Attributes:
    tokens: whose rows betray them, ascending. tied: found behind a dense output layer.
    """

    tokens: tuple[int, ...] = field(repr=False)
    tied: bool


def embedding_tokens(change: torch.Tensor) -> EmbeddingLeak:
    """Which tokens were in the batch.

    Args:
        change: gradient or change of the token embedding, (v, d), by SGD without weight decay (which moves all rows;
            Adam moves only rows that had a gradient, at any size).

    Raises:
        ValueError: not a matrix, or not finite.
    """
    if change.ndim != 2 or not bool(change.isfinite().all()):
        raise ValueError(f"needs a finite table (v, d), got {tuple(change.shape)}")
    lengths = change.double().norm(dim=1)
    moved = lengths > 0
    if float(moved.double().mean()) < DENSE:
        return EmbeddingLeak(tuple(moved.nonzero().flatten().tolist()), False)
    return EmbeddingLeak(_outside_output(change, lengths), True)


def _outside_output(change: torch.Tensor, lengths: torch.Tensor) -> tuple[int, ...]:
    """Rows that are no combination of the last hidden states.

    The shortest rows carry the output's part alone (small probabilities, no token), and span it.
    """
    v, d = change.shape
    quiet = lengths.argsort()[int((lengths == 0).sum()) :][: min(4 * d, v // 2)]
    rows = change[quiet].double() / lengths[quiet, None]
    rank = steepest_ranks([rows], 1)[0]
    if rank >= d:
        return ()
    basis = span_basis([rows], rank)
    far = span_distance(basis, change)
    beside = float(far[quiet].median())
    outside = (far > CLEAR * max(beside, 1e-7)) & (lengths > 0)
    return tuple(outside.nonzero().flatten().tolist())
