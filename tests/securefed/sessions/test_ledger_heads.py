"""A client whose ledger was cut behind the others' backs is named by the server and by its peers."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from securefed.privacy.chain import EMPTY, Head
from securefed.privacy.events import SampledGaussian
from securefed.privacy.heads import Witness, heads_digest
from securefed.privacy.ledger import Ledger
from securefed.privacy.records import ShardKey
from securefed.types import RoundParameters
from tests.securefed.sessions.playing import Cast

EVENT = SampledGaussian(1.0, 1.0, 1)


def spend(ledger: Ledger, round: int) -> None:
    ledger.settle(ledger.reserve(run="run", client=0, round=round, event=EVENT), steps_taken=1)


def cut(ledger: Ledger, links: int) -> None:
    """Takes the last charges out with care: by itself the file looks whole."""
    ledger.close()
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        count = connection.execute("SELECT count(*) FROM chain").fetchone()[0]
        refs = connection.execute("SELECT DISTINCT ref FROM chain WHERE id > ?", (count - links,)).fetchall()
        connection.execute("DELETE FROM chain WHERE id > ?", (count - links,))
        for (ref,) in refs:
            connection.execute("DELETE FROM reservations WHERE id = ?", (ref,))
    ledger.check()


@pytest.fixture
def cast(tmp_path: Path) -> Cast:
    """Six clients with a ledger each, of which all spend in each round."""
    ledgers = {k: Ledger(tmp_path / f"{k}.sqlite") for k in range(6)}
    for k, ledger in ledgers.items():
        ledger.register("run", {0: ShardKey(f"{k:064d}", 10)}, "data", "example")
    return Cast(ledgers=ledgers)


def play(cast: Cast, round: int) -> None:
    assert cast.play(round).result is not None
    for ledger in cast.ledgers.values():
        spend(ledger, round)


def test_heads_that_grow_are_taken(cast: Cast) -> None:
    for round in range(3):
        play(cast, round)
    assert {h.count for h in cast.server.witness.seen.values()} == {5}
    assert cast.server._refused == {}
    assert all(not reply.work.suspects for _, reply in cast.replies if reply.work is not None)


def test_a_ledger_cut_short_is_named_and_its_client_left_out(cast: Cast) -> None:
    play(cast, 0)
    play(cast, 1)
    play(cast, 2)
    cut(cast.ledgers[3], 4)
    output = cast.play(3)
    assert output.result is not None
    assert 3 not in output.result.survivors
    assert (
        "client 3's privacy ledger was cut short: 5 entries were seen, it shows 3" in output.result.refused[3]
    )


def test_a_ledger_cut_and_spent_again_is_named(cast: Cast) -> None:
    play(cast, 0)
    play(cast, 1)
    cut(cast.ledgers[3], 4)
    for round in range(7, 10):
        spend(cast.ledgers[3], round)
    output = cast.play(2)
    assert output.result is not None
    assert "client 3's privacy ledger was rolled back or rewritten" in output.result.refused[3]


def test_a_client_that_shows_too_few_links_is_named(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    play(cast, 0)
    plain = Ledger.proof

    def fewer(self: Ledger, since: int) -> Any:
        head, start, links = plain(self, since)
        return (head, start + 1, links[1:]) if self is cast.ledgers[3] else (head, start, links)

    monkeypatch.setattr(Ledger, "proof", fewer)
    output = cast.play(1)
    assert output.result is not None
    assert "client 3 does not show its privacy ledger's links since entry 1" in output.result.refused[3]


def test_a_ledger_that_is_gone_is_named(cast: Cast) -> None:
    play(cast, 0)
    cast.clients[3] = cast.client(3, ledger=None)
    output = cast.play(1)
    assert output.result is not None
    assert "shows none now" in output.result.refused[3]


def test_the_other_clients_notice_too_where_the_server_says_nothing(cast: Cast) -> None:
    play(cast, 0)
    play(cast, 1)
    cut(cast.ledgers[3], 4)
    cast.server.witness = Witness()  # a server that forgets on purpose
    cast.replies.clear()
    assert cast.play(2).result is not None
    found = {k: reply.work.suspects for k, reply in cast.replies if reply.work is not None}
    for k in (0, 1, 2, 4, 5):
        assert set(found[k]) == {3}
        assert "client 3" in found[k][3]


def test_a_server_that_is_started_again_remembers_by_its_run_folder(cast: Cast, tmp_path: Path) -> None:
    play(cast, 0)
    play(cast, 1)
    (tmp_path / "heads.json").write_text(json.dumps(cast.server.witness.to_json()))
    again = Cast(ledgers=cast.ledgers)
    again.server.witness = Witness.from_json(json.loads((tmp_path / "heads.json").read_text()))
    cut(cast.ledgers[3], 4)
    output = again.play(2)
    assert output.result is not None
    assert "cut short" in output.result.refused[3]


def test_without_the_chain_nobody_could_tell(cast: Cast) -> None:
    """The defence taken away: the same cut, and nobody has seen a head."""
    for k, client in cast.clients.items():
        cast.clients[k] = cast.client(k, ledger=None)
        assert client.client == k
    cast.play(0)
    spend(cast.ledgers[3], 0)
    cut(cast.ledgers[3], 2)
    cast.ledgers[3].check()  # the file by itself is whole
    output = cast.play(1)
    assert output.result is not None
    assert output.result.refused == {}


def test_a_round_that_was_missed_is_no_accusation(cast: Cast) -> None:
    """The server asks for proofs from the oldest head that any client has seen, so all can follow."""
    play(cast, 0)
    for round, there in ((1, range(5)), (2, range(5)), (3, (0, 1, 2, 5))):
        assert cast.play(round, clients=there).result is not None
        for ledger in cast.ledgers.values():
            spend(ledger, round)
    cast.replies.clear()
    output = cast.play(4)
    assert output.result is not None
    assert output.result.refused == {}
    found = {k: dict(reply.work.suspects) for k, reply in cast.replies if reply.work is not None}
    assert found == {k: {} for k in range(6)}


def test_a_proof_that_begins_after_what_was_seen_proves_nothing() -> None:
    witness = Witness({0: Head(4, b"\1" * 32)})
    found = witness.judge(0, Head(9, b"\2" * 32), 7, (b"\3" * 32, b"\4" * 32))
    assert found is not None
    assert "since entry 4" in found
    assert witness.seen[0].count == 4
    assert witness.judge(5, None, 0, ()) is None
    assert 5 not in witness.seen


def test_a_server_in_league_with_the_cut_client_asks_for_too_little_and_the_others_notice(cast: Cast) -> None:
    """It does not ask for the links across the cut, so the proof is whole as far as it goes."""
    play(cast, 0)
    play(cast, 1)
    cut(cast.ledgers[3], 4)
    for round in range(7, 10):
        spend(cast.ledgers[3], round)
    assert cast.ledgers[3].head().count > 5
    cast.server._since = lambda client: 6 if client == 3 else 0  # type: ignore[method-assign]  # a liar's
    cast.server.witness = Witness()
    cast.replies.clear()
    assert cast.play(2).result is not None
    found = {k: reply.work.suspects for k, reply in cast.replies if reply.work is not None}
    for k in (0, 1, 2, 4, 5):
        assert set(found[k]) == {3}


def test_the_rounds_parameters_carry_the_heads() -> None:
    """What masking and CKKS sign is signed over the heads: other heads are another round."""
    from securefed.protect.ckks import CKKS
    from securefed.protect.masking import Masking, MaskingParameters

    zero = "00" * 32
    base = RoundParameters("run", 0, tuple(range(6)), 4, zero, zero, (1.0,) * 6)
    digests = []
    for head in (None, EMPTY, Head(1, b"\1" * 32)):
        ledgers = heads_digest({} if head is None else {0: head})
        mine = RoundParameters("run", 0, tuple(range(6)), 4, zero, zero, (1.0,) * 6, ledgers)
        masking = Masking().parameters(mine)
        assert MaskingParameters.decode(masking.encode(), zero).base == mine
        digests.append((masking.digest, CKKS().round(mine).digest))
    assert len({m for m, _ in digests}) == len({c for _, c in digests}) == 3
    assert Masking().parameters(base).digest == digests[0][0]
