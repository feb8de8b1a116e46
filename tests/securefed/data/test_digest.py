"""The names of records in a ledger."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from securefed.data.digest import records_digest
from securefed.data.records import Examples


def records(*rows: tuple[str, int], group: str = "") -> Examples:
    return Examples(
        texts=tuple(t for t, _ in rows),
        labels=np.array([y for _, y in rows], np.int64),
        groups=(group,) * len(rows),
    )


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(0, 3)), max_size=8), st.integers(0, 8))
def test_order_parts_and_groups_do_not_change_the_name(rows: list[tuple[str, int]], cut: int) -> None:
    whole = records_digest(records(*rows))
    assert records_digest(records(*rows[::-1], group="g")) == whole
    assert records_digest(records(*rows[:cut]), records(*rows[cut:])) == whole


def test_every_field_and_every_copy_counts() -> None:
    base = records_digest(records(("a", 0), ("b", 1)))
    others = [
        records(("a", 0)),
        records(("a", 0), ("b", 1), ("b", 1)),
        records(("a", 1), ("b", 0)),
        records(("a", 0), ("c", 1)),
        Examples(texts=("a", "b")),
        Examples(texts=("a", "b"), targets=("0", "1")),
    ]
    assert len({base, *map(records_digest, others)}) == 7


def test_fields_cannot_pass_for_one_another() -> None:
    one = Examples(texts=("a4:target1:b",), targets=("c",))
    other = Examples(texts=("a",), targets=("b6:target1:c",))
    assert records_digest(one) != records_digest(other)


def test_images_are_named_by_pixels_and_shape() -> None:
    pixels = np.arange(8, dtype=np.float32)
    shapes = [(1, 1, 2, 4), (1, 1, 4, 2), (2, 1, 2, 2)]
    assert len({records_digest(Examples(images=pixels.reshape(s))) for s in shapes}) == 3
    assert records_digest(Examples(images=pixels.reshape(shapes[0]) + 1)) not in {
        records_digest(Examples(images=pixels.reshape(s))) for s in shapes
    }
