"""Candidates of a run: a seeded sample of what was trained on, and test records of the same mix of labels beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.data.records import Examples
from securefed_attacks.audit.candidates import Candidates

ENOUGH = 100
"""Non-members that a false positive rate of 1 % needs."""
Rows = NDArray[np.int64]


def sample_records(assembly: Any, asked: Sequence[int], sample: int, seed: int) -> tuple[Candidates, str]:
    """(candidates, how they were drawn): half of them training records of these clients, half test records.

    Where not all clients are asked about, their labels may be mixed unlike the data set's: then the test records
    are those clients' own, or of the same mix of labels, where there are enough of either.
    """
    rng = np.random.default_rng([seed, 0xF01D])
    shards = [s for k in asked if len(s := assembly.shards[k].train)]
    held, test = sum(len(s) for s in shards), assembly.dataset.test
    own = _joined(
        [s for k in asked if len(s := assembly.shards[k].test)] or [test.take(np.empty(0, np.int64))]
    )
    everybody, whose, mixed = len(asked) == len(assembly.shards), "public", ""
    inside, outside = rng.permutation(held), rng.permutation(len(test))
    if not everybody and ENOUGH <= len(own) < len(test):
        test, outside, whose = own, rng.permutation(len(own)), "of their own"
    elif not everybody and test.labels is not None:
        known = np.concatenate([s.labels for s in shards if s.labels is not None])
        outside = same_mix(known, test.labels, rng)
        mixed = " with the same mix of labels" if len(outside) < len(test) else ""
    chosen, rows = np.sort(inside[: sample // 2]), np.sort(outside[: sample // 2])
    both = _joined([*_pick(shards, chosen), test.take(rows)])
    of = "" if everybody else f" of client{'s' if len(asked) > 1 else ''} {_numbers(asked)}"
    said = (
        f"a seeded sample of {len(chosen)} of {held:,} training{of} and {len(rows)} of {len(test):,} {whose} "
        f"test records{mixed}"
    )
    return _candidates(both, len(chosen), len(chosen) < held), said


def same_mix(members: NDArray[np.int64], others: NDArray[np.int64], rng: np.random.Generator) -> Rows:
    """As many rows of the others as have the members' mix of labels, shuffled; all of them where those are too few.

    Args:
        members, others: labels, int64.
    """
    kinds, of_members = np.unique(members, return_counts=True)
    of_others = np.array([(others == k).sum() for k in kinds])
    counts = np.floor((of_others / of_members).min() * of_members + 1e-9).astype(int)
    return _drawn(others, kinds, counts, rng) if counts.sum() >= ENOUGH else rng.permutation(len(others))


def _drawn(
    labels: NDArray[np.int64], kinds: NDArray[np.int64], counts: NDArray[Any], rng: np.random.Generator
) -> Rows:
    rows = [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in zip(kinds, counts, strict=True)]
    return rng.permutation(np.concatenate(rows).astype(np.int64))


def _candidates(both: Examples, members: int, partial: bool) -> Candidates:
    return Candidates(
        texts=both.texts,
        inputs=None if both.images is None else torch.from_numpy(both.images),
        labels=both.labels,
        member=np.arange(len(both)) < members,
        partial=partial,
    )


def _numbers(clients: Sequence[int]) -> str:
    return ", ".join(map(str, clients)) if len(clients) <= 8 else f"{len(clients)} clients"


def _pick(shards: list[Examples], rows: Rows) -> list[Examples]:
    ends = np.cumsum([len(s) for s in shards])
    starts = ends - [len(s) for s in shards]
    return [s.take(rows[(rows >= a) & (rows < b)] - a) for s, a, b in zip(shards, starts, ends, strict=True)]


def _joined(parts: list[Examples]) -> Examples:
    texts = tuple(t for p in parts for t in p.texts or ()) if parts[0].texts is not None else None
    images = [p.images for p in parts if p.images is not None and len(p)]
    labels = [p.labels for p in parts if p.labels is not None and len(p)]
    return Examples(
        texts=texts,
        images=np.concatenate(images) if images else None,
        labels=np.concatenate(labels) if labels else None,
    )
