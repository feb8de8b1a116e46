"""Rows of the ledger as values: what the queries of `ledger.py` return. No decision is made here."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, cast

from securefed.errors import PrivacyError
from securefed.privacy.events import Event, Unit, from_json, merge, repeat
from securefed.privacy.site import Exposure


@dataclass(frozen=True, slots=True)
class ShardKey:
    """Which records one client holds: a digest over them, and how many they are (>= 0)."""

    digest: str
    records: int


@dataclass(frozen=True, slots=True)
class RunRow:
    """A registered run. `partition` is a digest over its shards, whatever their order."""

    run: str
    dataset: str
    unit: Unit
    disjoint: bool
    partition: str


def partition_digest(shards: Mapping[int, ShardKey], disjoint: bool) -> str:
    """Equal for runs that divide the same records into the same shards."""
    text = "\n".join(sorted(f"{key.records}:{key.digest}" for key in shards.values()))
    return hashlib.sha256(f"{int(disjoint)}\n{text}".encode()).hexdigest()


def now() -> str:
    """UTC, for the auditor's reading only: no charge depends on a clock."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find_run(connection: sqlite3.Connection, run: str) -> RunRow | None:
    """The run's registration, if any."""
    rows = connection.execute(
        "SELECT run, dataset, unit, disjoint, partition FROM runs WHERE run = ?", (run,)
    ).fetchall()
    return _run_row(rows[0]) if rows else None


def known_run(connection: sqlite3.Connection, run: str) -> RunRow:
    """The run's registration.

    Raises:
        PrivacyError: no such run.
    """
    row = find_run(connection, run)
    if row is None:
        raise PrivacyError(f"the privacy ledger knows no run {run!r}; register it before it spends")
    return row


def find_runs(connection: sqlite3.Connection, dataset: str | None, unit: str | None) -> list[RunRow]:
    """Runs of this data set and unit (None = any), in the order of registration."""
    rows = connection.execute(
        "SELECT run, dataset, unit, disjoint, partition FROM runs"
        " WHERE (?1 IS NULL OR dataset = ?1) AND (?2 IS NULL OR unit = ?2) ORDER BY rowid",
        (dataset, unit),
    )
    return [_run_row(row) for row in rows]


def _run_row(row: tuple[Any, ...]) -> RunRow:
    return RunRow(row[0], row[1], cast(Unit, row[2]), bool(row[3]), row[4])


def find_shards(connection: sqlite3.Connection, run: str) -> dict[int, ShardKey]:
    """Client -> shard of a run."""
    rows = connection.execute(
        "SELECT client, digest, records FROM shards WHERE run = ? ORDER BY client", (run,)
    )
    return {client: ShardKey(digest, records) for client, digest, records in rows}


_event = lru_cache(maxsize=1024)(from_json)


def spent_by_client(
    connection: sqlite3.Connection, run: str, client: int | None = None
) -> dict[int, Exposure]:
    """Client -> everything it reserved in this run, merged; unfinished and unsettled rows count in full."""
    rows = connection.execute(
        "SELECT client, event, count(*) FROM reservations WHERE run = ?1 AND (?2 IS NULL OR client = ?2)"
        " GROUP BY client, event",
        (run, client),
    )
    spent: dict[int, list[Event]] = {}
    for who, text, times in rows:
        spent.setdefault(who, []).append(repeat(_event(text), times))
    return {who: merge(events) for who, events in spent.items()}
