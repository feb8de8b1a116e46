"""A user's own csv, tsv, jsonl or parquet file, read as a table; every refusal names the line."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from securefed.data.table import Row, Table
from securefed.errors import DataError


def read_file(path: Path) -> Table:
    """The file as a table; its suffix says the format.

    Raises:
        DataError: no such file, another suffix, empty, not UTF-8, or a line that does not fit.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name} has no known suffix; expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}; a file of records is named relative to the current folder")
    try:
        return reader(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path.name}, line {line}: not UTF-8; convert it, e.g. with iconv -t utf-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path.name} is empty")
    return text


def _read_separated(path: Path, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    places: list[str] = []
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            if not header:
                header = _header(path, [name.strip() for name in fields])
            elif fields:
                if len(fields) != len(header):
                    raise DataError(
                        f"{path.name}, line {line}: {len(fields)} fields, the header has {len(header)}"
                    )
                rows.append(dict(zip(header, fields, strict=True)))
                places.append(f"line {line}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path.name}, line {line}: {error}; mend the quoting or use jsonl") from None
    return Table(path.name, tuple(header), rows, places)


def _header(path: Path, names: list[str]) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path.name}: column {twice[0]!r} is there twice; rename one")
    return names


def _read_jsonl(path: Path) -> Table:
    rows: list[Row] = []
    places: list[str] = []
    # only "\n" ends a line of JSON: str.splitlines would also cut inside strings
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path.name}, line {number}: not JSON") from None
        if not isinstance(row, dict):
            raise DataError(f"{path.name}, line {number}: expected an object, found {type(row).__name__}")
        rows.append(row)
        places.append(f"line {number}")
    columns = dict.fromkeys(name for row in rows for name in row)
    return Table(path.name, tuple(columns), rows, places)


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path.name} needs pyarrow; install it with pip install 'securefed[parquet]'"
        ) from None
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path.name} is no readable parquet file ({type(error).__name__})") from None
    rows = table.to_pylist()
    return Table(path.name, tuple(table.column_names), rows, [f"row {i}" for i in range(1, len(rows) + 1)])


READERS: Mapping[str, Callable[[Path], Table]] = {
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
"""Suffix -> reader."""
