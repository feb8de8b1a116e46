"""Coded updates in the clear: the bytes of the code and of a header, refused where a byte or a fact is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.compression.quantized import Quantized
from securefed.compression.top_k import TopK
from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import exchange
from securefed.errors import ProtocolError
from securefed.layout import vector_digest
from securefed.protect.packed import Packed, decode, encode
from securefed.protect.plain import CHECK, HEADER
from securefed.types import RoundParameters, Update

D = 300
DIGEST = vector_digest(np.zeros(4, np.float32))
OTHER = vector_digest(np.ones(4, np.float32))
BASE = RoundParameters("run", 3, (0, 1, 2), D, DIGEST, DIGEST)
PACKED = Packed(TopK(0.1))


def update(client: int = 0) -> Update:
    rng = np.random.default_rng(client)
    return Update(client, 3, rng.normal(size=D).astype(np.float32), weight=client + 1.0)


@pytest.mark.parametrize("coding", [TopK(0.1), Quantized(7)])
@pytest.mark.parametrize("keep", [True, False])
def test_the_sum_is_that_of_the_decoded_updates(coding: Any, keep: bool) -> None:
    packed = Packed(coding, seed=5, keep_updates=keep)
    result = exchange(packed, BASE, {k: update(k) for k in range(3)}, SystemEntropy())
    rows = {k: decode(encode(update(k), BASE, packed), BASE, k, packed) for k in range(3)}
    np.testing.assert_allclose(
        result.total, sum(w * v.astype(np.float64) for w, v in rows.values()), rtol=1e-6
    )
    assert result.weight == 6.0
    assert (result.updates is None) == (not keep)
    assert set(result.bytes_up.values()) == {HEADER.size + coding.bytes_of(D) + CHECK.size}


def test_rounding_is_drawn_from_the_seed_the_round_and_the_client() -> None:
    packed = Packed(Quantized(1), seed=5)
    one = update()
    assert encode(one, BASE, packed) == encode(one, BASE, packed)
    later = replace(BASE, round=4)
    bodies = {
        encode(one, BASE, packed)[HEADER.size :],
        encode(one, BASE, replace(packed, seed=6))[HEADER.size :],
        encode(replace(one, round=4), later, packed)[HEADER.size :],
        encode(replace(one, client=1), BASE, packed)[HEADER.size :],
    }
    assert len(bodies) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "another"}, "another run"),
        ({"round": 4}, "another round"),
        ({"layout_digest": OTHER}, "another layout"),
        ({"model_digest": OTHER}, "another global model"),
    ],
)
def test_a_message_of_another_round_is_refused(changes: dict[str, Any], words: str) -> None:
    payload = encode(update(), BASE, PACKED)
    with pytest.raises(ProtocolError, match=words):
        decode(payload, replace(BASE, **changes), 0, PACKED)
    with pytest.raises(ProtocolError, match="another client"):
        decode(payload, BASE, 1, PACKED)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_refused(place: int, change: int) -> None:
    payload = bytearray(encode(update(), BASE, PACKED))
    payload[place % len(payload)] ^= change
    with pytest.raises(ProtocolError):
        decode(bytes(payload), BASE, 0, PACKED)


@given(st.binary(max_size=400))
def test_garbage_is_refused_and_counted(payload: bytes) -> None:
    server = PACKED.server(BASE)
    server.receive(1, payload)
    result = server.advance().result
    assert result is not None
    assert 1 in result.refused
    assert result.survivors == ()


def test_a_number_that_is_not_finite_has_no_code() -> None:
    bad = update()
    bad.vector[3] = np.nan
    with pytest.raises(ProtocolError, match="not finite"):
        encode(bad, BASE, PACKED)
