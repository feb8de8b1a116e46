"""The decoders: one encoding for everything, and garbage is a ProtocolError, never a crash or a hang."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import ProtocolError
from securefed.protect.masking import MaskingParameters
from securefed.protect.masking.messages import (
    DEALT,
    DIGEST,
    KEY,
    SHARE,
    SIGNATURE,
    Cohort,
    Dealing,
    Kind,
    Quorum,
    Step,
    chain,
    decode_ids,
    decode_opened,
    encode_ids,
    encode_opened,
    open_envelope,
    signed_bytes,
)
from securefed.protect.masking.parameters import run_tag
from tests.securefed.protect.cast import CONFIG, Play, base

P = CONFIG.parameters(base(6))
ids = st.lists(st.integers(0, 2**32 - 1), unique=True, max_size=20).map(sorted)


def digests(n: int, width: int = DIGEST) -> list[bytes]:
    return [bytes([k % 256]) * width for k in range(n)]


@given(ids=ids)
def test_lists_come_back(ids: list[int]) -> None:
    assert decode_ids(encode_ids(ids, digests(len(ids))), DIGEST) == (tuple(ids), digests(len(ids)))


@given(signed=ids, stated=ids)
def test_a_quorum_comes_back(signed: list[int], stated: list[int]) -> None:
    quorum = Quorum(
        dict(zip(signed, digests(len(signed), SIGNATURE), strict=True)),
        dict(zip(stated, digests(len(stated), SIGNATURE), strict=True)),
    )
    again = Quorum.decode(quorum.encode())
    assert (again.signed, again.stated) == (quorum.signed, quorum.stated)


@given(
    opened=st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(Kind), st.binary(min_size=SHARE, max_size=SHARE))
    )
)
def test_opened_shares_come_back(opened: list[tuple[int, Kind, bytes]]) -> None:
    assert decode_opened(encode_opened(opened)) == opened


def test_parameters_come_back_and_their_digest_covers_every_field() -> None:
    again = MaskingParameters.decode(P.encode(), P.base.model_digest)
    assert again == P
    assert again.digest == P.digest


@pytest.mark.parametrize(
    "wrong",
    [encode_ids([2, 1]), encode_ids([1, 1]), encode_ids([1])[:-1], encode_ids([1]) + b"\0", b"\xff" * 8, b""],
)
def test_a_list_out_of_order_repeated_cut_or_stretched_is_refused(wrong: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_ids(wrong, 0)


DECODERS = {
    "envelope": open_envelope,
    "parameters": lambda b: MaskingParameters.decode(b, "00" * 32),
    "cohort": Cohort.decode,
    "dealing": lambda b: Dealing.decode(b, 0, range(4)),
    "quorum": Quorum.decode,
    "list": lambda b: decode_ids(b, DIGEST),
    "opened": decode_opened,
}
HONEST = {
    "envelope": Play().up_to(Step.SHARE)[0],
    "parameters": P.encode(),
    "cohort": Cohort(bytes(KEY), dict(zip(range(4), digests(4), strict=True))).encode(),
    "dealing": bytes(DIGEST + 3 * DEALT + 2 * DIGEST),
    "quorum": Quorum(dict(zip(range(4), digests(4, SIGNATURE), strict=True)), {}).encode(),
    "list": encode_ids(range(4), digests(4)),
    "opened": encode_opened([(1, Kind.SELF, bytes(SHARE))]),
}


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150)
@given(garbage=st.binary(max_size=400))
def test_garbage_is_refused_and_nothing_else_happens(name: str, garbage: bytes) -> None:
    """A list of bytes can be a valid body by chance; then it is one, and no more is asked of it here."""
    try:
        DECODERS[name](garbage)
    except ProtocolError:
        return


@pytest.mark.parametrize("name", HONEST)
@settings(max_examples=150)
@given(data=st.data())
def test_mutations_of_honest_bytes_are_refused_or_decode(name: str, data: st.DataObject) -> None:
    payload = bytearray(HONEST[name])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for changed in (bytes(payload), bytes(payload[:cut]), bytes(payload) + bytes(payload[:cut])):
        try:
            DECODERS[name](changed)
        except ProtocolError:
            continue


@given(field=st.integers(0, 2**32 - 1), at=st.sampled_from([112, 116, 120]))
def test_a_length_that_lies_is_refused_before_anything_is_read(field: int, at: int) -> None:
    payload = bytearray(HONEST["envelope"])
    payload[at : at + 4] = field.to_bytes(4, "little")
    if bytes(payload) != HONEST["envelope"]:
        with pytest.raises(ProtocolError):
            open_envelope(bytes(payload))


def test_what_is_signed_says_everything_about_where_it_belongs() -> None:
    """Two messages that differ in step, sender, round, run, parameters, model or body are signed differently."""
    header = open_envelope(HONEST["envelope"]).header
    others = [
        header._replace(step=Step.AGREE),
        header._replace(sender=3),
        header._replace(round=4),
        header._replace(run=run_tag("other")),
        header._replace(parameters=bytes(32)),
        header._replace(model=bytes(32)),
    ]
    signed = {signed_bytes(h.encode(), b"body") for h in (header, *others)}
    signed.add(signed_bytes(header.encode(), b"bodz"))
    assert len(signed) == 8
    assert all(s.startswith(b"securefed masking") for s in signed)


def test_a_transcript_depends_on_every_word_and_on_their_order() -> None:
    a, b = b"first", b"second"
    found = {chain(chain(bytes(32), x), y) for x, y in ((a, b), (b, a), (a, a), (b, b))}
    assert len(found) == 4
