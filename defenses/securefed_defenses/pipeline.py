"""Maps before a rule, as one rule: `Pipeline(pre=(NNM(f=2),), rule=TrimmedMean(f=2))`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from securefed.aggregation import Mean
from securefed.gram import rows_about
from securefed.rows import bad_rows, combine
from securefed_defenses.base import GramRule, PreAggregator, Rule
from securefed_defenses.given import About, Given, measure, unmeasured


@dataclass(frozen=True)
class Average(GramRule):
    """The weighted mean, as a rule behind pre-aggregators: it needs no inner products of its own."""

    name: ClassVar[str] = "mean"

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return weights

    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        return combine(given.weights, given.rows), state


@dataclass(frozen=True)
class Pipeline(Rule):
    """A rule behind pre-aggregators, applied from left to right.

    All pre-aggregators are linear, so their matrices are multiplied before any row is touched: the rows are
    read once for their inner products (if anything needs them) and once for the result, and no mixed rows
    are ever stored. In a job:
    `aggregator = { name = "pipeline", pre = [{ name = "nnm", f = 2 }], rule = { name = "trimmed_mean", f = 2 } }`.

    Attributes:
        pre: pre-aggregators. rule: the rule behind them. Their own `on_nonfinite` is not read, the
            pipeline's is: a dropped row counts as one of the f of every part.

    It tolerates what its parts allow together; each checks the n that reaches it. A rule's public weights
    reach it as long as every client still has its own row, so not through bucketing.

    >>> from securefed_defenses import NNM, TrimmedMean
    >>> Pipeline(pre=(NNM(f=1),), rule=TrimmedMean(f=1))(torch.tensor([[0.0], [1.0], [2.0], [99.0]]))
    tensor([1.])
    """

    pre: tuple[PreAggregator, ...]
    rule: Rule | Mean
    name: ClassVar[str] = "pipeline"
    parts: ClassVar[Mapping[str, str]] = {"pre": "pre_aggregator", "rule": "aggregator"}
    """Fields that hold other components, and their kind: the registry builds them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        stages = (self.pre,) if isinstance(self.pre, PreAggregator) else tuple(self.pre)
        object.__setattr__(self, "pre", stages)
        for part in stages:
            if not isinstance(part, PreAggregator):
                raise ValueError(f"pipeline: {part!r} is no pre-aggregator; a rule goes into rule")
        if not isinstance(self.rule, Rule | Mean) or isinstance(self.rule, Pipeline):
            raise ValueError(
                f"pipeline: {self.rule!r} is no rule that can stand behind another; derive it from Rule"
            )

    @property
    def last(self) -> Rule:
        """The rule behind the pre-aggregators."""
        return Average() if isinstance(self.rule, Mean) else self.rule

    @property
    def about(self) -> About | None:
        """The point that inner products are needed about; None where nothing needs them."""
        wants: list[About | None] = [p.about for p in self.pre]
        wants += [self.rule.about if isinstance(self.rule, GramRule) else None]
        return "origin" if "origin" in wants else "any" if "any" in wants else None

    @property
    def in_product_space(self) -> bool:
        """Whether any part measures there: products of mixed factors are no mixed products, so each part
        then measures the rows that reach it."""
        parts = [p for p in (*self.pre, self.rule) if isinstance(p, PreAggregator | GramRule)]
        return any(p.space == "product" for p in parts)

    def check(self, n: int) -> None:
        for part in self.pre:
            part.check(n)
            n = part.rows_out(n)
        self.last.check(n)

    def without(self, bad: Sequence[int], n: int) -> Self:
        pre = tuple(p.without(bad, n) for p in self.pre)
        return dataclasses.replace(
            self, pre=pre, rule=self.rule if isinstance(self.rule, Mean) else self.rule.without(bad, n)
        )

    def play(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        self.check(given.rows.n)
        found = self._measure(given)
        bad = bad_rows(given.rows) if found is None else unmeasured(given.rows, found)
        if not bad:
            return self._run(given, found, state)
        settled, given = self.settle(given, bad)
        return settled._run(given, settled._measure(given), state)

    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        return self._run(given, self._measure(given), state)

    def _measure(self, given: Given) -> torch.Tensor | None:
        about = self.about
        return None if about is None or self.in_product_space else measure(given, about, "factor")

    def matrix(self, gram: torch.Tensor | None, given: Given) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The product of all pre-aggregators' matrices, (m, n), and the inner products behind them, (m, m)."""
        total = torch.eye(given.rows.n, dtype=torch.float64)
        for part in self.pre:
            found = gram
            if self.in_product_space and part.about is not None:
                found = measure(given, part.about, part.space).cpu()
            step = part.mix(found, given)
            total = step @ total
            gram = None if gram is None else rows_about(gram, step)
            given = given.map(step)
        return total, gram

    def weights_from_gram(
        self,
        gram: torch.Tensor,
        weights: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """The weights (n,) of the rows in the result, where the last rule is one of inner products.

        Raises:
            ValueError: it is not: its result is no weighted sum of the rows.
        """
        if not isinstance(self.last, GramRule):
            raise ValueError(
                f"pipeline: {self.last.name} looks at coordinates; use matrix_from_gram and the rule"
            )
        matrix = self.matrix_from_gram(gram, generator)
        kept = weights if len(matrix) == len(gram) else None
        return self.last.weights_from_gram(rows_about(gram.double(), matrix), kept) @ matrix

    def matrix_from_gram(self, gram: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """What all pre-aggregators together do to rows with these inner products, float64 (m, n)."""
        total, gram = torch.eye(len(gram), dtype=torch.float64, device=gram.device), gram.double()
        for part in self.pre:
            step = part.matrix_from_gram(gram, generator)
            total, gram = step @ total, rows_about(gram, step)
        return total

    def _run(self, given: Given, found: torch.Tensor | None, state: Any) -> tuple[torch.Tensor, Any]:
        matrix, mixed = self.matrix(None if found is None else found.cpu(), given)
        behind = given.map(matrix)
        if isinstance(self.last, GramRule) and mixed is not None and not self.last.reads_more:
            return self.last.finish(behind, mixed, state)
        return self.last.combine(behind, state)
