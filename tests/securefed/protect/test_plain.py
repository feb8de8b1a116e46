"""Plain protection: the sum is exact, and everything malformed is refused, counted and reported."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.entropy import SystemEntropy
from securefed.engine.exchange import exchange
from securefed.errors import ProtocolError
from securefed.layout import Layout, vector_digest
from securefed.protect.plain import Plain, decode, encode
from securefed.types import Collected, RoundParameters, Update

LAYOUT = Layout.of_shapes({"w": (5,)})


def parameters(clients: tuple[int, ...] = (0, 1, 2), round: int = 3, run: str = "r") -> RoundParameters:
    return RoundParameters(
        run, round, clients, LAYOUT.size, LAYOUT.digest, vector_digest(np.zeros(5, np.float32))
    )


def update(client: int, value: float = 1.0, weight: float = 1.0, round: int = 3) -> Update:
    return Update(client, round, np.full(5, value, np.float32), weight)


def collect(messages: list[tuple[int, bytes]], keep: bool = True) -> Collected:
    server = Plain(keep_updates=keep).server(parameters())
    for sender, payload in messages:
        result = server.receive(sender, payload).result
        if result is not None:
            return result
    result = server.advance().result
    assert result is not None
    return result


@pytest.mark.parametrize("keep", [True, False])
def test_sum_is_the_weighted_sum_of_the_survivors(keep: bool) -> None:
    updates = {0: update(0, 1.0, 2.0), 2: update(2, 10.0, 0.5)}  # client 1 dropped out
    result = exchange(Plain(keep), parameters(), updates, SystemEntropy())
    assert result.survivors == (0, 2)
    assert result.weight == 2.5
    np.testing.assert_array_equal(result.total, np.full(5, 7.0))
    assert set(result.bytes_up) == {0, 2}
    assert all(size == len(encode(update(0), parameters())) for size in result.bytes_up.values())
    assert (result.updates is not None) == keep


@given(order=st.permutations([0, 1, 2]))
def test_sum_does_not_depend_on_the_order_of_arrival(order: list[int]) -> None:
    rng = np.random.default_rng(0)
    rows = [Update(k, 3, rng.standard_normal(5).astype(np.float32), 1.0 + k) for k in range(3)]
    result = collect([(k, encode(rows[k], parameters())) for k in order])
    expected = collect([(k, encode(rows[k], parameters())) for k in (0, 1, 2)])
    np.testing.assert_array_equal(result.total, expected.total)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_update_is_refused_and_reported(bad: float) -> None:
    poisoned = update(1)
    poisoned.vector[2] = bad
    result = collect([(0, encode(update(0), parameters())), (1, encode(poisoned, parameters()))])
    assert result.survivors == (0,)
    assert "non-finite" in result.refused[1]
    assert np.isfinite(result.total).all()


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_not_positive_and_finite_is_refused(weight: float) -> None:
    result = collect([(0, encode(update(0, weight=weight), parameters()))])
    assert "weight" in result.refused[0]


def test_a_replay_of_another_round_or_run_is_refused() -> None:
    for other in (parameters(round=2), parameters(run="another")):
        stale = encode(replace_round(update(0), other.round), other)
        assert "another r" in collect([(0, stale)]).refused[0]


def replace_round(u: Update, round: int) -> Update:
    return replace(u, round=round)


def test_an_update_from_another_model_or_layout_is_refused() -> None:
    model = replace(parameters(), model_digest=vector_digest(np.ones(5, np.float32)))
    layout = replace(parameters(), layout_digest=Layout.of_shapes({"v": (5,)}).digest)
    assert "global model" in collect([(0, encode(update(0), model))]).refused[0]
    assert "layout" in collect([(0, encode(update(0), layout))]).refused[0]


def test_one_client_cannot_speak_for_another() -> None:
    assert "another client" in collect([(1, encode(update(0), parameters()))]).refused[1]


def test_a_duplicate_is_refused_and_the_first_kept() -> None:
    result = collect([(0, encode(update(0, 1.0), parameters())), (0, encode(update(0, 9.0), parameters()))])
    np.testing.assert_array_equal(result.total, np.ones(5))
    assert "duplicate" in result.refused[0]


def test_a_stranger_changes_nothing() -> None:
    result = collect([(7, encode(update(0), parameters())), (0, encode(update(0), parameters()))])
    assert result.survivors == (0,)
    assert 7 not in result.refused


def test_a_late_message_is_refused() -> None:
    server = Plain().server(parameters())
    server.advance()
    with pytest.raises(ProtocolError, match="ended"):
        server.receive(0, encode(update(0), parameters()))


def test_a_client_submits_once_and_only_its_own_update() -> None:
    client = Plain().client(parameters(), 0, SystemEntropy())
    with pytest.raises(ProtocolError, match="was given the update of client 1"):
        client.submit(update(1))
    client.submit(update(0))
    with pytest.raises(ProtocolError, match="already"):
        client.submit(update(0))


@settings(max_examples=200)
@given(garbage=st.binary(max_size=300))
def test_garbage_is_an_error_and_never_a_crash(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(garbage, parameters(), 0)


@settings(max_examples=200)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(position: int, bit: int) -> None:
    message = bytearray(encode(update(0), parameters()))
    message[position % len(message)] ^= 1 << bit
    with pytest.raises(ProtocolError):
        decode(bytes(message), parameters(), 0)


def test_an_unknown_version_is_refused_even_with_a_good_checksum() -> None:
    message = bytearray(encode(update(0), parameters()))
    message[4] = 3
    message[-8:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(message[:-8])))
    with pytest.raises(ProtocolError, match="version"):
        decode(bytes(message), parameters(), 0)


def test_an_update_does_not_show_its_values() -> None:
    assert "1.0, 1.0" not in repr(update(0))
    assert "[" not in repr(update(0))
