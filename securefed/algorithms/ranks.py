"""Adapters of unlike ranks in one federation: who holds what, and five ways to join it.

The global adapter has rank R = `model.rank`; client k of rank r_k holds its first r_k rows of A and columns of B. The
rest is zero on that client, has no gradient there and is not noised, so it trains as an adapter of rank r_k.

| way | the server's next adapter | sees |
| --- | --- | --- |
| `hetlora` | mean of the clients' factors, zeros where a client holds none | a sum |
| `slices` | mean over those who hold a coordinate | a sum |
| `flexlora` | the best rank-R approximation of the mean of products B A | updates |
| `flora` | none: the mean of products, exact, goes into the base weights; adapters start anew | updates |
| `fedex` | mean of factors; what it misses of the mean of products goes into the base weights | updates |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import RoundPlan
from securefed.config import ModelConfig
from securefed.layout import Layout
from securefed.types import Vector

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Joined:
    """What a way to join may read of one round.

    Attributes:
        layout, part_of: of the whole model. plan: what was sent.
        before: the global model that the cohort started from, (d,). initial: the first round's, where `restarts`.
        ranks: client -> rank, of those who count. weights: client -> public weight, of the same.
        updates: client -> update over `plan.share`; empty where the protection hides them.
        scale: what the model multiplies B A with.
    """

    layout: Layout
    part_of: Mapping[str, str]
    plan: RoundPlan
    before: Vector = field(repr=False)
    initial: Vector | None = field(repr=False)
    ranks: Mapping[int, int]
    weights: Mapping[int, float]
    updates: Mapping[int, Vector] = field(repr=False)
    scale: float

    @property
    def shared(self) -> Layout:
        """The layout of an update."""
        return self.layout.select(set(self.plan.share).__contains__)

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the adapted matrices whose two factors were both sent."""
        names = set(self.plan.share)
        return tuple(
            n.removesuffix(".lora_A")
            for n in self.layout.names
            if n.endswith(".lora_A") and n in names and n.removesuffix("A") + "B" in names
        )

    def shares(self) -> dict[int, float]:
        """Client -> its part of the sum of weights."""
        total = sum(self.weights.values())
        return {k: w / total for k, w in self.weights.items()}

    def factors(self, client: int, stem: str) -> tuple[Matrix, Matrix]:
        """(B, A) as this client ended the round with, (out, r_k) and (r_k, in), float64."""
        r, shared = self.ranks[client], self.shared
        found = []
        for end in (".lora_B", ".lora_A"):
            shape = self.layout.shapes[self.layout.names.index(stem + end)]
            new = self.before[self.layout.slice_of(stem + end)].astype(np.float64)
            new = new + self.updates[client][shared.slice_of(stem + end)]
            found.append(new.reshape(shape))
        return found[0][:, :r], found[1][:r]

    def stacked(self, stem: str) -> tuple[Matrix, Matrix]:
        """(B, A) of the mean of products: columns of all B, rows of all A, each A weighted; their product is exact."""
        parts, shares = {k: self.factors(k, stem) for k in self.updates}, self.shares()
        b = np.concatenate([b for b, _ in parts.values()], axis=1)
        return b, np.concatenate([shares[k] * a for k, (_, a) in parts.items()])


class Ranked(FedAvg):
    """FedAvg with a way to join adapters of unlike ranks, before or after the server's step.

    Attributes:
        needs_updates: it reads single updates. merges: it changes base weights. restarts: its adapters go back to the first
            round's values.
    """

    needs_updates = False
    merges = False
    restarts = False

    def combine(self, aggregate: Vector, joined: Joined) -> Vector:
        """The aggregate over `joined.shared`, changed before the server's optimizer takes it."""
        return aggregate

    def join(self, model: Vector, joined: Joined) -> Vector:
        """The global model (d,) after the server's step, changed."""
        return model


def rank_of(config: ModelConfig, client: int) -> int:
    """A client's rank: `model.ranks` in turn, `model.rank` where none are given."""
    return config.ranks[client % len(config.ranks)] if config.ranks else config.rank


def held(layout: Layout, part_of: Mapping[str, str], rank: int) -> Vector:
    """1 for each coordinate that a client of this rank holds, 0 for the others, float32 (d,)."""
    out = np.ones(layout.size, np.float32)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if part_of[name] in ("A", "B"):
            block = np.zeros(shape, np.float32)
            block[(slice(rank), slice(None)) if part_of[name] == "A" else (slice(None), slice(rank))] = 1
            out[layout.slice_of(name)] = block.ravel()
    return out


def held_share(joined: Joined) -> Vector:
    """Of each coordinate that is sent, the part of the weights whose clients hold it, float32 in [0, 1]."""
    part_of = {n: joined.part_of[n] for n in joined.shared.names}
    total = np.zeros(joined.shared.size)
    for client, share in joined.shares().items():
        total += share * held(joined.shared, part_of, joined.ranks[client])
    return total.astype(np.float32)


def product_norm(joined: Joined, client: int) -> float:
    """Frobenius norm of all of a client's B A together."""
    squares = 0.0
    for stem in joined.stems:
        b, a = joined.factors(client, stem)
        squares += float(((b.T @ b) * (a @ a.T)).sum())
    return math.sqrt(max(squares, 0.0))
