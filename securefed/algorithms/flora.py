"""FLoRA and FedEx-LoRA: exact means of products, by adding to the base weights what the adapters cannot hold.

FLoRA: Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations"
(arXiv 2409.05976): the clients' factors are stacked, and the product of the stacks, which is the mean of their
products, is merged into the base; the next round starts with fresh adapters.
FedEx-LoRA: Singhal, Ponkshe and Vepakomma 2025, "FedEx-LoRA: Exact Aggregation for Federated and Efficient
Fine-Tuning of Foundation Models" (arXiv 2410.09432): factors are averaged, and the residual, mean of products less
product of means, is merged into the base.

Both read single updates, and both send the changed base weights down (`model.merged`). FLoRA with `products` reads a sum
of the products themselves: the same mean, without the stacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from securefed.algorithms.products import BASE, ByProducts, mean_product, products_in
from securefed.algorithms.ranks import Joined, Matrix, Ranked
from securefed.types import Vector


@dataclass(frozen=True)
class FLoRA(ByProducts):
    """Stacked factors into the base; adapters start anew each round. Any ranks, no approximation."""

    merges = True
    restarts = True

    def join(self, model: Vector, joined: Joined) -> Vector:
        assert joined.initial is not None
        out, sent = model.copy(), products_in(joined.plan.share)
        for stem in sent or joined.stems:
            product = mean_product(model, joined, stem) if sent else np.matmul(*joined.stacked(stem))
            where = joined.layout.slice_of(stem + BASE)
            out[where] = joined.before[where]
            _merge(out, joined, stem, product)
            for end in (".lora_A", ".lora_B"):
                where = joined.layout.slice_of(stem + end)
                out[where] = joined.initial[where]
        return out


@dataclass(frozen=True)
class FedEx(Ranked):
    """Mean of (zero-padded) factors, and the residual into the base. Any ranks, no approximation."""

    needs_updates = True
    merges = True

    def join(self, model: Vector, joined: Joined) -> Vector:
        out, shares = model.copy(), joined.shares()
        for stem in joined.stems:
            means: list[Matrix] = []
            for i, end in enumerate((".lora_B", ".lora_A")):
                where = joined.layout.slice_of(stem + end)
                shape = joined.layout.shapes[joined.layout.names.index(stem + end)]
                mean = np.zeros(shape)
                for client in joined.updates:
                    part = joined.factors(client, stem)[i]
                    mean[: part.shape[0], : part.shape[1]] += shares[client] * part
                out[where] = mean.astype(np.float32).ravel()
                means.append(mean.astype(np.float32).astype(np.float64))
            b, a = joined.stacked(stem)
            _merge(out, joined, stem, b @ a - means[0] @ means[1])
        return out


def _merge(out: Vector, joined: Joined, stem: str, product: Matrix) -> None:
    """Adds scale x product to a matrix of the base, in place of `out`."""
    where = joined.layout.slice_of(stem + ".base")
    out[where] = (out[where] + joined.scale * product.ravel()).astype(np.float32)
