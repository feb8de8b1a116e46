"""Clients by group: whole, merged, or cut between documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.data.natural import OTHERS, natural
from securefed.data.records import Examples
from securefed.errors import DataError

NONE = Examples(texts=())


def examples(groups: Sequence[str], documents: Sequence[str] = ()) -> Examples:
    return Examples(
        texts=tuple(str(i) for i in range(len(groups))), groups=tuple(groups), documents=tuple(documents)
    )


def sizes(pieces: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> dict[str, int]:
    return {name: len(train) for name, train, _ in pieces}


def domains(**counts: int) -> Examples:
    return examples([name for name, count in counts.items() for _ in range(count)])


rows = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9)), min_size=1, max_size=80)


@given(rows, st.integers(0, 12), st.integers(1, 10), st.integers(0, 99))
def test_every_record_has_one_client_and_no_document_two(
    drawn: list[tuple[str, int]], clients: int, min_examples: int, seed: int
) -> None:
    train = examples([g for g, _ in drawn], [f"{g}/{d}" for g, d in drawn])
    if clients > len(set(train.documents)):
        with pytest.raises(DataError, match="documents, which are not cut"):
            natural(train, train, clients, min_examples, seed)
        return
    pieces = natural(train, train, clients, min_examples, seed)
    assert len(pieces) == clients or clients == 0
    assert len({name for name, _, _ in pieces}) == len(pieces)
    assert sorted(i for _, mine, _ in pieces for i in mine) == list(range(len(train)))
    owner = Counter(d for _, mine, _ in pieces for d in {train.documents[i] for i in mine})
    assert set(owner.values()) == {1}
    assert all(len(mine) > 0 for _, mine, _ in pieces)
    assert all(
        mine.tolist() == test.tolist() for _, mine, test in pieces
    )  # test records follow their document


def test_as_many_clients_as_groups_is_one_each_largest_first() -> None:
    assert sizes(natural(domains(b=3, a=5, c=3), NONE, 3, 99, 0)) == {"a": 5, "b": 3, "c": 3}


def test_twelve_clients_over_four_groups_are_three_each() -> None:
    pieces = natural(domains(movies=300, products=90, news=60, tweets=33), NONE, 12, 1, 0)
    assert sizes(pieces) == {
        **{f"movies/{k}": 100 for k in range(3)},
        **{f"products/{k}": 30 for k in range(3)},
        **{f"news/{k}": 20 for k in range(3)},
        **{f"tweets/{k}": 11 for k in range(3)},
    }


def test_other_numbers_divide_in_proportion() -> None:
    found = Counter(name.split("/")[0] for name in sizes(natural(domains(a=500, b=100, c=90), NONE, 7, 1, 0)))
    assert found == {"a": 5, "b": 1, "c": 1}


def test_a_group_of_one_document_stays_whole() -> None:
    train = examples(["a"] * 9 + ["b"] * 9, ["d"] * 9 + [f"e{i}" for i in range(9)])
    assert sizes(natural(train, NONE, 4, 1, 0)) == {"a": 9, "b/0": 3, "b/1": 3, "b/2": 3}


def test_fewer_clients_merge_the_smallest_groups() -> None:
    pieces = natural(domains(a=50, b=40, c=3, d=2), NONE, 3, 1, 0)
    assert sizes(pieces) == {"a": 50, "b": 40, OTHERS: 5}
    assert sizes(natural(domains(a=50, b=40), NONE, 1, 1, 0)) == {OTHERS: 90}


def test_no_number_keeps_every_group_that_is_large_enough() -> None:
    assert sizes(natural(domains(a=50, b=20, c=15, d=10), NONE, 0, 20, 0)) == {"a": 50, "b": 20, OTHERS: 25}
    assert sizes(natural(domains(a=50, b=20), NONE, 0, 20, 0)) == {"a": 50, "b": 20}


def test_a_rest_that_is_too_small_takes_the_smallest_client_in() -> None:
    assert sizes(natural(domains(a=50, b=20, c=3), NONE, 0, 20, 0)) == {"a": 50, OTHERS: 23}


def test_a_group_may_be_called_others() -> None:
    assert sizes(natural(domains(others=50, b=20, c=15, d=10), NONE, 2, 20, 0)) == {
        "others": 50,
        "others+": 45,
    }


def test_test_records_stay_with_their_group_and_strangers_with_nobody() -> None:
    test = examples(["a", "b", "c", "stranger"])
    pieces = natural(domains(a=9, b=3, c=2), test, 2, 1, 0)
    assert [(name, mine.tolist()) for name, _, mine in pieces] == [("a", [0]), (OTHERS, [1, 2])]


def test_test_records_of_new_documents_are_shared_out_evenly() -> None:
    train = examples(["a"] * 30, [f"d{i}" for i in range(30)])
    test = examples(["a"] * 9, [f"e{i}" for i in range(9)])
    assert [len(mine) for _, _, mine in natural(train, test, 3, 1, 0)] == [3, 3, 3]


def test_the_seed_alone_decides_the_cut() -> None:
    train = examples(["a"] * 40, [f"d{i}" for i in range(40)])

    def cut(seed: int) -> list[list[int]]:
        return [mine.tolist() for _, mine, _ in natural(train, NONE, 2, 1, seed)]

    assert cut(0) == cut(0) != cut(1)


def test_records_without_groups_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"data.client_column .* or data.partition to 'iid'"):
        natural(Examples(texts=("a", "b")), NONE, 2, 1, 0)
