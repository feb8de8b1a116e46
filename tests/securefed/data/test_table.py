"""Columns chosen by name, labels numbered, bad rows named."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.config import DataConfig
from securefed.data.table import Table, table_examples
from securefed.errors import DataError


def table(*rows: dict[str, Any], **fields: Any) -> Table:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table("mine.csv", columns, rows, [f"line {i + 2}" for i in range(len(rows))], **fields)


def labelled(*labels: Any) -> Table:
    return table(*({"text": f"text {i}", "label": label} for i, label in enumerate(labels)))


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b", "a", " b "], ("a", "b"), [1, 0, 1]),
        (["10", "9", "-1"], ("-1", "9", "10"), [2, 1, 0]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([1.0, 0.0, 1], ("0", "1"), [1, 0, 1]),
        ([True, False], ("false", "true"), [1, 0]),
        (["2", "b", "10"], ("10", "2", "b"), [1, 2, 0]),
    ],
)
def test_classes_are_sorted_and_numbers_by_value(
    labels: list[Any], classes: tuple[str, ...], numbers: list[int]
) -> None:
    examples, found = table_examples(labelled(*labels), DataConfig(), "classification")
    assert found == classes
    assert examples.labels is not None
    assert examples.labels.tolist() == numbers


@given(st.lists(st.sampled_from(["x", "y", "z"]), min_size=2).filter(lambda w: len(set(w)) > 1))
def test_every_label_names_its_class(words: list[str]) -> None:
    examples, classes = table_examples(labelled(*words), DataConfig(), "classification")
    assert examples.labels is not None
    assert [classes[y] for y in examples.labels] == words


def test_clients_and_documents_come_with_the_rows() -> None:
    rows = [
        {"text": t, "label": i % 2, "ward": w}
        for i, (t, w) in enumerate([("A b", "x"), ("a B!", "y"), ("c", "x")])
    ]
    examples, _ = table_examples(table(*rows), DataConfig(client_column="ward"), "classification")
    assert examples.groups == ("x", "y", "x")
    assert examples.documents[0] == examples.documents[1] != examples.documents[2]
    assert not table_examples(table(*rows), DataConfig(), "classification")[0].groups


def test_each_task_reads_its_own_columns() -> None:
    rows = table({"text": "a", "target": "b"}, {"text": "c", "target": "d"})
    examples, classes = table_examples(rows, DataConfig(), "seq2seq")
    assert (examples.texts, examples.targets, examples.labels, classes) == (("a", "c"), ("b", "d"), None, ())
    examples, classes = table_examples(rows, DataConfig(), "causal-lm")
    assert (examples.targets, examples.labels, classes) == (None, None, ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": " ", "label": 1}, "mine.csv, line 4: empty 'text'"),
        ({"text": None, "label": 1}, "mine.csv, line 4: empty 'text'"),
        ({"text": math.nan, "label": 1}, "mine.csv, line 4: empty 'text'"),
        ({"label": 1}, "mine.csv, line 4: empty 'text'"),
        ({"text": ["secret"], "label": 1}, "mine.csv, line 4: 'text' is no text but list"),
        ({"text": "secret\ud800", "label": 1}, "mine.csv, line 4: 'text' is no text but str"),
        ({"text": "secret"}, "mine.csv, line 4: no 'label'"),
        ({"text": "secret", "label": ""}, "mine.csv, line 4: no 'label'"),
        ({"text": "secret", "label": 0.5}, "mine.csv, line 4: 'label' is a fraction"),
        ({"text": "secret", "label": ["secret"]}, "mine.csv, line 4: 'label' is list"),
    ],
)
def test_a_bad_row_is_named_and_not_shown(row: dict[str, Any], message: str) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}, row]
    with pytest.raises(DataError) as error:
        table_examples(table(*rows), DataConfig(), "classification")
    assert str(error.value).startswith(message)
    assert "secret" not in str(error.value)


def test_an_unknown_column_gets_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no column 'text' \(data.text_column\); did you mean 'Text'"):
        table_examples(table({"Text": "a", "label": 1}), DataConfig(), "causal-lm")
    with pytest.raises(DataError, match=r"no column 'label' \(data.label_column\); it has 'text', 'y'"):
        table_examples(table({"text": "a", "y": 1}), DataConfig(), "classification")


def test_labels_that_are_no_classes_are_refused() -> None:
    with pytest.raises(DataError, match="1 distinct value"):
        table_examples(labelled(1, 1, 1), DataConfig(), "classification")
    with pytest.raises(DataError, match=r"30 distinct values in 40 rows; .* another data.label_column"):
        table_examples(labelled(*(i % 30 for i in range(40))), DataConfig(), "classification")


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"mine.csv has no records"):
        table_examples(table(), DataConfig(), "causal-lm")


def test_a_test_label_that_training_does_not_know_is_refused() -> None:
    examples, classes = table_examples(labelled("b", "b"), DataConfig(), "classification", ("a", "b"))
    assert examples.labels is not None
    assert (examples.labels.tolist(), classes) == ([1, 1], ("a", "b"))
    with pytest.raises(DataError, match="line 3: 'label' is none of the 2 classes"):
        table_examples(labelled("b", "c"), DataConfig(), "classification", ("a", "b"))


def test_labels_numbered_by_the_format_keep_their_names_and_range() -> None:
    names = {"label": ("neg", "pos")}
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 1}]
    examples, classes = table_examples(table(*rows, label_names=names), DataConfig(), "classification")
    assert examples.labels is not None
    assert (classes, examples.labels.tolist()) == (("neg", "pos"), [1, 1])
    with pytest.raises(DataError, match=r"line 4: 'label' is outside 0..1"):
        table_examples(
            table(*rows, {"text": "c", "label": -1}, label_names=names), DataConfig(), "classification"
        )
