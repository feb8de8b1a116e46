"""The ledger's records as a hash chain, whose head others keep: what is cut off behind their back shows.

Every record that enters the ledger (a run, a reservation, a settlement) adds one link, in the same
transaction. A head is a hash over all links so far; it tells nothing of them, since each has a secret nonce
in it. Whoever has seen a head can later ask for the links after it: if they do not lead from the old head to
the new one, the ledger was truncated, rolled back or rewritten in between.

    link(i) = SHA-256(domain | i | nonce | kind | record)      head(i) = SHA-256(domain | head(i-1) | link(i))
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from securefed.errors import PrivacyError

_LINK, _HEAD = b"securefed ledger link v1", b"securefed ledger head v1"
DIGEST = 32
MOST_LINKS = 1 << 16
"""Links in one proof, 2 MiB; who has more to show since a head was seen has more charges than any run makes."""

STATEMENTS = (
    "CREATE TABLE chain (id INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('run', 'reserve', 'settle')),"
    " ref TEXT NOT NULL, nonce BLOB NOT NULL, link BLOB NOT NULL, head BLOB NOT NULL)",
    "CREATE TRIGGER keep_chain BEFORE DELETE ON chain"
    " BEGIN SELECT RAISE(ABORT, 'a link is never deleted'); END",
    "CREATE TRIGGER keep_link BEFORE UPDATE ON chain"
    " BEGIN SELECT RAISE(ABORT, 'a link is never changed'); END",
)
CREATE = ";\n".join(STATEMENTS) + ";"

_RECORDS = {
    "run": "SELECT run, dataset, unit, disjoint, partition, registered_at FROM runs WHERE run = ?",
    "reserve": "SELECT id, run, client, round, event, steps, reserved_at FROM reservations WHERE id = ?",
    "settle": "SELECT id, steps_taken, payload_digest, settled_at FROM reservations WHERE id = ?",
}


@dataclass(frozen=True, slots=True)
class Head:
    """A ledger's state in 40 bytes: how many links it has, and a hash over all of them. Safe to show."""

    count: int
    digest: bytes

    def __str__(self) -> str:
        return f"{self.count}:{self.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """The inverse of `str`. Raises ValueError where the text is no head."""
        count, _, digest = text.partition(":")
        found = cls(int(count), bytes.fromhex(digest))
        if found.count < 0 or len(found.digest) != DIGEST:
            raise ValueError("not the head of a ledger")
        return found


EMPTY = Head(0, bytes(DIGEST))


def follow(head: Head, links: Sequence[bytes]) -> Head:
    """The head after these links."""
    digest = head.digest
    for link in links:
        digest = hashlib.sha256(_HEAD + digest + link).digest()
    return Head(head.count + len(links), digest)


def grow(connection: sqlite3.Connection, kind: str, ref: str | int) -> None:
    """Adds the link of a record that this transaction has just written."""
    head, nonce = read_head(connection), secrets.token_bytes(16)
    link = link_of(head.count + 1, nonce, kind, _record(connection, kind, str(ref)))
    after = follow(head, [link])
    connection.execute(
        "INSERT INTO chain VALUES (?, ?, ?, ?, ?, ?)",
        (after.count, kind, str(ref), nonce, link, after.digest),
    )


def read_head(connection: sqlite3.Connection) -> Head:
    """The newest head."""
    row = connection.execute("SELECT id, head FROM chain ORDER BY id DESC LIMIT 1").fetchone()
    return EMPTY if row is None else Head(row[0], bytes(row[1]))


def read_links(connection: sqlite3.Connection, since: int) -> tuple[bytes, ...]:
    """The links after the first `since`, in order."""
    rows = connection.execute("SELECT link FROM chain WHERE id > ? ORDER BY id", (since,))
    return tuple(bytes(link) for (link,) in rows)


def holds(connection: sqlite3.Connection, seen: Head) -> bool:
    """Whether this ledger has been in that state, and has only grown since."""
    if seen.count == 0:
        return seen == EMPTY
    row = connection.execute("SELECT head FROM chain WHERE id = ?", (seen.count,)).fetchone()
    return row is not None and bytes(row[0]) == seen.digest


def check_chain(connection: sqlite3.Connection) -> None:
    """Recomputes every link from its record.

    Raises:
        PrivacyError: a record was changed, removed or slipped in by hand; the first is named.
    """
    head = EMPTY
    rows = connection.execute("SELECT id, kind, ref, nonce, link, head FROM chain ORDER BY id").fetchall()
    for number, kind, ref, nonce, link, digest in rows:
        after = follow(head, [bytes(link)])
        fits = number == after.count and after.digest == bytes(digest)
        if not fits or link_of(number, bytes(nonce), kind, _record(connection, kind, ref)) != bytes(link):
            raise PrivacyError(
                f"the privacy ledger was changed by hand: entry {head.count + 1} of its chain ({kind} {ref}) does not "
                "fit its record; restore the newest copy"
            )
        head = after
    _check_complete(connection)


def _check_complete(connection: sqlite3.Connection) -> None:
    for kind, count in (
        ("run", "SELECT count(*) FROM runs"),
        ("reserve", "SELECT count(*) FROM reservations"),
        ("settle", "SELECT count(*) FROM reservations WHERE settled_at IS NOT NULL"),
    ):
        linked, there = (
            connection.execute(query, args).fetchone()[0]
            for query, args in (
                ("SELECT count(DISTINCT ref) FROM chain WHERE kind = ?", (kind,)),
                (count, ()),
            )
        )
        if linked != there:
            raise PrivacyError(
                f"the privacy ledger was changed by hand: {there} records of kind {kind}, {linked} in its chain; "
                "restore the newest copy"
            )


def _record(connection: sqlite3.Connection, kind: str, ref: str) -> list[Any]:
    """The fields that a link stands for; of a run also its shards."""
    record: list[Any] = list(connection.execute(_RECORDS[kind], (ref,)).fetchone() or ())
    if kind == "run":
        shards = "SELECT client, digest, records FROM shards WHERE run = ? ORDER BY client"
        record.append([list(row) for row in connection.execute(shards, (ref,))])
    return record


def link_of(number: int, nonce: bytes, kind: str, record: Sequence[Any]) -> bytes:
    """The link of the record with this number in the chain."""
    text = json.dumps([kind, list(record)], separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(_LINK + number.to_bytes(8, "little") + nonce + text.encode()).digest()


def adopt(connection: sqlite3.Connection) -> None:
    """Gives a ledger from before the chain one over all it holds."""
    for kind, ref in list(_old_records(connection)):
        grow(connection, kind, ref)


def _old_records(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for (run,) in connection.execute("SELECT run FROM runs ORDER BY rowid"):
        yield "run", run
    for number, settled in connection.execute("SELECT id, settled_at FROM reservations ORDER BY id"):
        yield "reserve", str(number)
        if settled is not None:
            yield "settle", str(number)
