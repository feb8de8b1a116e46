"""The drawing of groups by signed messages: all agree, or the ceremony ends and says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from securefed.crypto.entropy import SystemEntropy
from securefed.crypto.identity import Identity, Roster
from securefed.errors import ProtocolError
from securefed.protect.ceremony import COMMIT, OPEN, CeremonyClient, CeremonyServer, Terms, _listed, _unlisted
from securefed.protect.grouped import Grouped
from securefed.types import SERVER, Message

N = 7
ENTROPY = SystemEntropy()
KEYS = {k: Identity.generate(ENTROPY) for k in (SERVER, *range(N))}
TERMS = Terms("run", Roster(KEYS[SERVER].public, {k: KEYS[k].public for k in range(N)}), 3)


def clients(terms: Terms = TERMS) -> list[CeremonyClient]:
    return [CeremonyClient(terms, k, KEYS[k], SystemEntropy()) for k in range(N)]


def first(party: CeremonyClient) -> bytes:
    return party.start().send[0].payload


def commitments(parties: list[CeremonyClient], server: CeremonyServer) -> dict[int, bytes]:
    """What the server sends to each client after all have committed."""
    found: tuple[Message, ...] = ()
    for party in parties:
        found += server.receive(party.client, first(party)).send
    return {m.receiver: m.payload for m in found}


def test_every_party_draws_the_same_groups_and_another_ceremony_others() -> None:
    drawn = []
    for _ in range(2):
        parties, server = clients(), CeremonyServer(TERMS)
        lists = commitments(parties, server)
        out: tuple[Message, ...] = ()
        for party in parties:
            (opening,) = party.receive(lists[party.client]).send
            out += server.receive(party.client, opening.payload).send
        for message in out:
            parties[message.receiver].receive(message.payload)
        assert {party.groups for party in parties} == {server.groups}
        assert server.groups is not None
        assert sorted(k for group in server.groups for k in group) == list(range(N))
        drawn.append((server.groups, [party._nonce for party in parties]))
    assert drawn[0][1] != drawn[1][1]


def test_the_protection_draws_its_groups_by_it() -> None:
    opened = Grouped(size=3).open("run", range(10), SystemEntropy())
    assert sorted(len(group) for group in opened.groups) == [3, 3, 4]
    assert len({Grouped(size=3).open("run", range(30), SystemEntropy()).groups for _ in range(3)}) == 3


def test_a_server_that_shows_two_lists_of_commitments_is_found_out() -> None:
    """It asks client 0 for a second commitment and shows each half of the clients another list."""
    parties, server = clients(), CeremonyServer(TERMS)
    lists = commitments(parties, server)
    other = first(CeremonyClient(TERMS, 0, KEYS[0], SystemEntropy()))
    entries = _unlisted(lists[1], COMMIT, tuple(range(N)))
    entries[0] = (other[6:38], other[38:])
    opened = {}
    for party in parties:
        shown = _listed(COMMIT, entries) if party.client > 3 else lists[party.client]
        payload = party.receive(shown).send[0].payload
        opened[party.client] = (payload[6:38], payload[38:])
    for party in (parties[1], parties[5]):
        with pytest.raises(ProtocolError, match="does not bear its signature"):
            party.receive(_listed(OPEN, opened))
        assert party.groups is None


def test_a_server_cannot_put_words_into_a_clients_mouth() -> None:
    parties, server = clients(), CeremonyServer(TERMS)
    lists = commitments(parties, server)
    entries = _unlisted(lists[1], COMMIT, tuple(range(N)))
    with pytest.raises(ProtocolError, match="in the name of client 2"):
        parties[1].receive(_listed(COMMIT, {**entries, 2: (bytes(32), entries[2][1])}))
    fresh = first(CeremonyClient(TERMS, 1, KEYS[1], SystemEntropy()))
    with pytest.raises(ProtocolError, match="another commitment than client 1's own"):
        parties[1].receive(_listed(COMMIT, {**entries, 1: (fresh[6:38], fresh[38:])}))
    with pytest.raises(ProtocolError, match="not of all 7 clients"):
        parties[1].receive(_listed(COMMIT, {k: v for k, v in entries.items() if k != 6}))
    parties[1].receive(lists[1])  # nothing of that has stuck
    with pytest.raises(ProtocolError, match="step 2"):
        parties[1].receive(lists[1])


@pytest.mark.parametrize(
    "terms",
    [
        replace(TERMS, run="another"),
        replace(TERMS, size=2),
        replace(TERMS, roster=Roster(KEYS[SERVER].public, {k: KEYS[k].public for k in range(N - 1)})),
    ],
)
def test_parties_with_other_terms_cannot_complete_it(terms: Terms) -> None:
    server = CeremonyServer(TERMS)
    party = CeremonyClient(terms, 0, KEYS[0], SystemEntropy())
    assert server.receive(0, first(party)).send == ()
    assert "does not bear its signature" in server.refused[0]


def test_a_bad_message_is_refused_and_a_right_one_still_counts() -> None:
    parties, server = clients(), CeremonyServer(TERMS)
    right = first(parties[0])
    for bad in (b"", right[:-1], right + b"x", b"XXXX" + right[4:], right[:4] + b"\x02" + right[5:]):
        assert server.receive(0, bad).send == ()
        assert 0 in server.refused
    assert server.receive(1, right).send == ()  # client 0's words from client 1
    assert server.receive(99, right).send == ()
    server.receive(0, right)
    for party in parties[1:]:
        out = server.receive(party.client, first(party)).send
    assert len(out) == N


def test_who_is_silent_or_opens_another_nonce_ends_it_by_name() -> None:
    parties, server = clients(), CeremonyServer(TERMS)
    lists = commitments(parties, server)
    for party in parties[:-1]:
        server.receive(party.client, party.receive(lists[party.client]).send[0].payload)
    liar = parties[-1]
    liar.receive(lists[N - 1])
    wrong = liar._send(OPEN, bytes(32), liar._before).send[0].payload
    assert server.receive(N - 1, wrong).send == ()
    assert "did not open its commitment" in server.refused[N - 1]
    abort = server.advance().abort
    assert abort is not None
    assert f"no answer from client {N - 1} in step 2" in abort
    assert server.groups is None


def test_nobody_speaks_out_of_turn() -> None:
    party = clients()[0]
    with pytest.raises(ProtocolError, match="expects no message"):
        party.receive(b"")
    party.start()
    with pytest.raises(ProtocolError, match="begun the ceremony already"):
        party.start()
    assert "nonce" not in repr(party)
