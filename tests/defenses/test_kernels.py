"""The sorting network sorts, and leaves out what nobody asked for."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed_defenses.kernels import (
    mean,
    mean_around_median,
    median,
    network,
    select,
    sorting_pairs,
    trimmed_mean,
    weighted_median,
)


@pytest.mark.parametrize("n", range(1, 11))
def test_every_sequence_of_zeros_and_ones_is_sorted(n: int) -> None:
    """By the zero-one principle (Knuth, volume 3, 5.3.4, theorem Z) a network that does so sorts everything."""
    columns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=n))).T
    assert torch.equal(torch.stack(select(columns, range(n))), columns.sort(0).values)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), data=st.data())
def test_any_ranks_are_those_of_a_sort(n: int, seed: int, data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
    block = torch.randint(0, 9, (n, 30), generator=torch.Generator().manual_seed(seed)).float()
    before = block.clone()
    assert torch.equal(torch.stack(select(block, ranks)), block.sort(0).values[ranks])
    assert torch.equal(block, before)


def test_a_median_costs_fewer_steps_than_a_sort() -> None:
    steps = sum(low + high for *_, low, high in network(20, (9, 10)))
    assert steps < 0.8 * 2 * len(sorting_pairs(20))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_ties_and_extremes_change_nothing(n: int) -> None:
    huge = torch.full((n, 4), 3e38)
    for found in (
        median(huge),
        trimmed_mean(huge, (n - 1) // 2),
        mean_around_median(huge, n),
        mean(list(huge)),
    ):
        torch.testing.assert_close(found, huge[0])


def test_a_huge_value_that_is_left_out_leaves_no_rounding_behind() -> None:
    rows = torch.tensor([[-1e30], [1.0], [2.0], [3.0], [1e30]])
    assert mean_around_median(rows, 3).tolist() == [2.0]
    assert trimmed_mean(rows, 1).tolist() == [2.0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), counts=st.lists(st.integers(0, 4), min_size=1, max_size=7).filter(any))
def test_a_weighted_median_is_the_median_of_rows_repeated(seed: int, counts: list[int]) -> None:
    block = torch.randn(len(counts), 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = torch.tensor(counts, dtype=torch.float64)
    repeated = block.repeat_interleave(torch.tensor(counts), 0)
    torch.testing.assert_close(weighted_median(block, weights / weights.sum()), median(repeated))
