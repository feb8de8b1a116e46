"""The whole ledger as JSON, for an auditor. Updates stay out; their digests are in."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from securefed.errors import PrivacyError
from securefed.privacy.store import SCHEMA_VERSION

_TABLES = {
    "runs": "SELECT run, dataset, unit, disjoint, partition, registered_at FROM runs ORDER BY rowid",
    "shards": "SELECT run, client, digest, records FROM shards ORDER BY run, client",
    "reservations": (
        "SELECT id, run, client, round, event, steps, steps_taken, payload_digest, reserved_at, settled_at"
        " FROM reservations ORDER BY id"
    ),
}


def write_export(connection: sqlite3.Connection, path: Path) -> None:
    """Writes runs, shards and reservations (events as JSON) to `path`, whole or not at all.

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
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PrivacyError(f"cannot write {path}: {error.strerror}; choose another path") from None
