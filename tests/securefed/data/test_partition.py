"""iid, Dirichlet and quantity skew: everything is dealt once, and the floors hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.data.partition import Rows, apportion, dirichlet, iid, quantity, raise_to_floor, same_mix
from securefed.errors import DataError

seeds = st.integers(0, 2**32)
alphas = st.sampled_from([1e-4, 0.1, 0.5, 1.0, 100.0])


def assert_dealt_once(pieces: list[Rows], n: int) -> None:
    assert sorted(np.concatenate(pieces).tolist()) == list(range(n))
    assert all((np.diff(piece) > 0).all() for piece in pieces)


@given(st.integers(0, 500), st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_apportioned_parts_sum_up_and_are_within_one_of_their_share(total: int, shares: list[float]) -> None:
    parts = apportion(total, shares)
    assert parts.sum() == total
    weights = np.array(shares) if sum(shares) > 0 else np.ones(len(shares))
    assert (np.abs(parts - total * weights / weights.sum()) < 1 + 1e-9).all()


@given(st.integers(1, 200), st.integers(1, 20), seeds)
def test_iid_sizes_differ_by_at_most_one(n: int, clients: int, seed: int) -> None:
    pieces = iid(n, clients, np.random.default_rng(seed))
    assert_dealt_once(pieces, n)
    sizes = [len(p) for p in pieces]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 20), st.integers(0, 12), st.integers(0, 200), alphas, seeds)
def test_quantity_keeps_its_floor(clients: int, floor: int, spare: int, alpha: float, seed: int) -> None:
    n = clients * floor + spare
    pieces = quantity(n, clients, alpha, floor, np.random.default_rng(seed))
    assert_dealt_once(pieces, n)
    assert min(len(p) for p in pieces) >= floor


@given(st.lists(st.integers(0, 4), min_size=20, max_size=200), st.integers(1, 20), alphas, seeds, st.data())
def test_dirichlet_keeps_its_floor(
    labels: list[int], clients: int, alpha: float, seed: int, data: st.DataObject
) -> None:
    floor = data.draw(st.integers(0, len(labels) // clients))
    pieces = dirichlet(np.array(labels), 5, clients, alpha, floor, np.random.default_rng(seed))
    assert_dealt_once(pieces, len(labels))
    assert min(len(p) for p in pieces) >= floor


def test_the_tightest_floor_gives_everyone_the_same_number() -> None:
    labels = np.repeat(np.arange(4), 25)
    pieces = dirichlet(labels, 4, 20, 1e-4, 5, np.random.default_rng(0))
    assert {len(p) for p in pieces} == {5}


def test_raising_to_the_floor_keeps_class_totals_and_takes_what_the_client_was_drawn_to_have() -> None:
    counts = np.array([[50, 0], [50, 0]])
    shares = np.array([[0.9, 0.1], [0.4, 0.6]])
    assert raise_to_floor(counts, shares, 10).tolist() == [[50, 0], [40, 10]]
    assert counts.tolist() == [[50, 0], [50, 0]]


def skew(alpha: float) -> float:
    """Mean share of a client's most frequent class, of ten."""
    labels = np.tile(np.arange(10), 500)
    pieces = dirichlet(labels, 10, 20, alpha, 10, np.random.default_rng(1))
    return float(np.mean([np.bincount(labels[p]).max() / len(p) for p in pieces]))


def test_smaller_alpha_is_more_skewed() -> None:
    assert skew(0.05) > 0.6 > skew(0.5) > 0.2 > skew(1000) > 0.1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), seeds)
def test_test_records_are_dealt_once_in_the_training_mix(labels: list[int], seed: int) -> None:
    counts = np.array([[30, 0, 10], [0, 5, 5], [1, 1, 1], [0, 0, 0]])
    pieces = same_mix(np.array(labels), counts, np.random.default_rng(seed))
    assert_dealt_once(pieces, len(labels))
    mine = np.array(labels)[pieces[1]]
    assert not (mine == 0).any()  # client 1 trains on no record of class 0


@pytest.mark.parametrize("draw", [quantity, lambda n, *rest: dirichlet(np.zeros(n, np.int64), 1, *rest)])
def test_an_impossible_floor_names_the_numbers(draw: object) -> None:
    assert callable(draw)
    with pytest.raises(
        DataError, match="7 clients with at least 3 records each need 21, the training set has 20; lower"
    ):
        draw(20, 7, 0.5, 3, np.random.default_rng(0))
