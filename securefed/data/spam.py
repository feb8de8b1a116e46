"""Ham and spam of the SpamAssassin public corpus, with the mailing lists as natural clients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from securefed.data.mail import Mail, read_mail
from securefed.data.records import Examples
from securefed.data.text import normalise
from securefed.errors import DataError

MAILS = "mails.jsonl"
FOLDERS = ("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2")
CLASSES = ("ham", "spam")


def pack_mails(raw: Mapping[str, bytes]) -> bytes:
    """The corpus as one file: `folder/name` -> bytes of a mail, to JSON lines in the order of the names.

    Bytes stand as Latin-1, so nothing is lost and the result is the same on every machine.
    """
    lines = (json.dumps({"path": path, "mail": raw[path].decode("latin-1")}) for path in sorted(raw))
    return "".join(line + "\n" for line in lines).encode("ascii")


def read_spam(folder: Path, *, bodies_of_ham: bool = False, subjects: bool = False) -> Examples:
    """The mails as examples: subject and body, label 1 for spam, grouped by mailing list.

    Copies (`text.normalise`) are dropped before anything is split; `documents` are threads, that is,
    subjects without reply marks, since answers quote each other and spam repeats its subject. With
    `bodies_of_ham` the texts are the bodies of ham alone, without labels, for language models; with `subjects`
    too, their targets are the subjects without reply marks, and mails without a subject are left out.

    Raises:
        DataError: a line of the file is not a mail.
    """
    kept: dict[str, tuple[str, str, Mail]] = {}
    for path, mail in _mails(folder / MAILS):
        if bodies_of_ham and path.startswith("spam"):
            continue
        if subjects and not mail.topic:
            continue
        text = mail.body if bodies_of_ham else mail.text
        key = normalise(text)
        if key:
            kept.setdefault(key, (path, text, mail))
    rows = list(kept.values())
    labels = np.array([path.startswith("spam") for path, _, _ in rows], np.int64)
    return Examples(
        texts=tuple(text for _, text, _ in rows),
        labels=None if bodies_of_ham else labels,
        groups=tuple(mail.mailing_list for _, _, mail in rows),
        documents=tuple(mail.thread or path for path, _, mail in rows),
        targets=tuple(mail.topic for _, _, mail in rows) if subjects else None,
    )


def _mails(file: Path) -> Iterator[tuple[str, Mail]]:
    with file.open(encoding="ascii") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                path, raw = str(entry["path"]), str(entry["mail"]).encode("latin-1")
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{file.name}, line {number}: not a mail; refetch it with `securefed data get spam --force`"
                ) from None
            yield path, read_mail(raw)
