"""The ledger's file: SQLite, synced to disk at every commit, shared by processes and threads.

Nothing here knows about privacy; it keeps rows, and turns every failure into one clear line.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from securefed.errors import PrivacyError
from securefed.privacy import chain
from securefed.privacy.filesystem import is_local

APPLICATION_ID = 0x5EC0FED1 & 0x7FFFFFFF
SCHEMA_VERSION = 2
WITHOUT_CHAIN = 1
BUSY_TIMEOUT_S = 60.0

# The triggers keep charges append-only: a row is settled once, and never shrinks or disappears.
_SCHEMA = f"""
CREATE TABLE runs (
  run TEXT PRIMARY KEY, dataset TEXT NOT NULL, unit TEXT NOT NULL CHECK (unit IN ('example', 'client')),
  disjoint INTEGER NOT NULL, partition TEXT NOT NULL, registered_at TEXT NOT NULL);
CREATE TABLE shards (
  run TEXT NOT NULL REFERENCES runs, client INTEGER NOT NULL, digest TEXT NOT NULL, records INTEGER NOT NULL,
  PRIMARY KEY (run, client));
CREATE TABLE reservations (
  id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL REFERENCES runs, client INTEGER NOT NULL,
  round INTEGER NOT NULL, event TEXT NOT NULL, steps INTEGER NOT NULL, steps_taken INTEGER,
  payload_digest TEXT, reserved_at TEXT NOT NULL, settled_at TEXT);
CREATE INDEX reservations_of_client ON reservations (run, client, event);
CREATE TABLE outbox (
  run TEXT NOT NULL REFERENCES runs, client INTEGER NOT NULL, round INTEGER NOT NULL,
  reservation INTEGER NOT NULL REFERENCES reservations, payload BLOB NOT NULL,
  PRIMARY KEY (run, client, round));
CREATE TRIGGER keep_reservations BEFORE DELETE ON reservations
  BEGIN SELECT RAISE(ABORT, 'a reservation is never deleted'); END;
CREATE TRIGGER keep_charges BEFORE UPDATE ON reservations
  WHEN old.settled_at IS NOT NULL OR new.id <> old.id OR new.run <> old.run OR new.client <> old.client
    OR new.round <> old.round OR new.event <> old.event OR new.steps <> old.steps
  BEGIN SELECT RAISE(ABORT, 'a reservation is settled once and not otherwise changed'); END;
CREATE TRIGGER keep_runs BEFORE DELETE ON runs BEGIN SELECT RAISE(ABORT, 'a run is never deleted'); END;
CREATE TRIGGER keep_run BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'a run is never changed'); END;
CREATE TRIGGER keep_shards BEFORE DELETE ON shards BEGIN SELECT RAISE(ABORT, 'a shard is never deleted'); END;
CREATE TRIGGER keep_shard BEFORE UPDATE ON shards BEGIN SELECT RAISE(ABORT, 'a shard is never changed'); END;
{chain.CREATE}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class Store:
    """One ledger file; connections open lazily, one per process and thread.

    Pickling keeps the path only, so that a worker process opens the file itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}

    def __getstate__(self) -> dict[str, Path]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]  # pickle made the object without it

    def close(self) -> None:
        """Closes this process's connections; the next use opens a new one."""
        for key in [k for k in self._connections if k[0] == os.getpid()]:
            self._connections.pop(key).close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read from, one consistent state of the ledger.

        Raises:
            PrivacyError: a file that is no ledger, damaged, from a newer version, or unreadable.
        """
        with self._translated(), self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The ledger's one writer: committed and on disk when the block ends, undone if it raises.

        Raises:
            PrivacyError: as for `reading`; a full disk, a folder without write permission, or another
                process that holds the ledger for a minute.
        """
        with self._translated(), self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute(begin)
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _connection(self) -> sqlite3.Connection:
        # A connection made before a fork stays in the table, untouched: closing it here could drop
        # the parent's locks.
        key = (os.getpid(), threading.get_ident())
        if key not in self._connections:
            self._connections[key] = self._open()
        return self._connections[key]

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.path.exists():
                _create(self.path)
        except OSError as error:
            raise PrivacyError(
                f"cannot create the privacy ledger {self.path}: {error.strerror}; set SECUREFED_HOME to a writable folder"
            ) from None
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._check(connection)  # before anything is written: a file of something else stays untouched
            self._set_journal(connection)
            _add_chain(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_journal(self, connection: sqlite3.Connection) -> None:
        """Write-ahead log on a local disk (one sync a commit, not four); it is unsafe over a network."""
        wanted = "wal" if is_local(self.path.parent) else "delete"
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == wanted:
            return
        try:
            connection.execute(f"PRAGMA journal_mode = {wanted}")
        except sqlite3.OperationalError:
            if wanted == "delete":
                raise
            # Somebody is using the file: the rollback journal it has is as safe, only slower.

    def _check(self, connection: sqlite3.Connection) -> None:
        """Raises unless the file is a ledger of this version."""
        identity = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if identity == APPLICATION_ID and version in (SCHEMA_VERSION, WITHOUT_CHAIN):
            return
        if identity == APPLICATION_ID:
            raise PrivacyError(
                f"the privacy ledger {self.path} has schema version {version}, this SecureFed reads {SCHEMA_VERSION}; update SecureFed"
            )
        if tables or identity or version:
            raise PrivacyError(
                f"{self.path} is a database of something else, not a privacy ledger; give another path"
            )
        raise PrivacyError(
            f"the privacy ledger {self.path} is empty, and a ledger never is: what was spent is lost; restore it "
            "from a backup, or delete the file if nothing was ever spent here"
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise PrivacyError(
                f"cannot use the privacy ledger {self.path}: {error}; this transaction was undone, "
                "mend the cause (space, permissions, a stuck process) and run again"
            ) from None
        except sqlite3.DatabaseError as error:
            raise PrivacyError(
                f"{self.path} is not a readable privacy ledger: {error}; restore it from a backup, a new "
                "one would forget what was spent"
            ) from None


def _add_chain(connection: sqlite3.Connection) -> None:
    """Brings a ledger of the first version up to date, in one transaction."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] == WITHOUT_CHAIN:
            for statement in chain.STATEMENTS:
                connection.execute(statement)
            chain.adopt(connection)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _create(path: Path) -> None:
    """A new ledger under its final name only when it is whole, so that an empty file is always a loss.

    Raises:
        OSError: the folder cannot be written.
    """
    part = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    try:
        connection = sqlite3.connect(part, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
        finally:
            connection.close()
        _name_once(part, path)
    finally:
        part.unlink(missing_ok=True)


def _name_once(part: Path, path: Path) -> None:
    """Gives the file its final name unless another process was faster."""
    try:
        os.link(part, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            part.rename(path)
