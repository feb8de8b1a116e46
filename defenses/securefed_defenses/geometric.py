"""The geometric median, worked out on inner products until it has converged.

The median is a convex combination of the rows, so the iteration runs on its n coefficients and never
touches the d coordinates: two readings of the rows in all, however many steps it takes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch

from securefed.gram import squared_distances
from securefed_defenses.base import GramRule

logger = logging.getLogger(__name__)

NOISE = 1e-14
"""A squared distance below this share of the rows' squared lengths is what float64 leaves of zero."""


@dataclass(frozen=True)
class GeometricMedian(GramRule):
    """The point with the smallest sum of distances to the rows; in a step, weighted by public weights.

    Tolerates less than half of the rows (of the weight), wherever they lie: where all but
    a share a < 1/2 of the weight lies within r of a point, the median lies within (1 - a) / sqrt(1 - 2a) r
    of it (Minsker, "Geometric median and robust estimation in Banach spaces", Bernoulli 2015, Lemma 2.1).

    Attributes:
        max_iter: steps at most; a warning says so when they did not suffice.
        tol: the sum of distances is within this share of the smallest possible one.

    Nothing here has a scale of its own: updates of 1e-9 are treated as those of 1. A row that is itself the
    median is recognised by its optimality condition (Vardi and Zhang, PNAS 2000), where plain Weiszfeld
    steps would creep.

    Source: Pillutla, Kakade and Harchaoui, "Robust aggregation for federated learning" (RFA), IEEE TSP
    2022, Algorithm 2 (without its smoothing, which is an absolute length).

    >>> GeometricMedian()(torch.tensor([[0.0], [1.0], [99.0]]))
    tensor([1.])
    """

    max_iter: int = 100
    tol: float = 1e-6
    name: ClassVar[str] = "geometric_median"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_iter < 1:
            raise ValueError(f"geometric_median: max_iter must be at least 1, found {self.max_iter}")
        if not 0 < self.tol < 1:
            raise ValueError(f"geometric_median: tol must be in (0, 1), found {self.tol}")

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        squared = _told_apart(gram)
        distances = squared.sqrt()
        sums = distances @ weights
        row = int(sums.argmin())
        pull, strength = _pull(squared, distances[row], weights, row)
        if strength <= weights[distances[row] == 0].sum() * (1 + 1e-9):  # equality is a median too
            tied = (sums <= sums[row] * (1 + 1e-12)).double()  # all of them medians, and so is their mean
            return tied / tied.sum()
        return self._descend(squared, _off_the_row(squared, distances[row], weights, row, pull), weights)

    def _descend(self, squared: torch.Tensor, point: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Newton's steps where they lower the gap, else Weiszfeld's, from a point better than every row.

        Weiszfeld's creep where the median lies close to a row, and liars can put one there.
        """
        gap, to_rows, pulls = _look(squared, point, weights)
        for _ in range(self.max_iter):
            if gap <= self.tol:
                return point
            tried = _newton(squared, point, to_rows, weights)
            seen = _look(squared, tried, weights)
            if not seen[0] <= 0.9 * gap:  # also where the step is not a number
                tried = pulls / pulls.sum()
                seen = _look(squared, tried, weights)
            point, (gap, to_rows, pulls) = tried, seen
        if gap <= self.tol:
            return point
        logger.warning(
            "geometric_median: %d steps left a relative gap of at most %.1e (tol %.1e); raise max_iter",
            self.max_iter,
            gap,
            self.tol,
        )
        return point


def _told_apart(gram: torch.Tensor) -> torch.Tensor:
    """Squared distances, zero where they are rounding errors: equal rows would else attract each other for ever."""
    squared, lengths = squared_distances(gram), gram.diagonal()
    noise = NOISE * (lengths[:, None] + lengths[None, :])
    return torch.where(squared <= noise, 0.0, squared)


def _to_rows(squared: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """Distances from sum_i point_i x_i (coefficients sum to one) to every row, floored at rounding error."""
    mixed = squared @ point
    floor = 1e-30 * squared.max()
    return (mixed - 0.5 * (point @ mixed)).clamp_min(float(floor)).sqrt()


def _look(
    squared: torch.Tensor, point: torch.Tensor, weights: torch.Tensor
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(bound on the excess, distances to the rows, pulls w_i / d_i) at a point.

    The bound is on (sum of distances - smallest sum) / sum: by convexity the excess is at most |gradient| times the
    way to the median, and that way is at most twice the sum of distances itself (weights sum to one).
    """
    to_rows = _to_rows(squared, point)
    pulls = weights / to_rows
    step = pulls - pulls.sum() * point  # the gradient's coefficients; they sum to zero
    slope = (-0.5 * (step @ squared @ step)).clamp_min(0).sqrt()
    return 2.0 * float(slope), to_rows, pulls


def _newton(
    squared: torch.Tensor, point: torch.Tensor, to_rows: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Newton's step on the sum of distances, in coefficients of the rows.

    With z_i = x_i - p, pulls c_i = w_i / d_i and K = Z^T Z, the step Z a solves H Z a = Z c for the Hessian
    H = sum(c) I - Z diag(w / d^3) Z^T; (sum(c) I - diag(w / d^3) K) a = c does.
    """
    around = 0.5 * (to_rows.square()[:, None] + to_rows.square()[None, :] - squared)
    pulls = weights / to_rows
    system = torch.eye(len(point), dtype=torch.float64) * pulls.sum()
    system -= (pulls / to_rows.square())[:, None] * around
    step, _ = torch.linalg.solve_ex(system, pulls)
    found: torch.Tensor = point + step - step.sum() * point
    return found


def _pull(
    squared: torch.Tensor, to_rows: torch.Tensor, weights: torch.Tensor, row: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of the force w_i / d_i on a row towards the others, and its strength."""
    pulls = torch.where(to_rows > 0, weights / to_rows, 0.0)
    pulls[row] = -pulls.sum()
    return pulls, (-0.5 * (pulls @ squared @ pulls)).clamp_min(0).sqrt()


def _off_the_row(
    squared: torch.Tensor, to_rows: torch.Tensor, weights: torch.Tensor, row: int, pull: torch.Tensor
) -> torch.Tensor:
    """Vardi and Zhang's step from a row that is not the median: a point with a smaller sum of distances."""
    at_row = weights[to_rows == 0].sum()
    strength = (-0.5 * (pull @ squared @ pull)).clamp_min(0).sqrt()
    total = torch.where(to_rows > 0, weights / to_rows, 0.0).sum()
    start = torch.zeros_like(weights)
    start[row] = 1.0
    return start + (1 - at_row / strength) * pull / total
