"""The tightest subset is the one that trying all subsets finds."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed_defenses.cover import cover_of, tightest_subset


def distances(rows: torch.Tensor) -> list[list[float]]:
    found: list[list[float]] = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").tolist()
    return found


def spread(between: list[list[float]], subset: tuple[int, ...]) -> list[float]:
    return sorted((between[i][j] for i, j in itertools.combinations(subset, 2)), reverse=True)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 10), share=st.floats(0, 1), d=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_it_is_the_best_of_all_subsets_down_to_the_last_tie(n: int, share: float, d: int, seed: int) -> None:
    size = min(n, max(2, round(share * n)))
    between = distances(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    best = min(itertools.combinations(range(n), size), key=lambda s: spread(between, s))
    assert tuple(tightest_subset(between, size)) == best


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_equal_distances_still_give_the_smallest_diameter(n: int, seed: int) -> None:
    points = torch.randint(0, 3, (n, 2), generator=torch.Generator().manual_seed(seed)).double()
    between, size = distances(points), n // 2 + 1
    found = tuple(tightest_subset(between, size))
    assert len(found) == size
    best = min(max(spread(between, s), default=0.0) for s in itertools.combinations(range(n), size))
    assert max(spread(between, found), default=0.0) == best


@pytest.mark.parametrize(("n", "f"), [(50, 10), (50, 20), (100, 20)])
def test_ten_billion_subsets_take_less_than_seconds(n: int, f: int) -> None:
    """C(50, 10) is 1.0e10. Planted: the tight rows are known."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(n, 100, generator=g)
    rows[:f] += 3 * torch.randn(f, 100, generator=g)
    start = time.process_time()
    assert tightest_subset(distances(rows), n - f) == list(range(f, n))
    tightest_subset(distances(torch.randn(n, 100, generator=g)), n - f)
    assert time.process_time() - start < 5


def test_a_cover_that_would_need_a_kept_row_is_none() -> None:
    edge = [0b10, 0b01]
    assert cover_of(edge, 0, 1) in (0b01, 0b10)
    assert cover_of(edge, 0b01, 1) == 0b10
    assert cover_of(edge, 0b11, 2) is None
    assert cover_of(edge, 0, 0) is None
