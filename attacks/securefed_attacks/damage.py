"""What an attack of a given strength does to a rule, worked out as cheaply as the rule allows.

The liars of a `Line` attack send a mean + t p with a in {0, 1}, so all rows are C(t) Z for Z = honest rows
and p. The inner products of all rows are then C(t) K C(t)^T, an explicit quadratic in t from K, which is
measured once. Three ways to score a strength follow, by what the rule offers:

- `weights_from_gram`: the aggregate is a weighted sum of rows, so t costs n x n numbers, whatever d is;
- `matrix_from_gram` and a `rule` behind it (a pipeline whose last rule looks at coordinates): one product of
  a matrix with the real columns, all of them, and one call of the last rule;
- anything else: one call of the rule itself on the rows.

What a rule offers is only believed once it has agreed with the rule itself at one strength.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from securefed.rows import AppendedRows, MatrixRows
from securefed_attacks.base import Line, Seen

Goal = Literal["distance", "reverse"]
"""What the liars want: the aggregate far from the honest mean, or small or negative along it."""

AGREE = 1e-3
"""A shortcut's score may differ from the rule's own by this share (float32 sums, ties)."""


class Rule(Protocol):
    """A rule as attacks see it: (n, d) -> (d,)."""

    def __call__(self, updates: torch.Tensor) -> torch.Tensor: ...


@dataclass(eq=False)
class Field:
    """One round's rows as the liars see them, and what is measured of them once.

    Attributes:
        attack, seen: whose strength is searched, on what. rule: what they attack.
        seed: of the generator that a rule which draws gets in every call, so that strengths compare.
    """

    attack: Line
    seen: Seen
    rule: Rule
    goal: Goal
    seed: int
    direction: torch.Tensor = field(init=False)
    mean: torch.Tensor = field(init=False)
    products: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.direction = self.attack.direction(self.seen)
        self.mean = self.seen.honest.mean(0)
        self.products = _products(self.seen.honest, self.direction, self._centre())
        h, f = len(self.seen.honest), self.seen.f
        self._base = torch.zeros(h + f, h + 1, dtype=torch.float64)
        self._base[:h, :h] = torch.eye(h, dtype=torch.float64)
        if self.attack.from_mean:
            self._base[h:, :h] = 1 / h
        self._honest_mean = torch.zeros(h + 1, dtype=torch.float64)
        self._honest_mean[:h] = 1 / h
        self._buffer: torch.Tensor | None = None

    def _centre(self) -> torch.Tensor | None:
        """The honest mean where rule, line and goal are of differences alone, else the origin.

        About their mean, distances between honest rows keep their digits when all are far from the origin.
        """
        about = getattr(self.rule, "about", "origin")
        differences = about == "any" and self.attack.from_mean and self.goal == "distance"
        return self.mean if differences else None

    def coefficients(self, strength: float) -> torch.Tensor:
        """C(t), (n, h + 1): each row in honest rows and the direction."""
        out = self._base.clone()
        out[len(self.seen.honest) :, -1] = strength
        return out

    def rows(self, strength: float) -> torch.Tensor:
        """The real rows (n, d) at this strength; one buffer, of which only the liars' rows are written anew."""
        h = len(self.seen.honest)
        if self._buffer is None or self._buffer.shape[0] != self.seen.n:
            self._buffer = self.seen.honest.new_empty(self.seen.n, self.seen.honest.shape[1])
            self._buffer[:h] = self.seen.honest
        self._buffer[h:] = self.attack.at(self.seen, self.direction, strength)
        return self._buffer

    def generator(self) -> torch.Generator:
        """The same coins in every call."""
        return torch.Generator(self.seen.honest.device).manual_seed(self.seed)

    def of_vector(self, aggregate: torch.Tensor) -> float:
        """The liars' score for an aggregate (d,)."""
        if not bool(torch.isfinite(aggregate.sum())):
            return math.inf
        if self.goal == "distance":
            return float((aggregate - self.mean).norm())
        return -float(aggregate @ self.mean) / max(float(self.mean.norm()), 1e-30)

    def of_coefficients(self, point: torch.Tensor) -> float:
        """The liars' score for the aggregate point @ Z, (h + 1,)."""
        if self.goal == "distance":
            step = point - self._honest_mean
            return math.sqrt(max(0.0, float(step @ self.products @ step)))
        along = self.products @ self._honest_mean
        return -float(point @ along) / max(math.sqrt(float(self._honest_mean @ along)), 1e-30)


Score = Callable[[float], float]


def scorer(field: Field, probe: float) -> tuple[Score, bool]:
    """The cheapest right way to score a strength, and whether it touches no column.

    `probe` is the strength at which a shortcut is held against the rule itself.
    """
    slow = by_call(field)
    for make, cheap in ((by_weights, True), (by_columns, False)):
        quick = make(field)
        if quick is None:
            continue
        said, true = quick(probe), slow(probe)
        if math.isclose(said, true, rel_tol=AGREE, abs_tol=1e-12):
            return quick, cheap
    return slow, False


def by_call(field: Field) -> Score:
    """The rule itself, on the rows."""
    return lambda strength: field.of_vector(_call(field.rule, field.rows(strength), field))


def by_weights(field: Field) -> Score | None:
    """n x n numbers a strength, where the rule's result is a weighted sum of its rows."""
    weigh = getattr(field.rule, "weights_from_gram", None)
    if weigh is None or getattr(field.rule, "reads_more", False):
        return None

    def score(strength: float) -> float:
        spanned = field.coefficients(strength)
        weights = _draws(weigh, field)(_symmetric(spanned @ field.products @ spanned.T))
        return field.of_coefficients(weights.cpu() @ spanned)

    return score if _offered(score) else None


def by_columns(field: Field) -> Score | None:
    """One product with the real columns and one call of the last rule, for a pipeline."""
    mix, last = getattr(field.rule, "matrix_from_gram", None), getattr(field.rule, "rule", None)
    if mix is None or last is None:
        return None
    source = AppendedRows(MatrixRows(_wide(field.seen.honest)), _wide(field.direction))
    mixed: list[torch.Tensor] = []

    def score(strength: float) -> float:
        spanned = field.coefficients(strength)
        matrix = _draws(mix, field)(_symmetric(spanned @ field.products @ spanned.T)).cpu() @ spanned
        factor = matrix.to(dtype=source.dtype, device=source.device)
        if not mixed:
            mixed.append(torch.empty(len(factor), source.d, dtype=source.dtype, device=source.device))
        for columns, block in source.blocks():
            torch.mm(factor, block, out=mixed[0][:, columns])
        return field.of_vector(_call(last, mixed[0], field).to(field.mean.dtype))

    return score if _offered(score) else None


def _offered(score: Score) -> bool:
    """Whether the shortcut exists for this rule: one that does not says so with a ValueError."""
    try:
        score(1.0)
    except ValueError:
        return False
    return True


def _call(rule: Any, rows: torch.Tensor, field: Field) -> torch.Tensor:
    if "generator" in inspect.signature(rule).parameters:
        aggregate: torch.Tensor = rule(rows, generator=field.generator())
        return aggregate
    return rule(rows)  # type: ignore[no-any-return]  # a rule returns a vector


def _draws(method: Callable[..., torch.Tensor], field: Field) -> Callable[[torch.Tensor], torch.Tensor]:
    """The method with its coins, where it throws any."""
    if "generator" in inspect.signature(method).parameters:
        return lambda products: method(products, generator=torch.Generator().manual_seed(field.seed))
    return method


def _products(honest: torch.Tensor, direction: torch.Tensor, centre: torch.Tensor | None) -> torch.Tensor:
    """K, float64 (h + 1, h + 1) on the CPU: honest rows about the centre, and the direction."""
    source = MatrixRows(_wide(honest))
    h = source.n
    total = torch.zeros(h + 1, h + 1, dtype=torch.float64, device=honest.device)
    for columns, block in source.blocks():
        wide = torch.empty(h + 1, block.shape[1], dtype=torch.float64, device=honest.device)
        wide[:h] = block
        wide[h] = direction[columns]
        if centre is not None:
            wide[:h] -= centre[columns].double()
        total += wide @ wide.T
    return total.cpu()


def _symmetric(products: torch.Tensor) -> torch.Tensor:
    return (products + products.T) / 2


def _wide(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
