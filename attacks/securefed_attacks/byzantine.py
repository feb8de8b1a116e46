"""Attacks on the aggregate by formula: what f liars send in place of their updates.

`sign_flip`, `boost` and `gaussian` can be played by liars who see nothing of the others; `ipm`, `alie` and
`mimic` see every honest update of the round (the worst case that robustness proofs assume).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch

from securefed_attacks.base import Byzantine, Knowledge, Line, Seen, require_number

BLOCK = 1 << 14
"""Columns in a block."""


def spread(rows: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each coordinate over the rows (divisor h - 1), (d,).

    Block by block, so that the deviations stay in the cache: `rows.std(0)` takes twenty times as long.
    """
    out = rows.new_empty(rows.shape[1])
    width = out.numel() if rows.is_cuda else BLOCK
    for start in range(0, out.numel(), width):
        block = rows[:, start : start + width]
        squares = (block - block.mean(0)).square_().sum(0)
        out[start : start + width] = squares.div_(len(rows) - 1).sqrt_()
    return out


@dataclass(frozen=True)
class SignFlip(Line):
    """Minus `scale` times the liar's own update; where none is given, of the honest mean.

    The unscaled flip of f liars only shortens the plain mean; at scale > (n - f) / f it turns it round.

    Source: Li, Xu, Chen, Giannakis and Ling, "RSA: Byzantine-robust stochastic aggregation methods for
    distributed learning from heterogeneous datasets", AAAI 2019, section "Experiments" (scale there 4).

    >>> SignFlip(scale=2.0)(torch.tensor([[1.0], [3.0]]), f=1)
    tensor([[-4.]])
    """

    scale: float = 1.0
    name: ClassVar[str] = "sign_flip"
    knowledge: ClassVar[Knowledge] = "own data"
    colluding: ClassVar[bool] = False
    from_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self.name, "scale", self.scale, 0, strict=True)

    def craft(self, seen: Seen) -> torch.Tensor:
        return super().craft(seen) if seen.own is None else -self.scale * seen.own

    def direction(self, seen: Seen) -> torch.Tensor:
        return -seen.honest.mean(0)

    def strength(self, seen: Seen, direction: torch.Tensor) -> float:
        return self.scale


@dataclass(frozen=True)
class Boost(Byzantine):
    """`scale` times the liar's own update (of the honest mean where none is given): model replacement.

    With scale = n / f the mean is all but replaced by what the liars trained, for instance on poisoned data.

    Source: Bagdasaryan, Veit, Hua, Estrin and Shmatikov, "How to backdoor federated learning", AISTATS 2020
    (arXiv 1807.00459), section 4.2, equation 3.

    >>> Boost(scale=5.0)(torch.tensor([[1.0]]), f=1, own=torch.tensor([[2.0]]))
    tensor([[10.]])
    """

    scale: float = 5.0
    name: ClassVar[str] = "boost"
    knowledge: ClassVar[Knowledge] = "own data"
    colluding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self.name, "scale", self.scale, 0, strict=True)

    def craft(self, seen: Seen) -> torch.Tensor:
        return self.scale * (seen.honest.mean(0) if seen.own is None else seen.own)


@dataclass(frozen=True)
class IPM(Line):
    """Inner-product manipulation ("fall of empires"): minus `tau` times the honest mean.

    With f liars of n the plain mean becomes (h - tau f) / n times the honest one: it turns round beyond
    tau = h / f. Small tau hides from distance rules instead.

    Source: Xie, Koyejo and Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product
    manipulation", UAI 2019 (arXiv 1903.03936), section 3.

    >>> IPM(tau=10.0)(torch.tensor([[1.0], [3.0]]), f=2)
    tensor([[-20.],
            [-20.]])
    """

    tau: float = 2.0
    name: ClassVar[str] = "ipm"
    knowledge: ClassVar[Knowledge] = "omniscient"
    from_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self.name, "tau", self.tau, 0, strict=True)

    def direction(self, seen: Seen) -> torch.Tensor:
        return -seen.honest.mean(0)

    def strength(self, seen: Seen, direction: torch.Tensor) -> float:
        return self.tau


@dataclass(frozen=True)
class ALIE(Line):
    """A little is enough: the honest mean plus `tau` standard deviations in every coordinate.

    Attributes:
        tau: None takes the paper's largest value that leaves the liars closer to the mean than the
            supporters they need: with s = floor(n / 2 + 1) - f, the normal quantile of (h - s) / h.
            For few liars it is 0 or below. Defined for s > 0, so for liars in the minority.

    Needs h >= 2, so that there is a spread.

    Source: Baruch, Baruch and Goldberg, "A little is enough: circumventing defenses for distributed
    learning", NeurIPS 2019 (arXiv 1902.06156), Algorithm 3.

    >>> ALIE(tau=1.0)(torch.tensor([[0.0], [2.0], [4.0]]), f=1)
    tensor([[4.]])
    """

    tau: float | None = None
    name: ClassVar[str] = "alie"
    knowledge: ClassVar[Knowledge] = "omniscient"
    from_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tau is not None:
            require_number(self.name, "tau", self.tau, -math.inf, strict=True)

    def check(self, h: int, f: int) -> None:
        if h < 2:
            raise ValueError(f"alie: needs h >= 2 honest rows to see their spread, got h={h}, f={f}")
        if self.tau is None and (h + f) // 2 + 1 - f <= 0:
            raise ValueError(
                f"alie: tau=None needs f <= n/2, got n={h + f}, f={f}: such liars need no supporters; give tau"
            )

    def direction(self, seen: Seen) -> torch.Tensor:
        return spread(seen.honest)

    def strength(self, seen: Seen, direction: torch.Tensor) -> float:
        return quantile(len(seen.honest), seen.f) if self.tau is None else self.tau


def quantile(h: int, f: int) -> float:
    """ALIE's z for h honest rows and f liars, floor((h + f) / 2 + 1) > f.

    >>> round(quantile(h=26, f=24), 2)
    1.43
    """
    supporters = (h + f) // 2 + 1 - f
    return NormalDist().inv_cdf((h - supporters) / h)


@dataclass(frozen=True)
class Mimic(Byzantine):
    """All liars copy one honest client, so that its data counts f + 1 times. Nothing about it looks wrong.

    Attributes:
        target: the row that is copied, 0 <= target < h.

    Source: Karimireddy, He and Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing",
    ICLR 2022 (arXiv 2006.09365), section 4 (there the target is learned; here it is given).

    >>> Mimic(target=1)(torch.tensor([[1.0], [3.0]]), f=1)
    tensor([[3.]])
    """

    target: int = 0
    name: ClassVar[str] = "mimic"
    knowledge: ClassVar[Knowledge] = "omniscient"

    def __post_init__(self) -> None:
        if isinstance(self.target, bool) or not isinstance(self.target, int) or self.target < 0:
            raise ValueError(f"mimic: target is a row, a whole number >= 0, found {self.target!r}")

    def check(self, h: int, f: int) -> None:
        if self.target >= h:
            raise ValueError(f"mimic: needs target < h, got target={self.target}, h={h}; lower target")

    def craft(self, seen: Seen) -> torch.Tensor:
        return seen.honest[self.target]


@dataclass(frozen=True)
class Gaussian(Byzantine):
    """Each liar sends its own N(0, std^2) noise in every coordinate. The weakest of all: a broken client.

    Source: Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine learning with adversaries: Byzantine
    tolerant gradient descent", NeurIPS 2017, section 5 (there std = 200).
    """

    std: float = 1.0
    name: ClassVar[str] = "gaussian"
    knowledge: ClassVar[Knowledge] = "none"
    colluding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_number(self.name, "std", self.std, 0, strict=True)

    def craft(self, seen: Seen) -> torch.Tensor:
        return self.std * seen.draw(seen.f, seen.honest.shape[1], normal=True)


@dataclass(frozen=True)
class Inf(Byzantine):
    """Rows of infinities: one of them makes a plain mean infinite.

    >>> Inf()(torch.tensor([[1.0]]), f=1)
    tensor([[inf]])
    """

    name: ClassVar[str] = "inf"
    knowledge: ClassVar[Knowledge] = "none"
    colluding: ClassVar[bool] = False
    finite: ClassVar[bool] = False

    def craft(self, seen: Seen) -> torch.Tensor:
        return seen.honest.new_full((seen.honest.shape[1],), math.inf)


@dataclass(frozen=True)
class NaN(Byzantine):
    """Rows of NaN: comparisons with them are all false, so a sort or an argmin may let them win.

    >>> NaN()(torch.tensor([[1.0]]), f=1)
    tensor([[nan]])
    """

    name: ClassVar[str] = "nan"
    knowledge: ClassVar[Knowledge] = "none"
    colluding: ClassVar[bool] = False
    finite: ClassVar[bool] = False

    def craft(self, seen: Seen) -> torch.Tensor:
        return seen.honest.new_full((seen.honest.shape[1],), math.nan)
