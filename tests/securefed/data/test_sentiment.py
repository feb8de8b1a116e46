"""Rated sentences: copies, neutral lines, domains and documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from securefed.data.records import Examples
from securefed.data.sentiment import read_sentiment
from securefed.errors import DataError
from tests.securefed.data.fakes import SENTENCES, write_sentences


def read(folder: Path, **changed: str) -> Examples:
    return read_sentiment(write_sentences(folder, {**SENTENCES, **changed}))


def test_a_rating_above_zero_is_positive_and_neutral_lines_are_left_out(tmp_path: Path) -> None:
    examples = read(tmp_path)
    assert examples.labels is not None
    assert dict(zip(examples.texts or (), examples.labels.tolist(), strict=True)) == {
        "A fine film": 1,
        "Dull & long": 0,
        "no picture at all": 0,
        "But great sound.": 1,
        "works": 1,  # rated 0.5: only nearer to 0 is neutral
        "a holiday celebration": 1,
        "The war goes on": 0,
        "GREAT sound, but...": 1,
    }


def test_groups_are_domains_and_sentences_of_one_article_share_a_document(tmp_path: Path) -> None:
    examples = read(tmp_path)
    assert set(examples.groups) == {"movies", "products", "news", "tweets"}
    assert [d for d in examples.documents if d.startswith("products")] == [
        "products/1",
        "products/1",
        "products/2",
    ]
    assert len({d for d in examples.documents if d.startswith("movies")}) == 2


def test_copies_in_two_domains_are_one_record_with_their_mean_rating(tmp_path: Path) -> None:
    examples = read(tmp_path, tweets="1\t-4\tA FINE film!\r\n2\t-3\ta second\r\n")
    assert examples.labels is not None
    assert [
        (t, y) for t, y in zip(examples.texts or (), examples.labels, strict=True) if "film" in t.lower()
    ] == [
        ("A fine film", 0)  # (2.5 - 4) / 2, at the place of the first
    ]


def test_entities_are_unescaped_before_texts_are_compared(tmp_path: Path) -> None:
    examples = read(tmp_path, tweets="1\t2\tyou &amp; me\r\n2\t2\tyou & me\r\n")
    assert (examples.texts or ()).count("you & me") == 1


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    examples = read(tmp_path, tweets="1\t2\tbefore\x85and after\r\n")
    assert "before\x85and after" in (examples.texts or ())


@pytest.mark.parametrize(
    "line", ["1\t2.0", "1\tnan\tsecret words", "1\t5\tsecret words", "1\tgood\tsecret words", "secret words"]
)
def test_a_broken_line_is_named_and_not_shown(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"tweets_GroundTruth.txt, line 2: .*--force") as error:
        read(tmp_path, tweets=f"1\t2\tfine\r\n{line}\r\n")
    assert "secret" not in str(error.value)
