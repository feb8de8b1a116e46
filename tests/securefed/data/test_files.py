"""Own csv, tsv, jsonl and parquet files: what is read, and which line is to blame."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.data.files import read_file
from securefed.data.table import Table
from securefed.errors import DataError

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(table: Table) -> list[tuple[str, dict[str, object]]]:
    return [(p, dict(r)) for p, r in zip(table.places, table.rows, strict=True)]


def test_csv_keeps_quotes_commas_and_lines_and_counts_lines_of_the_file(tmp_path: Path) -> None:
    table = read_file(
        write(tmp_path, "a.csv", '\ufefftext,label\r\n"one, ""two""\r\nthree",1\r\n\r\nfour,0\r\n')
    )
    assert table.columns == ("text", "label")
    assert rows(table) == [
        ("line 2", {"text": 'one, "two"\r\nthree', "label": "1"}),
        ("line 5", {"text": "four", "label": "0"}),
    ]


def test_tsv_is_separated_by_tabs(tmp_path: Path) -> None:
    assert rows(read_file(write(tmp_path, "a.TSV", "text\tlabel\na, b\t1\n")))[0][1] == {
        "text": "a, b",
        "label": "1",
    }


def test_jsonl_joins_the_columns_of_all_rows(tmp_path: Path) -> None:
    table = read_file(
        write(tmp_path, "a.jsonl", '{"text": "a\\u2028b", "label": 1}\n\n{"text": "c\x85", "more": null}')
    )
    assert table.columns == ("text", "label", "more")
    assert rows(table) == [
        ("line 1", {"text": "a\u2028b", "label": 1}),
        ("line 3", {"text": "c\x85", "more": None}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.jsonl", " \n \n", "a.jsonl is empty"),
        ("a.csv", b"text\nfine\nsecret \xff\n", "a.csv, line 3: not UTF-8"),
        ("a.jsonl", b"\xff", "a.jsonl, line 1: not UTF-8"),
        ("a.csv", "text,label\nsecret,1\nsecret\n", "a.csv, line 3: 1 fields, the header has 2"),
        ("a.csv", "text,label\nsecret,1,2\n", "a.csv, line 2: 3 fields, the header has 2"),
        ("a.csv", 'text,label\n"secret,1\n', "a.csv, line 2: unexpected end of data; mend"),
        ("a.csv", f"text\nfine\n{'secret' * 30000}\n", "a.csv, line 3: field larger than field limit"),
        ("a.csv", "text,label,text\nsecret,1,2\n", "a.csv: column 'text' is there twice"),
        ("a.jsonl", '{"text": "a"}\nsecret\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '["secret"]\n', "a.jsonl, line 1: expected an object, found list"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.txt", "secret", "a.txt has no known suffix; expected one of .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_a_bad_file_is_refused_by_line_without_its_text(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError) as error:
        read_file(write(tmp_path, name, content))
    assert str(error.value).startswith(message)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(DataError, match=r"there is no file|has no known suffix"):
            read_file(path)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1))
def test_csv_reads_what_the_csv_module_writes(cells: list[tuple[str, str]]) -> None:
    import csv
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("text", "label"), *cells])
        assert [(r["text"], r["label"]) for r in read_file(path).rows] == cells


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"a.parquet needs pyarrow; .*securefed\[parquet\]"):
        read_file(write(tmp_path, "a.parquet", b"PAR1"))


def test_parquet_rows_come_from_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ArrowException(Exception):
        pass

    class Found:
        column_names = ("text", "label")

        def to_pylist(self) -> list[dict[str, object]]:
            return [{"text": "a", "label": 0}, {"text": "b", "label": None}]

    def read_table(path: Path) -> Found:
        if path.read_bytes() != b"PAR1":
            raise ArrowException("secret")
        return Found()

    fake, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    vars(fake).update(ArrowException=ArrowException, parquet=parquet)
    vars(parquet).update(read_table=read_table)
    monkeypatch.setitem(sys.modules, "pyarrow", fake)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    table = read_file(write(tmp_path, "a.parquet", b"PAR1"))
    assert rows(table) == [("row 1", {"text": "a", "label": 0}), ("row 2", {"text": "b", "label": None})]
    with pytest.raises(DataError, match=r"no readable parquet file \(ArrowException\)"):
        read_file(write(tmp_path, "b.parquet", b"junk"))


def test_a_real_parquet_file_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (extra parquet) is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1, 0]}), tmp_path / "a.parquet")
    assert [dict(r) for r in read_file(tmp_path / "a.parquet").rows] == [
        {"text": "a", "label": 1},
        {"text": "b", "label": 0},
    ]
    with pytest.raises(DataError, match="no readable parquet file"):
        read_file(write(tmp_path, "b.parquet", b"junk"))
