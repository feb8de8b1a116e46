"""The alias table draws exactly the stated counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.privacy.alias import UNIT, AliasTable, build
from tests.entropy import SeededEntropy


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**192), min_size=1, max_size=40).filter(any),
    st.integers(-50, 50),
    st.integers(1, 9),
)
def test_the_table_read_back_has_exactly_the_counts_it_was_built_from(
    weights: list[int], first: int, stride: int
) -> None:
    counts = [w * UNIT // sum(weights) for w in weights]
    counts[0] += UNIT - sum(counts)
    wanted = {first + stride * i: count for i, count in enumerate(counts) if count}
    assert build(counts, first, stride).counts() == wanted


class Words:
    """A stream that gives chosen words."""

    def __init__(self, *batches: list[int]) -> None:
        self._batches = list(batches)

    def words(self, n: int) -> Any:
        batch = np.array(self._batches.pop(0), np.uint64)
        assert len(batch) == n
        return batch


def test_ties_are_decided_by_further_words() -> None:
    # Two cells; the threshold of cell 0 is a third of its capacity, whose bits never end.
    third = (UNIT // 2) // 3
    table = build([third, UNIT - third], first=0)
    head, middle, last = third >> 128, third >> 64 & (2**64 - 1), third & (2**64 - 1)

    def draw(*batches: list[int]) -> list[int]:
        return list(table.draw(len(batches[0]), Words(*batches)))  # type: ignore[arg-type]

    assert draw([head - 1, head + 1]) == [0, 1]  # no tie, no further word
    assert draw([head], [middle - 1, 0]) == [0]
    assert draw([head], [middle, last - 1]) == [0]
    assert draw([head], [middle, last]) == [1]
    assert draw([head], [middle + 1, 0]) == [1]
    assert draw([0, head, head], [middle, middle, last - 1, last]) == [0, 0, 1]


def test_frequencies_follow_the_counts_and_a_wrong_table_is_noticed() -> None:
    counts = [UNIT // 10, UNIT // 5, UNIT - UNIT // 10 - UNIT // 5 - UNIT // 4, UNIT // 4]
    n = 400_000
    drawn = build(counts, first=-1, stride=2).draw(n, SeededEntropy(1).stream("alias"))

    def chi_square(table_counts: list[int]) -> float:
        expected = np.array([c / UNIT for c in table_counts]) * n
        observed = np.array([(drawn == -1 + 2 * i).sum() for i in range(4)])
        return float(((observed - expected) ** 2 / expected).sum())

    assert np.isin(drawn, [-1, 1, 3, 5]).all()
    assert chi_square(counts) < 16.3  # 3 degrees of freedom: exceeded with probability 1e-3 over seeds
    assert chi_square([counts[0] + UNIT // 200, counts[1] - UNIT // 200, *counts[2:]]) > 16.3


@pytest.mark.parametrize("counts", [[UNIT - 1], [UNIT + 1, -1], [1, 2, 3]])
def test_counts_that_are_no_distribution_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="add up"):
        build(counts, 0)


def test_the_repr_shows_no_table() -> None:
    table = build([UNIT], 0)
    assert isinstance(table, AliasTable)
    assert "object at" in repr(table)
