"""Inner products and distances of n long vectors in one reading, without losing digits.

Rules that look at distances, and attacks that search against them, work on the n x n matrix that this
file makes; d appears nowhere else. Two traps are closed here. The usual |x|^2 + |y|^2 - 2xy cancels when
vectors are close to each other and far from the origin (weights instead of updates), so the rows are
centred on one of them. And that one must not be a liar's, or a single far row would drown the distances
between all others, so it is chosen by its median distance and chosen again when it turns out far off.
"""

from __future__ import annotations

import math

import torch

from securefed.rows import Rows, RowSource, as_rows

SAMPLE = 512
"""Columns that are looked at to guess a row in the midst of the others."""

TINY, HUGE = 1e-30, 1e30
"""Squared lengths in a block beyond which float32 products lose digits or overflow."""

FAR = 16.0
"""A centre whose median squared distance is this much above the best row's is not in the midst."""


def gram(rows: Rows, centre: torch.Tensor | None = None) -> torch.Tensor:
    """Inner products of the rows about a point, float64 (n, n), accumulated in float64.

    Args:
        rows: matrix (n, d), list of vectors, iterator or `RowSource`, float32 or float64.
        centre: the point (d,); None is the origin.

    Returns:
        G with G[i, j] = <x_i - centre, x_j - centre>, symmetric, on the rows' device. A row that holds a
        NaN or an infinity, or whose squared length exceeds float64, has a non-finite diagonal entry.

    On a CPU, products of float32 blocks are float32 (relative error about 1e-7 of the rows' lengths) and
    their sums float64; a block whose lengths leave that range is multiplied in float64. On a GPU every
    product is float64, whatever the setting for tensor cores is.
    """
    source = as_rows(rows)
    total = torch.zeros(source.n, source.n, dtype=torch.float64, device=source.device)
    for columns, block in source.blocks():
        if centre is not None:
            block = block - centre[columns]
        total += _products(block)
    return (total + total.T) / 2


def centred_gram(rows: Rows) -> torch.Tensor:
    """Inner products about a point in the midst of the rows, float64 (n, n): for all that needs distances.

    The point is the origin where that is as near to most rows as they are to each other (updates), else
    one of the rows (weights). So distances in the crowd keep their digits, however far it is from the
    origin and however far a minority is from it. One reading of the rows, and another for each time that
    a minority managed to look central on the sampled columns (at most n in all).

    >>> x = torch.tensor([[1e4, 0.0], [1e4, 1e-2], [1e4, 3e-2]])
    >>> squared_distances(centred_gram(x)).sqrt().round(decimals=4)[0].tolist()
    [0.0, 0.01, 0.03]
    """
    source = as_rows(rows)
    centre = _central(_sampled(source))
    for _ in range(source.n + 1):
        found = gram(source, None if centre == source.n else _row(source, centre))
        better = _better_centre(found, centre)
        if better == centre:
            break
        centre = better
    return found


def _better_centre(found: torch.Tensor, centre: int) -> int:
    """The centre itself where it lies in the midst, else the row that lies there (the origin is row n)."""
    spread = _median_distance(squared_distances(found))
    lengths = found.diagonal().nan_to_num(math.inf, posinf=math.inf)
    here = lengths.kthvalue(len(lengths) // 2 + 1).values
    best = int(spread.argmin())
    if best == centre or not math.isfinite(float(here)) or here <= FAR * spread[best]:
        return centre
    return best


def squared_distances(gram: torch.Tensor) -> torch.Tensor:
    """|x_i - x_j|^2 from inner products about any point, (n, n), zero on the diagonal, never negative.

    Rows whose length is not finite are infinitely far from all others.
    """
    lengths = gram.diagonal()
    distances = (lengths[:, None] + lengths[None, :] - 2 * gram).clamp_min_(0)
    distances[~torch.isfinite(distances)] = math.inf
    return distances.fill_diagonal_(0)


def rows_about(gram: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The inner products of `matrix @ rows` from those of the rows, (m, m).

    About the same point where every row of `matrix` sums to one; else only about the origin.
    """
    return matrix @ gram @ matrix.T


def _products(block: torch.Tensor) -> torch.Tensor:
    if block.dtype == torch.float64 or block.is_cuda:
        wide = block.double()
        return wide @ wide.T
    product = block @ block.T
    lengths = product.diagonal()
    low, high = torch.aminmax(lengths)
    if float(high) < HUGE and (float(low) > TINY or not _has_small_rows(block, lengths)):
        return product.double()
    wide = block.double()
    return wide @ wide.T


def _has_small_rows(block: torch.Tensor, lengths: torch.Tensor) -> bool:
    """Whether a short row is a very small one, and not simply zero (as the centre itself always is)."""
    return bool(block[lengths <= TINY].any())


def _row(source: RowSource, index: int) -> torch.Tensor:
    """One row, (d,), in memory."""
    out = torch.empty(source.d, dtype=source.dtype, device=source.device)
    for columns, block in source.take([index]).blocks():
        out[columns] = block[0]
    return out


def _median_distance(distances: torch.Tensor) -> torch.Tensor:
    """Of each row: the squared distance within which more than half of all rows lie (itself included)."""
    n = distances.shape[1]
    return distances.kthvalue(n // 2 + 1, dim=1).values


def _central(sample: torch.Tensor) -> int:
    """The origin (n) where it is as near to most rows as they are to each other, else the most central row."""
    points = torch.cat([sample, torch.zeros_like(sample[:1])])
    distances = torch.cdist(points, sample, compute_mode="donot_use_mm_for_euclid_dist").square()
    spread = _median_distance(distances.nan_to_num(math.inf, posinf=math.inf))
    best = int(spread[:-1].argmin())
    return len(sample) if spread[-1] <= FAR / 2 * spread[best] else best


def _sampled(source: RowSource) -> torch.Tensor:
    """A few columns spread over all, in float64."""
    width = min(source.d, SAMPLE)
    pieces = min(width, 8)
    size = width // pieces
    starts = [(source.d - size) * k // max(1, pieces - 1) for k in range(pieces)]
    return torch.cat([source.block(s, s + size) for s in starts], dim=1).double()
