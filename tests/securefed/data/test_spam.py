"""The corpus as one file, and its mails as examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from securefed.data.spam import MAILS, pack_mails, read_spam
from securefed.errors import DataError
from tests.securefed.data import fakes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {p.removeprefix("package/data/"): m for p, m in fakes.MAILS.items() if p.endswith(".txt")}
    (tmp_path / MAILS).write_bytes(pack_mails(files))
    return tmp_path


def test_copies_are_dropped_and_labels_come_from_the_folder(folder: Path) -> None:
    examples = read_spam(folder)
    assert examples.texts == ("Re: lunch\nAt noon?", "plans\nsee you there", "Earn\nGet Viagra & more")
    assert examples.labels is not None
    assert examples.labels.tolist() == [0, 0, 1]
    assert examples.groups == ("fork", "none", "none")
    assert examples.documents == ("lunch", "plans", "earn")


def test_a_language_model_reads_bodies_of_ham(folder: Path) -> None:
    examples = read_spam(folder, bodies_of_ham=True)
    assert examples.texts == ("At noon?", "see you there")
    assert examples.labels is None


def test_an_encoder_decoder_reads_bodies_and_writes_subjects_without_reply_marks(tmp_path: Path) -> None:
    mails = {
        "easy-ham-1/1": b"Subject: Re: [ILUG] lunch\r\n\r\nAt noon?",
        "easy-ham-1/2": b"\r\nno subject here",
        "spam-1/1": b"Subject: earn\r\n\r\nmoney",
    }
    (tmp_path / MAILS).write_bytes(pack_mails(mails))
    examples = read_spam(tmp_path, bodies_of_ham=True, subjects=True)
    assert examples.texts == ("At noon?",)
    assert examples.targets == ("lunch",)
    assert examples.labels is None


def test_packing_loses_no_byte_and_does_not_depend_on_the_order() -> None:
    raw = {"spam-1/b": bytes(range(256)), "easy-ham-1/a": b"Subject: x\r\n\r\ny"}
    assert pack_mails(raw) == pack_mails(dict(reversed(raw.items())))
    import json

    lines = [json.loads(line) for line in pack_mails(raw).splitlines()]
    assert {e["path"]: e["mail"].encode("latin-1") for e in lines} == raw


def test_a_mail_without_subject_is_its_own_document(tmp_path: Path) -> None:
    (tmp_path / MAILS).write_bytes(pack_mails({"spam-1/1": b"\n\nfirst", "spam-1/2": b"\n\nsecond"}))
    assert len(set(read_spam(tmp_path).documents)) == 2


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"path": "spam-1/1"}', '{"path": "spam-1/1", "mail": "\\u2020"}']
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / MAILS).write_text(line + "\n")
    with pytest.raises(DataError, match=r"mails.jsonl, line 1: not a mail; .*--force"):
        read_spam(tmp_path)
