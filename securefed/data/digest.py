"""What records are called in a ledger: SHA-256 over their contents, whatever their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from securefed.data.records import Examples
from securefed.data.table import Table


def records_digest(*parts: Examples) -> str:
    """SHA-256 over the records of all parts together, hex.

    Order, groups, documents and which part a record is in do not enter: a new split or a shuffled
    copy of the same records keeps its name, and with it what was spent on them.
    """
    total = hashlib.sha256()
    for digest in sorted(d for part in parts for d in _each(part)):
        total.update(digest)
    return total.hexdigest()


def table_digest(*tables: Table) -> str:
    """SHA-256 over the rows of all tables together, every column of them, hex; their order does not enter."""
    rows = sorted(d for table in tables for d in _rows(table))
    return hashlib.sha256(b"".join(rows)).hexdigest()


def _rows(table: Table) -> Iterator[bytes]:
    for row in table.rows:
        record = hashlib.sha256()
        for column in sorted(table.columns):
            _field(record, column.encode(), repr(row.get(column)).encode("utf-8", "surrogatepass"))
        yield record.digest()


def _each(examples: Examples) -> Iterator[bytes]:
    """SHA-256 of each record: its fields with their lengths, so that no field can pass for another."""
    for i in range(len(examples)):
        record = hashlib.sha256()
        if examples.texts is not None:
            _field(record, b"text", examples.texts[i].encode("utf-8", "surrogatepass"))
        if examples.images is not None:
            image = np.ascontiguousarray(examples.images[i], "<f4")
            _field(record, f"image{image.shape}".encode(), image.tobytes())
        if examples.labels is not None:
            _field(record, b"label", str(int(examples.labels[i])).encode())
        if examples.targets is not None:
            _field(record, b"target", examples.targets[i].encode("utf-8", "surrogatepass"))
        yield record.digest()


def _field(record: hashlib._Hash, name: bytes, value: bytes) -> None:
    record.update(b"%d:%s%d:" % (len(name), name, len(value)))
    record.update(value)
