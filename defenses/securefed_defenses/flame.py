"""FLAME: cluster by angle, clip to the median length, average, and (if asked) blur."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from securefed.rows import combine
from securefed_defenses.base import GramRule
from securefed_defenses.clipping import shrink
from securefed_defenses.given import About, Given
from securefed_defenses.similarity import cosines


@dataclass(frozen=True)
class FLAME(GramRule):
    """The mean of the rows in the one cluster of more than half, each clipped to the median length of all.

    Tolerates fewer than half of the rows where honest directions are closer to each other than to those of
    the liars. Weights are not read. Rows are clustered by the cosine of their angles as HDBSCAN does it with
    clusters of at least n // 2 + 1 rows and one sample: then at most one cluster can exist, and it is the
    first group of that size to be linked together as the distance that links two rows grows.

    Attributes:
        noise_multiplier: standard deviation of the noise on every coordinate over the median length; the
            paper takes 0.001 and more. Needs a generator. **No epsilon follows from it**: the rule's
            sensitivity is not proved.

    Source: Nguyen et al., "FLAME: taming backdoors in federated learning", USENIX Security 2022, Algorithm 1.

    >>> FLAME()(torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, 0.2], [-9.0, 9.0]]))
    tensor([0.9976, 0.0995])
    """

    noise_multiplier: float = 0.0
    name: ClassVar[str] = "flame"
    about: ClassVar[About] = "origin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise_multiplier < float("inf"):
            raise ValueError(f"flame: noise_multiplier must be 0 or more, found {self.noise_multiplier}")

    def solve(self, gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        lengths = gram.diagonal().sqrt()
        cluster = majority_cluster(1 - cosines(gram))
        out = torch.zeros(len(gram), dtype=torch.float64)
        out[cluster] = shrink(lengths, median_length(gram))[cluster] / len(cluster)
        return out

    def finish(self, given: Given, found: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        vector = combine(self.solve(found.cpu(), given.weights), given.rows)
        if self.noise_multiplier > 0:
            generator = self.draw(given)
            noise = torch.empty_like(vector).normal_(generator=generator)
            vector += self.noise_multiplier * float(median_length(found)) * noise
        return vector, state


def median_length(gram: torch.Tensor) -> torch.Tensor:
    """The median of the rows' lengths; for even n halfway between the two in the middle."""
    lengths, n = gram.diagonal().sqrt().sort().values, len(gram)
    return (lengths[(n - 1) // 2] + lengths[n // 2]) / 2


def majority_cluster(distances: torch.Tensor) -> list[int]:
    """The first n // 2 + 1 or more rows that single linkage joins, as ascending indices."""
    n = len(distances)
    group = {v: {v} for v in range(n)}
    edges = sorted((float(distances[i, j]), i, j) for i in range(n) for j in range(i))
    largest, level = {0}, -1.0
    for distance, i, j in edges:
        if len(largest) > n // 2 and distance > level:
            break
        if group[i] is not group[j]:
            joined = group[i] | group[j]
            for v in joined:
                group[v] = joined
            largest, level = max(largest, joined, key=len), distance
    return sorted(largest)
