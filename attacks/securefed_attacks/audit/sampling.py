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
    are those clients' own, if there are enough, or else both groups are thinned to one mix of labels.
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
        inside, outside = same_mix(known, test.labels, rng)
        mixed = " with the same mix of labels"
    chosen, rows = np.sort(inside[: sample // 2]), np.sort(outside[: sample // 2])
    both = _joined([*_pick(shards, chosen), test.take(rows)])
    of = "" if everybody else f" of client{'s' if len(asked) > 1 else ''} {_numbers(asked)}"
    said = (
        f"a seeded sample of {len(chosen)} of {held:,} training{of} and {len(rows)} of {len(test):,} {whose} "
        f"test records{mixed}"
    )
    return _candidates(both, len(chosen)), said


def same_mix(
    members: NDArray[np.int64], others: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Rows of both groups, shuffled, whose labels have one and the same mix.

    As many members as possible stay while the others are still `ENOUGH` in that mix; labels that are frequent
    among the members and scarce among the others are thinned first.

    Args:
        members, others: labels, int64.
    """
    kinds = np.unique(members)
    of_members = np.array([(members == k).sum() for k in kinds])
    of_others = np.array([(others == k).sum() for k in kinds])
    best = np.minimum(of_members, 0)
    for cap in range(int(of_members.max()), 0, -1):
        best = np.where(of_others > 0, np.minimum(of_members, cap), 0)
        if best.any() and _fitting(best, of_others) * best.sum() >= ENOUGH:
            break
    beside = np.floor(_fitting(best, of_others) * best + 1e-9).astype(int) if best.any() else best
    return _drawn(members, kinds, best, rng), _drawn(others, kinds, beside, rng)


def _fitting(mix: NDArray[Any], held: NDArray[Any]) -> float:
    """The largest factor by which this mix still fits into what is held."""
    return float((held[mix > 0] / mix[mix > 0]).min())


def _drawn(
    labels: NDArray[np.int64], kinds: NDArray[np.int64], counts: NDArray[Any], rng: np.random.Generator
) -> Rows:
    rows = [rng.permutation(np.flatnonzero(labels == k))[:n] for k, n in zip(kinds, counts, strict=True)]
    return rng.permutation(np.concatenate(rows).astype(np.int64))


def _candidates(both: Examples, members: int) -> Candidates:
    return Candidates(
        texts=both.texts,
        inputs=None if both.images is None else torch.from_numpy(both.images),
        labels=both.labels,
        member=np.arange(len(both)) < members,
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
