"""Tokens read out of an update by Adam: the second moments that bent the span are estimated, and undone.

Adam divides every entry of a gradient by the root of its second moment, so that after a few local steps nearly every
entry of the change is the step's length times a sign, and the rows leave the span of the layer's inputs
(`leakage_budget`). Signs are measurements all the same: one row of A is the sign of a combination of the inputs at each of
d places, and a batch has far fewer tokens than there are places (one-bit compressed sensing, Boufounos and Baraniuk 2008).

Alternates between two guesses until they agree (own):
1. the gradient's rows, given its second moments: the change times their roots is a combination of few candidates, the same
   ones in all rows; which ones is asked by sparse Bayesian learning (Wipf and Rao, "An empirical Bayesian strategy for
   solving the simultaneous sparse approximation problem", 2007; its fixed-point rule is MacKay's 1992);
2. the second moments, given the rows: the root at a place is how large the combination must be there, knowing its sign.

Gives an order of the candidates and no certainty: hold it against the update of another client.
Adversary: sees the change of one client (or a sum of few) and knows the model it began from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from securefed_attacks.transformer_reader import Reader

SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class AdamFinding:
    """Attributes:
    ranking: all candidates, the likeliest first, (v,). strength: share of the change that each explains, float64
        (v,), zero for those that were never in play.
    """

    ranking: torch.Tensor = field(repr=False)
    strength: torch.Tensor = field(repr=False)

    def nearest(self, count: int) -> tuple[int, ...]:
        """The `count` likeliest, as `TokenBag.nearest`."""
        return tuple(self.ranking[:count].tolist())


@dataclass(frozen=True)
class AdamSpan:
    """The attack and its strength.

    Attributes:
        kept: candidates that are looked at together; chosen anew from all `choices` times. iterations: after each choice.
        noise: variance of what combinations do not explain, where a row's is 1. doubt: deviation of an entry before its sign.
    """

    kept: int = 1200
    choices: int = 3
    iterations: int = 8
    noise: float = 0.3
    doubt: float = 0.4

    def __post_init__(self) -> None:
        if min(self.kept, self.choices, self.iterations) < 1 or min(self.noise, self.doubt) <= 0:
            raise ValueError(
                f"needs kept, choices, iterations >= 1 and noise, doubt > 0; got {self.kept}, {self.choices}, "
                f"{self.iterations}, {self.noise}, {self.doubt}"
            )

    def __call__(self, update: Sequence[torch.Tensor], candidates: torch.Tensor) -> AdamFinding:
        """All candidates, those first whose combinations have the signs that were seen.

        Args:
            update: changes (m_i, d) of matrices whose inputs were the same. candidates: (v, d), inputs that could have been.

        Raises:
            ValueError: other shapes, values that are not finite, or nothing that changed.
        """
        change = _rows(update, candidates)
        scale = candidates.double().square().mean(0).sqrt().clamp_min(SMALLEST)
        white = (
            candidates / scale
        ).float()  # first guess of the roots: what a column is like over all candidates
        signs, rows = change.sign(), _unit_rows(change)
        score, strength = _projected(rows, white), torch.zeros(len(white), dtype=torch.float64)
        for _ in range(self.choices):
            chosen = score.topk(min(self.kept, len(score))).indices
            some = white[chosen].double()
            weight = torch.full((len(chosen),), 0.05 / 20, dtype=torch.float64)
            for _ in range(self.iterations):
                weight, fitted, inverse = _explained(rows, some, weight, self.noise)
                rows = _unit_rows(signs * _root_second_moment(fitted, signs, self.doubt))
            strength = torch.zeros_like(strength).index_put_((chosen,), weight * some.square().mean(1))
            score = _asked_for(rows, white, inverse) + strength / strength.max().clamp_min(SMALLEST) * 1e6
        order = torch.argsort(strength, descending=True, stable=True)
        quiet = strength[order] <= 0
        rest = order[quiet]
        order = torch.cat([order[~quiet], rest[score[rest].argsort(descending=True)]])
        return AdamFinding(order, strength)


def adam_tokens(
    reader: Reader,
    update: Mapping[str, torch.Tensor],
    *,
    before: Mapping[str, torch.Tensor] | None = None,
    longest: int = 32,
    attack: AdamSpan | None = None,
) -> AdamFinding:
    """The vocabulary, in the order of how likely each token was in the data of a client that used Adam.

    Args:
        reader: the model as it was. update: name -> change. before: see `Reader.observed`.
        longest: positions tried, for models with positions in the input; the best tokens of each are looked at together.

    Raises:
        ValueError: the update holds no change of the first block's projections or of their A.
    """
    seen = reader.observed(0, update, before)
    if not seen.direct:
        raise ValueError(
            "the update holds no change of the first attention layer's projections or of their A; nothing to check"
        )
    attack, everything = attack or AdamSpan(), torch.arange(reader.vocabulary)
    if not reader.positional:
        return attack(seen.direct, reader.first(everything))
    each, tokens, tables = max(8, 4 * attack.kept // longest), [], []
    for position in range(longest):
        table = reader.first(everything, position)
        white = (table / table.double().square().mean(0).sqrt().clamp_min(SMALLEST)).float()
        best = _projected(_unit_rows(_rows(seen.direct, table)), white).topk(min(each, len(table))).indices
        tokens.append(best)
        tables.append(table[best])
    found = attack(seen.direct, torch.cat(tables))
    strength = torch.zeros(reader.vocabulary, dtype=torch.float64)
    strength.scatter_reduce_(0, torch.cat(tokens), found.strength, "amax")
    return AdamFinding(strength.argsort(descending=True, stable=True), strength)


def _rows(update: Sequence[torch.Tensor], candidates: torch.Tensor) -> torch.Tensor:
    if candidates.ndim != 2 or not update or any(u.shape[1:] != candidates.shape[1:] for u in update):
        raise ValueError(
            f"needs matrices (m, d) and candidates (v, d); got {[tuple(u.shape) for u in update]} and {tuple(candidates.shape)}"
        )
    rows = torch.cat([u.detach().double() for u in update])
    if not bool(rows.isfinite().all()):
        raise ValueError("the update holds a value that is not finite")
    moved = rows.abs().amax(1) > 0
    if not bool(moved.any()):
        raise ValueError("the update is all zeros; nothing was trained on it")
    return rows[moved]


def _unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Each row with mean square 1."""
    return rows / rows.square().mean(1, keepdim=True).sqrt().clamp_min(SMALLEST)


def _projected(rows: torch.Tensor, white: torch.Tensor) -> torch.Tensor:
    """Share of each candidate inside the rows' span, (v,): the plain ranking, in columns of equal size."""
    basis = torch.linalg.svd(rows, full_matrices=False)[2].float()
    shares: torch.Tensor = (white @ basis.T).square().sum(1) / white.square().sum(1).clamp_min(SMALLEST)
    return shares.double()


def _explained(
    rows: torch.Tensor, some: torch.Tensor, weight: torch.Tensor, noise: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of sparse Bayesian learning: (weights (k,), fitted rows of mean square 1, inverse Cholesky factor).

    Rows are Gaussian with covariance S = noise I + sum of weight x x^T; a weight's fixed point is the mean square of its
    coefficients over how well they are determined.
    """
    covariance = (some.T * weight) @ some
    covariance.diagonal().add_(noise)
    factor = torch.linalg.cholesky(covariance)
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=factor.dtype), upper=False)
    seen, projected = rows @ inverse.T, some @ inverse.T
    means = weight[:, None] * (projected @ seen.T)
    certain = weight * projected.square().sum(1)
    found = means.square().mean(1) / certain.clamp_min(SMALLEST)
    return found, _unit_rows(means.T @ some), inverse


def _asked_for(rows: torch.Tensor, white: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """How much the likelihood asks for each candidate that is not in play: (x S^-1 rows)^2 over x S^-1 x, (v,)."""
    thin = inverse.float()
    projected = white @ thin.T
    asked = (projected @ (rows.float() @ thin.T).T).square().mean(1)
    return (asked / projected.square().sum(1).clamp_min(SMALLEST)).double()


def _root_second_moment(fitted: torch.Tensor, signs: torch.Tensor, doubt: float) -> torch.Tensor:
    """E|g| of entries g ~ N(fitted, doubt^2) that have the signs which were seen."""
    away = signs * fitted / doubt
    density = torch.exp(-away.square() / 2) / math.sqrt(2 * math.pi)
    tail = away + density / torch.special.ndtr(away).clamp_min(1e-300)
    return doubt * torch.where(away > -8, tail, -1 / away)  # far out the hazard is |away| + 1 / |away|
