"""Frozen states on disk, so that a second run starts from what the first has computed.

They are as private as the text. Where files may lie, whether sealed, is the site's to say (`training.limits`). A name is a keyed
digest of all that the states depend on, so it tells nothing and another model or tokenizer asks for another name. Whatever is
wrong with a file or the folder costs one line in the log and the time to compute: never a wrong state, never the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from securefed.crypto.entropy import Entropy
from securefed.crypto.site_key import SiteKey
from securefed.errors import DataError, ProtocolError
from securefed.training.feed import CachedStates
from securefed.training.file_lock import lock_alone, lock_shared
from securefed.training.state_file import SALT_BYTES, Body, Content, Head, read, read_head, write
from securefed.training.state_folder import PART, SUFFIX, dropped

logger = logging.getLogger(__name__)
MIB = 2**20
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that looks whole; whether it is what it claims is seen when it is read.

    Attributes:
        size: bytes that its states take in memory.
    """

    name: bytes
    size: int


class StateStore:
    """One folder of state files, mode 0700, at most `limit_bytes` in all; the longest unused go first.

    Safe with other processes: a file gets its name when it is whole, and one that is in use is not dropped.

    Args:
        sealed: whether new files are encrypted; only such are read then, too. entropy: of the salts.

    Raises:
        OSError: the folder cannot be made, or is somebody else's.
    """

    def __init__(
        self, folder: Path, key: SiteKey, *, sealed: bool, limit_bytes: int, entropy: Entropy
    ) -> None:
        self.folder, self.sealed, self.limit_bytes = folder, sealed, limit_bytes
        self._key, self._entropy = key, entropy
        self._told: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)

    def __repr__(self) -> str:
        return f"StateStore({self.folder}, sealed={self.sealed})"

    def find(self, description: str) -> Stored | None:
        """What is stored under it; None if there is nothing that can be used."""
        name = self._name(description)
        try:
            with self._path(name).open("rb", buffering=0) as file:
                return Stored(name, read_head(file, self._key, name).size)
        except FileNotFoundError:
            return None
        except (OSError, DataError) as error:
            self._refuse(error)
            return None

    def load(self, stored: Stored, lengths: Sequence[int]) -> CachedStates | None:
        """A shard's states, every byte of them checked; None if they are damaged or gone.

        Args:
            lengths: tokens of each record.
        """
        return self._read(stored.name, lambda content: content.states(lengths))

    def arrays(self, description: str) -> Content | None:
        """Whatever `keep` was given under the description, every byte checked; None if it is damaged or not there."""
        return self._read(self._name(description), lambda content: content)

    def put(self, description: str, states: CachedStates) -> None:
        """Keeps a shard's states if there is room, in place of whatever had the name."""
        self.keep(description, Body.of(states))

    def keep(self, description: str, body: Body) -> None:
        """Keeps arrays if there is room, in place of whatever had the name."""
        name = self._name(description)
        salt = self._entropy.stream("frozen states", name.hex()).bytes(SALT_BYTES)
        head = Head(self.sealed, self._key.id, name, salt, body.length, body.size)
        try:
            part = self._reserve(head.file_bytes)
            if part is not None:
                self._fill(*part, head, body)
        except OSError as error:
            self._tell(
                "unwritable", "frozen states cannot be kept in %s: %s", self.folder, error.strerror or error
            )

    def _read(self, name: bytes, use: Callable[[Content], Found]) -> Found | None:
        try:
            with self._path(name).open("rb", buffering=0) as file:
                lock_shared(file.fileno())
                found = use(read(file, self._key, name))
                with contextlib.suppress(OSError):  # a file that may only be read is used all the same
                    os.utime(self._path(name))
                return found
        except FileNotFoundError:
            return None
        except (OSError, DataError, ProtocolError) as error:
            self._refuse(error)
            return None

    def _reserve(self, needed: int) -> tuple[Path, BinaryIO] | None:
        """A locked file of that length, room made for it; None if there is none."""
        with self._alone():
            if not self._make_room(needed):
                return None
            part = self.folder / f"{PART}{os.getpid()}-{os.urandom(4).hex()}"
            file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb")
            try:
                lock_shared(file.fileno())  # without its lock it would be taken for a dead process's
                file.truncate(needed)  # so that other processes count it
            except BaseException:
                file.close()
                part.unlink()
                raise
            return part, file

    def _fill(self, part: Path, file: BinaryIO, head: Head, body: Body) -> None:
        """The file under its final name, once all of it is written."""
        try:
            with file:
                write(file, head, body, self._key)
                file.flush()
                os.replace(part, self._path(head.name))
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> bool:
        """Drops the longest unused files until `needed` more bytes are within the bound and on the disk."""
        found = []
        for path in self.folder.iterdir():
            if path.name.startswith(PART) and dropped(path):  # of a process that was killed
                continue
            if path.name.startswith(PART) or path.suffix == SUFFIX:
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, path))
        held, free = sum(size for _, size, _ in found), shutil.disk_usage(self.folder).free
        never = needed > min(self.limit_bytes, free + held)  # with every file gone
        for _, size, path in sorted(found):
            if never or max(held + needed - self.limit_bytes, needed - free) <= 0:
                break
            if path.suffix == SUFFIX and dropped(path):
                held, free = held - size, free + size
        if held + needed <= self.limit_bytes and needed <= free:
            return True
        self._tell(
            "room",
            "frozen states of a shard need %d MiB on disk, train.cache_disk_mib allows %d of which %d are in use, %d are free; "
            "they are not kept",
            -(-needed // MIB),
            self.limit_bytes // MIB,
            held // MIB,
            free // MIB,
        )
        return False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time counts, drops and reserves."""
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock_alone(handle)
            yield
        finally:
            os.close(handle)

    def _name(self, description: str) -> bytes:
        return self._key.name(f"{'sealed' if self.sealed else 'plain'}:{description}".encode())

    def _path(self, name: bytes) -> Path:
        return self.folder / f"{name.hex()}{SUFFIX}"

    def _refuse(self, error: Exception) -> None:
        reason = (error.strerror or "unreadable") if isinstance(error, OSError) else str(error)
        self._tell(
            "damaged", "a file of frozen states in %s is not used: %s; computed again", self.folder, reason
        )

    def _tell(self, what: str, text: str, *values: object) -> None:
        """Once for each kind of trouble."""
        if what not in self._told:
            logger.warning(text, *values)
            self._told.add(what)
