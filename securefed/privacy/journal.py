"""Released vectors of a run's last rounds, each on disk before it is used, so that a crash asks nobody twice.

They are public: they carry their noise. A file that is torn is as good as none, and the round is drawn anew.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from securefed.types import Vector

_DIGEST = 32


@dataclass(frozen=True)
class Journal:
    """One file a round under `folder`: SHA-256, then little-endian float32."""

    folder: Path

    def write(self, round: int, vector: Vector) -> None:
        """On disk when it returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = np.ascontiguousarray(vector, "<f4").tobytes()
        part = self.folder / f".part-{os.getpid()}"
        with part.open("wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._path(round))

    def read(self, round: int) -> Vector | None:
        """The round's vector, None where there is no whole one."""
        try:
            data = self._path(round).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        return np.frombuffer(data[_DIGEST:], "<f4").copy()

    def clear(self, before_round: int) -> None:
        """Forgets earlier rounds, which a checkpoint holds by now."""
        for path in self.folder.glob("[0-9]*"):
            if path.name < self._path(before_round).name:
                path.unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self.folder / f"{round:09d}"
