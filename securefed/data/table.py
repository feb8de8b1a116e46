"""Rows of a user's own table -> examples: columns chosen by name, labels numbered, bad rows named.

A message names the row and the column, never what stands there: it may be private.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.config import DataConfig
from securefed.data.records import Examples
from securefed.data.text import content_key
from securefed.errors import DataError

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows as they were read.

    Attributes:
        name: of the file or hub data set. columns: their names.
        places: where each row is, for messages ("line 3").
        label_names: column -> its classes, where the format itself numbers them (hub data sets).
    """

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Row] = field(repr=False)
    places: Sequence[str] = field(repr=False)
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def table_examples(
    table: Table, config: DataConfig, task: str, known: tuple[str, ...] = ()
) -> tuple[Examples, tuple[str, ...]]:
    """(examples, classes) of the table's columns that the task needs.

    Labels may be words or whole numbers; classes are sorted, numbers by value, or `known` from the
    training records, of which the labels must then be. Groups come from
    `client_column`; a document is a text, so that copies of it fall on one side of a split.

    Raises:
        DataError: no rows; a column that is not there (naming the nearest); an empty text, label,
            target or client; labels that are no classes.
    """
    if not table.rows:
        raise DataError(f"{table.name} has no records")
    texts = _texts(table, config.text_column, "text_column")
    groups = _texts(table, config.client_column, "client_column") if config.client_column else ()
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] | None = None
    if task == "classification":
        labels, classes = _labels(table, config.label_column, known)
    elif task == "seq2seq":
        targets = _texts(table, config.target_column, "target_column")
    documents = tuple(content_key(text) for text in texts)
    return Examples(texts=texts, labels=labels, targets=targets, groups=groups, documents=documents), classes


def _column(table: Table, column: str, setting: str) -> list[object]:
    if column not in table.columns:
        near = difflib.get_close_matches(column, table.columns, 1)
        known = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, table.columns))}"
        raise DataError(f"{table.name} has no column {column!r} (data.{setting}); {known}")
    return [row.get(column) for row in table.rows]


def _texts(table: Table, column: str, setting: str) -> tuple[str, ...]:
    values = _column(table, column, setting)
    for value, place in zip(values, table.places, strict=True):
        if _is_missing(value):
            raise DataError(f"{table.name}, {place}: empty {column!r}; fill it in or remove the row")
        if isinstance(value, (list, dict, bytes)) or not _encodes(value):
            raise DataError(f"{table.name}, {place}: {column!r} is no text but {type(value).__name__}")
    return tuple(str(value) for value in values)


def _encodes(value: object) -> bool:
    """False for lone surrogates, which JSON can spell and no tokenizer can read."""
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_missing(value: object) -> bool:
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, float) and math.isnan(value))
    )


def _labels(table: Table, column: str, known: tuple[str, ...]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    values = _column(table, column, "label_column")
    places = [f"{table.name}, {place}" for place in table.places]
    words = [_label(value, place, column) for value, place in zip(values, places, strict=True)]
    if column in table.label_names:
        return _numbered(words, places, table.label_names[column], column)
    classes = known or _classes(table, words, column)
    number = {word: i for i, word in enumerate(classes)}
    for word, place in zip(words, places, strict=True):
        if word not in number:
            raise DataError(
                f"{place}: {column!r} is none of the {len(classes)} classes of the training records"
            )
    return np.array([number[word] for word in words], np.int64), classes


def _classes(table: Table, words: Sequence[str], column: str) -> tuple[str, ...]:
    distinct = set(words)
    numeric = all(word.lstrip("+-").isdecimal() and len(word) < 19 for word in distinct)
    classes = sorted(distinct, key=lambda word: (int(word) if numeric else 0, word))
    if len(classes) < 2:
        raise DataError(
            f"{table.name}: {column!r} has 1 distinct value; classification needs 2 classes or more"
        )
    if len(classes) > max(20, len(words) // 2):
        raise DataError(
            f"{table.name}: {column!r} has {len(classes)} distinct values in {len(words)} rows; "
            "that is no class label, choose another data.label_column"
        )
    return tuple(classes)


def _numbered(
    words: Sequence[str], places: Sequence[str], classes: tuple[str, ...], column: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels that the format numbers itself; -1 stands for a hidden one."""
    for word, place in zip(words, places, strict=True):
        if not 0 <= int(word) < len(classes):
            raise DataError(
                f"{place}: {column!r} is outside 0..{len(classes) - 1}; remove rows with hidden labels"
            )
    return np.array([int(word) for word in words], np.int64), classes


def _label(value: object, place: str, column: str) -> str:
    if _is_missing(value):
        raise DataError(f"{place}: no {column!r}; label the row or remove it")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not value.is_integer():
            raise DataError(f"{place}: {column!r} is a fraction; labels are words or whole numbers")
        return str(int(value))
    if not isinstance(value, (str, int)):
        raise DataError(f"{place}: {column!r} is {type(value).__name__}; labels are words or whole numbers")
    return str(value).strip()
