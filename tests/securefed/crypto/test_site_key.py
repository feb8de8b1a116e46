"""The site's own key: made once, for its owner's eyes, and named by nothing that tells of it."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import stat
from pathlib import Path

import pytest

from securefed.crypto.entropy import SystemEntropy
from securefed.crypto.site_key import SiteKey
from securefed.errors import ProtocolError


def test_it_is_made_once_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "states.key"
    first, second = SiteKey.at(path, SystemEntropy()), SiteKey.at(path, SystemEntropy())
    assert first.id == second.id
    assert first.name(b"a") == second.name(b"a")
    assert first.file_key(b"claim", bytes(32)) == second.file_key(b"claim", bytes(32))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["states.key"]


def test_names_and_keys_differ_by_what_they_are_for(tmp_path: Path) -> None:
    one, other = SiteKey(bytes(32)), SiteKey(b"\1" + bytes(31))
    assert len({one.name(b"a"), one.name(b"b"), other.name(b"a"), one.file_key(b"a", bytes(32))}) == 4
    assert one.file_key(b"a", bytes(32)) != one.file_key(b"a", b"\1" + bytes(31))
    assert one.id != other.id


def _id_of(path: Path) -> bytes:
    return SiteKey.at(path, SystemEntropy()).id


def test_two_processes_at_once_end_up_with_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(_id_of, [tmp_path / "states.key"] * 4, chunksize=1)
    assert len(set(found)) == 1


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "states.key"
    SiteKey.at(path, SystemEntropy())
    path.chmod(0o640)
    with pytest.raises(ProtocolError, match="read by others"):
        SiteKey.at(path, SystemEntropy())


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_file_that_is_no_key_is_not_used(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "states.key"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(ProtocolError, match="no key"):
        SiteKey.at(path, SystemEntropy())


def test_it_shows_and_stores_nothing_of_itself() -> None:
    key = SiteKey(b"secret--" * 4)
    assert repr(key) == "SiteKey(secret)"
    for keep in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ProtocolError):
            keep(key)
