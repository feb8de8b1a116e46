"""Rank self-pruning of HetLoRA: a client gives up the last of its ranks once they have shrunk.

Cho et al. 2024 (arXiv 2401.06432): of rank r a client may keep the first gamma r. Its loss penalizes what it may give up, and
after a round in which the tail's norm |B_tail| |A_tail| has fallen it goes on with gamma r. One difference: the penalty is the
step of (|B_tail|^2 + |A_tail|^2) / 2, which is never below that product, taken once after local training, so that batches,
clipping and noise stay those of every other algorithm.

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
    return max(1, math.floor(prune * rank))


def tail_of(layout: Layout, part_of: Mapping[str, str], rank: int, prune: float) -> Vector:
    """1 for each coordinate that a client of this rank may give up, else 0, float32 (d,)."""
    return held(layout, part_of, rank) - held(layout, part_of, smaller(rank, prune))


def tail_norm(vector: Vector, tail: Vector, layout: Layout) -> float:
    """The sum over matrices of |B_tail| |A_tail|, Frobenius norms."""
    found = 0.0
    for name in (n for n in layout.names if n.endswith(".lora_A")):
        a, b = layout.slice_of(name), layout.slice_of(name.removesuffix("A") + "B")
        found += float(np.linalg.norm(vector[b] * tail[b])) * float(np.linalg.norm(vector[a] * tail[a]))
    return found


def pruned_rank(rank: int, prune: float, before: Vector, after: Vector, tail: Vector, layout: Layout) -> int:
    """The rank that a client goes on with. A tail that is zero has nothing to say yet: every B begins so."""
    shrunk = tail_norm(after, tail, layout) < tail_norm(before, tail, layout)
    return smaller(rank, prune) if shrunk else rank
