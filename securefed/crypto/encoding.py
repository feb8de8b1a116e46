"""Canonical bytes for what is signed, hashed or sent: little-endian, fixed widths, counted lengths.

There is one encoding of every value, so a digest over it names the value. A reader checks each length
against what is there before it takes or reserves anything, and refuses bytes that are left over.
"""

from __future__ import annotations

import math
import struct

from securefed.errors import ProtocolError

_U8, _U16, _U32, _U64, _F64 = (struct.Struct(f"<{form}") for form in "BHIQd")


class Writer:
    """Appends fields one after another; every method returns the writer.

    Example:
        >>> Writer().u8(1).blob(b"ab").bytes()
        b'\\x01\\x02\\x00\\x00\\x00ab'

    Raises:
        ProtocolError: a number that its field cannot hold, or a float that is not finite.
    """

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def _number(self, form: struct.Struct, value: float) -> Writer:
        try:
            self._parts.append(form.pack(value))
        except struct.error:
            raise ProtocolError(f"encoding: {value!r} does not fit a field of {form.size} bytes") from None
        return self

    def u8(self, x: int) -> Writer:
        """One byte, 0 .. 255."""
        return self._number(_U8, x)

    def u16(self, x: int) -> Writer:
        """Two bytes, 0 .. 2^16 - 1."""
        return self._number(_U16, x)

    def u32(self, x: int) -> Writer:
        """Four bytes, 0 .. 2^32 - 1."""
        return self._number(_U32, x)

    def u64(self, x: int) -> Writer:
        """Eight bytes, 0 .. 2^64 - 1."""
        return self._number(_U64, x)

    def f64(self, x: float) -> Writer:
        """A finite float64: NaN has many encodings, so neither it nor infinity is written."""
        if not math.isfinite(x):
            raise ProtocolError(f"encoding: a number must be finite, found {x}")
        return self._number(_F64, x)

    def raw(self, b: bytes) -> Writer:
        """Bytes whose number the reader knows."""
        self._parts.append(b if type(b) is bytes else bytes(b))
        return self

    def blob(self, b: bytes) -> Writer:
        """u32 length, then the bytes."""
        return self.u32(len(b)).raw(b)

    def text(self, text: str) -> Writer:
        """A blob of UTF-8."""
        return self.blob(text.encode())

    def finish(self) -> bytes:
        """All fields written so far; `bytes()` under a name that hides no builtin."""
        return b"".join(self._parts)

    def bytes(self) -> bytes:
        """All fields written so far."""
        return self.finish()


class Reader:
    """Takes the fields of a message in order, then `end()`.

    Raises:
        ProtocolError: by every method, where the bytes are too few, too many or not canonical.
    """

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self._data) - self._at

    def raw(self, n: int) -> bytes:
        """The next n bytes, copied; n comes from the caller or has been bounded by it."""
        if not 0 <= n <= self.left:
            raise ProtocolError(
                f"encoding: {n} bytes expected, {self.left} are left; the message is cut short"
            )
        self._at += n
        return bytes(self._data[self._at - n : self._at])

    def u8(self) -> int:
        """One byte."""
        return int(_U8.unpack(self.raw(1))[0])

    def u16(self) -> int:
        """Two bytes."""
        return int(_U16.unpack(self.raw(2))[0])

    def u32(self) -> int:
        """Four bytes."""
        return int(_U32.unpack(self.raw(4))[0])

    def u64(self) -> int:
        """Eight bytes."""
        return int(_U64.unpack(self.raw(8))[0])

    def f64(self) -> float:
        """A finite float64."""
        value = float(_F64.unpack(self.raw(8))[0])
        if not math.isfinite(value):
            raise ProtocolError("encoding: a number is not finite")
        return value

    def count(self, most: int, width: int) -> int:
        """A u32 number of items, at most `most`, each taking at least `width` of the bytes left."""
        n = self.u32()
        if n > most or n * width > self.left:
            raise ProtocolError(
                f"encoding: {n} items announced, at most {min(most, self.left // max(width, 1))} fit"
            )
        return n

    def blob(self, max_length: int) -> bytes:
        """A blob of at most max_length bytes."""
        n = self.u32()
        if n > max_length:
            raise ProtocolError(f"encoding: a field of {n} bytes is longer than the {max_length} allowed")
        return self.raw(n)

    def text(self, max_length: int) -> str:
        """A blob that is UTF-8; max_length counts bytes."""
        try:
            return self.blob(max_length).decode()
        except UnicodeDecodeError:
            raise ProtocolError("encoding: a text is not UTF-8") from None

    def end(self) -> None:
        """Refuses bytes that are left over."""
        if self.left:
            raise ProtocolError(f"encoding: {self.left} bytes are left over after the last field")

    finish = end
