"""Sessions over many rounds: sums, drops, refusals, lies. No transport: bytes are carried by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.identity import Identity
from securefed.errors import PrivacyError, ProtocolError
from securefed.privacy.chain import Head
from securefed.privacy.heads import Witness
from securefed.privacy.policy import Policy, load_policy
from securefed.protect.ckks import CKKS
from securefed.protect.grouped import Grouped
from securefed.protect.masking import Masking
from securefed.protect.plain import Plain
from securefed.sessions import Refusal, ServerSession, Terms
from securefed.sessions.messages import Answer, Begin, Kind, Offer, check_answer, seal, unseal
from securefed.types import Message
from tests.entropy import SeededEntropy
from tests.securefed.sessions.playing import TERMS, Cast, D, make_roster

STEPS = ("offer", "advertise", "share", "mask", "agree", "unmask")


@pytest.mark.parametrize("name", ["masking", "plain"])
def test_rounds_follow_each_other_and_each_sum_is_right(name: str) -> None:
    protection = Masking() if name == "masking" else Plain()
    cast = Cast(protection, replace(TERMS, protection=name))
    for round in range(3):
        output = cast.play(round)
        assert output.result is not None
        assert output.result.survivors == tuple(range(6))
        np.testing.assert_allclose(output.result.total, cast.expected(range(6), round), atol=1e-4)
    works = [reply.work for _, reply in cast.replies if reply.work is not None]
    assert [w.round for w in works] == [0] * 6 + [1] * 6 + [2] * 6
    assert sum(reply.ended == "" for _, reply in cast.replies) == 18


@pytest.mark.parametrize("step", STEPS)
def test_a_client_that_is_gone_at_any_step_does_not_stop_the_others(step: str) -> None:
    cast = Cast()
    first = cast.play(0, gone={2: step})
    assert first.result is not None
    inside = set(range(6)) - {2} if step in STEPS[:4] else set(range(6))
    assert set(first.result.survivors) == inside
    np.testing.assert_allclose(first.result.total, cast.expected(sorted(inside), 0), atol=1e-4)
    second = cast.play(1, clients=[0, 1, 3, 4, 5])
    assert second.result is not None
    assert second.result.survivors == (0, 1, 3, 4, 5)


def test_a_client_that_was_restarted_takes_part_again() -> None:
    cast = Cast()
    cast.play(0, gone={2: "mask"})
    cast.clients[2] = cast.client(2)  # a new process: new transport key, no memory
    again = cast.play(1)
    assert again.result is not None
    assert again.result.survivors == tuple(range(6))


def test_secret_weights_travel_inside_the_sum() -> None:
    cast = Cast(Masking(max_weight=8), secret_weights=True)
    output = cast.play(0)
    assert output.result is not None
    assert output.result.weight == pytest.approx(21)
    np.testing.assert_allclose(
        output.result.total, sum((k + 1) * cast.update(k, 0) for k in range(6)), atol=1e-3
    )


@settings(max_examples=12)
@given(st.data())
def test_whatever_is_lost_the_sum_is_exact_or_there_is_none(data: st.DataObject) -> None:
    cast = Cast(lossy=True)
    lost = data.draw(st.sets(st.integers(0, 120), max_size=12))
    seen = [0]

    def lose(message: Any) -> bool:
        seen[0] += 1
        return seen[0] in lost

    cast.lose = lose
    output = cast.play(0)
    if output.result is None:
        assert output.abort
    else:
        np.testing.assert_allclose(output.result.total, cast.expected(output.result.survivors, 0), atol=1e-4)


def test_too_few_clients_begin_no_round_and_the_next_one_is_played() -> None:
    cast = Cast()
    output = cast.play(0, gone={0: "offer", 1: "offer", 2: "offer"})
    assert output.abort is not None
    assert "3 clients take part, the terms promise 4" in output.abort
    assert cast.play(1).result is not None


# ---------------------------------------------------------------------------------------- refusals

LIMITS = {
    "max_epsilon": ("max_epsilon = 2.0", "epsilon = 3"),
    "min_noise_multiplier": ("min_noise_multiplier = 1.5", "noise_multiplier = 1"),
    "allowed_protections": ('allowed_protections = ["ckks"]', '"masking"'),
    "min_cohort": ("min_cohort = 5", "a cohort of 4"),
    "max_rounds": ("max_rounds = 9", "rounds = 10"),
}


@pytest.fixture
def limited(tmp_path: Path) -> Callable[[str], Policy]:
    def make(line: str) -> Policy:
        path = tmp_path / "policy.toml"
        path.write_text(f"# what this site allows\n{line}\n")
        return load_policy(path)

    return make


@pytest.mark.parametrize("key", LIMITS)
def test_a_refusal_is_signed_names_its_line_and_counts_as_absence(
    limited: Callable[[str], Policy], key: str, tmp_path: Path
) -> None:
    line, words = LIMITS[key]
    cast = Cast(policies={4: limited(line)})
    output = cast.play(0)
    assert output.result is not None
    assert output.result.survivors == (0, 1, 2, 3, 5)
    np.testing.assert_allclose(output.result.total, cast.expected((0, 1, 2, 3, 5), 0), atol=1e-4)
    refusal = cast.server.refusals[4]
    assert (refusal.client, refusal.key, refusal.place) == (4, key, "policy.toml:2")
    assert words in refusal.reason
    assert line in refusal.reason
    assert str(tmp_path) not in refusal.reason  # a folder tells whose machine it is
    assert f"policy.toml:2, {key}" in output.result.refused[4]
    mine = [reply.refused for k, reply in cast.replies if k == 4 and reply.refused is not None]
    assert mine == [replace(refusal)]
    unseal(refusal.evidence).check_signature(cast.roster)  # whoever holds the roster can check it
    assert cast.play(1).result is not None  # and it is asked again in the next round


def test_a_refusal_that_somebody_else_wrote_is_not_one(limited: Callable[[str], Policy]) -> None:
    cast = Cast(policies={4: limited("max_rounds = 1")})
    cast.play(0)
    evidence = cast.server.refusals[4].evidence
    with pytest.raises(ProtocolError, match="signature"):
        unseal(evidence[:-1] + bytes([evidence[-1] ^ 1])).check_signature(cast.roster)
    forged = seal(Kind.ANSWER, 3, 0, unseal(evidence).run, unseal(evidence).body, cast.identities[4])
    with pytest.raises(ProtocolError, match="client 3 does not bear its signature"):
        check_answer(forged, 0, unseal(evidence).run, b"", cast.roster)


def test_no_job_lowers_the_policy_by_saying_nothing(limited: Callable[[str], Policy]) -> None:
    """Terms without an epsilon or noise are terms without privacy."""
    cast = Cast(terms=Terms("masking", 10, 4), policies={4: limited("max_epsilon = 2.0")})
    cast.play(0)
    assert "without noise" in cast.server.refusals[4].reason


@pytest.mark.parametrize("epsilon", [None, math.inf])
def test_terms_with_a_grain_of_noise_that_claim_nothing_keep_to_no_limit(
    limited: Callable[[str], Policy], epsilon: float | None
) -> None:
    """No ledger holds the cap against them, as a job of `securefed run` has one."""
    delta = None if epsilon is None else 1e-5
    terms = Terms("masking", 10, 4, noise_multiplier=1e-3, epsilon=epsilon, delta=delta)
    cast = Cast(terms=terms, policies={4: limited("max_epsilon = 2.0")})
    cast.play(0)
    assert cast.server.refusals[4].key == "max_epsilon"
    assert "no finite epsilon" in cast.server.refusals[4].reason


def test_terms_without_a_delta_keep_to_no_limit_of_delta(limited: Callable[[str], Policy]) -> None:
    cast = Cast(terms=Terms("masking", 10, 4, 1e-3), policies={4: limited("max_delta = 1e-6")})
    cast.play(0)
    assert cast.server.refusals[4].key == "max_delta"
    assert "no delta" in cast.server.refusals[4].reason


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"noise_multiplier": 0.0}, "no finite epsilon"),
        ({"epsilon": 0.0}, "epsilon lies above 0"),
        ({"delta": None}, "delta between"),
        ({"delta": 1.0}, "delta between"),
        ({"noise_multiplier": -1.0}, "0 or more"),
    ],
)
def test_terms_that_cannot_hold_are_refused_on_both_sides(terms: dict[str, Any], words: str) -> None:
    with pytest.raises(PrivacyError, match=words):
        Cast(terms=replace(TERMS, **terms))
    cast = Cast()
    cast.server.terms = replace(TERMS, **terms)  # a server that offers them all the same
    assert cast.play(0).abort is not None
    assert {r.key for r in cast.server.refusals.values()} == {"terms"}
    assert words in cast.server.refusals[0].reason


def test_a_server_cannot_talk_a_client_into_another_protection() -> None:
    cast = Cast(Plain(), replace(TERMS, protection="plain"))
    cast.clients[3] = cast.client(3, protection=Masking())
    output = cast.play(0)
    assert output.result is not None
    assert 3 not in output.result.survivors
    assert cast.server.refusals[3].key == "protection"


def test_the_policy_is_read_again_for_each_round(home: Path) -> None:
    cast = Cast()
    cast.clients[1] = cast.client(1, policy=None)
    assert cast.play(0).result is not None
    assert cast.server.refusals == {}
    (home / "policy.toml").write_text("min_noise_multiplier = 2.0\n")
    cast.play(1)
    assert cast.server.refusals[1].place == "policy.toml:1"


def test_more_rounds_than_the_terms_say_are_refused() -> None:
    cast = Cast(terms=replace(TERMS, rounds=2))
    assert cast.play(1).result is not None
    assert cast.play(2).abort is not None
    assert {r.key for r in cast.server.refusals.values()} == {"max_rounds"}


# -------------------------------------------------------------------------------------------- lies


def offered(cast: Cast, round: int = 0) -> bytes:
    return cast.server.begin(round, np.zeros(D, np.float32), range(6)).send[0].payload


def test_a_client_takes_nothing_that_the_server_did_not_sign() -> None:
    cast = Cast()
    payload = offered(cast)
    client = cast.clients[0]
    for at in range(0, len(payload), 7):
        broken = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
        with pytest.raises(ProtocolError):
            client.receive(broken)
    for short in (b"", payload[:50], payload + b"x"):
        with pytest.raises(ProtocolError):
            client.receive(short)
    assert client.receive(payload).send  # and it still listens


def test_a_round_is_not_offered_twice_nor_backwards() -> None:
    cast = Cast()
    payload = offered(cast, 3)
    cast.clients[0].receive(payload)
    with pytest.raises(ProtocolError, match="a replay"):
        cast.clients[0].receive(payload)
    with pytest.raises(ProtocolError, match="cannot begin"):
        offered(cast, 3)


@pytest.mark.parametrize("ended", [False, True])
def test_a_round_is_begun_once_even_after_its_end(ended: bool) -> None:
    """Else a server sums the same updates over two cohorts, and the difference shows who was left out."""
    sent: list[Message] = []
    cast = Cast(lose=lambda message: bool(sent.append(message)))
    if not ended:
        cast.lose = lambda m: bool(sent.append(m)) or unseal(m.payload).kind is Kind.END
    assert cast.play(0).result is not None
    (begin,) = [m for m in sent if m.receiver == 2 and unseal(m.payload).kind is Kind.BEGIN]
    with pytest.raises(ProtocolError, match="has begun already"):
        cast.clients[2].receive(begin.payload)


def test_a_run_is_pinned_by_its_first_offer() -> None:
    cast, other = Cast(), Cast()
    other.server = ServerSession(
        "another",
        D,
        identity=make_roster()[0],
        roster=cast.roster,
        terms=TERMS,
        protection=Masking(),
        entropy=SeededEntropy(2),
    )
    cast.clients[0].receive(offered(cast))
    with pytest.raises(ProtocolError, match="another run"):
        cast.clients[0].receive(offered(other, 5))


def test_a_server_that_leaves_a_client_out_or_promises_more_is_caught() -> None:
    cast = Cast()
    answers = {}
    for message in cast.server.begin(0, np.zeros(D, np.float32), range(6)).send:
        answers[message.receiver] = cast.clients[message.receiver].receive(message.payload).send[0]
    client, server = cast.clients[0], cast.server
    for cohort, words in (((1, 2, 3, 4), "missing"), ((0, 0, 1, 2, 3), "twice"), ((0, 1, 2), "promise 4")):
        body = Begin(server._offered, False, [answers[k] for k in cohort]).encode()
        with pytest.raises(ProtocolError, match=words):
            client.receive(server._seal(Kind.BEGIN, body))


def test_a_stranger_or_an_impostor_changes_nothing() -> None:
    cast = Cast()
    cast.server.begin(0, np.zeros(D, np.float32), range(6))
    stranger = Identity.generate(SeededEntropy(5))
    offer = cast.server._offered
    forged = seal(Kind.ANSWER, 2, 0, cast.server._tag, Answer(offer).encode(), stranger)
    assert cast.server.receive(9, forged).send == ()
    assert cast.server.receive(2, forged).send == ()
    assert 2 in cast.server.awaited
    assert "signature" in cast.server._refused[2]


def test_who_was_left_out_stays_so_whatever_it_sends_and_a_good_message_outweighs_garbage(
    limited: Callable[[str], Policy],
) -> None:
    cast = Cast(policies={4: limited("max_rounds = 1")})
    tag = cast.server._tag

    def trouble(message: Any) -> bool:
        if message.receiver == -1 and cast.server.step == "mask":
            cast.server.receive(4, seal(Kind.INPUT, 4, 0, tag, bytes(32), cast.identities[4]))
            cast.server.receive(0, b"garbage")
        return False

    cast.lose = trouble
    output = cast.play(0)
    assert output.result is not None
    assert set(output.result.refused) == {4}
    assert "max_rounds" in output.result.refused[4]


def test_terms_that_are_not_the_protections_are_refused_at_once() -> None:
    with pytest.raises(ProtocolError, match="the terms say"):
        Cast(Plain())


@pytest.mark.parametrize("protection", [Grouped(), CKKS()], ids=["grouped", "ckks"])
def test_what_one_party_cannot_play_alone_is_refused(protection: Any) -> None:
    server, _, roster = make_roster()
    with pytest.raises(ProtocolError, match=r"grouped|ckks"):
        ServerSession(
            "run",
            D,
            identity=server,
            roster=roster,
            terms=replace(TERMS, protection=protection.name),
            protection=protection,
        )


def test_an_offer_is_its_bytes_and_back() -> None:
    offer = Offer(TERMS, bytes(32), {0: 3, 5: 0}, np.arange(D, dtype=np.float32))
    found = Offer.decode(offer.encode(), D)
    assert (found.terms, found.layout, found.since) == (offer.terms, offer.layout, offer.since)
    assert found.model.tolist() == offer.model.tolist()
    with pytest.raises(ProtocolError, match="numbers"):
        Offer.decode(offer.encode(), D + 1)


def test_the_end_of_the_run_is_told_with_the_model() -> None:
    cast = Cast()
    cast.play(0)
    model = np.arange(D, dtype=np.float32)
    for message in cast.server.close(range(6), model).send:
        reply = cast.clients[message.receiver].receive(message.payload)
        assert reply.closed
        assert reply.model is not None
        assert reply.model.tolist() == model.tolist()
    assert cast.clients[0].closed
    assert isinstance(cast.server.witness, Witness)
    assert Refusal(0, 0, "", "", "").evidence == b""


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 3))
def test_garbage_is_refused_by_every_reader_and_nothing_else_happens(data: bytes, which: int) -> None:
    read: tuple[Callable[[bytes], Any], ...] = (
        unseal,
        lambda d: Offer.decode(d, D),
        Answer.decode,
        Begin.decode,
    )
    try:
        read[which](data)
    except ProtocolError:
        return
    assert which != 0  # without a signature of 64 bytes nothing is a message


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"\1" * 32),
        Answer(b"\1" * 32, Head(7, b"\2" * 32), 5, (b"\3" * 32, b"\4" * 32)),
        Answer(b"\1" * 32, refusal=("max_epsilon", "policy.toml:2", "too much")),
    ],
)
def test_an_answer_is_its_bytes_and_back(answer: Answer) -> None:
    assert Answer.decode(answer.encode()) == answer
    for at in range(len(answer.encode())):
        with pytest.raises(ProtocolError):
            Answer.decode(answer.encode()[:at])
