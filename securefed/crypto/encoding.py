"""Canonical bytes: one way to write a value and one way to read it, so that two parties sign the same thing.

Little-endian, fixed widths, lengths before contents, nothing optional. A reader never trusts a length: it
is bounded by the caller and by what has really arrived before anything is allocated.
"""

from __future__ import annotations

import struct

from securefed.errors import ProtocolError


class Writer:
    """Collects fields; every method returns the writer, `finish` the bytes.

    >>> Writer().u8(7).text("round").finish()
    b'\\x07\\x05\\x00\\x00\\x00round'
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def _number(self, form: str, value: float) -> Writer:
        try:
            self._parts.append(struct.pack("<" + form, value))
        except struct.error:
            raise ProtocolError(
                f"{value!r} does not fit a field of {struct.calcsize('<' + form)} bytes"
            ) from None
        return self

    def u8(self, value: int) -> Writer:
        """An unsigned byte."""
        return self._number("B", int(value))

    def u16(self, value: int) -> Writer:
        """Two bytes."""
        return self._number("H", value)

    def u32(self, value: int) -> Writer:
        """Four bytes."""
        return self._number("I", value)

    def u64(self, value: int) -> Writer:
        """Eight bytes."""
        return self._number("Q", value)

    def f64(self, value: float) -> Writer:
        """A double; NaN is refused, since it has many spellings and equals none of them."""
        if value != value:
            raise ProtocolError("not a number cannot be signed: it has many spellings")
        return self._number("d", value + 0.0)  # minus zero becomes zero

    def raw(self, value: bytes) -> Writer:
        """Bytes whose length both sides know."""
        self._parts.append(bytes(value))
        return self

    def blob(self, value: bytes) -> Writer:
        """Bytes with their length (u32) before them."""
        return self.u32(len(value)).raw(value)

    def text(self, value: str) -> Writer:
        """UTF-8 with its length before it."""
        return self.blob(value.encode())

    def finish(self) -> bytes:
        """All that was written."""
        return b"".join(self._parts)


class Reader:
    """Reads what a `Writer` wrote, and nothing else; every surprise is a ProtocolError."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._at = memoryview(data), 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def raw(self, n: int) -> bytes:
        """The next n bytes."""
        if not 0 <= n <= self.left:
            raise ProtocolError(f"the message is cut short: {n} bytes expected, {self.left} left")
        self._at += n
        return bytes(self._data[self._at - n : self._at])

    def _number(self, form: str) -> tuple[int | float, ...]:
        return struct.unpack("<" + form, self.raw(struct.calcsize("<" + form)))

    def u8(self) -> int:
        """An unsigned byte."""
        return int(self._number("B")[0])

    def u16(self) -> int:
        """Two bytes."""
        return int(self._number("H")[0])

    def u32(self) -> int:
        """Four bytes."""
        return int(self._number("I")[0])

    def u64(self) -> int:
        """Eight bytes."""
        return int(self._number("Q")[0])

    def f64(self) -> float:
        """A double in the one spelling that a Writer gives it."""
        value = float(self._number("d")[0])
        if value != value or struct.pack("<d", value) == struct.pack("<d", -0.0):
            raise ProtocolError("a number in a spelling that no writer uses")
        return value

    def count(self, most: int, width: int) -> int:
        """A number of items of `width` bytes or more that follow: at most `most`, and no more than can be there."""
        n = self.u32()
        if n > most or n * width > self.left:
            raise ProtocolError(
                f"the message announces {n} items, at most {min(most, self.left // max(1, width))} can follow"
            )
        return n

    def blob(self, most: int) -> bytes:
        """Bytes with their length before them, at most `most`."""
        return self.raw(self.count(most, 1))

    def text(self, most: int) -> str:
        """UTF-8 with its length before it, at most `most` bytes."""
        try:
            return self.blob(most).decode()
        except UnicodeDecodeError:
            raise ProtocolError("a text that is not UTF-8") from None

    def finish(self) -> None:
        """Raises unless all has been read."""
        if self.left:
            raise ProtocolError(f"{self.left} bytes too many")
