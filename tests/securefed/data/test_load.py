"""From the name in the job to a data set; and the real ones, where they are cached."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefed.config import DataConfig
from securefed.data import load_dataset, make_shards
from securefed.data.records import Dataset
from securefed.data.sources import SOURCES
from securefed.data.text import normalise
from securefed.errors import DataError


@pytest.fixture
def csv(tmp_path: Path) -> str:
    lines = [f"record number {i},{'yes' if i % 3 else 'no'},ward {i % 2}" for i in range(60)]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["text,label,ward", *lines, "Record number 1!,yes,ward 1"]))
    return str(path)


def test_an_own_file_becomes_a_data_set(csv: str) -> None:
    dataset = load_dataset(DataConfig(name=csv, client_column="ward"))
    assert (dataset.name, dataset.classes, dataset.source) == ("mine", ("no", "yes"), "own file mine.csv")
    assert len(dataset.train) + len(dataset.test) == 61
    assert 3 <= len(dataset.test) <= 24
    assert {s.name for s in make_shards(dataset, DataConfig(clients=0, min_examples=5))} == {
        "ward 0",
        "ward 1",
    }


def test_copies_of_a_text_fall_on_one_side(csv: str) -> None:
    dataset = load_dataset(DataConfig(name=csv))
    sides = [{normalise(t) for t in part.texts or ()} for part in (dataset.train, dataset.test)]
    assert not sides[0] & sides[1]


def test_the_seed_moves_no_test_record_and_the_digest_is_of_the_content(csv: str, tmp_path: Path) -> None:
    first, second = load_dataset(DataConfig(name=csv)), load_dataset(DataConfig(name=csv, seed=7))
    assert first.test.texts == second.test.texts
    other = load_dataset(DataConfig(name=csv, test_fraction=0.5))
    assert other.test.texts != first.test.texts
    copy = tmp_path / "copy.csv"
    head, *rows = Path(csv).read_text().splitlines()
    copy.write_text("\n".join([head, *rows[::-1]]))
    assert load_dataset(DataConfig(name=str(copy))).digest == other.digest == first.digest


def test_a_limit_keeps_that_many_and_says_so(csv: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = load_dataset(DataConfig(name=csv))
    with caplog.at_level(logging.INFO, "securefed.data"):
        first, again, other = (load_dataset(DataConfig(name=csv, limit=20, seed=s)) for s in (0, 0, 1))
    assert f"keeps 20 of {len(whole.train)}" in caplog.text
    assert len(first.train) == 20
    assert first.train.texts == again.train.texts != other.train.texts
    kept = [t for t in whole.train.texts or () if t in set(first.train.texts or ())]
    assert tuple(kept) == first.train.texts
    assert first.test.texts == whole.test.texts
    assert first.digest == whole.digest  # what is spent on a part is spent on the data set
    assert len(load_dataset(DataConfig(name=csv, limit=10**6)).train) == len(whole.train)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sentimant", "did you mean 'sentiment'"),
        ("no/such.csv", "there is no file no/such.csv"),
        ("./folder", "has no known suffix"),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(DataConfig(name=name))


@pytest.mark.parametrize(
    ("name", "task"), [("digits", "causal-lm"), ("digits", "seq2seq"), ("sentiment", "seq2seq")]
)
def test_a_data_set_that_cannot_do_the_task_is_refused(name: str, task: str) -> None:
    with pytest.raises(DataError, match=f"{name} has no (texts|targets) for model.task='{task}'"):
        load_dataset(DataConfig(name=name), task=task, offline=True)


def test_digits_are_split_by_content() -> None:
    dataset = load_dataset(DataConfig(name="digits"), offline=True)
    assert (len(dataset.train), len(dataset.test)) == (1435, 362)
    assert len(dataset.classes) == 10


def labels(dataset: Dataset) -> tuple[list[int], list[int]]:
    assert dataset.train.labels is not None
    assert dataset.test.labels is not None
    return np.bincount(dataset.train.labels).tolist(), np.bincount(dataset.test.labels).tolist()


Require = Callable[[str], Any]


def assert_no_copies(dataset: Dataset) -> None:
    keys = [normalise(t) for part in (dataset.train, dataset.test) for t in part.texts or ()]
    assert len(set(keys)) == len(keys)
    assert "" not in keys
    assert not set(dataset.train.documents) & set(dataset.test.documents)


@pytest.mark.dataset
def test_the_real_sentences(require_dataset: Require) -> None:
    dataset = require_dataset("sentiment")
    assert labels(dataset) == ([7200, 8149], [1868, 2017])
    assert Counter(dataset.train.groups) == {"movies": 7996, "tweets": 2624, "products": 2398, "news": 2331}
    assert Counter(dataset.test.groups) == {"movies": 2074, "tweets": 652, "products": 570, "news": 589}
    assert_no_copies(dataset)
    assert not any("&amp;" in t for t in dataset.train.texts or ())
    shards = make_shards(dataset, DataConfig())
    names = [f"{domain}/{k}" for domain in ("movies", "tweets", "products", "news") for k in range(3)]
    assert [s.name for s in shards] == names
    assert min(len(s.train) for s in shards) == 775


@pytest.mark.dataset
def test_the_real_mails(require_dataset: Require) -> None:
    dataset = require_dataset("spam")
    assert labels(dataset) == ([3386, 1471], [722, 334])
    assert Counter(dataset.train.groups).most_common(3) == [("none", 2353), ("fork", 953), ("ilug", 481)]
    assert_no_copies(dataset)
    for text in dataset.train.texts or ():
        assert not re.match(
            r"((re|fwd?): *)*\[(ilug|razor-users|satalk)\]|received:|.*\*\*\*spam", text, re.IGNORECASE
        )


@pytest.mark.dataset
def test_the_real_bodies_of_ham(require_dataset: Require) -> None:
    require_dataset("spam")
    dataset = load_dataset(DataConfig(name="spam", limit=100), task="causal-lm", offline=True)
    assert (len(dataset.train), dataset.train.labels, dataset.classes) == (100, None, ())
    assert_no_copies(dataset)


@pytest.mark.skipif(
    not SOURCES["fashion-mnist"].cached,
    reason="fashion-mnist is not cached: securefed data get fashion-mnist",
)
def test_the_real_clothes() -> None:
    dataset = load_dataset(DataConfig(name="fashion-mnist"), offline=True)
    assert labels(dataset) == ([6000] * 10, [1000] * 10)
    assert dataset.train.images is not None
    assert dataset.train.images.shape == (60000, 1, 28, 28)


@pytest.mark.dataset
def test_every_task_on_a_named_set_is_charged_to_the_same_data_set(
    require_dataset: Callable[[str], Any],
) -> None:
    require_dataset("spam")
    digests = {
        load_dataset(DataConfig(name="spam"), task=task, offline=True).digest
        for task in ("classification", "causal-lm")
    }
    assert len(digests) == 1, "the same mails under two names would be spent twice and counted once"
