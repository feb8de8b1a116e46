"""Where the state of correlated noise outlives a crash: files that only this site's user may read, beside its ledger.

The state is a secret of the server: with it, and the models that were released, later noise can be reduced. It never
enters the run's folder, which is shown around. Each file names the release that it was written with (a digest,
which the ledger holds too), the ledger's head then, so that a state of another time is noticed, and the schedule of cohorts
that the noise was scaled for: two rounds of one client lie apart only as long as one schedule deals all of them.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from securefed.errors import PrivacyError
from securefed.privacy.chain import DIGEST, Head

_DOMAIN = b"securefed noise state v2"
_START = DIGEST + 8 + DIGEST + DIGEST + DIGEST


@dataclass(frozen=True)
class KeptState:
    """One round's state as it was stored.

    Attributes:
        secret: `CorrelatedNoise.secret_bytes`. released: SHA-256 of the release before that round, hex.
        head: of the ledger when it was written.
    """

    secret: bytes = field(repr=False)
    released: str
    head: Head


@dataclass(frozen=True)
class NoiseStates:
    """One file a round under `folder`: SHA-256 over the rest, the ledger's head, the release's and the schedule's digest, the secret.

    Attributes:
        schedule: `Deal.digest` of the run, hex.
    """

    folder: Path
    schedule: str

    def write(self, round: int, state: KeptState) -> None:
        """On disk, mode 0600 in a folder of mode 0700, when it returns.

        Args:
            round: the one that the state is for: the next to be drawn.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.parent.chmod(0o700)
        self.folder.chmod(0o700)
        data = state.head.count.to_bytes(8, "little") + state.head.digest
        data += bytes.fromhex(state.released) + bytes.fromhex(self.schedule)
        part = self.folder / f".part-{os.getpid()}"
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(hashlib.sha256(_DOMAIN + data + state.secret).digest() + data + state.secret)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._path(round))
        _sync(self.folder)

    def read(self, round: int) -> KeptState:
        """The state that was kept for this round.

        Raises:
            PrivacyError: there is none, it is damaged, or of another schedule.
        """
        try:
            data = self._path(round).read_bytes()
        except OSError:
            raise PrivacyError(
                f"the noise state of round {round} is not in {self.folder}, and without it the noise cannot go on; restore "
                "that folder's newest copy, or start a new run, which is charged anew"
            ) from None
        if len(data) < _START or hashlib.sha256(_DOMAIN + data[DIGEST:]).digest() != data[:DIGEST]:
            raise PrivacyError(
                f"the noise state of round {round} in {self.folder} is damaged; restore it, or start a new run"
            )
        count = int.from_bytes(data[DIGEST : DIGEST + 8], "little")
        head, released, schedule = (data[k * DIGEST + 8 : (k + 1) * DIGEST + 8] for k in (1, 2, 3))
        if schedule.hex() != self.schedule:
            raise PrivacyError(
                f"the noise state of round {round} in {self.folder} is of another schedule of cohorts: clients, cohort, rounds, "
                "separation or seed of the job were changed under way; change them back, or start a new run"
            )
        return KeptState(data[_START:], released.hex(), Head(count, head))

    def forget(self, before_round: int | None = None) -> None:
        """Deletes the states of earlier rounds, or of all: nobody needs them, and they are secrets."""
        if not self.folder.exists():
            return
        limit = None if before_round is None else self._path(before_round).name
        for path in self.folder.iterdir():
            if limit is None or path.name.startswith(".part-") or path.name < limit:
                path.unlink(missing_ok=True)
        if limit is None:
            self.folder.rmdir()

    def _path(self, round: int) -> Path:
        return self.folder / f"{round:09d}"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
