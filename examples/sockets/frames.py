"""Messages on a stream: four bytes of length, then so many bytes, never more than a bound."""

from __future__ import annotations

import asyncio

MOST = 1 << 24
"""Bytes in one frame, 16 MiB: far above a round of this model, far below what would hurt."""


class BadFrame(ConnectionError):
    """The other side announces more than any message here has."""


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next message. Raises asyncio.IncompleteReadError at the end, BadFrame for a length out of bounds."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > MOST:
        raise BadFrame(f"a frame of {size} bytes; at most {MOST} are read")
    return await reader.readexactly(size)


def write_frame(writer: asyncio.StreamWriter, payload: bytes) -> None:
    """Queues one message; a reader who leaves too much unread is cut off, so that memory stays bounded."""
    if writer.transport.get_write_buffer_size() > 4 * MOST:
        writer.transport.abort()
        return
    writer.write(len(payload).to_bytes(4, "big") + payload)
