"""The whole ledger as JSON, for an auditor, and her check of it. Updates stay out; their digests are in."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from securefed.errors import PrivacyError
from securefed.privacy.chain import EMPTY, Head, follow, link_of, read_head
from securefed.privacy.store import SCHEMA_VERSION

_TABLES = {
    "runs": "SELECT run, dataset, unit, disjoint, partition, registered_at FROM runs ORDER BY rowid",
    "shards": "SELECT run, client, digest, records FROM shards ORDER BY run, client",
    "reservations": (
        "SELECT id, run, client, round, event, steps, steps_taken, payload_digest, reserved_at, settled_at"
        " FROM reservations ORDER BY id"
    ),
    "chain": "SELECT id, kind, ref, hex(nonce) AS nonce FROM chain ORDER BY id",
}


def write_export(connection: sqlite3.Connection, path: Path) -> None:
    """Writes runs, shards, reservations (events as JSON) and the chain over them to `path`, whole or not at all.

    The chain's nonces are in it: keep the file from those whom the heads should tell nothing.

    Raises:
        PrivacyError: the file cannot be written.
    """
    tree: dict[str, Any] = {"format": "securefed-ledger", "schema_version": SCHEMA_VERSION}
    for name, query in _TABLES.items():
        cursor = connection.execute(query)
        columns = [column[0] for column in cursor.description]
        tree[name] = [dict(zip(columns, row, strict=True)) for row in cursor]
    for row in tree["reservations"]:
        row["event"] = json.loads(row["event"])
    for row in tree["runs"]:
        row["disjoint"] = bool(row["disjoint"])
    tree["head"] = str(read_head(connection))
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PrivacyError(f"cannot write {path}: {error.strerror}; choose another path") from None


def check_export(path: Path | str, seen: Head | None = None) -> Head:
    """The head of an exported ledger, recomputed from its records alone.

    Args:
        seen: a head that the site has shown to others; it must be one of this ledger's past.

    Raises:
        PrivacyError: not such a file, records that are not those of the chain, or another head in its past.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
        if tree["format"] != "securefed-ledger" or tree["schema_version"] != SCHEMA_VERSION:
            raise ValueError
        heads = [EMPTY]
        for entry, record in zip(tree["chain"], _records(tree), strict=True):
            nonce = bytes.fromhex(entry["nonce"])
            heads.append(follow(heads[-1], [link_of(len(heads), nonce, entry["kind"], record)]))
        stated = Head.parse(tree["head"])
    except OSError as error:
        raise PrivacyError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise PrivacyError(f"{path} is not a whole export of a ledger of this version") from None
    if heads[-1] != stated:
        raise PrivacyError(f"{path}: its records are not those that its head was made of")
    if seen is not None and (seen.count >= len(heads) or heads[seen.count] != seen):
        raise PrivacyError(
            f"{path}: the ledger did not grow out of the one with head {seen.count} that was seen"
        )
    return stated


def _records(tree: dict[str, Any]) -> Iterator[list[Any]]:
    """The chain's records in its order, out of the tables; each of these is used up exactly once."""
    runs = {row["run"]: row for row in tree["runs"]}
    charges = {str(row["id"]): row for row in tree["reservations"]}
    settled = {ref for ref, row in charges.items() if row["settled_at"] is not None}
    due = {"run": set(runs), "reserve": set(charges), "settle": settled}
    for entry in tree["chain"]:
        kind, ref = entry["kind"], entry["ref"]
        due[kind].remove(ref)
        if kind == "run":
            row = runs[ref]
            shards = [[s["client"], s["digest"], s["records"]] for s in tree["shards"] if s["run"] == ref]
            fields = [row[k] for k in ("run", "dataset", "unit", "disjoint", "partition", "registered_at")]
            yield [*fields[:3], int(row["disjoint"]), *fields[4:], shards]
        elif kind == "reserve":
            row = charges[ref]
            fields = [row[k] for k in ("id", "run", "client", "round", "event", "steps", "reserved_at")]
            yield [*fields[:4], json.dumps(row["event"]), *fields[5:]]
        else:
            yield [charges[ref][k] for k in ("id", "steps_taken", "payload_digest", "settled_at")]
    if any(due.values()):
        raise ValueError("records that are not in the chain")
