"""Rules that bound what one row can do by bounding its length: norm bound, centered clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from securefed.gram import gram
from securefed.rows import combine
from securefed_defenses.base import GramRule
from securefed_defenses.given import About, Given


def shrink(lengths: torch.Tensor, limit: float | torch.Tensor) -> torch.Tensor:
    """Factors min(1, limit / length) that bring each length down to the limit; 1 for length zero."""
    return torch.where(lengths > limit, limit / lengths, 1.0)


def require_positive(name: str, field_name: str, value: float) -> None:
    """Raises ValueError unless the value is a finite number above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: {field_name} must be a finite number above 0, found {value}")


@dataclass(frozen=True)
class NormBound(GramRule):
    """The mean of the rows after each is clipped to length `max_norm`; weighted in a step.

    Tolerates nothing by itself: f liars of n still move the mean by up to 2 f max_norm / n. It bounds what
    a boosted row can do, and is half of a client-level DP mechanism (the noise is not added here).

    Source: Sun, Kairouz, Suresh and McMahan, "Can you really backdoor federated learning?", 2019
    (arXiv 1911.07963), section 3.

    >>> NormBound(max_norm=1.0)(torch.tensor([[0.5], [100.0]]))
    tensor([0.7500])
    """

    max_norm: float
    name: ClassVar[str] = "norm_bound"
    about: ClassVar[About] = "origin"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, "max_norm", self.max_norm)

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return weights * shrink(gram.diagonal().sqrt(), self.max_norm)


@dataclass(frozen=True)
class CenteredClipping(GramRule):
    """Steps from a centre to the mean of the rows, each row's pull clipped to length `radius`.

    A liar moves the result by at most iterations x radius x its weight. How many it tolerates depends on
    the radius: of the order of the honest spread, it withstands a constant share below one half.

    Attributes:
        radius: the clipping length tau, in units of the update.
        iterations: steps per call.
        center: where to start, (d,). None: the origin, and in later steps of a run the previous aggregate
            (the rule's state, one per layout), as in the paper.

    `weights_from_gram` takes inner products about the centre. In a step the pulls are weighted.

    Source: Karimireddy, He and Jaggi, "Learning from history for Byzantine robust optimization",
    ICML 2021, Algorithm 1 and section 4.

    >>> CenteredClipping(radius=1.0, iterations=1)(torch.tensor([[0.5], [0.5], [100.0]]))
    tensor([0.6667])
    """

    radius: float
    iterations: int = 3
    center: torch.Tensor | None = field(default=None, compare=False, repr=False)
    name: ClassVar[str] = "centered_clipping"
    about: ClassVar[About] = "origin"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, "radius", self.radius)
        if self.iterations < 1:
            raise ValueError(f"centered_clipping: iterations must be at least 1, found {self.iterations}")

    @property
    def reads_more(self) -> bool:
        return True

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        point = torch.zeros_like(weights)  # coefficients of the rows about the centre
        for _ in range(self.iterations):
            mixed = gram @ point
            lengths = (gram.diagonal() - 2 * mixed + point @ mixed).clamp_min(0).sqrt()
            pulls = weights * shrink(lengths, self.radius)
            point = (1 - pulls.sum()) * point + pulls
        return point

    def measure(self, given: Given, state: Any) -> torch.Tensor:
        return gram(given.rows, self._start(given, state))

    def finish(self, given: Given, found: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        start, point = self._start(given, state), self.solve(found.cpu(), given.weights)
        vector = combine(point, given.rows)
        if start is not None:
            vector += float(1 - point.sum()) * start
        if given.context is None:
            return vector, state
        return vector, {**(state or {}), given.context.layout_digest: vector.clone()}

    def _start(self, given: Given, state: Mapping[str, torch.Tensor] | None) -> torch.Tensor | None:
        before = None if given.context is None else (state or {}).get(given.context.layout_digest)
        start = self.center if before is None else before
        if start is None:
            return None
        if start.shape != (given.rows.d,):
            raise ValueError(
                f"centered_clipping: center has shape {tuple(start.shape)}, the rows have d={given.rows.d}"
            )
        return start.to(dtype=given.rows.dtype, device=given.rows.device)
