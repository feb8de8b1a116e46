"""Slow, plain versions of the rules, written down from the papers: one row, one subset, one step at a time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

Rows = Any  # float64 arrays; NumPy's own types lose themselves in reductions


def squared(rows: Rows) -> Rows:
    return np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])


def median(rows: Rows) -> Rows:
    return np.median(rows, axis=0)


def trimmed_mean(rows: Rows, f: int) -> Rows:
    return np.array([np.mean(sorted(column)[f : len(column) - f]) for column in rows.T])


def mean_around_median(rows: Rows, keep: int) -> Rows:
    out = []
    for column in rows.T:
        middle = np.median(column)
        out.append(np.mean(sorted(column, key=lambda v: (abs(v - middle), v))[:keep]))
    return np.array(out)


def krum_scores(rows: Rows, f: int) -> list[float]:
    n = len(rows)
    return [
        sum(sorted(((a - rows[j]) ** 2).sum() for j in range(n) if j != i)[: n - f - 2])
        for i, a in enumerate(rows)
    ]


def krum(rows: Rows, f: int) -> Rows:
    return rows[int(np.argmin(krum_scores(rows, f)))]


def multi_krum(rows: Rows, f: int, m: int) -> Rows:
    return rows[np.argsort(krum_scores(rows, f))[:m]].mean(0)


def bulyan(rows: Rows, f: int) -> Rows:
    left: list[int] = list(range(len(rows)))
    picked: list[int] = []
    while len(picked) < len(rows) - 2 * f:
        distances = squared(rows[left])
        near = max(1, len(left) - f - 2)
        keys = [(sum(sorted(np.delete(d, k))[:near]), d.sum()) for k, d in enumerate(distances)]
        picked.append(left.pop(min(range(len(left)), key=keys.__getitem__)))
    return mean_around_median(rows[picked], len(rows) - 4 * f)


def mda(rows: Rows, f: int) -> Rows:
    distances = squared(rows)

    def spread(subset: tuple[int, ...]) -> list[float]:
        return sorted((distances[i, j] for i, j in itertools.combinations(subset, 2)), reverse=True)

    best = min(itertools.combinations(range(len(rows)), len(rows) - f), key=spread)
    return rows[list(best)].mean(0)


def monna(rows: Rows, f: int, trusted: int) -> Rows:
    order = np.argsort(((rows - rows[trusted]) ** 2).sum(1))
    return rows[order[: len(rows) - f]].mean(0)


def distance_sum(point: Rows, rows: Rows, weights: Rows) -> float:
    return float((weights * np.sqrt(((rows - point) ** 2).sum(1))).sum())


def geometric_median(rows: Rows, weights: Rows) -> Rows:
    """Weiszfeld in d dimensions, smoothed by a length far below all others, for very long."""
    point, tiny = weights @ rows / weights.sum(), 1e-12 * np.abs(rows - rows.mean(0)).max()
    for _ in range(4_000):
        pulls = weights / np.sqrt(((rows - point) ** 2).sum(1) + tiny**2)
        point = pulls @ rows / pulls.sum()
    return point


def centered_clipping(rows: Rows, radius: float, iterations: int, start: Rows, weights: Rows) -> Rows:
    point = start
    for _ in range(iterations):
        step = np.zeros_like(point)
        for row, weight in zip(rows, weights / weights.sum(), strict=True):
            step += weight * (row - point) * min(1.0, radius / np.linalg.norm(row - point))
        point = point + step
    return point


def caf(rows: Rows, f: int) -> Rows:
    n, c, best, smallest = len(rows), np.ones(len(rows)), rows.mean(0), math.inf
    while c.sum() > n - 2 * f or smallest == math.inf:
        mean = c @ rows / c.sum()
        away = rows - mean
        values, vectors = np.linalg.eigh((c[:, None] * away).T @ away / c.sum())
        if values[-1] < smallest:
            best, smallest = mean, values[-1]
        parts = (away @ vectors[:, -1]) ** 2
        c = c * np.maximum(0, 1 - parts / parts[c > 0].max())
    return best


def dnc(rows: Rows, f: int, filter: float) -> Rows:
    away = rows - rows.mean(0)
    direction = np.linalg.svd(away, full_matrices=False)[2][0]
    parts = (away @ direction) ** 2
    return rows[np.argsort(parts)[: len(rows) - int(filter * f)]].mean(0)


def fools_gold_weights(rows: Rows) -> Rows:
    n = len(rows)
    cs = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows] for a in rows])
    v = [max(cs[i, j] for j in range(n) if j != i) for i in range(n)]
    for i in range(n):
        for j in range(n):
            if i != j and v[j] > v[i] and v[j] > 0:
                cs[i, j] *= max(0.0, v[i] / v[j])
    alpha = np.clip([1 - max(cs[i, j] for j in range(n) if j != i) for i in range(n)], 0, 1)
    alpha = alpha / alpha.max()
    out = []
    for a in alpha:
        logit = math.inf if a == 1 else -math.inf if a == 0 else math.log(a / (1 - a)) + 0.5
        out.append(min(1.0, max(0.0, logit)))
    return np.array(out)


def fl_trust(rows: Rows, root: Rows) -> Rows:
    length = np.linalg.norm(root)
    trust = [max(0.0, row @ root / np.linalg.norm(row) / length) for row in rows]
    return sum(t * length / np.linalg.norm(row) * row for t, row in zip(trust, rows, strict=True)) / sum(
        trust
    )


def nnm(rows: Rows, f: int) -> Rows:
    return np.array([monna(rows, f, i) for i in range(len(rows))])


def clip(rows: Rows, limit: float) -> Rows:
    return np.array([row * min(1.0, limit / np.linalg.norm(row)) for row in rows])


def arc(rows: Rows, f: int) -> Rows:
    n = len(rows)
    k = math.floor(2 * (f / n) * (n - f))
    return clip(rows, float(sorted(np.linalg.norm(row) for row in rows)[n - k - 1]))
