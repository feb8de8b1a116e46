"""Encoded records -> batches: padding, labels, and the cut into physical pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from securefed.data.batch import IGNORE, Batch, Encoded, collate, physical_batches

PAD = 2
records = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=8)


def encoded(rows: list[list[int]], **columns: Any) -> Encoded:
    return Encoded(tokens=tuple(np.array(r, np.int64) for r in rows), pad_id=PAD, **columns)


@given(records, st.data())
def test_a_batch_holds_its_records_padded_to_the_longest_of_them(
    rows: list[list[int]], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    batch = collate(encoded(rows, labels=np.arange(len(rows))), chosen)
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    assert batch.labels is not None
    assert batch.input_ids.shape == (len(chosen), max(len(rows[i]) for i in chosen))
    for i, ids, mask in zip(chosen, batch.input_ids, batch.attention_mask, strict=True):
        length = len(rows[i])
        assert ids[:length].tolist() == rows[i]
        assert (ids[length:] == PAD).all()
        assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
    assert batch.labels.tolist() == chosen
    assert len(batch) == len(chosen)


def test_language_model_labels_leave_out_padding_and_keep_a_token_that_looks_like_it() -> None:
    batch = collate(
        encoded([[5, PAD], [7, PAD, 8]]), [0, 1]
    )  # PAD is also a real token, as in models whose pad is eos
    assert batch.labels is not None
    assert batch.labels.tolist() == [[5, PAD, IGNORE], [7, PAD, 8]]


def test_a_sequence_to_sequence_batch_takes_its_labels_from_the_targets() -> None:
    targets = (np.array([4, PAD, 6]), np.array([9]))
    batch = collate(encoded([[5], [7, 8]], targets=targets), [0, 1])
    assert batch.labels is not None
    assert batch.labels.tolist() == [[4, PAD, 6], [9, IGNORE, IGNORE]]


def test_images_are_stacked_with_their_labels() -> None:
    images = np.arange(3 * 4, dtype=np.float32).reshape(3, 1, 2, 2)
    batch = collate(Encoded(images=images, labels=np.array([0, 1, 2])), [2, 0])
    assert batch.images is not None
    assert batch.labels is not None
    assert torch.equal(batch.images, torch.from_numpy(images[[2, 0]]))
    assert batch.labels.tolist() == [2, 0]


@pytest.mark.parametrize("columns", [{"labels": np.array([0, 1])}, {}])
def test_an_empty_draw_makes_an_empty_batch(columns: dict[str, Any]) -> None:
    assert len(collate(encoded([[1], [2]], **columns), [])) == 0


def test_lengths_count_tokens_of_the_longer_side_and_one_per_image() -> None:
    assert encoded([[1, 2], [3]]).lengths.tolist() == [2, 1]
    assert encoded([[1, 2], [3]], targets=(np.array([1]), np.array([1, 2, 3]))).lengths.tolist() == [2, 3]
    assert Encoded(images=np.zeros((3, 1, 2, 2), np.float32)).lengths.tolist() == [1, 1, 1]
    assert Encoded().lengths.tolist() == []


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=40),
    st.integers(1, 60),
    st.integers(1, 8),
    st.data(),
)
def test_physical_batches_partition_the_draw_within_both_bounds(
    lengths: list[int], max_tokens: int, max_rows: int, data: st.DataObject
) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=40)), np.int64)
    before = rows.copy()
    cost = np.array(lengths, np.int64)
    pieces = physical_batches(cost, rows, max_tokens, max_rows)
    together = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    assert sorted(together.tolist()) == sorted(
        rows.tolist()
    )  # each drawn record once, as often as it was drawn
    assert all(1 <= len(piece) <= max_rows for piece in pieces)
    padded = [len(piece) * int(cost[piece].max()) for piece in pieces]
    alone = [len(piece) == 1 for piece in pieces]
    assert all(
        p <= max_tokens or one for p, one in zip(padded, alone, strict=True)
    )  # a long record goes by itself
    np.testing.assert_array_equal(rows, before)


def test_an_empty_draw_has_no_pieces() -> None:
    assert physical_batches(np.array([3, 4]), np.empty(0, np.int64), 8, 8) == []


def test_a_batch_moves_with_everything_it_holds() -> None:
    batch = Batch(input_ids=torch.ones(2, 3, dtype=torch.int64), hidden=torch.ones(2, 3, 4), depth=2)
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids is not None
    assert moved.hidden is not None
    assert (moved.input_ids.device.type, moved.hidden.device.type, moved.depth) == ("meta", "meta", 2)
    assert moved.images is None


def test_records_stay_out_of_a_repr() -> None:
    assert "777" not in repr(encoded([[777]], labels=np.array([777])))
