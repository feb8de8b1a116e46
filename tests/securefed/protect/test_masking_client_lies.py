"""What a lying client tries: the server, or its peers, refuse it and say who it was."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from securefed.crypto.aead import open_sealed, seal
from securefed.crypto.keys import KeyPair
from securefed.crypto.shamir import commit
from securefed.errors import ProtocolError
from securefed.protect.masking.derivation import secret_commitment, share_context, share_key
from securefed.protect.masking.messages import (
    DIGEST,
    SHARE,
    Dealing,
    Kind,
    Step,
    decode_opened,
    encode_opened,
    seal_envelope,
)
from securefed.types import Collected, Update
from tests.securefed.protect.cast import CONFIG, Play, by_receiver, exact_sum, flip, parse, update

LIAR = 2


def assert_exact(outcome: object, clients: tuple[int, ...]) -> None:
    assert isinstance(outcome, Collected), outcome
    assert outcome.survivors == clients
    np.testing.assert_array_equal(outcome.total, exact_sum(clients))


def honest_but(play: Play, shown: dict[int, bytes], liar: int = LIAR) -> bytes:
    """All but the liar answer; what the liar would have said honestly."""
    for k, payload in shown.items():
        if k != liar:
            play.answer(k, payload)
    return play.clients[liar].receive(shown[liar]).send[0].payload


# ------------------------------------------------------------------------------- any step, any message


@pytest.mark.parametrize("step", list(Step)[:5])
def test_what_a_client_did_not_sign_or_cut_or_stretched_is_refused_and_the_honest_message_counts(
    step: Step,
) -> None:
    play = Play()
    shown = play.up_to(step)
    said = honest_but(play, shown)
    e = parse(said)
    outsider = Play()
    knows_the_key = play.server._tags(LIAR)[step] if step is Step.AGREE else bytes(32)
    forged = outsider.lie(said, LIAR, key=knows_the_key)
    unsigned = flip(said, 112 + 12 + len(e.body) + 5)
    for bad, why in (
        (forged, "wrong signature" if step in (Step.ADVERTISE, Step.AGREE) else "the tag does not hold"),
        (unsigned, "garbled|wrong signature"),
        (said[:-1], "announces"),
        (said + b"\0", "announces"),
        (said[:4] + b"\7" + said[5:], "version 7"),
        (said[:5] + b"\x09" + said[6:], "no step 9"),
        (play.lie(said, LIAR, header=lambda h: h._replace(sender=1)), "another sender"),
        (play.lie(said, LIAR, header=lambda h: h._replace(round=9)), "another round"),
        (play.lie(said, LIAR, header=lambda h: h._replace(model=bytes(32))), "another global model"),
        (
            play.lie(said, LIAR, header=lambda h: h._replace(parameters=bytes(32))),
            "another set of round parameters",
        ),
    ):
        assert play.server.receive(LIAR, bad).result is None
        assert re.search(why, play.server._refused[LIAR]), play.server._refused
    output = play.server.receive(LIAR, said)
    outcome = output.result if step is Step.UNMASK else play.finish(by_receiver(output))
    assert_exact(outcome, tuple(range(6)))
    assert outcome.refused == {}  # type: ignore[union-attr]  # Collected, see above


@pytest.mark.parametrize("step", [Step.SHARE, Step.MASK, Step.AGREE, Step.UNMASK])
def test_a_body_of_the_wrong_length_is_refused_by_name(step: Step) -> None:
    for change in (lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""):
        play = Play()
        said = honest_but(play, play.up_to(step))
        bad = play.lie(said, LIAR, body=change(parse(said).body))
        play.server.receive(LIAR, bad)
        if step is Step.UNMASK and change(b"ab") == b"":
            continue  # opening nothing is a way of dropping out
        assert LIAR in play.server._refused


def test_a_second_different_message_of_a_step_is_refused_and_the_first_kept() -> None:
    play = Play()
    shown = play.up_to(Step.MASK)
    first = play.clients[LIAR].receive(shown[LIAR]).send[0].payload
    play.server.receive(LIAR, first)
    e = parse(first)
    second = play.lie(first, LIAR, attachment=flip(bytes(e.attachment), 0))
    play.server.receive(LIAR, second)
    assert "duplicate submission" in play.server._refused[LIAR]
    for k in range(6):
        if k != LIAR:
            output = play.answer(k, shown[k])
    assert output is not None
    assert_exact(play.finish(by_receiver(output)), tuple(range(6)))


def test_the_late_vector_of_a_client_declared_dead_is_refused_and_never_added() -> None:
    play = Play()
    shown = play.up_to(Step.MASK)
    late = honest_but(play, shown)
    agree = by_receiver(play.server.advance())
    play.server.receive(LIAR, late)
    assert "late" in play.server._refused[LIAR]
    assert_exact(play.finish(agree), (0, 1, 3, 4, 5))


@pytest.mark.parametrize("step", [Step.SHARE, Step.MASK, Step.UNMASK])
def test_a_tagged_message_is_refused_under_another_clients_tag(step: Step) -> None:
    play = Play()
    said = honest_but(play, play.up_to(step))
    play.server.receive(LIAR, play.lie(said, LIAR, key=play.server._tags(1)[step]))
    assert "the tag does not hold" in play.server._refused[LIAR]


def test_a_wrong_signature_under_a_masked_vector_ends_the_round_before_others_have_to_rely_on_it() -> None:
    """The tag tells the server whose it is; the signature is needed once its owner falls silent."""
    play = Play()
    said = honest_but(play, play.up_to(Step.MASK))
    e = parse(said)
    bad = seal_envelope(e.head, e.body, bytes(64), (e.attachment,), play.server._tags(LIAR)[Step.MASK])
    shown = by_receiver(play.server.receive(LIAR, bad))
    del shown[LIAR]
    for k, payload in shown.items():
        play.answer(k, payload)
    assert play.server.advance().abort == "masking: mask: client 2 sent a wrong signature"


def test_in_later_rounds_a_tag_stands_for_the_signature_of_an_advertisement_and_only_its_own() -> None:
    first = Play()
    first.finish(first.up_to(Step.ADVERTISE))
    play = Play(round=4, parties=first.parties)
    said = honest_but(play, play.up_to(Step.ADVERTISE))
    bad = flip(said, 130)  # another mask key: neither tag nor signature fit
    play.server.receive(LIAR, bad)
    assert "wrong signature" in play.server._refused[LIAR]
    assert_exact_round(play, said)


def assert_exact_round(play: Play, said: bytes) -> None:
    outcome = play.finish(by_receiver(play.server.receive(LIAR, said)))
    assert isinstance(outcome, Collected), outcome
    np.testing.assert_array_equal(outcome.total, exact_sum(range(6), play.round))


# ----------------------------------------------------------------------------------------------- keys


def test_a_mask_key_of_low_order_is_blamed_on_its_owner() -> None:
    play = Play()
    shown = play.up_to(Step.ADVERTISE)
    said = honest_but(play, shown)
    bad = play.lie(said, LIAR, body=parse(said).body[:32] + bytes(32))
    cohort = by_receiver(play.server.receive(LIAR, bad))
    for k in (0, 1, 3, 4, 5):
        play.answer(k, cohort[k])
    play.clients[LIAR]._play._advert = play.server._adverts[LIAR].digest  # type: ignore[union-attr]  # it knows its lie
    messages = by_receiver(
        play.server.receive(LIAR, play.clients[LIAR].receive(cohort[LIAR]).send[0].payload)
    )
    assert play.abort_of(0, messages[0]).startswith(f"client {LIAR}: ")


def test_a_transport_key_of_low_order_is_refused_by_the_server() -> None:
    play = Play()
    said = honest_but(play, play.up_to(Step.ADVERTISE))
    play.server.receive(LIAR, play.lie(said, LIAR, body=bytes(32) + parse(said).body[32:]))
    assert LIAR in play.server._refused


def test_a_copied_key_is_noticed() -> None:
    play = Play()
    said = honest_but(play, play.up_to(Step.ADVERTISE))
    stolen = parse(play.said[Step.ADVERTISE, 1]).body[32:]
    cohort = by_receiver(play.server.receive(LIAR, play.lie(said, LIAR, body=parse(said).body[:32] + stolen)))
    assert "advertise the same key" in play.abort_of(0, cohort[0])


# --------------------------------------------------------------------------------------------- shares


def dealing_of(play: Play, said: bytes) -> Dealing:
    return Dealing.decode(parse(said).body, LIAR, play.server._topology.holders(LIAR))


def redeal(play: Play, said: bytes, holder: int, shares: dict[Kind, bytes], *, recommit: bool) -> Dealing:
    """The liar's dealing with other shares for one holder, with fitting commitments or the old ones."""
    assert play.parties is not None
    dealing, context = dealing_of(play, said), play.p.context
    adverts = {k: a.digest for k, a in play.server._adverts.items()}
    party = play.parties.parties[LIAR]
    secret = party.shared(play.parties.parties[holder].transport.public)
    key = share_key(secret, context, (LIAR, adverts[LIAR]), (holder, adverts[holder]))
    old = dealing.dealt[holder]
    plain = open_sealed(key, bytes(12), old[2 * DIGEST :], old[: 2 * DIGEST])
    pair = {Kind.SELF: plain[:SHARE], Kind.KEY: plain[SHARE:]} | shares
    commitments = old[: 2 * DIGEST]
    if recommit:
        commitments = b"".join(commit(pair[k], share_context(context, LIAR, holder, k)) for k in Kind)
    sealed = seal(key, bytes(12), pair[Kind.SELF] + pair[Kind.KEY], commitments)
    return Dealing(dealing.secret, dealing.dealt | {holder: commitments + sealed})


@pytest.mark.parametrize("kind", list(Kind))
def test_a_dealt_share_unlike_its_commitment_is_blamed_on_the_dealer(kind: Kind) -> None:
    play = Play()
    said = honest_but(play, play.up_to(Step.SHARE))
    bad = redeal(play, said, 0, {kind: bytes(SHARE)}, recommit=False)
    shown = by_receiver(play.server.receive(LIAR, play.lie(said, LIAR, body=bad.encode())))
    assert (
        play.abort_of(0, shown[0])
        == f"client {LIAR}: a share it dealt to client 0 does not fit its commitment"
    )
    for k in (1, 3, 4, 5):
        assert play.clients[k].receive(shown[k]).abort is None


def deal_badly(play: Play) -> dict[int, bytes]:
    """The liar deals client 0 a share of nothing, with a commitment that fits it."""
    said = honest_but(play, play.up_to(Step.SHARE))
    junk = dict.fromkeys(Kind, b"\x00" * (SHARE - 1) + b"\x05")
    bad = redeal(play, said, 0, junk, recommit=True)
    return by_receiver(play.server.receive(LIAR, play.lie(said, LIAR, body=bad.encode())))


def test_shares_that_do_not_fit_together_end_the_round_in_the_dealers_name_while_it_lives() -> None:
    play = Play()
    outcome = play.finish(deal_badly(play))
    assert isinstance(outcome, str)
    assert f"client {LIAR} dealt shares of" in outcome


def test_shares_that_do_not_fit_together_end_the_round_in_the_dealers_name_when_it_is_gone() -> None:
    play = Play()
    shown = deal_badly(play)
    del shown[LIAR]
    for k, payload in shown.items():
        play.answer(k, payload)
    outcome = play.finish(by_receiver(play.server.advance()))
    assert isinstance(outcome, str)
    assert f"client {LIAR} dealt shares of" in outcome


def test_a_seed_other_than_the_committed_one_is_noticed() -> None:
    play = Play()
    said = honest_but(play, play.up_to(Step.SHARE))
    other = replace(dealing_of(play, said), secret=secret_commitment(bytes(32), play.p.context, LIAR))
    shown = by_receiver(play.server.receive(LIAR, play.lie(said, LIAR, body=other.encode())))
    outcome = play.finish(shown)
    assert isinstance(outcome, str)
    assert f"client {LIAR} dealt shares of another self-mask seed" in outcome


@pytest.mark.parametrize("lie", ["wrong share", "wrong kind", "twice", "stranger"])
def test_a_holder_that_opens_wrongly_is_named_and_the_sum_is_exact_without_it(lie: str) -> None:
    play = Play()
    shown = play.up_to(Step.UNMASK)
    said = play.clients[LIAR].receive(shown[LIAR]).send[0].payload
    opened = decode_opened(parse(said).body)
    owner, kind, share = opened[1]
    opened[1] = {
        "wrong share": (owner, kind, flip(share, 20)),
        "wrong kind": (owner, Kind.KEY, share),
        "twice": opened[0],
        "stranger": (77, kind, share),
    }[lie]
    play.server.receive(LIAR, play.lie(said, LIAR, body=encode_opened(opened)))
    last = [play.answer(k, shown[k]) for k in range(6) if k != LIAR][-1]
    ended = play.server.ended is not None
    outcome = last.result if ended and last is not None else play.server.advance().result
    assert_exact(outcome, tuple(range(6)))
    assert outcome is not None
    assert "unmask" in outcome.refused[LIAR]


def test_a_signature_on_another_digest_does_not_count() -> None:
    play = Play()
    shown = play.up_to(Step.AGREE)
    said = honest_but(play, shown)
    play.server.receive(LIAR, play.lie(said, LIAR, body=bytes(32)))
    assert "another set of survivors" in play.server._refused[LIAR]
    assert_exact(play.finish(by_receiver(play.server.advance())), tuple(range(6)))


# ------------------------------------------------------------------------------------ honest farewells


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_client_whose_update_is_not_finite_leaves_and_says_why(bad: float) -> None:
    play = Play()
    broken = update(LIAR)
    broken.vector[0] = bad
    client = play.client_type(play.base, play.parties.parties[LIAR], CONFIG.policy, play.entropy)  # type: ignore[union-attr]
    client.submit(Update(LIAR, 3, broken.vector))
    play.clients[LIAR] = client
    outcome = play.finish(play.up_to(Step.ADVERTISE))
    assert_exact(outcome, (0, 1, 3, 4, 5))
    assert "non-finite" in outcome.refused[LIAR]  # type: ignore[union-attr]  # Collected, see above


def test_a_weight_that_is_not_the_public_one_is_not_sent() -> None:
    play = Play()
    client = play.client_type(play.base, play.parties.parties[LIAR], CONFIG.policy, play.entropy)  # type: ignore[union-attr]
    client.submit(replace(update(LIAR), weight=0.5))
    play.clients[LIAR] = client
    outcome = play.finish(play.up_to(Step.ADVERTISE))
    assert "public weight" in outcome.refused[LIAR]  # type: ignore[union-attr]  # Collected, or this fails


def test_a_stranger_changes_nothing_and_after_the_end_nobody_does() -> None:
    play = Play()
    assert play.server.start().send
    assert play.server.receive(77, b"hello").send == ()
    outcome = play.finish(play.up_to(Step.ADVERTISE))
    assert_exact(outcome, tuple(range(6)))
    with pytest.raises(ProtocolError, match="has ended"):
        play.server.receive(0, b"late")
    with pytest.raises(ProtocolError, match="already ended"):
        play.server.advance()


def test_a_client_speaks_of_itself_without_its_secrets() -> None:
    play = Play()
    play.up_to(Step.UNMASK)
    client = play.clients[0]
    text = repr(client) + repr(client._play) + repr(play.server) + repr(play.parties)
    assert repr(bytes(client._play._held[1][Kind.SELF])) not in text  # type: ignore[union-attr]
    assert "secret" in repr(KeyPair.from_seed(bytes(32))).lower() or "KeyPair" in repr(
        KeyPair.from_seed(bytes(32))
    )
    assert len(text) < 3000
