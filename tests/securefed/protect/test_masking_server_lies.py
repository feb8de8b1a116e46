"""What a lying server tries, and that an honest client notices and says who (SECURITY.md, "Masking")."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from securefed.crypto.entropy import SystemEntropy
from securefed.errors import ProtocolError
from securefed.protect.masking import MaskingServer, Policy
from securefed.protect.masking.messages import (
    ADVERT,
    DEALT,
    DIGEST,
    Cohort,
    Kind,
    Quorum,
    Step,
    decode_ids,
    decode_opened,
    encode_ids,
)
from securefed.types import SERVER
from tests.securefed.protect.cast import (
    CONFIG,
    SPARSE,
    Play,
    base,
    by_receiver,
    exact_sum,
    flip,
    parse,
    reworded,
)

LOW_ORDER = bytes(32)
"""The point of order four at u = 0 (RFC 7748, section 6.1, warns of the all-zero output)."""


# ------------------------------------------------------------------- what it proposes, before any key


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"threshold": 2}, "threshold=2 is below this client's floor"),
        ({"quorum": 11}, "quorum=11 is below"),
        ({"min_survivors": 1}, "min_survivors=1 is below"),
        ({"k": 2, "threshold": 3}, "k=2 is below"),
        ({"bits": 24, "levels": 100}, "bits=24 is below"),
        ({"value_range": 0.001}, "value_range=0.001 is below"),
        ({"value_range": 1000.0}, "value_range=1000.0 is above"),
        ({"max_clipped_share": 1.0}, "max_clipped_share=1.0 is above"),
        ({"levels": 2**30}, "the sum could wrap"),
        ({"quorum": 10}, "quorum=10 must be more than half"),
        ({"roster": bytes(32)}, "another roster"),
    ],
)
def test_parameters_below_the_floors_of_a_client_are_refused(changes: dict[str, object], named: str) -> None:
    play = Play(20)
    play.server.parameters = reworded(play.p, **changes)
    payload = play.lie(
        Play.up_to(play_of(play), Step.ADVERTISE)[0],
        body=play.p.encode(),
        header=lambda h: h._replace(parameters=play.p.digest),
    )
    reason = play.abort_of(0, payload)
    assert reason.startswith("server: ")
    assert named in reason


def play_of(play: Play) -> Play:
    """The same cast with honest parameters, for a first message to lie about."""
    return Play(play.n, play.config, parties=play.parties)


@pytest.mark.parametrize("n", [1, 2])
def test_a_cohort_of_one_or_two_is_refused_by_client_and_server_alike(n: int) -> None:
    with pytest.raises(ProtocolError, match="below min_cohort=3"):
        Play(n)
    with pytest.raises(ProtocolError, match=f"a cohort of {n} is below this client's floor of 3"):
        Policy().check(reworded(Play(3).p, base=base(n)))


def test_honest_clients_are_counted_without_those_assumed_corrupt() -> None:
    """Of thirty clients a fifth may collude: nine survivors hold three honest ones, eight only two."""
    config = replace(CONFIG, gamma=0.2)
    assert config.parameters(base(30)).min_survivors == 9
    with pytest.raises(ProtocolError, match="min_survivors=8 is below"):
        replace(config, min_survivors=8).parameters(base(30))


def test_another_round_run_cohort_or_size_than_the_client_was_told_is_refused() -> None:
    play = Play()
    for other in (
        replace(play.base, clients=(0, 1, 2, 3, 4, 9)),
        replace(play.base, size=9),
        replace(play.base, layout_digest="00" * 32),
        replace(play.base, weights=None),
    ):
        server = MaskingServer(reworded(play.p, base=other), play.parties.parties[SERVER])
        fresh = Play(parties=play.parties)
        assert "are not this client's" in fresh.abort_of(0, by_receiver(server.start())[0])


# ----------------------------------------------------------------------------------------- its models


def test_different_models_to_different_clients_end_the_round_at_the_first_step() -> None:
    play = Play()
    messages = play.up_to(Step.ADVERTISE)
    other = base(play.n, model=1.0)
    second = MaskingServer(reworded(play.p, base=other), play.parties.parties[SERVER])
    victim = play.make_client(2, other)
    advert = victim.receive(by_receiver(second.start())[2]).send[0].payload
    for k in (0, 1, 3, 4, 5):
        play.answer(k, messages[k])
    assert "another global model" in str(play.server.receive(2, advert)) + str(play.server._refused)
    # an honest server leaves it out; a lying one puts it on the list
    play.server._adverts[2] = replace_advert(play, 2, advert)
    shown = by_receiver(play.server._show_cohort())
    reason = play.abort_of(0, shown[0])
    assert reason.startswith("client 2, or a server that shows each another round")
    assert "another global model" in reason


def replace_advert(play: Play, client: int, payload: bytes) -> object:
    import hashlib

    from securefed.protect.masking.unmasking import Advert

    body = parse(payload).body
    return Advert(body[:32], body[32:], hashlib.sha256(payload).digest(), payload)


def test_a_proposal_on_another_model_than_the_client_holds_is_refused() -> None:
    play = Play()
    client = play.make_client(0, base(play.n, model=2.0))
    play.clients[0] = client
    assert "another global model than this client holds" in play.abort_of(0, play.up_to(Step.ADVERTISE)[0])


# ------------------------------------------------------------------------------------------- its keys


def cohort_lie(play: Play, payload: bytes, neighbour: int, advert: bytes, *, relist: bool) -> bytes:
    """Client 0's list of keys with one advertisement replaced, and its hash too if `relist`."""
    import hashlib

    e = parse(payload)
    at = ADVERT * (neighbour - 1)
    attachment = bytes(e.attachment[:at]) + advert + bytes(e.attachment[at + ADVERT :])
    cohort = Cohort.decode(e.body)
    if relist:
        cohort.adverts[neighbour] = hashlib.sha256(advert).digest()
    return play.lie(payload, body=cohort.encode(), attachment=attachment)


def test_substituted_keys_of_a_neighbour_are_noticed() -> None:
    for relist, said in ((False, "are not those it lists"), (True, "are not signed by it")):
        play = Play()
        shown = play.up_to(Step.SHARE)
        genuine = play.server._adverts[3].payload
        forged = flip(genuine, 130)  # another mask key under the old signature
        reason = play.abort_of(0, cohort_lie(play, shown[0], 3, forged, relist=relist))
        assert reason == f"server: the keys it shows of client 3 {said}"


def test_in_later_rounds_substituted_keys_are_noticed_before_anything_masked_leaves() -> None:
    """The transport key is known, so the signature is not looked at; the sealed shares do not open."""
    first = Play()
    first.finish(first.up_to(Step.ADVERTISE))
    play = Play(round=4, parties=first.parties)
    shown = play.up_to(Step.SHARE)
    forged = flip(play.server._adverts[3].payload, 124 + 40)  # the mask key, not the transport key
    assert play.clients[0].receive(cohort_lie(play, shown[0], 3, forged, relist=True)).abort is None
    honest = {k: play.clients[k].receive(shown[k]).send[0].payload for k in range(1, 6)}
    for k, payload in honest.items():
        play.server.receive(k, payload)
    messages = by_receiver(play.server.advance())
    lied = play.lie(
        messages[1],
        body=encode_ids(range(6)),
        attachment=b"".join(play.server._dealings[j].dealt[0] for j in range(1, 6)),
    )
    assert play.abort_of(0, lied) == "server: the keys it shows of client 3 are not signed by it"


def test_one_clients_keys_in_the_place_of_anothers_are_noticed() -> None:
    play = Play()
    shown = play.up_to(Step.SHARE)
    reason = play.abort_of(0, cohort_lie(play, shown[0], 3, play.server._adverts[4].payload, relist=True))
    assert reason == "server: the keys it shows of client 3 are not signed by it"


def test_a_clients_own_keys_may_be_neither_missing_nor_replaced() -> None:
    for change in ("missing", "replaced"):
        play = Play()
        shown = play.up_to(Step.SHARE)
        cohort = Cohort.decode(parse(shown[0]).body)
        if change == "missing":
            del cohort.adverts[0]
        else:
            cohort.adverts[0] = bytes(32)
        reason = play.abort_of(0, play.lie(shown[0], body=cohort.encode()))
        assert reason == "server: this client's keys are missing from its list, or replaced"


def test_a_neighbour_whose_keys_are_not_shown_is_noticed() -> None:
    play = Play()
    shown = play.up_to(Step.SHARE)
    cut = bytes(parse(shown[0]).attachment[:-ADVERT])
    assert "the keys of other neighbours" in play.abort_of(0, play.lie(shown[0], attachment=cut))


def test_strangers_on_the_list_are_noticed() -> None:
    play = Play()
    shown = play.up_to(Step.SHARE)
    cohort = Cohort.decode(parse(shown[0]).body)
    cohort.adverts[99] = bytes(32)
    assert "outside the cohort" in play.abort_of(0, play.lie(shown[0], body=cohort.encode()))


def test_a_server_transport_key_of_low_order_is_refused() -> None:
    play = Play()
    shown = play.up_to(Step.SHARE)
    body = LOW_ORDER + parse(shown[0]).body[32:]
    assert play.abort_of(0, play.lie(shown[0], body=body)).startswith("server: ")


# ----------------------------------------------------------------------------------------- its shares


def test_a_sealed_share_of_another_round_does_not_open() -> None:
    earlier = Play(round=2)
    stale = bytes(parse(earlier.up_to(Step.MASK)[0]).attachment)
    play = Play(parties=earlier.parties)
    shown = play.up_to(Step.MASK)
    fresh = bytes(parse(shown[0]).attachment)
    mixed = play.lie(shown[0], attachment=stale[:DEALT] + fresh[DEALT:])
    assert play.abort_of(0, mixed).startswith("client 1: its sealed shares for client 0 do not open")


def test_shares_meant_for_another_client_do_not_open() -> None:
    play = Play()
    shown = play.up_to(Step.MASK)
    others = bytes(parse(shown[1]).attachment)
    assert "do not open" in play.abort_of(0, play.lie(shown[0], attachment=others))


def test_swapped_commitments_are_noticed_because_they_are_sealed_in() -> None:
    play = Play()
    shown = play.up_to(Step.MASK)
    altered = flip(bytes(parse(shown[0]).attachment), 3)
    assert "client 1: its sealed shares for client 0 do not open" in play.abort_of(
        0, play.lie(shown[0], attachment=altered)
    )


def test_a_list_of_sharers_without_the_client_or_with_a_stranger_is_noticed() -> None:
    for ids, said in (
        ((1, 2, 3, 4, 5), "leaves out"),
        ((0, 1, 2, 3, 4, 5, 9), "never advertised"),
        ((0, 1), "min_survivors"),
    ):
        play = Play()
        shown = play.up_to(Step.MASK)
        assert said in play.abort_of(0, play.lie(shown[0], body=encode_ids(ids)))


def test_too_few_holders_of_the_clients_own_shares_are_noticed() -> None:
    play = Play(12, SPARSE)
    shown = play.up_to(Step.MASK)
    holders = play.server._topology.holders(0)
    near = [j for j in holders if j != 0]
    rest = tuple(k for k in range(12) if k not in near[:3])
    assert "holders of this client's shares are left" in play.abort_of(
        0, play.lie(shown[0], body=encode_ids(rest))
    )


# -------------------------------------------------------------------------------------- its survivors


def survivors_without(play: Play, payload: bytes, gone: int) -> bytes:
    ids, digests = decode_ids(parse(payload).body, DIGEST)
    kept = [(k, d) for k, d in zip(ids, digests, strict=True) if k != gone]
    return play.lie(payload, body=encode_ids([k for k, _ in kept], [d for _, d in kept]))


def test_two_different_survivor_lists_to_one_client_are_noticed() -> None:
    play = Play()
    shown = play.up_to(Step.AGREE)
    play.answer(0, shown[0])
    assert (
        play.abort_of(0, survivors_without(play, shown[0], 5))
        == "server: it signed two different messages of step agree"
    )


def test_different_survivor_lists_to_different_clients_open_nothing() -> None:
    """Half of the clients are told that client 5 is dead; the signatures of the others give it away."""
    play = Play()
    shown = play.up_to(Step.AGREE)
    lied = {k: survivors_without(play, shown[k], 5) if k < 3 else shown[k] for k in range(6)}
    signatures = {k: parse(play.clients[k].receive(m).send[0].payload).signature for k, m in lied.items()}
    del signatures[5]
    play.server._signed, play.server.step = signatures, Step.UNMASK
    body = Quorum(signatures, {}).encode()
    quorum = by_receiver(play.server._broadcast(body, dict.fromkeys(range(5), ())))
    for k in range(5):
        reason = play.abort_of(k, quorum[k])
        assert reason.startswith("server: the signature it shows of client")
        assert "shows clients different survivors" in reason


def test_asking_for_both_shares_of_one_peer_gets_one() -> None:
    """Alive it is in the list that all have signed; that it is dead would need a second list."""
    play = Play()
    shown = play.up_to(Step.UNMASK)
    said = play.clients[0].receive(shown[0]).send[0].payload
    opened = decode_opened(parse(said).body)
    assert [(owner, kind) for owner, kind, _ in opened] == [(k, Kind.SELF) for k in range(6)]
    with pytest.raises(ProtocolError, match="has ended"):
        play.clients[0].receive(
            survivors_without(play, play.lie(shown[0], body=agree_body(play), header=at(Step.AGREE)), 5)
        )
    assert play.clients[0].receive(shown[0]).send == ()


def agree_body(play: Play) -> bytes:
    ids = sorted(play.server._digests)
    return encode_ids(ids, [play.server._digests[k] for k in ids])


def at(step: Step):  # type: ignore[no-untyped-def]  # a small lambda factory
    return lambda h: h._replace(step=step)


def test_a_survivor_list_without_the_client_or_with_another_digest_of_it_is_noticed() -> None:
    play = Play()
    shown = play.up_to(Step.AGREE)
    assert "as it was sent" in play.abort_of(0, survivors_without(play, shown[0], 0))
    e = parse(shown[1])
    assert "as it was sent" in play.abort_of(1, play.lie(shown[1], body=flip(e.body, 4 + 6 * 4 + DIGEST)))


def test_too_few_or_invented_survivors_are_noticed() -> None:
    play = Play()
    shown = play.up_to(Step.AGREE)
    ids, digests = decode_ids(parse(shown[0]).body, DIGEST)
    assert "min_survivors" in play.abort_of(0, play.lie(shown[0], body=encode_ids(ids[:2], digests[:2])))
    more = encode_ids((*ids, 9), [*digests, bytes(32)])
    assert "never shared" in play.abort_of(1, play.lie(shown[1], body=more))


def test_a_masked_step_closed_before_the_client_spoke_is_noticed() -> None:
    play = Play()
    shown = play.up_to(Step.MASK)
    late = play.make_client(0)
    late._play, late._awaited, late._heard = play.clients[0]._play, Step.AGREE, {}
    assert shown
    body = encode_ids(range(6), [bytes(32)] * 6)
    assert (
        "before this client had sent its vector"
        in late.receive(play.lie(shown[0], body=body, header=at(Step.AGREE))).abort
    )  # type: ignore[operator]  # an abort, or the test fails here


# ------------------------------------------------------------------------------------------ its quorum


def quorum_lie(play: Play, payload: bytes, change: str) -> bytes:
    quorum = Quorum.decode(parse(payload).body)
    if change == "few":
        for k in (3, 4, 5):
            del quorum.signed[k]
    elif change == "forged":
        quorum.signed[1] = flip(quorum.signed[1], 0)
    elif change == "stranger":
        quorum.signed[77] = quorum.signed[1]
    elif change == "unseen":
        del quorum.signed[5]
    return play.lie(payload, body=quorum.encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("few", "3 signatures are below the quorum of"),
        ("forged", "the signature it shows of client 1 in step agree"),
        ("stranger", "who are not survivors"),
        ("unseen", "nothing shows what survivor 5 saw"),
    ],
)
def test_a_quorum_that_is_none_opens_nothing(change: str, said: str) -> None:
    play = Play()
    shown = play.up_to(Step.UNMASK)
    reason = play.abort_of(0, quorum_lie(play, shown[0], change))
    assert reason.startswith("server: ")
    assert said in reason


def test_a_survivor_that_fell_silent_counts_by_the_signature_on_its_vector() -> None:
    play = Play()
    shown = play.up_to(Step.UNMASK, gone={5: Step.AGREE})
    assert Quorum.decode(parse(shown[0]).body).stated.keys() == {5}
    e = parse(shown[0])
    quorum = Quorum.decode(e.body)
    quorum.stated[5] = flip(quorum.stated[5], 0)
    assert "client 5 in step mask" in play.abort_of(0, play.lie(shown[0], body=quorum.encode()))
    for k in range(1, 5):
        assert play.clients[k].receive(shown[k]).abort is None


def test_a_survivor_shown_another_set_of_sharers_is_not_unmasked() -> None:
    """The server shows client 5 a neighbourhood of its own; it then cannot show its signature on the common one."""
    play = Play()
    messages = play.up_to(Step.MASK)
    split = encode_ids(range(1, 6))
    attachment = bytes(parse(messages[5]).attachment[DEALT:])
    vector = play.clients[5].receive(play.lie(messages[5], body=split, attachment=attachment)).send[0].payload
    for k in range(5):
        play.answer(k, messages[k])
    # an honest server refuses the vector; a lying one takes it as if it had been made on the common view
    e = parse(vector)
    play.server.receive(5, vector)
    assert "another view" in play.server._refused[5]
    play.server._digests[5], play.server._statements[5] = e.body[DIGEST:], e.signature
    shown = by_receiver(play.server._show_survivors())
    for k in range(5):
        play.answer(k, shown[k])
    assert "mask: client 5 sent a wrong signature" in str(
        play.server.advance().abort
    )  # an honest server's word
    play.server.step = Step.UNMASK
    body = Quorum(dict(play.server._signed), {5: e.signature}).encode()
    quorum = by_receiver(play.server._broadcast(body, dict.fromkeys(range(5), ())))
    for k in range(5):
        assert "client 5 in step mask" in play.abort_of(k, quorum[k])


def test_a_client_whose_neighbours_are_all_declared_dead_is_not_unmasked() -> None:
    """On a sparse graph a server could isolate a client and take its pairwise masks off one by one."""
    play = Play(12, SPARSE)
    messages = play.up_to(Step.MASK)
    victim = 0
    near = [j for j in play.server._topology.holders(victim) if j != victim][:3]
    for k in messages:
        said = play.clients[k].receive(messages[k]).send[0].payload
        if k not in near:
            play.server.receive(k, said)
    play.server.advance()
    shown = by_receiver(replay_survivors(play))
    for k in shown:
        play.answer(k, shown[k])
    quorum = (
        by_receiver(play.server.advance())
        if play.server.step is Step.AGREE
        else by_receiver(play.server._show_quorum())
    )
    holder = next(j for j in play.server._topology.holders(victim) if j not in near and j != victim)
    assert f"it isolates client {victim}" in play.abort_of(holder, quorum[holder])


def replay_survivors(play: Play):  # type: ignore[no-untyped-def]  # the server's last word, said again
    body = agree_body(play)
    return play.server._broadcast(body, dict.fromkeys(sorted(play.server._digests), ()))


# ------------------------------------------------------------------------------------ replays, garbage


def test_a_whole_round_played_again_is_refused() -> None:
    play = Play()
    messages = play.up_to(Step.ADVERTISE)
    play.clients[0].receive(messages[0])
    again = Play(parties=play.parties)
    assert "a replay" in again.abort_of(0, messages[0])
    older = Play(parties=play.parties, round=2)
    assert "round 2 was proposed after round 3" in older.abort_of(0, older.up_to(Step.ADVERTISE)[0])


def test_a_message_of_another_round_changes_nothing() -> None:
    earlier = Play(round=2)
    stale = earlier.up_to(Step.SHARE)
    play = Play(parties=earlier.parties)
    messages = play.up_to(Step.SHARE)
    with pytest.raises(ProtocolError, match="a replay"):
        play.clients[0].receive(stale[0])
    assert play.finish(messages).survivors == tuple(range(6))  # type: ignore[union-attr]  # a str would fail too


@pytest.mark.parametrize("step", list(Step)[:5])
def test_bytes_the_server_did_not_sign_change_nothing(step: Step) -> None:
    play = Play()
    messages = play.up_to(step)
    for bad, said in (
        (flip(messages[0], len(messages[0]) - len(parse(messages[0]).attachment) - 1), "wrong signature"),
        (messages[0][:-1], "announces"),
        (messages[0] + b"\0", "announces"),
        (messages[0][:4] + b"\2" + messages[0][5:], "version"),
        (b"", "at least"),
    ):
        with pytest.raises(ProtocolError, match=said):
            play.clients[0].receive(bad)
    outcome = play.finish(messages)
    assert not isinstance(outcome, str), outcome
    np.testing.assert_array_equal(outcome.total, exact_sum(range(6)))


def test_a_step_out_of_order_changes_nothing() -> None:
    play = Play()
    later = Play(
        parties=replace(
            play.parties, parties={k: replace(p, _rounds={}) for k, p in play.parties.parties.items()}
        )
    )
    shown = later.up_to(Step.SHARE)
    with pytest.raises(ProtocolError, match="waits for advertise, found share"):
        play.clients[0].receive(shown[0])


def test_a_message_of_the_server_under_other_parameters_is_noticed() -> None:
    play = Play()
    shown = play.up_to(Step.SHARE)
    lied = play.lie(shown[0], header=lambda h: h._replace(parameters=bytes(32)))
    assert "another set of round parameters" in play.abort_of(0, lied)


def test_entropy_is_the_systems_unless_a_test_says_otherwise() -> None:
    assert isinstance(Play().entropy, SystemEntropy)
