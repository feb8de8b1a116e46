"""What answers mean, and what is garbage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.teachers import Teacher, read_answer

CLASSES = ("negative", "positive", "not sure")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Positive.", [0, 1, 0]),
        ("I would say: NEGATIVE!", [1, 0, 0]),
        ("not sure", [0, 0, 1]),
        (2, [0, 0, 1]),
        (np.int64(0), [1, 0, 0]),
        ({"positive": 0.7, "negative": 0.3}, [0.3, 0.7, 0]),
        ({" Positive ": 0.8}, [0.1, 0.8, 0.1]),
        ({"negative": 0.2, "positive": 0.2, "not sure": 0.2}, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_text_labels_and_probabilities_are_read(raw: Any, expected: list[float]) -> None:
    found = read_answer(raw, CLASSES)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "positively charged",
        "not positive but negative",
        "I cannot answer that.",
        3,
        -1,
        True,
        None,
        1.0,
        b"positive",
        ["positive"],
        {},
        {"positive": float("nan")},
        {"positive": 1.7},
        {"positive": -0.1},
        {"positive": True},
        {"happy": 0.9},
        {1: 0.9},
        {"positive": 0.9, "negative": 0.9},
        {"positive": 0.5, "POSITIVE": 0.5},
        {"positive": 0.0},
    ],
)
def test_everything_else_is_garbage(raw: Any) -> None:
    assert read_answer(raw, CLASSES) is None


@given(
    st.one_of(
        st.text(),
        st.integers(),
        st.floats(),
        st.dictionaries(st.sampled_from(CLASSES) | st.text(), st.floats() | st.none() | st.text()),
        st.lists(st.text()),
    )
)
def test_whatever_comes_is_a_distribution_or_garbage_and_never_an_error(raw: Any) -> None:
    found = read_answer(raw, CLASSES)
    if found is not None:
        assert found.shape == (3,)
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(1, abs=1e-5)


def test_a_teacher_needs_a_name_and_no_negative_cost() -> None:
    with pytest.raises(ValueError, match="a name and a cost"):
        Teacher("", lambda text: text)
    with pytest.raises(ValueError, match="a name and a cost"):
        Teacher("x", lambda text: text, cost=-1.0)
