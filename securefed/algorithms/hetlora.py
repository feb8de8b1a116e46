"""HetLoRA: adapters of unlike ranks, cut to each client's rank and padded with zeros for the average.

Cho et al. 2024, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models" (arXiv 2401.06432):
distribution by truncation, and aggregation of the zero-padded factors with weights that are equal, by size, or
proportional to the norm of a client's product B A ("sparsity-weighted").

Its rank self-pruning is in `pruning`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from securefed.algorithms.ranks import Joined, Ranked, held_share, product_norm
from securefed.algorithms.work import Training, Worked
from securefed.types import Vector

if TYPE_CHECKING:
    from securefed.training.client import ClientJob


@dataclass(frozen=True)
class HetLoRA(Ranked):
    """The mean of zero-padded factors.

    A coordinate that few hold is pulled towards zero by those who do not: that is the paper's average. `slices`
    is the one without this pull.

    Attributes:
        weighting: "given" (by `weights` of the job: a sum is enough), or "sparsity", which reads every client's
            update and weighs it by the norm of its product, of all matrices together. Rounds that send no product (of a
            head alone), and one in which all products are zero, are weighed as given.
        prune: gamma, the part of its ranks that a client keeps when it prunes itself; 1: ranks stay.
        penalty: in [0, 1), on the ranks that a client may give up, once a round.
    """

    weighting: Literal["given", "sparsity"] = "given"
    prune: float = 1.0
    penalty: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in ("given", "sparsity"):
            raise ValueError(f'weighting is "given" or "sparsity", found {self.weighting!r}')
        if not 0 < self.prune <= 1:
            raise ValueError(
                f"prune is the part of its ranks that a client keeps, in (0, 1], found {self.prune}"
            )
        if not 0 <= self.penalty < 1:
            raise ValueError(f"penalty must be in [0, 1), found {self.penalty}")

    @property
    def needs_updates(self) -> bool:  # type: ignore[override]  # of a class elsewhere, here it follows from a field
        return self.weighting == "sparsity"

    def work(self, train: Training, job: ClientJob) -> Worked:
        trained = train(job.start, job.train)
        if job.tail is None:
            return Worked(trained)
        return Worked((trained - np.float32(self.penalty) * job.tail * trained).astype(np.float32))

    def combine(self, aggregate: Vector, joined: Joined) -> Vector:
        shared = joined.shared
        if self.needs_updates and joined.stems:
            norms = {k: product_norm(joined, k) for k in joined.updates}
            if sum(norms.values()) > 0:
                joined = replace(joined, weights=norms)
            shares = joined.shares()
            rows = [np.float64(shares[k]) * u for k, u in joined.updates.items()]
            aggregate = np.sum(rows, axis=0).astype(np.float32)
        start = joined.layout.gather(joined.before, shared)
        return (aggregate - (1 - held_share(joined)) * start).astype(np.float32)


@dataclass(frozen=True)
class Slices(Ranked):
    """The mean of each coordinate over the clients that hold it: slices of a shared A and B.

    A coordinate that nobody of the cohort holds keeps its value. Under noise the part that few hold carries more
    of it, by the same factor.
    """

    def combine(self, aggregate: Vector, joined: Joined) -> Vector:
        share = held_share(joined)
        out = np.divide(aggregate, share, out=np.zeros_like(aggregate), where=share > 0)
        return out.astype(np.float32)
