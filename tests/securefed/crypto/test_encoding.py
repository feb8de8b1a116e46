"""One way to write, one way to read, and no surprise that is not an error."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.crypto.encoding import Reader, Writer
from securefed.errors import ProtocolError

FIELDS = {
    "u8": st.integers(0, 2**8 - 1),
    "u16": st.integers(0, 2**16 - 1),
    "u32": st.integers(0, 2**32 - 1),
    "u64": st.integers(0, 2**64 - 1),
    "f64": st.floats(allow_nan=False),
    "blob": st.binary(max_size=40),
    "text": st.text(max_size=20),
}
values = st.sampled_from(sorted(FIELDS)).flatmap(lambda kind: FIELDS[kind].map(lambda value: (kind, value)))


def written(fields: list[tuple[str, Any]]) -> bytes:
    writer = Writer()
    for kind, value in fields:
        getattr(writer, kind)(value)
    return writer.finish()


def read(reader: Reader, kinds: list[str]) -> list[Any]:
    return [
        getattr(reader, kind)(100) if kind in ("blob", "text") else getattr(reader, kind)() for kind in kinds
    ]


@given(fields=st.lists(values, max_size=8))
def test_what_is_written_is_read(fields: list[tuple[str, Any]]) -> None:
    reader = Reader(written(fields))
    assert read(reader, [kind for kind, _ in fields]) == [value for _, value in fields]
    reader.finish()


@given(fields=st.lists(values, min_size=1, max_size=5), cut=st.integers(1, 30))
def test_a_message_cut_short_is_an_error(fields: list[tuple[str, Any]], cut: int) -> None:
    payload = written(fields)
    if not payload:
        return
    reader = Reader(payload[: max(0, len(payload) - cut)])
    with pytest.raises(ProtocolError):
        read(reader, [kind for kind, _ in fields])


@given(
    payload=st.binary(max_size=60), kinds=st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=6)
)
def test_garbage_gives_values_that_write_the_same_bytes_or_an_error(payload: bytes, kinds: list[str]) -> None:
    reader = Reader(payload)
    try:
        found = read(reader, kinds)
        reader.finish()
    except ProtocolError:
        return
    assert written(list(zip(kinds, found, strict=True))) == payload


def test_a_length_is_never_trusted() -> None:
    huge = Writer().u32(2**32 - 1).finish()
    with pytest.raises(ProtocolError, match="announces 4294967295 items"):
        Reader(huge).blob(2**40)
    with pytest.raises(ProtocolError, match="at most 2"):
        Reader(Writer().u32(3).raw(bytes(100)).finish()).count(2, 1)


def test_bytes_too_many_are_an_error() -> None:
    reader = Reader(b"\x01\x02")
    reader.u8()
    with pytest.raises(ProtocolError, match="1 bytes too many"):
        reader.finish()


def test_what_has_no_single_spelling_is_not_written() -> None:
    with pytest.raises(ProtocolError, match="not a number"):
        Writer().f64(math.nan)
    assert Writer().f64(-0.0).finish() == Writer().f64(0.0).finish()
    with pytest.raises(ProtocolError, match="does not fit"):
        Writer().u8(256)
    with pytest.raises(ProtocolError, match="does not fit"):
        Writer().u32(-1)
    with pytest.raises(ProtocolError, match="UTF-8"):
        Reader(Writer().blob(b"\xff").finish()).text(10)
