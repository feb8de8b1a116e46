"""Rules that treat every coordinate on its own: median, trimmed mean, mean around the median.

With fewer than half of the rows wrong, each coordinate of the result lies between two honest values of
that coordinate, whatever the wrong rows hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from securefed_defenses import kernels
from securefed_defenses.base import Rule
from securefed_defenses.given import Given


@dataclass(frozen=True)
class Median(Rule):
    """The median of each coordinate; in a step, weighted by the clients' public weights.

    Tolerates fewer than half of the rows (of the weight): each coordinate stays within the honest ones.
    Cost: one sorting network, O(n log^2 n) d, one reading.

    Source: Yin et al., "Byzantine-robust distributed learning", ICML 2018, Definition 1.

    >>> Median()(torch.tensor([[1.0], [2.0], [1e9]]))
    tensor([2.])
    """

    name: ClassVar[str] = "median"

    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        weights = given.weights
        if bool((weights == weights[0]).all()):
            return kernels.by_columns(given.rows, kernels.median), state
        return kernels.by_columns(given.rows, lambda b: kernels.weighted_median(b, weights)), state


@dataclass(frozen=True)
class TrimmedMean(Rule):
    """The mean of each coordinate without its f largest and f smallest values. Weights are not read.

    Tolerates f < n/2. Cost: one sorting network, one reading.

    Source: Yin et al., ICML 2018, Definition 2, with f = beta n.

    >>> TrimmedMean(f=1)(torch.tensor([[1.0], [2.0], [3.0], [1e9]]))
    tensor([2.5000])
    """

    f: int
    name: ClassVar[str] = "trimmed_mean"

    def least(self, f: int) -> int:
        return 2 * f + 1

    def bound(self) -> str:
        return "2f + 1"

    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        return kernels.by_columns(given.rows, lambda b: kernels.trimmed_mean(b, self.f)), state


@dataclass(frozen=True)
class MeaMed(Rule):
    """The mean of the n - f values of each coordinate that are closest to its median. Weights are not read.

    Tolerates f < n/2. Cost: one sorting network and f comparisons, one reading. For even n the median is
    halfway between the two in the middle; values equally far on both sides count from below.

    Source: Xie, Koyejo and Gupta, "Generalized Byzantine-tolerant SGD", 2018 (arXiv 1802.10116), section 4.

    >>> MeaMed(f=1)(torch.tensor([[1.0], [2.0], [3.0], [1e9]]))
    tensor([2.])
    """

    f: int
    name: ClassVar[str] = "mea_med"

    def least(self, f: int) -> int:
        return 2 * f + 1

    def bound(self) -> str:
        return "2f + 1"

    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        keep = given.rows.n - self.f
        return kernels.by_columns(given.rows, lambda b: kernels.mean_around_median(b, keep)), state
