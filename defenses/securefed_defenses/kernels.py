"""Sorting n short columns next to each other: one network of compare-exchanges for all coordinates at once.

A network (Batcher, "Sorting networks and their applications", AFIPS 1968) is a fixed list of pairs of
rows to order, so that each step is one minimum and one maximum of whole rows: no index is ever gathered,
and everything stays in the cache of one block. Steps that only serve ranks nobody asked for are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import torch

from securefed.rows import RowSource

Step: TypeAlias = tuple[int, int, bool, bool]
"""Order rows i < j; whether the minimum is needed afterwards, whether the maximum is."""


def sorting_pairs(n: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort of n wires, as pairs (i, j), i < j, smaller value to wire i."""
    pairs, p = [], 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(j, min(j + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        pairs.append((i, i + k))
            k //= 2
        p *= 2
    return pairs


@cache
def network(n: int, ranks: tuple[int, ...]) -> tuple[Step, ...]:
    """The steps that put the values of these ranks (0 is the smallest) on their wires."""
    wanted, steps = set(ranks), []
    for i, j in reversed(sorting_pairs(n)):
        if i in wanted or j in wanted:
            steps.append((i, j, i in wanted, j in wanted))
            wanted |= {i, j}
    return tuple(reversed(steps))


def select(block: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """The order statistics of these ranks of each column of (n, c); a list with one row (c,) for each rank.

    The block is not written to; a handful of buffers is passed round instead of a new one for each step.
    NaN is not ordered: refuse it first.
    """
    n = len(block)
    wires, ours = list(block.unbind(0)), [False] * n
    spare = list(torch.empty(n + 2, block.shape[1], dtype=block.dtype, device=block.device).unbind(0))
    for i, j, low, high in network(n, tuple(sorted(set(ranks)))):
        a, b = wires[i], wires[j]
        if low:
            wires[i] = torch.minimum(a, b, out=spare.pop())
        if high:
            wires[j] = torch.maximum(a, b, out=spare.pop())
        spare += [row for row, own in ((a, ours[i]), (b, ours[j])) if own]
        ours[i] = ours[j] = True
    return [wires[k] for k in ranks]


def by_columns(rows: RowSource, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`reduce` of every block (n, c) -> (c,), put together to (d,)."""
    out = torch.empty(rows.d, dtype=rows.dtype, device=rows.device)
    for columns, block in rows.blocks():
        out[columns] = reduce(block)
    return out


def median(block: torch.Tensor) -> torch.Tensor:
    """The median of each column of (n, c); for even n halfway between the two in the middle."""
    n = len(block)
    low, high = select(block, [(n - 1) // 2, n // 2])
    return low if n % 2 else low / 2 + high / 2  # halved first: the sum of two large numbers overflows


def weighted_median(block: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted median of each column: half of the weight lies at or below it, half at or above.

    `weights`: (n,) summing to one. Where exactly half lies below, halfway to the next value.
    """
    values, order = block.sort(0)
    below = weights.to(block.device)[order].cumsum(0)
    first = (below >= 0.5 - 1e-12).to(torch.int8).argmax(0)
    beyond = (below > 0.5 + 1e-12).to(torch.int8).argmax(0)
    low, high = (values.gather(0, k[None])[0] for k in (first, beyond))
    return low / 2 + high / 2


def trimmed_mean(block: torch.Tensor, f: int) -> torch.Tensor:
    """The mean of each column without its f smallest and f largest values."""
    if f == 0:
        return mean(block.unbind(0))
    return mean(select(block, range(f, len(block) - f)))


def mean_around_median(block: torch.Tensor, keep: int) -> torch.Tensor:
    """The mean of the `keep` values of each column that are closest to its median.

    In sorted order they are neighbours, so only the start of that window is to be found: it moves past
    the k-th value while the value that would come in is closer to the median than the k-th. Among the
    ranks r, r + keep, r + 2 keep, ... exactly one lies inside, so nothing is added and taken away again:
    a liar's huge value leaves no rounding error behind.
    """
    n = len(block)
    rows = select(block, range(n))
    middle = rows[n // 2] if n % 2 else rows[n // 2 - 1] / 2 + rows[n // 2] / 2
    chosen = list(rows[:keep])
    for k in range(n - keep):
        moves = (rows[k + keep] - middle) < (middle - rows[k])
        chosen[k % keep] = torch.where(moves, rows[k + keep], chosen[k % keep])
    return mean(chosen)


def mean(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of some rows; rows whose sum would overflow are scaled down first."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    total /= len(rows)
    if bool(torch.isfinite(total.sum())):
        return total
    return torch.stack([row / len(rows) for row in rows]).sum(0)
