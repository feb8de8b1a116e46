"""Rank self-pruning of HetLoRA: a client gives up the last of its ranks once they have shrunk.

Cho et al. 2024 (arXiv 2401.06432), their rank self-pruning: of rank r a client may keep the first gamma r. Its loss penalizes
what it may give up by lambda |B_tail| |A_tail|, and where that norm has fallen in a round it goes on with gamma r.

Where this differs: the penalty is the step of (|B_tail|^2 + |A_tail|^2) / 2, which is never below that product, taken once
after local training, so that batches, clipping and noise stay those of every other algorithm. What a client sends in the
round in which it prunes itself still holds its tail (shrunk by the penalty); from the next round on there is none. One rank is
chosen for all matrices, by the sum of their norms. A frozen A (`ffa`) does not shrink, so there B alone decides.

Privacy: which rank a client has follows from its records, and whoever forms the mean must know it. So it needs a server that
sees updates anyway, and no client-level noise, whose bound says nothing of ranks; under example-level noise a rank follows from
the noised update alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from securefed.algorithms.ranks import held
from securefed.layout import Layout
from securefed.types import Vector

KEY = "hetlora:ranks"
"""Ranks as they are now, in a checkpoint's named vectors, one number a client."""


def smaller(rank: int, prune: float) -> int:
    """What a client of this rank may prune itself to."""
    return max(1, math.floor(prune * rank + 1e-9))  # 0.29 x 100 is a little below 29


def tail_of(layout: Layout, part_of: Mapping[str, str], rank: int, prune: float) -> Vector:
    """1 for each coordinate that a client of this rank may give up, else 0, float32 (d,)."""
    return held(layout, part_of, rank) - held(layout, part_of, smaller(rank, prune))


def tail_norm(vector: Vector, tail: Vector, layout: Layout) -> float:
    """The sum over matrices of |B_tail| |A_tail|, Frobenius norms; of |B_tail| where A is frozen and so not in the layout."""

    def norm(name: str) -> float:
        where = layout.slice_of(name)
        return float(np.linalg.norm(vector[where] * tail[where]))

    stems = [n.removesuffix("B") for n in layout.names if n.endswith(".lora_B")]
    return sum(norm(s + "B") * (norm(s + "A") if s + "A" in layout.names else 1.0) for s in stems)


def pruned_rank(rank: int, prune: float, before: Vector, after: Vector, tail: Vector, layout: Layout) -> int:
    """The rank that a client goes on with. A tail that is zero has nothing to say yet: every B begins so."""
    shrunk = tail_norm(after, tail, layout) < tail_norm(before, tail, layout)
    return smaller(rank, prune) if shrunk else rank
