"""Chunks of a file: what was written comes back, and nothing else does."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from securefed.crypto import chunks as module
from securefed.crypto.chunks import Chunks, count
from securefed.errors import ProtocolError

KEY = bytes(range(32))


def closed(chunks: Chunks, data: bytes) -> list[tuple[bytes, bytes]]:
    found = (chunks.close(number, data[start:end]) for number, start, end in chunks.spans())
    return [(bytes(stored), tag) for stored, tag in found]


@given(data=st.binary(max_size=40), sealed=st.booleans())
def test_what_was_closed_opens_again_and_tiles_the_file(data: bytes, sealed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 8)
        chunks = Chunks(KEY, len(data), sealed)
        stored = closed(chunks, data)
        assert len(stored) == count(len(data)) >= 1
        assert b"".join(bytes(chunks.open(k, s, tag)) for k, (s, tag) in enumerate(stored)) == data
        readable = b"".join(s for s, _ in stored) == data
        assert readable == (not sealed or not data)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("broken", ["byte", "tag", "swap", "key", "length", "number"])
def test_what_was_changed_moved_or_cut_off_is_noticed(
    monkeypatch: pytest.MonkeyPatch, sealed: bool, broken: str
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 8)
    data = bytes(range(24))
    chunks = Chunks(KEY, len(data), sealed)
    stored = closed(chunks, data)
    number, (body, tag) = 1, stored[1]
    if broken == "byte":
        body = body[:3] + bytes([body[3] ^ 1]) + body[4:]
    elif broken == "tag":
        tag = bytes([tag[0] ^ 1]) + tag[1:]
    elif broken == "swap":
        body, tag = stored[0]
    elif broken == "key":
        chunks = Chunks(bytes(32), len(data), sealed)
    elif broken == "length":
        chunks = Chunks(KEY, 16, sealed)  # now chunk 1 would be the last
    else:
        number = 2
    with pytest.raises(ProtocolError):
        chunks.open(number, body, tag)


def test_a_sealed_chunk_is_aes_gcm_as_everybody_computes_it() -> None:
    chunks, data = Chunks(KEY, 5, True), b"hello"
    stored, tag = chunks.close(0, data)
    nonce = bytes(11) + b"\1"  # chunk 0, and the last
    assert bytes(stored) + tag == AESGCM(KEY).encrypt(nonce, data, None)
    assert Chunks(KEY, 5, False).close(0, data)[1] == AESGCM(KEY).encrypt(nonce, b"", data)


def test_no_two_chunks_share_a_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 8)
    stored = closed(Chunks(KEY, 64, True), bytes(64))
    assert len({body for body, _ in stored}) == 8  # equal texts, different ciphertexts


@pytest.mark.parametrize(("key", "length"), [(b"short", 1), (KEY, -1), (KEY, 2**52 + 1)])
def test_a_wrong_key_or_length_is_refused(key: bytes, length: int) -> None:
    with pytest.raises(ProtocolError, match="32"):
        Chunks(key, length, True)
