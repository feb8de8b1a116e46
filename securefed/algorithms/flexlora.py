"""FlexLoRA: the mean of products, decomposed again for every rank.

Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources"
(arXiv 2402.11505): the server forms the mean of the clients' B A, takes its singular value decomposition, and a client
of rank r gets the first r singular directions. The server reads single updates, or, with `products`, a sum of B A.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from securefed.algorithms.products import BASE, ByProducts, mean_product, products_in
from securefed.algorithms.ranks import Joined, Matrix
from securefed.types import Vector


@dataclass(frozen=True)
class FlexLoRA(ByProducts):
    """The best rank-R approximation of the mean product; R = `model.rank`.

    Singular directions are stored in falling order and their values split evenly between B and A, so a client's
    slice of the first r is the best approximation of rank r.
    """

    def join(self, model: Vector, joined: Joined) -> Vector:
        out = model.copy()
        for stem in joined.stems:
            _put(out, joined, stem, *truncated(*joined.stacked(stem), _rank(joined, stem)))
        for stem in products_in(joined.plan.share):
            mean, where = mean_product(model, joined, stem), joined.layout.slice_of(stem + BASE)
            _put(out, joined, stem, *approximated(mean, _rank(joined, stem)))
            out[where] = joined.before[where]
        return out


def _put(out: Vector, joined: Joined, stem: str, b: Matrix, a: Matrix) -> None:
    """Writes both factors, in place of `out`."""
    out[joined.layout.slice_of(stem + ".lora_B")] = b.astype(np.float32).ravel()
    out[joined.layout.slice_of(stem + ".lora_A")] = a.astype(np.float32).ravel()


def truncated(b: Matrix, a: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """(B, A) of the best rank-`rank` approximation of b a, (out, rank) and (rank, in), by thin factors alone.

    With b = Q S and a^T = P T, b a = Q (S T^T) P^T, and only the small middle is decomposed.
    """
    q, s = np.linalg.qr(b)
    p, t = np.linalg.qr(a.T)
    u, values, vt = np.linalg.svd(s @ t.T)
    return _balanced(q @ u, values, vt @ p.T, rank)


def approximated(product: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """(B, A) of the best rank-`rank` approximation of a matrix (out, in)."""
    u, values, vt = np.linalg.svd(product, full_matrices=False)
    return _balanced(u, values, vt, rank)


def _balanced(left: Matrix, values: Matrix, right: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """The first singular directions with their values split evenly between B and A.

    Signs are fixed (the largest entry of each left vector is positive), directions that do not exist are zero.
    """
    left, right, root = left[:, :rank], right[:rank], np.sqrt(values[:rank])
    found = len(root)
    top = np.argmax(np.abs(left[:, :found]), axis=0)
    sign = np.where(left[top, np.arange(found)] < 0, -1.0, 1.0)
    new_b, new_a = np.zeros((left.shape[0], rank)), np.zeros((rank, right.shape[1]))
    new_b[:, :found] = left[:, :found] * (root * sign)
    new_a[:found] = right[:found] * (root * sign)[:, None]
    return new_b, new_a


def _rank(joined: Joined, stem: str) -> int:
    return joined.layout.shapes[joined.layout.names.index(stem + ".lora_A")][0]
