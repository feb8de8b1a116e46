"""Rules that let the rows vote on the sign of every coordinate: sign majority, robust learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from securefed_defenses import kernels
from securefed_defenses.base import Rule
from securefed_defenses.given import Given


@dataclass(frozen=True)
class SignMajority(Rule):
    """The sign that most rows give a coordinate, times a size that liars cannot blow up.

    Tolerates fewer than half of the rows where honest rows agree on the sign. Weights are not read: one
    client, one vote. Rows that hold zero abstain, and a draw gives zero.

    Attributes:
        size: "median": the median of the coordinate's absolute values, so that the result is an update like
            the others. "unit": one, as in the paper, where the learning rate alone sets the step.

    Source: Bernstein, Zhao, Azizzadenesheli and Anandkumar, "signSGD with majority vote is communication
    efficient and fault tolerant", ICLR 2019, Algorithm 1.

    >>> SignMajority()(torch.tensor([[0.5], [1.0], [-1e9]]))
    tensor([1.])
    """

    size: Literal["median", "unit"] = "median"
    name: ClassVar[str] = "sign_majority"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size not in ("median", "unit"):
            raise ValueError(f'sign_majority: size is "median" or "unit", found {self.size!r}')

    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        def vote(block: torch.Tensor) -> torch.Tensor:
            sign = block.sign().sum(0).sign()
            return sign if self.size == "unit" else sign * kernels.median(block.abs())

        return kernels.by_columns(given.rows, vote), state


@dataclass(frozen=True)
class RLR(Rule):
    """The mean of the rows, turned round in every coordinate where too few rows agree on the sign.

    Made against backdoors: a coordinate that only a few rows push is moved against them. It tolerates no
    boosted row (the mean's size is unbounded), so bound the lengths first: `clip` before it.

    Attributes:
        threshold: votes that the signs' sum must reach, 0 ... n; the paper takes it above the number of
            liars and below n minus it.

    In a step the mean is weighted; the vote is not.

    Source: Ozdayi, Kantarcioglu and Gel, "Defending against backdoors in federated learning with robust
    learning rate", AAAI 2021.

    >>> RLR(threshold=3)(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 6.0]]))
    tensor([ 1., -2.])
    """

    threshold: float
    name: ClassVar[str] = "rlr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold >= 0:
            raise ValueError(f"rlr: threshold counts votes, 0 or more, found {self.threshold}")

    def check(self, n: int) -> None:
        super().check(n)
        if self.threshold > n:
            raise ValueError(f"rlr: threshold={self.threshold} is more than the n={n} votes; lower it")

    def combine(self, given: Given, state: Any) -> tuple[torch.Tensor, Any]:
        weights = given.weights.to(dtype=given.rows.dtype, device=given.rows.device)

        def turned(block: torch.Tensor) -> torch.Tensor:
            agreed = block.sign().sum(0).abs() >= self.threshold
            mean = weights @ block
            return torch.where(agreed, mean, -mean)

        return kernels.by_columns(given.rows, turned), state
