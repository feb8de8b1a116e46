"""Frozen states on disk: the same bits as computed, and every way of breaking a file ends in computing again."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from securefed.crypto.entropy import SystemEntropy
from securefed.crypto.site_key import SiteKey
from securefed.data.batch import Encoded
from securefed.models import TaskModel
from securefed.training import state_file, state_store
from securefed.training.feed import CachedStates
from securefed.training.frozen_cache import FrozenCache
from securefed.training.state_folder import drop, stored_files
from securefed.training.state_store import StateStore
from tests.securefed.training.setups import bert, counted, stirred, texts

BOUNDS = {"physical_tokens": 64, "physical_batch": 4}


def store(folder: Path, *, sealed: bool = True, limit: int = 2**30) -> StateStore:
    key = SiteKey.at(folder / "state" / "states.key", SystemEntropy())
    return StateStore(folder / "states", key, sealed=sealed, limit_bytes=limit, entropy=SystemEntropy())


def files(folder: Path) -> list[Path]:
    return stored_files(folder / "states")


def some(seed: int = 0, n: int = 3, width: int = 4) -> CachedStates:
    rng = np.random.default_rng(seed)
    hidden = tuple(torch.from_numpy(rng.normal(size=(t + 1, width)).astype(np.float32)) for t in range(n))
    below = torch.from_numpy(rng.normal(size=(n, 2, width)).astype(np.float32))
    return CachedStates(2, hidden=hidden, below=below)


LENGTHS = [1, 2, 3]


def same(a: CachedStates, b: CachedStates) -> bool:
    def tensors(states: CachedStates) -> list[torch.Tensor | None]:
        return [*states.hidden, states.pooled, states.below]

    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return a.cut == b.cut and all(
        (x is None) == (y is None) and (x is None or y is None or torch.equal(x, y)) for x, y in pairs
    )


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("chunk", [64, 100, 2**20])
def test_states_come_back_to_the_bit_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool, chunk: int
) -> None:
    for module in ("securefed.crypto.chunks", "securefed.training.state_file"):
        monkeypatch.setattr(f"{module}.CHUNK_BYTES", chunk)
    odd = torch.tensor([[float("inf"), -0.0, 1e-45, float("-inf")]])
    states = CachedStates(2, hidden=(odd, *some().hidden[1:]), below=some().below)
    pooled = CachedStates(3, pooled=torch.randn(3, 5))
    one = store(tmp_path, sealed=sealed)
    one.put("a", states)
    one.put("b", pooled)
    other = store(tmp_path, sealed=sealed)
    for name, wanted in (("a", states), ("b", pooled)):
        stored = other.find(name)
        assert stored is not None
        assert stored.size == wanted.size_bytes
        found = other.load(stored, LENGTHS)
        assert found is not None
        assert same(found, wanted)
        assert all(t.data_ptr() % 4 == 0 for t in found.hidden)
    assert torch.signbit(other.load(other.find("a"), LENGTHS).hidden[0][0, 1])  # type: ignore[arg-type, union-attr]  # found above


def test_only_the_owner_can_read_and_names_tell_nothing(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a"), store(tmp_path / "b")
    for s in (first, second):
        s.put("the text", some())
    one, two = files(tmp_path / "a")[0], files(tmp_path / "b")[0]
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    assert stat.S_IMODE(one.parent.stat().st_mode) == 0o700
    assert one.name != two.name  # a keyed digest: nobody without the key can test a guess
    assert len(one.stem) == 64


@pytest.mark.parametrize("sealed", [True, False])
def test_neither_states_nor_shapes_can_be_read_from_a_sealed_file(tmp_path: Path, sealed: bool) -> None:
    states = CachedStates(3, pooled=torch.full((3, 64), 1.5))
    store(tmp_path, sealed=sealed).put("a", states)
    data = files(tmp_path)[0].read_bytes()
    seen = [word in data for word in (np.full(2, 1.5, "<f4").tobytes(), b"pooled", b"F32", b"cut")]
    assert all(seen) if not sealed else not any(seen)


def test_the_same_states_twice_are_two_different_ciphertexts(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.put("a", some())
    first = files(tmp_path)[0].read_bytes()
    one.put("a", some())
    second = files(tmp_path)[0].read_bytes()
    agree = sum(x == y for x, y in zip(first[128:], second[128:], strict=True))
    assert agree < len(first) / 50  # 1 in 256 by chance


# ------------------------------------------------------------------------------------------- attacks

HEAD = state_file.HEAD_BYTES


def flip(place: int) -> Callable[[Path, Path], None]:
    def broken(path: Path, other: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return broken


def swap(path: Path, other: Path) -> None:
    mine = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(mine)


def cut(n: int) -> Callable[[Path, Path], None]:
    return lambda path, other: path.write_bytes(path.read_bytes()[:n])


def graft(path: Path, other: Path) -> None:
    """The other's body and tags under this file's own head."""
    path.write_bytes(path.read_bytes()[:HEAD] + other.read_bytes()[HEAD:])


ATTACKS: dict[str, Callable[[Path, Path], None]] = {
    "magic": flip(0),
    "version": flip(8),
    "form": flip(10),
    "key id": flip(16),
    "name": flip(30),
    "salt": flip(60),
    "length": flip(89),
    "size": flip(97),
    "head's padding": flip(120),
    "first byte of the body": flip(HEAD),
    "an array": flip(-40),
    "a tag": flip(-1),
    "two files swapped": swap,
    "another body": graft,
    "cut off": cut(-1),
    "head alone": cut(HEAD),
    "half a head": cut(50),
    "nothing": cut(0),
    "longer": lambda path, other: path.write_bytes(path.read_bytes() + b"x"),
    "something else": lambda path, other: path.write_bytes(b"hello" * 100),
    "zeros": lambda path, other: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_is_done_to_a_file_is_noticed_and_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sealed: bool, attack: str
) -> None:
    one = store(tmp_path, sealed=sealed)
    one.put("a", some(0))
    path = files(tmp_path)[0]
    one.put("b", some(1))
    other = next(p for p in files(tmp_path) if p != path)
    ATTACKS[attack](path, other)
    again = store(tmp_path, sealed=sealed)
    for _ in range(2):
        stored = again.find("a")
        assert stored is None or again.load(stored, LENGTHS) is None
    assert sum("is not used" in r.message for r in caplog.records) == 1
    again.put("a", some(0))
    stored = again.find("a")
    assert stored is not None
    found = again.load(stored, LENGTHS)
    assert found is not None
    assert same(found, some(0))


def test_every_byte_of_a_small_file_counts(tmp_path: Path) -> None:
    one = store(tmp_path, sealed=False)
    one.put("a", CachedStates(3, pooled=torch.randn(1, 2)))
    path = files(tmp_path)[0]
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        stored = one.find("a")
        assert stored is None or one.load(stored, [1]) is None, place
    path.write_bytes(whole)
    stored = one.find("a")
    assert stored is not None
    assert one.load(stored, [1]) is not None


def test_a_file_of_other_records_is_not_used(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.put("a", some())
    stored = one.find("a")
    assert stored is not None
    assert one.load(stored, [1, 2, 4]) is None
    assert one.load(stored, LENGTHS) is not None


def test_a_store_of_one_form_reads_nothing_of_the_other(tmp_path: Path) -> None:
    store(tmp_path, sealed=False).put("a", some())
    assert store(tmp_path, sealed=True).find("a") is None


def test_another_site_key_finds_nothing(tmp_path: Path) -> None:
    store(tmp_path).put("a", some())
    (tmp_path / "state" / "states.key").unlink()
    assert store(tmp_path).find("a") is None


# --------------------------------------------------------------------------------- room and processes


def test_the_longest_unused_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    probe = store(tmp_path / "probe")
    probe.put("a", some())
    size = files(tmp_path / "probe")[0].stat().st_size
    one = store(tmp_path, limit=3 * size)
    for k, name in enumerate("abc"):
        one.put(name, some())
        os.utime(max(files(tmp_path), key=lambda p: p.stat().st_mtime_ns), ns=(k, k))
    used = one.find("a")
    assert used is not None
    assert one.load(used, LENGTHS) is not None  # now "b" is the longest unused
    one.put("d", some())
    assert [one.find(name) is not None for name in "abcd"] == [True, False, True, True]
    assert sum(p.stat().st_size for p in files(tmp_path)) <= 3 * size


def test_a_file_that_is_in_use_is_not_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    probe = store(tmp_path / "probe", sealed=False)
    probe.put("a", some())
    size = files(tmp_path / "probe")[0].stat().st_size
    one = store(tmp_path, sealed=False, limit=size)
    one.put("a", some())
    stored = one.find("a")
    assert stored is not None
    held = one.load(stored, LENGTHS)  # mapped, so the file is in use
    one.put("b", some())
    assert one.find("a") is not None
    assert one.find("b") is None
    assert drop(tmp_path / "states") == 0
    assert sum("cache_disk_mib" in r.message for r in caplog.records) == 1
    assert held is not None
    assert same(held, some())
    del held
    one.put("b", some())
    assert one.find("a") is None
    assert one.find("b") is not None


def test_what_is_larger_than_the_bound_drops_nothing(tmp_path: Path) -> None:
    one = store(tmp_path, limit=2000)
    one.put("a", some())
    one.put("b", CachedStates(3, pooled=torch.zeros(1000, 10)))
    assert one.find("a") is not None
    assert one.find("b") is None


@pytest.mark.parametrize(("free", "left"), [(0, 3), (4000, 2), (10**9, 4)])
def test_a_disk_that_others_have_filled_costs_no_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, left: int
) -> None:
    """Files make room where that is enough for the new one, and only as many as that takes."""
    one = store(tmp_path)
    for name in "abc":
        one.put(name, some())
    small = files(tmp_path)[0].stat().st_size
    assert 500 < small < 1000
    monkeypatch.setattr(state_store.shutil, "disk_usage", lambda _: type("U", (), {"free": free}))
    one.put("large", CachedStates(3, pooled=torch.zeros(3, 400)))  # 5 KiB
    assert len(files(tmp_path)) == left
    assert (one.find("large") is not None) is (free > 0)


@pytest.mark.parametrize("trouble", ["full disk", "no free space", "folder is gone"])
def test_a_disk_that_does_not_take_it_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    one = store(tmp_path)
    if trouble == "full disk":

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(state_store, "write", full)
    elif trouble == "no free space":
        monkeypatch.setattr(state_store.shutil, "disk_usage", lambda _: type("U", (), {"free": 100}))
    else:
        (tmp_path / "states").rmdir()
    one.put("a", some())
    one.put("a", some())
    assert one.find("a") is None
    assert files(tmp_path) == []
    assert len(caplog.records) == 1


KILLED = """
import os, sys
from pathlib import Path
from tests.securefed.training.test_state_store import some, store
from securefed.training import state_store
state_store.os.replace = lambda *_: os.kill(os.getpid(), 9)
store(Path(sys.argv[1]), sealed=sys.argv[2] == "1").put("a", some())
"""


@pytest.mark.parametrize("sealed", ["0", "1"])
def test_a_process_killed_while_it_writes_leaves_nothing_that_is_believed(
    tmp_path: Path, sealed: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), sealed],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -9
    assert [p.name[:6] for p in files(tmp_path)] == [".part-"]
    one = store(tmp_path, sealed=sealed == "1")
    assert one.find("a") is None
    one.put("b", some())
    assert [p.suffix for p in files(tmp_path)] == [".states"]  # the rest was cleared away


TWO = """
import sys
from pathlib import Path
from tests.securefed.training.test_state_store import LENGTHS, same, some, store
one = store(Path(sys.argv[1]), limit=5000)
for k in range(60):
    one.put(str(k % 7), some(k % 7))
    for j in range(7):
        stored = one.find(str(j))
        found = None if stored is None else one.load(stored, LENGTHS)
        assert found is None or same(found, some(j))
"""


def test_two_processes_at_once_read_only_whole_files(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen([sys.executable, "-c", TWO, str(tmp_path)], env=env, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err.decode()
        assert b"not used" not in err, err.decode()
    assert sum(p.stat().st_size for p in files(tmp_path)) <= 5000


# ------------------------------------------------------------------------------------ under the cache


def parts(model: TaskModel, *wanted: str) -> tuple[str, ...]:
    return tuple(n for n, part in model.part_of.items() if part in wanted)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_second_cache_computes_nothing_and_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    model = bert(tmp_path / "m", layers=1, head_layers=(0, 1, 2))
    head, joint = parts(model, "head"), parts(model, "B", "head")
    plain, warm = FrozenCache(64), []
    passes = counted(monkeypatch)
    for _ in range(2):
        cache, data = FrozenCache(64, store(tmp_path, sealed=sealed)), texts(model)
        warm.append([cache.states(model, data, names, **BOUNDS) for names in (head, joint)])
        size = cache.size_bytes
    assert passes == [1, 3]
    data = texts(model)
    for k, names in enumerate((head, joint)):
        computed = plain.states(model, data, names, **BOUNDS)
        assert computed is not None
        assert all(w[k] is not None and same(w[k], computed) for w in warm)
    assert size == plain.size_bytes


def test_hidden_states_are_not_read_before_the_adapter_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(tmp_path / "m", layers=1)
    FrozenCache(64, store(tmp_path)).states(model, texts(model), parts(model, "head"), **BOUNDS)
    read, load = [], StateStore.load
    monkeypatch.setattr(StateStore, "load", lambda self, s, n: read.append(s.size) or load(self, s, n))
    cache, data = FrozenCache(64, store(tmp_path)), texts(model)
    cache.states(model, data, parts(model, "head"), **BOUNDS)
    assert len(read) == 1
    cache.states(model, data, parts(model, "B", "head"), **BOUNDS)
    assert len(read) == 2


@pytest.mark.parametrize(
    "change", ["weights", "adapter's values below", "tokens", "order", "batches", "threads"]
)
def test_states_of_anything_else_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def set_idle(seed: int) -> None:
        """Another A under a B of zeros, so that the features may be cached."""
        model.write(stirred(model, seed), model.layout)
        with torch.no_grad():
            for name in parts(model, "B"):
                model.parameters[name].zero_()

    model = bert(tmp_path / "m", layers="all" if change.startswith("adapter") else 1)
    data, bounds, head = texts(model), dict(BOUNDS), parts(model, "head")
    if change.startswith("adapter"):
        set_idle(1)
    FrozenCache(64, store(tmp_path)).states(model, data, head, **bounds)
    passes = counted(monkeypatch)
    assert data.tokens is not None
    if change == "weights":  # in memory, with files and digests as they were
        with torch.no_grad():
            model.module.backbone.embeddings.word_embeddings.weight[5, 0] += 1e-3
    elif change.startswith("adapter"):
        set_idle(2)
    elif change == "tokens":
        data = Encoded(tokens=(data.tokens[0][::-1].copy(), *data.tokens[1:]), labels=data.labels)
    elif change == "order":
        data = Encoded(tokens=data.tokens[::-1], labels=data.labels)
    elif change == "batches":
        bounds["physical_batch"] = 5
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    cache = FrozenCache(64, store(tmp_path))
    found = cache.states(model, data, head, **bounds)
    fresh = FrozenCache(64).states(model, data, head, **bounds)
    assert len(passes) in (2, 4)  # as many for the store as without it
    assert found is not None
    assert fresh is not None
    assert same(found, fresh)


def test_a_broken_file_is_computed_again_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = bert(tmp_path / "m", layers=1)
    wanted = FrozenCache(64, store(tmp_path)).states(model, texts(model), parts(model, "head"), **BOUNDS)
    for path in files(tmp_path):
        flip(-1)(path, path)
    passes = counted(monkeypatch)
    for _ in range(2):
        found = FrozenCache(64, store(tmp_path)).states(model, texts(model), parts(model, "head"), **BOUNDS)
        assert found is not None
        assert wanted is not None
        assert same(found, wanted)
    assert passes == [1, 3]
    assert sum("is not used" in r.message for r in caplog.records) == 1


def test_states_that_change_with_training_are_kept_once_and_not_every_round(tmp_path: Path) -> None:
    model = bert(tmp_path / "m", layers="all")
    cache, data, head = FrozenCache(64, store(tmp_path)), texts(model), parts(model, "head")
    for seed in range(4):
        values = stirred(model, seed)
        model.write(values, model.layout)
        with torch.no_grad():
            for name in parts(model, "B"):
                model.parameters[name].zero_()  # so that the features may be cached, above an A that moves
        cache.states(model, data, head, **BOUNDS)
    assert len(files(tmp_path)) == 1


def test_what_does_not_fit_into_memory_is_not_on_disk_either(tmp_path: Path) -> None:
    model = bert(tmp_path / "m", layers=1)
    assert FrozenCache(0, store(tmp_path)).states(model, texts(model), parts(model, "head"), **BOUNDS) is None
    assert files(tmp_path) == []
    FrozenCache(64, store(tmp_path)).states(model, texts(model), parts(model, "head"), **BOUNDS)
    assert FrozenCache(0, store(tmp_path)).states(model, texts(model), parts(model, "head"), **BOUNDS) is None
