"""Answers on disk, so that no record is asked about twice and a stopped job goes on for free.

A file is named by a digest and holds numbers, never a text. The digest of a short text can be found by whoever can guess
the text, so the folder is for its owner alone: it is as private as the records are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from securefed.errors import DataError
from securefed.teachers.answer import Answered

VERSION = 1


@dataclass(frozen=True)
class AnswerCache:
    """One teacher's answers over one list of classes, a file each under `folder`/aa/.

    Attributes:
        folder: made on first use, readable by its owner only. teacher: its name. classes: in the order of the numbers.
    """

    folder: Path
    teacher: str
    classes: tuple[str, ...]

    def get(self, text: str) -> Answered | None:
        """The stored answer; None where there is none, or none that is whole."""
        try:
            tree = json.loads(self._path(text).read_text(encoding="utf-8"))
            found = np.asarray(tree["probabilities"], np.float32)
            version = tree["version"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = (
            found.shape == (len(self.classes),)
            and bool(np.isfinite(found).all())
            and bool((found >= 0).all())
        )
        return found if version == VERSION and whole and math.isclose(found.sum(), 1, abs_tol=1e-4) else None

    def put(self, text: str, answer: Answered) -> None:
        """On disk, whole, when it returns.

        Raises:
            DataError: the folder cannot be written.
        """
        path = self._path(text)
        part = path.with_suffix(f".part-{os.getpid()}")
        tree = {"version": VERSION, "probabilities": [float(p) for p in answer]}
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(tree, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            raise DataError(
                f"cannot keep a teacher's answers in {self.folder}: {error.strerror or error}"
            ) from None

    def _path(self, text: str) -> Path:
        digest = answer_key(self.teacher, self.classes, text)
        return self.folder / digest[:2] / f"{digest[2:]}.json"


def answer_key(teacher: str, classes: Sequence[str], text: str) -> str:
    """SHA-256 over teacher, classes and text with their lengths, hex: another teacher or order is another key."""
    total = hashlib.sha256()
    for part in (teacher, *classes, text):
        data = part.encode("utf-8", "surrogatepass")
        total.update(b"%d:" % len(data) + data)
    return total.hexdigest()
