"""Rank self-pruning: which ranks are given up, and when."""

from __future__ import annotations

import numpy as np
import pytest

from securefed.algorithms.pruning import pruned_rank, smaller, tail_norm, tail_of
from securefed.layout import Layout

BOTH = Layout(("x.lora_A", "x.lora_B", "head.weight"), ((4, 3), (2, 4), (1, 2)))
FROZEN = Layout(("x.lora_B", "head.weight"), ((2, 4), (1, 2)))
PARTS = {"x.lora_A": "A", "x.lora_B": "B", "head.weight": "head"}


@pytest.mark.parametrize(
    ("rank", "prune", "left"),
    [(8, 0.5, 4), (5, 0.5, 2), (1, 0.5, 1), (2, 0.9, 1), (100, 0.29, 29), (4, 1.0, 4)],
)
def test_a_part_of_the_ranks_is_kept_and_one_at_least(rank: int, prune: float, left: int) -> None:
    assert smaller(rank, prune) == left


def test_the_norm_of_a_tail_is_that_of_its_factors_and_no_other_coordinate() -> None:
    vector = np.random.default_rng(0).normal(size=BOTH.size).astype(np.float32)
    named = BOTH.unflatten(vector)
    tail = tail_of(BOTH, PARTS, 4, 0.5)
    a, b = named["x.lora_A"][2:], named["x.lora_B"][:, 2:]
    assert tail_norm(vector, tail, BOTH) == pytest.approx(np.linalg.norm(a) * np.linalg.norm(b), rel=1e-6)


@pytest.mark.parametrize("layout", [BOTH, FROZEN])
def test_a_client_gives_up_ranks_whose_norm_has_fallen_and_no_others(layout: Layout) -> None:
    before = np.ones(layout.size, np.float32)
    tail = tail_of(layout, PARTS, 4, 0.5)
    shrunk, grown, other = before - 0.5 * tail, before + 0.5 * tail, before - 0.5 * (1 - tail)
    ranks = [pruned_rank(4, 0.5, before, after, tail, layout) for after in (shrunk, grown, other, before)]
    assert ranks == [2, 4, 4, 4]
