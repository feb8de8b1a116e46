"""Tokens read out of an update: the inputs of a linear layer lie in the row space of its gradient.

For W in y = W x, dL/dW is a sum of outer products delta x^T, so its rows are combinations of the layer's
inputs. The first attention layer's inputs are functions of single tokens (and positions), which can all be
tried: a token whose vector lies in the span was in the batch (Petrov et al. 2024, "DAGER", arXiv 2405.15586,
sections 4.1 and 4.2). With LoRA the same holds for A: its gradient and, since the base stays as it is, its
change over any number of SGD steps are combinations of the same inputs.

Adversary: sees the update and knows the model it began from (the server, or whoever reads its traffic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

RANKS_TRIED = 12
CLEAR_GAP = 8.0
"""In a clear finding the farthest token called found is this many times nearer than the nearest one left out."""
EXACT_GAP = 1e5
"""So many times nearer is as near as float32 gradients can say; a wider gap then tells no more."""
BY_CHANCE = 1e-3
"""Chance, over all candidates and ranks tried, that a random vector would be as near as one called found."""
SATURATED = 0.9
"""A span of more than this share of all dimensions holds nearly every vector, so that nearness says nothing."""

NOTHING = 1e-13
"""Singular values below this share of the largest are float64's rounding."""
NEAR = 0.05
"""Residuals below this are computed in float64; float32 is off by up to 1e-3 there."""


@dataclass(frozen=True, eq=False)
class SpanFinding:
    """Which candidates lie in the span of an update's rows.

    Attributes:
        found: indices of candidates inside, nearest first; empty where no rank separates them clearly.
        ranking: all candidates, nearest first: what is left where an optimizer has bent the span.
        residual: distance from the span over length, float64 (v,), at `rank`.
        rank: dimension of the span, swept and not given. gap: how clear the separation is.
        saturated: the span is (nearly) everything; the update cannot tell tokens apart.
    """

    found: torch.Tensor = field(repr=False)
    ranking: torch.Tensor = field(repr=False)
    residual: torch.Tensor = field(repr=False)
    rank: int
    gap: float
    saturated: bool


def span_check(update: Sequence[torch.Tensor], candidates: torch.Tensor) -> SpanFinding:
    """Looks for each candidate in the joint row space of the tensors.

    Where a rank ends and rounding begins is not set by hand: the ranks at the largest falls of the singular
    values are tried, and the one that separates near from far candidates most clearly is taken.

    Args:
        update: matrices (m_i, d) whose inputs were the same vectors: gradients or changes of query, key and
            value weights, or of their LoRA A. candidates: (v, d), the inputs that could have been.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    rows = _stacked(update, candidates)
    v, d = candidates.shape
    if rows is None:
        nothing = torch.empty(0, dtype=torch.int64)
        return SpanFinding(nothing, torch.arange(v), torch.ones(v, dtype=torch.float64), 0, 1.0, False)
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    ranks = _ranks(values)
    residuals = _residuals(candidates, directions, ranks)
    gaps = {i: _widest_gap(residuals[i], rank) for i, rank in enumerate(ranks) if rank < d}
    clear = [
        i
        for i, (gap, count) in gaps.items()
        if gap >= CLEAR_GAP and not _by_chance(residuals[i], count, d, ranks[i], len(ranks))
    ]
    if clear:
        best = _best(clear, ranks, gaps, values)
        gap, count = gaps[best]
    else:  # the widest span: what is left of the inputs is in it
        best, gap, count = len(ranks) - 1, 1.0, 0
    order = residuals[best].argsort()
    saturated = not clear and ranks[-1] > SATURATED * d
    return SpanFinding(order[:count], order, residuals[best], ranks[best], gap, saturated)


def span_basis(update: Sequence[torch.Tensor], rank: int) -> torch.Tensor:
    """The first `rank` directions of the tensors' joint row space, orthonormal float64 (rank, d).

    Raises:
        ValueError: matrices of different widths, or values that are not finite.
    """
    rows = _stacked(update, update[0][:1])
    if rows is None:
        return torch.empty(0, update[0].shape[1], dtype=torch.float64)
    directions: torch.Tensor = torch.linalg.svd(rows, full_matrices=False)[2]
    return directions[:rank]


def steepest_ranks(update: Sequence[torch.Tensor], count: int) -> list[int]:
    """Where the tensors' joint singular values fall most, the steepest fall first.

    Raises:
        ValueError: as `span_basis`.
    """
    rows = _stacked(update, update[0][:1])
    if rows is None:
        return [0]
    falls = _falls(torch.linalg.svdvals(rows))[:-1]
    if not len(falls):
        return [1]
    return [int(i) + 1 for i in falls.topk(min(count, len(falls))).indices]


def span_distance(basis: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Share of each candidate's length (v, d) outside a basis of `span_basis`, float64 (v,)."""
    if not len(basis):
        return torch.ones(len(candidates), dtype=torch.float64)
    return _residuals(candidates, basis, [len(basis)])[0]


def _best(
    clear: list[int], ranks: list[int], gaps: dict[int, tuple[float, int]], values: torch.Tensor
) -> int:
    """Which of the clear separations: the widest; among those that are exact, the one at the steepest fall.

    Beyond the inputs' own rank further directions are rounding, which now and then widens an exact separation by a
    hair. Where inputs lie in the span only nearly, a wider gap is a direction that they need.

    Args:
        values: singular values, largest first.
    """
    best = max(clear, key=lambda i: gaps[i][0])
    exact = [i for i in clear if gaps[i][0] >= EXACT_GAP and gaps[i][1] == gaps[best][1]]
    falls = _falls(values)
    return max(exact, key=lambda i: float(falls[ranks[i] - 1]), default=best)


def _by_chance(residual: torch.Tensor, count: int, d: int, rank: int, tries: int) -> bool:
    """Whether random directions could be as near to a span of this rank as the farthest one called found.

    The squared residual of a uniform direction has a Beta((d - rank) / 2, rank / 2) distribution.
    """
    from scipy import stats

    farthest = float(residual.kthvalue(count).values)
    chance = float(stats.beta.cdf(farthest**2, (d - rank) / 2, rank / 2))
    return len(residual) * tries * chance > BY_CHANCE


def _stacked(update: Sequence[torch.Tensor], candidates: torch.Tensor) -> torch.Tensor | None:
    """All rows, each matrix scaled to norm one; None if nothing was changed at all."""
    if (
        candidates.ndim != 2
        or not update
        or any(u.ndim != 2 or u.shape[1] != candidates.shape[1] for u in update)
    ):
        raise ValueError(
            f"needs matrices (m, d) and candidates (v, d); got {[tuple(u.shape) for u in update]} and {tuple(candidates.shape)}"
        )
    scaled = []
    for matrix in update:
        wide = matrix.detach().double()
        norm = float(wide.norm())
        if not math.isfinite(norm):
            raise ValueError("the update holds a value that is not finite")
        if norm > 0:
            scaled.append(wide / norm)
    return torch.cat(scaled) if scaled else None


def _ranks(values: torch.Tensor) -> list[int]:
    """Where the singular values fall most, and where they end; ascending."""
    falls = _falls(values)
    usable = len(falls)
    steepest = falls[:-1].topk(min(RANKS_TRIED, usable - 1)).indices + 1
    return sorted({*steepest.tolist(), usable})


def _falls(values: torch.Tensor) -> torch.Tensor:
    """By what factor each singular value above rounding exceeds the next one; the last of them, rounding."""
    end = values[:1] * NOTHING
    usable = values[values > end]
    return usable / torch.cat([usable[1:], end])


def _residuals(candidates: torch.Tensor, directions: torch.Tensor, ranks: list[int]) -> torch.Tensor:
    """Share of each candidate's length that is outside the span of each rank, (ranks, v).

    Float32 tells far from near; the near ones, where it cannot tell how near, are done again in float64.
    """
    coarse = _outside(candidates, directions, ranks, torch.float32)
    near = coarse.amin(0) < NEAR
    for i, rank in enumerate(ranks):  # and all that `_widest_gap` may look at
        near[coarse[i].topk(min(coarse.shape[1], _looked_at(rank)), largest=False).indices] = True
    coarse[:, near] = _outside(candidates[near], directions, ranks, torch.float64)
    return coarse


def _outside(
    candidates: torch.Tensor,
    directions: torch.Tensor,
    ranks: list[int],
    dtype: torch.dtype,
    block: int = 8192,
) -> torch.Tensor:
    basis, last = directions[: ranks[-1]].T.to(dtype), torch.tensor(ranks) - 1
    found = []
    for piece in torch.split(candidates, block):
        x = piece.to(dtype)
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-30)
        inside = (x @ basis).square_()
        shares = inside.cumsum(1)[:, last] if len(ranks) > 1 else inside.sum(1, keepdim=True)
        found.append((1 - shares).double().clamp_min_(1e-30).sqrt_().T)
    return torch.cat(found, 1)


def _looked_at(rank: int) -> int:
    return 4 * rank + 16


def _widest_gap(residual: torch.Tensor, rank: int) -> tuple[float, int]:
    """(ratio, how many lie before it) of the widest gap among the nearest candidates.

    A span of this rank holds at most `rank` independent vectors; a few times as many are allowed, since
    token and position add up in an encoder's input and combinations of true ones lie in the span too.
    """
    near = residual.topk(min(len(residual), _looked_at(rank)), largest=False).values.clamp_min(1e-9)
    ratios = near[1:] / near[:-1]
    if not len(ratios):
        return 1.0, 0
    at = int(ratios.argmax())
    return float(ratios[at]), at + 1


class _Captured(Exception):
    """Ends a forward pass once the wanted layer has been reached."""


def first_inputs(
    model: nn.Module,
    layer: nn.Module,
    tokens: torch.Tensor,
    position: int | None = None,
    block: int = 2048,
    call: Callable[..., Any] | None = None,
) -> torch.Tensor:
    """What `layer` would be fed by each token alone, (v, d): the candidates of `span_check`.

    The layer must be one whose input depends on a single token (query, key or value of the first block).
    Its model is run up to that layer on sequences of one token, so any architecture serves.

    Args:
        tokens: (v,) token ids. position: where the token stands, for models with positions in their input;
            None for those without (rotary or relative positions).
        call: what is called with input_ids, attention_mask and perhaps position_ids; the model by default.

    Raises:
        ValueError: the layer was not reached.
    """
    seen: list[torch.Tensor] = []

    def capture(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0].detach())
        raise _Captured

    handle = layer.register_forward_pre_hook(capture)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for piece in torch.split(tokens, block):
                ids = piece[:, None]
                extra = {} if position is None else {"position_ids": torch.full_like(ids, position)}
                try:
                    (call or model)(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)
                except _Captured:
                    continue
                raise ValueError("the layer was not reached; give a projection of the model's first block")
    finally:
        handle.remove()
        model.train(training)
    return torch.cat([x.reshape(len(x), -1) for x in seen])
