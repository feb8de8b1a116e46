"""The results: one append-only SQLite file a folder, a row a played cell, environment and commit beside it.

Nothing is ever changed or deleted, triggers see to that; of several rows of one cell the newest that was
played by the wanted code counts. `read_columns` gives columns for `pandas.DataFrame`, and needs no pandas.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securefed.errors import CheckpointError
from securefed.tracking.files import plain

FILE = "results.sqlite"
FORMAT = 1
_SCHEMA = """
create table if not exists environments (id text primary key, facts text not null);
create table if not exists suites (id text primary key, name text not null, facts text not null);
create table if not exists results (
  number integer primary key autoincrement, key text not null, code text not null, suite text not null,
  grid text not null, labels text not null, seed integer not null, state text not null, scores text not null,
  curves text not null, job text not null, changed text not null, error text not null,
  environment text not null, commit_ text not null, started real not null, seconds real not null,
  cpu_seconds real not null);
create index if not exists by_key on results (key, code);
"""
_FROZEN = (
    "create trigger if not exists {t}_no_{w} before {w} on {t} begin select raise(abort, 'append only'); end;"
)


@dataclass(frozen=True)
class Row:
    """One played cell.

    Attributes:
        state: "done" or "failed", with the reason in `error`. labels: axis -> choice. scores: name -> number.
        curves: name -> points. changed: overrides of the grid's job. started: seconds since 1970.
    """

    key: str
    code: str
    suite: str
    grid: str
    labels: Mapping[str, Any]
    seed: int
    state: str
    scores: Mapping[str, float]
    curves: Mapping[str, Sequence[Sequence[float]]] = field(repr=False)
    job: Mapping[str, Any] = field(repr=False)
    changed: Sequence[str] = field(repr=False)
    error: str
    environment: str
    commit: str
    started: float
    seconds: float
    cpu_seconds: float


class Store:
    """The results of one folder, open for appending.

    Raises:
        CheckpointError: the file is damaged, or is not one of ours; it is left as it is.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        with _told(self.path):
            self._db = sqlite3.connect(self.path)
            if _check(self._db, self.path) == 0:
                self._begin()

    def _begin(self) -> None:
        self._db.executescript(_SCHEMA)
        for table in ("results", "environments", "suites"):
            for what in ("update", "delete"):
                self._db.execute(_FROZEN.format(t=table, w=what))
        self._db.execute(f"pragma user_version = {FORMAT}")
        self._db.commit()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def append(self, row: Row) -> None:
        """Adds a row; it is on disk when this returns."""
        values = (
            row.key,
            row.code,
            row.suite,
            row.grid,
            _json(row.labels),
            row.seed,
            row.state,
            _json(row.scores),
            _json(row.curves),
            _json(row.job),
            _json(row.changed),
            row.error,
            row.environment,
            row.commit,
            row.started,
            row.seconds,
            row.cpu_seconds,
        )
        marks = ",".join("?" * len(values))
        with _told(self.path), self._db:
            self._db.execute(f"insert into results values (null,{marks})", values)

    def note(self, table: str, id: str, facts: Mapping[str, Any], name: str = "") -> None:
        """Keeps an environment once, under its digest; a suite also where another was noted since."""
        if table == "suites":
            id = self._again(id, name)
        values = (id, name, _json(facts)) if table == "suites" else (id, _json(facts))
        marks = ",".join("?" * len(values))
        with _told(self.path), self._db:
            self._db.execute(f"insert or ignore into {table} values ({marks})", values)

    def _again(self, id: str, name: str) -> str:
        """The id of the suite's newest facts if it is this one, else one that is not taken: the last noted is the newest."""
        with _told(self.path):
            query = "select id from suites where name = ? order by rowid"
            noted = [str(one) for (one,) in self._db.execute(query, (name,))]
        if noted and noted[-1].partition(".")[0] == id:
            return noted[-1]
        before = sum(one.partition(".")[0] == id for one in noted)
        return f"{id}.{before}" if before else id

    def done(self) -> set[tuple[str, str]]:
        """(key, code) of every cell with a result."""
        with _told(self.path):
            return set(self._db.execute("select key, code from results where state = 'done'"))

    def seconds(self, grid: str) -> list[float]:
        """CPU seconds of the grid's finished cells."""
        with _told(self.path):
            found = self._db.execute(
                "select cpu_seconds from results where grid = ? and state = 'done'", (grid,)
            )
            return [float(one) for (one,) in found]

    def __len__(self) -> int:
        with _told(self.path):
            return int(self._db.execute("select count(*) from results").fetchone()[0])


def read_rows(folder: str | Path) -> list[Row]:
    """The newest row of each cell, in the order in which cells were first played.

    A result beats a failure whatever came last; among results the newest counts.

    Raises:
        CheckpointError: no store there, or a damaged one.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no results; give the folder that securefed bench printed")
    found: dict[str, Row] = {}
    with _told(path):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            _check(db, path)
            for values in db.execute("select * from results order by number"):
                row = _row(values)
                old = found.get(row.key)
                if old is None or row.state == "done" or old.state != "done":
                    found[row.key] = row
        finally:
            db.close()
    return list(found.values())


def read_facts(folder: str | Path, table: str) -> dict[str, dict[str, Any]]:
    """id -> facts of the environments or suites of a folder."""
    path = Path(folder) / FILE
    with _told(path):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return {
                str(id): json.loads(facts)
                for id, facts in db.execute(f"select id, facts from {table} order by rowid")
            }
        finally:
            db.close()


def read_columns(folder: str | Path) -> dict[str, list[Any]]:
    """All results as equally long columns: `pandas.DataFrame(read_columns(folder))` is the table.

    Axes and scores have a column each; None where a row has none.
    """
    rows = read_rows(folder)
    axes = list(dict.fromkeys(a for r in rows for a in r.labels))
    scores = list(dict.fromkeys(s for r in rows for s in r.scores))
    plain_fields = ("suite", "grid", "seed", "state", "error", "key", "code", "commit", "started", "seconds")
    return {
        **{name: [getattr(r, name) for r in rows] for name in ("suite", "grid")},
        **{axis: [r.labels.get(axis) for r in rows] for axis in axes},
        "seed": [r.seed for r in rows],
        **{score: [r.scores.get(score) for r in rows] for score in scores},
        **{name: [getattr(r, name) for r in rows] for name in plain_fields[3:]},
    }


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one bench at a time in a folder; the lock ends with its process, however that ends.

    Raises:
        CheckpointError: another bench is in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = sqlite3.connect(folder / ".lock", timeout=0, isolation_level=None)
    try:
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError:
            raise CheckpointError(
                f"another bench is playing in {folder}; wait for it, or give another --folder"
            ) from None
        yield
    finally:
        lock.close()


def _row(values: Sequence[Any]) -> Row:
    _, key, code, suite, grid, labels, seed, state, scores, curves, job, changed, *rest = values
    trees = (json.loads(one) for one in (labels, scores, curves, job, changed))
    a, b, c, d, e = trees
    return Row(key, code, suite, grid, a, seed, state, _numbers(b), c, d, e, *rest)


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """As `plain` wrote them: infinity is a word there."""
    return {k: float(v) for k, v in scores.items() if v is not None}


def _json(tree: Any) -> str:
    return json.dumps(plain(tree), allow_nan=False)


def _check(db: sqlite3.Connection, path: Path) -> int:
    """The format of a whole store; 0 where it is new."""
    version = int(db.execute("pragma user_version").fetchone()[0])
    tables = int(db.execute("select count(*) from sqlite_master").fetchone()[0])
    if version not in (0, FORMAT) or (version == 0 and tables):
        raise CheckpointError(
            f"{path} has format {version}, this version writes {FORMAT}; give another --folder"
        )
    if db.execute("pragma quick_check").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError("quick_check failed")
    return version


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into one line that names the file and the way out."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise CheckpointError(f"cannot use {path}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); nothing in it was changed. Restore it, or move it away and bench again; "
            f"what can still be read: sqlite3 {path} .recover"
        ) from None


def now() -> float:
    """Seconds since 1970."""
    return time.time()
