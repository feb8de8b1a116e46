"""Token ids from the store: the ids that the tokenizer gives, and none of another tokenizer or other texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.errors import ModelError
from securefed.models import TaskModel
from securefed.training.kept_tokens import encode
from tests.securefed.training.setups import bert, sentences
from tests.securefed.training.test_state_store import files, flip, store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TaskModel:
    return bert(tmp_path_factory.mktemp("bert"))


def same(a: Any, b: Any) -> bool:
    return (
        len(a) == len(b)
        and a.pad_id == b.pad_id
        and np.array_equal(a.labels, b.labels)
        and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))
    )


def watched(model: TaskModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records the model's tokenizer really reads from now on, each time."""
    found, read = [], model._encode

    def watching(examples: Any, max_length: int) -> Any:
        found.append(len(examples))
        return read(examples, max_length)

    monkeypatch.setattr(model, "_encode", watching)
    return found


@pytest.fixture
def tokenised(model: TaskModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return watched(model, monkeypatch)


@pytest.mark.parametrize("sealed", [True, False])
def test_the_same_ids_come_back_without_a_tokenizer(
    model: TaskModel, tokenised: list[int], tmp_path: Path, sealed: bool
) -> None:
    wanted = model.encode(sentences(9), 8)
    for _ in range(3):
        assert same(encode(model, sentences(9), 8, store(tmp_path, sealed=sealed)), wanted)
    assert tokenised == [9, 9]


def test_a_second_run_finds_all_shards_whatever_its_tokenizer_has_cut_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer remembers how its last text was cut, and a run that reads from the store cuts none."""
    shards = [sentences(4 + i) for i in range(3)]
    for run in range(3):
        fresh = bert(tmp_path / f"bert-{run}")
        read = watched(fresh, monkeypatch)
        found = [encode(fresh, shard, 6, store(tmp_path)) for shard in shards]
        assert read == ([4, 5, 6] if run == 0 else [])
        monkeypatch.undo()
        assert all(same(a, fresh.encode(b, 6)) for a, b in zip(found, shards, strict=True))


@pytest.mark.parametrize(("way", "value"), [("truncation_side", "left"), ("split_special_tokens", True)])
def test_a_tokenizer_that_cuts_or_splits_otherwise_gets_its_own_ids(
    model: TaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, value: Any
) -> None:
    examples = replace(sentences(6), texts=tuple(f"{t} [SEP] the end" for t in sentences(6).texts or ()))
    for length in (4, 32):
        before = encode(model, examples, length, store(tmp_path))
        with monkeypatch.context() as changed:
            changed.setattr(model.tokenizer, way, value)
            found, wanted = encode(model, examples, length, store(tmp_path)), model.encode(examples, length)
        assert same(found, wanted)
        assert same(found, before) is (way == "truncation_side" and length == 32)


@pytest.mark.parametrize("change", ["text", "order", "length", "labels", "tokenizer", "broken", "no store"])
def test_what_was_not_stored_is_tokenised(
    model: TaskModel, tokenised: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    one, examples, length = store(tmp_path), sentences(6), 8
    encode(model, examples, length, one)
    expected = 2
    assert examples.texts is not None
    assert examples.labels is not None
    if change == "text":
        examples = replace(examples, texts=("another", *examples.texts[1:]))
    elif change == "order":
        examples = examples.take(range(5, -1, -1))
    elif change == "length":
        length = 5
    elif change == "labels":
        examples, expected = replace(examples, labels=1 - examples.labels), 1  # labels are not in the store
    elif change == "tokenizer":
        backend = model.tokenizer.backend_tokenizer
        monkeypatch.setattr(backend, "normalizer", None)
    elif change == "broken":
        flip(-1)(files(tmp_path)[0], files(tmp_path)[0])
    else:
        one = None  # type: ignore[assignment]  # as where nothing may be kept
    found = encode(model, examples, length, one)
    assert len(tokenised) == expected
    assert same(found, model.encode(examples, length))


def test_a_sealed_file_holds_no_ids(model: TaskModel, tmp_path: Path) -> None:
    for sealed in (True, False):
        folder = tmp_path / str(sealed)
        found = encode(model, sentences(6), 8, store(folder, sealed=sealed))
        assert found.tokens is not None
        ids = np.concatenate(found.tokens).astype("<i4").tobytes()
        assert (ids in files(folder)[0].read_bytes()) is not sealed


def test_labels_outside_the_classes_are_refused_also_where_ids_are_stored(
    model: TaskModel, tmp_path: Path
) -> None:
    one, examples = store(tmp_path), sentences(6)
    encode(model, examples, 8, one)
    assert examples.labels is not None
    with pytest.raises(ModelError, match="labels"):
        encode(model, replace(examples, labels=examples.labels + 2), 8, one)
    with pytest.raises(ModelError, match="label"):
        encode(model, replace(examples, labels=None), 8, one)
