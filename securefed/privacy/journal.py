"""Released vectors of a run's last rounds, each on disk before it is used, so that a crash asks nobody twice.

They are public: they carry their noise. A file that is torn is as good as none, and the round is drawn anew.
With each goes the head of the ledger that was charged for it: in a ledger that has forgotten the charge it
must not be applied as if it had cost nothing.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from securefed.privacy.chain import DIGEST, EMPTY, Head
from securefed.types import Vector

_DOMAIN = b"securefed journal v2"


@dataclass(frozen=True)
class Journal:
    """One file a round under `folder`: SHA-256 over the rest, the ledger's head, little-endian float32."""

    folder: Path

    def write(self, round: int, vector: Vector, head: Head = EMPTY) -> None:
        """On disk when it returns.

        Args:
            head: of the ledger that holds the round's charge.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        data = head.count.to_bytes(8, "little") + head.digest + np.ascontiguousarray(vector, "<f4").tobytes()
        part = self.folder / f".part-{os.getpid()}"
        with part.open("wb") as file:
            file.write(hashlib.sha256(_DOMAIN + data).digest() + data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._path(round))

    def read(self, round: int) -> tuple[Vector, Head] | None:
        """The round's vector and the ledger's head then, None where there is no whole one."""
        try:
            data = self._path(round).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(_DOMAIN + data[DIGEST:]).digest() != data[:DIGEST]:
            return None
        start = DIGEST + 8
        head = Head(int.from_bytes(data[DIGEST:start], "little"), data[start : start + DIGEST])
        return np.frombuffer(data[start + DIGEST :], "<f4").copy(), head

    def clear(self, before_round: int) -> None:
        """Forgets earlier rounds, which a checkpoint holds by now."""
        for path in self.folder.glob("[0-9]*"):
            if path.name < self._path(before_round).name:
                path.unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self.folder / f"{round:09d}"
