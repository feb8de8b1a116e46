"""The public test split by document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.data.records import Examples
from securefed.data.split import SALT, held_out, split
from securefed.data.text import unit_hash
from securefed.errors import DataError

documents = st.lists(st.sampled_from([f"d{i}" for i in range(40)]), min_size=2).filter(
    lambda d: len(set(d)) > 1
)
fractions = st.floats(0.01, 0.99)


@given(documents, fractions)
def test_a_document_is_never_cut_and_both_sides_have_one(names: list[str], fraction: float) -> None:
    mask = held_out(names, fraction)
    test = {d for d, m in zip(names, mask, strict=True) if m}
    train = {d for d, m in zip(names, mask, strict=True) if not m}
    assert test
    assert train
    assert not test & train


@given(documents, fractions)
def test_the_split_does_not_depend_on_the_order(names: list[str], fraction: float) -> None:
    shuffled = sorted(names)
    before = dict(zip(names, held_out(names, fraction), strict=True))
    assert before == dict(zip(shuffled, held_out(shuffled, fraction), strict=True))


def test_a_larger_fraction_only_adds_test_documents() -> None:
    names = [f"d{i}" for i in range(200)]
    assert set(np.flatnonzero(held_out(names, 0.1))) < set(np.flatnonzero(held_out(names, 0.3)))


def test_the_share_of_test_documents_is_the_fraction() -> None:
    names = [f"d{i}" for i in range(5000)]
    assert held_out(names, 0.2).mean() == pytest.approx(0.2, abs=0.02)  # 3.5 standard deviations
    assert [unit_hash(SALT, d) < 0.2 for d in names] == held_out(names, 0.2).tolist()


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(DataError, match="2 different documents, found 1"):
        held_out(["a", "a"], 0.5)


def test_split_keeps_columns_together() -> None:
    examples = Examples(
        texts=tuple(f"t{i}" for i in range(50)),
        labels=np.arange(50),
        groups=tuple(f"g{i}" for i in range(50)),
        documents=tuple(f"d{i}" for i in range(50)),
    )
    for part in split(examples, 0.3):
        assert part.labels is not None
        assert part.texts == tuple(f"t{i}" for i in part.labels)
        assert part.groups == tuple(f"g{i}" for i in part.labels)
