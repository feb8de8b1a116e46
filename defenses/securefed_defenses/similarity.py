"""Rules that weigh rows by the angles between them: FoolsGold, and FLTrust with a trusted update."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from securefed.gram import gram
from securefed.rows import AppendedRows, VectorRows, combine
from securefed_defenses.base import GramRule
from securefed_defenses.given import About, Given

logger = logging.getLogger(__name__)


def cosines(gram: torch.Tensor) -> torch.Tensor:
    """Cosines between rows from inner products about the origin, in [-1, 1]; zero with a zero row."""
    lengths = gram.diagonal().sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0.0)
    return (scale[:, None] * gram * scale[None, :]).clamp(-1, 1)


@dataclass(frozen=True)
class FoolsGold(GramRule):
    """The mean of the rows, weighted by how different each one's direction is from all others'.

    Made against many clients that push one way (sybils), however many they are, as long as honest clients
    differ. A single liar, or liars that take care to differ, keep full weight: it is no general rule.
    Where all rows point the same way nobody stands out, and all weigh the same. Public weights are not read.

    Attributes:
        history: in a run, compare the sums of each client's updates so far (as the paper does). The rule's
            state then holds a vector for every client seen, n x d numbers for each layout.

    Source: Fung, Yoon and Beschastnikh, "The limitations of federated learning in sybil settings",
    RAID 2020, Algorithm 1, with its kappa = 1.

    >>> FoolsGold()(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, -2.0], [-2.0, -2.0]]))
    tensor([0.5000, 0.5000])
    """

    history: bool = True
    name: ClassVar[str] = "fools_gold"
    about: ClassVar[About] = "origin"

    @property
    def reads_more(self) -> bool:
        return self.history

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        n = len(gram)
        if n == 1:
            return torch.ones(1, dtype=torch.float64)
        similar = cosines(gram).fill_diagonal_(-torch.inf)
        closest = similar.max(1).values
        ratio = closest[:, None] / closest[None, :]
        pardon = (closest[None, :] > closest[:, None]) & (closest[None, :] > 0)
        similar = torch.where(pardon, similar * ratio.clamp_min(0), similar)
        trust = (1 - similar.max(1).values).clamp(0, 1)
        if float(trust.max()) < 1e-9:  # rounding leaves about 1e-16 where directions are equal
            return torch.full((n,), 1 / n, dtype=torch.float64)
        trust = trust / trust.max()
        trust = (torch.log(trust / (1 - trust)) + 0.5).clamp(0, 1)
        return trust / trust.sum()

    def measure(self, given: Given, state: Any) -> torch.Tensor:
        if given.context is None or not self.history:
            return gram(given.rows)
        return gram(VectorRows(list(self._sums(given, state).values())))

    def finish(self, given: Given, found: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        vector = combine(self.solve(found.cpu(), given.weights), given.rows)
        if given.context is None or not self.history:
            return vector, state
        return vector, {**(state or {}), **self._sums(given, state)}

    def _sums(self, given: Given, state: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """layout/client -> the sum of that client's updates, this round's included, in row order."""
        assert given.context is not None
        sums = {}
        for client, row in zip(given.context.clients, given.rows.matrix(), strict=True):
            key = f"{given.context.layout_digest}/{client}"
            before = (state or {}).get(key)
            sums[key] = row.clone() if before is None else row + before.to(row)
        return sums


@dataclass(frozen=True)
class FLTrust(GramRule):
    """Rows scaled to the length of a trusted update, weighted by their cosine with it where it is positive.

    Tolerates any number of liars as far as the trusted update is good: the result is never longer than it
    and never points away from it. The server needs clean data of the clients' kind for it. Where no row
    points its way the result is zero. Public weights are not read.

    Attributes:
        root_update: the trusted update (d,) for plain calls; in a step `RoundContext.root_update` goes first.

    `weights_from_gram` takes the trusted update as the last row of the inner products, (n + 1, n + 1), and
    gives it weight zero.

    Source: Cao, Fang, Liu and Gong, "FLTrust: Byzantine-robust federated learning via trust bootstrapping",
    NDSS 2021, Algorithm 2.

    >>> FLTrust(root_update=torch.tensor([1.0, 0.0]))(torch.tensor([[3.0, 0.0], [-5.0, 0.0]]))
    tensor([1., 0.])
    """

    root_update: torch.Tensor | None = field(default=None, compare=False, repr=False)
    name: ClassVar[str] = "fl_trust"
    reads_root: ClassVar[bool] = True
    """So that a job holds records for it (`server.root_records`)."""
    about: ClassVar[About] = "origin"

    @property
    def reads_more(self) -> bool:
        return True

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        trust = cosines(gram)[-1].clamp_min(0)
        trust[-1] = 0
        total = trust.sum()
        if total == 0:
            logger.warning(
                "fl_trust: no update points the way of the trusted one; this round changes nothing"
            )
            return trust
        lengths = gram.diagonal().sqrt()
        return torch.where(trust > 0, trust / total * lengths[-1] / lengths, 0.0)

    def measure(self, given: Given, state: Any) -> torch.Tensor:
        return gram(AppendedRows(given.rows, self._root(given)))

    def finish(self, given: Given, found: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        return combine(self.solve(found.cpu(), given.weights)[:-1], given.rows), state

    def _root(self, given: Given) -> torch.Tensor:
        root = self.root_update
        if given.context is not None and given.context.root_update is not None:
            root = given.context.root_update
        if root is None:
            raise ValueError(
                "fl_trust needs a trusted update: RoundContext.root_update in a step, FLTrust(root_update=...) in a call"
            )
        if root.shape != (given.rows.d,) or not bool(torch.isfinite(root).all()):
            raise ValueError(
                f"fl_trust: the trusted update must be finite of shape ({given.rows.d},), found {tuple(root.shape)}"
            )
        return root.to(dtype=given.rows.dtype, device=given.rows.device)
