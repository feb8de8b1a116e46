"""Identities are secrets, rosters are public; nobody speaks in another's name."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest

from securefed.crypto.entropy import SystemEntropy
from securefed.crypto.identity import Identity, Roster
from securefed.crypto.keys import KeyPair
from securefed.errors import ProtocolError
from securefed.types import SERVER


def cast(n: int = 3) -> tuple[list[Identity], Roster]:
    everyone = [Identity.generate(SystemEntropy()) for _ in range(n + 1)]
    return everyone, Roster(everyone[n].public, {k: everyone[k].public for k in range(n)})


def test_only_the_owner_speaks_in_a_partys_name() -> None:
    identities, roster = cast()
    signature = identities[1].sign(b"hello")
    assert roster.verify(1, b"hello", signature)
    assert not roster.verify(0, b"hello", signature)
    assert not roster.verify(SERVER, b"hello", signature)
    assert not roster.verify(7, b"hello", signature), "a stranger"
    roster.check(SERVER, b"x", identities[3].sign(b"x"))
    with pytest.raises(ProtocolError, match="in the name of client 0"):
        roster.check(0, b"hello", signature)
    with pytest.raises(ProtocolError, match="in the name of the server"):
        roster.check(SERVER, b"hello", signature)


def test_the_digest_is_of_every_key_and_number() -> None:
    identities, roster = cast()
    keys = dict(roster.clients)
    digests = {
        roster.digest,
        Roster(
            identities[0].public, {k + 1: key for k, key in enumerate([i.public for i in identities[1:]])}
        ).digest,
        Roster(roster.server, {k + 1: key for k, key in keys.items()}).digest,
        Roster(roster.server, {k: keys[k] for k in (0, 1)}).digest,
    }
    assert len(digests) == 4
    assert Roster(roster.server, dict(reversed(keys.items()))).digest == roster.digest


def test_a_roster_with_a_key_twice_or_a_key_that_is_none_is_refused() -> None:
    identities, roster = cast()
    with pytest.raises(ProtocolError, match="same key"):
        Roster(roster.server, {0: identities[0].public, 1: identities[0].public})
    with pytest.raises(ProtocolError, match="same key"):
        Roster(roster.server, {0: roster.server})
    with pytest.raises(ProtocolError, match="no Ed25519"):
        Roster(b"short", {0: identities[0].public})
    with pytest.raises(ProtocolError, match="numbered"):
        Roster(roster.server, {-2: identities[0].public})


def test_a_roster_cannot_be_changed_after_it_was_pinned() -> None:
    identities, roster = cast()
    with pytest.raises(TypeError):
        roster.clients[0] = identities[2].public  # type: ignore[index]  # that is the point


def test_files_come_back_and_an_identity_is_its_owners_alone(tmp_path: Path) -> None:
    identities, roster = cast()
    roster.save(tmp_path / "roster.json")
    assert Roster.load(tmp_path / "roster.json") == roster
    identities[0].save(tmp_path / "me")
    assert os.stat(tmp_path / "me").st_mode & 0o777 == 0o600
    assert Identity.load(tmp_path / "me").public == identities[0].public
    with pytest.raises(ProtocolError, match="never written over"):
        identities[1].save(tmp_path / "me")
    os.chmod(tmp_path / "me", 0o644)
    with pytest.raises(ProtocolError, match="read by others"):
        Identity.load(tmp_path / "me")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"version": 1, "kind": "securefed identity", "seed": "zz"}']
)
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o600)
    path.write_text(content)
    with pytest.raises(ProtocolError, match="not an identity"):
        Identity.load(path)
    with pytest.raises(ProtocolError, match="not a roster"):
        Roster.load(path)
    with pytest.raises(ProtocolError, match="cannot read"):
        Roster.load(tmp_path / "nowhere")


@pytest.mark.parametrize("secret", [Identity.generate(SystemEntropy()), KeyPair.generate(SystemEntropy())])
def test_secrets_do_not_show_or_travel(secret: Identity | KeyPair) -> None:
    assert secret._seed.hex() not in repr(secret)
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ProtocolError, match="secret"):
            attempt(secret)


def test_an_erased_key_pair_is_gone() -> None:
    pair, peer = KeyPair.generate(SystemEntropy()), KeyPair.generate(SystemEntropy())
    pair.erase()
    assert bytes(pair._seed) == bytes(32)
    with pytest.raises(ProtocolError, match="erased"):
        pair.exchange(peer.public)
    with pytest.raises(ProtocolError, match="erased"):
        _ = pair.seed


LOW_ORDER = (
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)


@pytest.mark.parametrize("point", [*map(bytes.fromhex, LOW_ORDER), b"", bytes(31), bytes(33)])
def test_a_key_that_could_be_anybodys_is_refused(point: bytes) -> None:
    with pytest.raises(ProtocolError, match="low order or of the wrong length"):
        KeyPair.generate(SystemEntropy()).exchange(point)
