"""Checkpoints are whole or not there; damage costs a round, never the run, and never passes unnoticed."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from securefed.algorithms.server_optimizer import Moments
from securefed.checkpoint import State, load_state, save_state
from securefed.errors import CheckpointError

IDENTITY = {"run": "r", "config": "c", "data": "d"}


def state(round: int) -> State:
    rng = np.random.default_rng(round)
    moments = Moments(rng.standard_normal(4).astype(np.float32), rng.standard_normal(4).astype(np.float32))
    return State(
        round,
        rng.standard_normal(4).astype(np.float32),
        moments,
        local={3: np.ones(2, np.float32)},
        best=0.5,
        stale=1,
        metrics={"accuracy": 0.75},
        client_metrics={3: {"accuracy": 0.5}},
    )


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save_state(tmp_path, state(4), IDENTITY)
    back = load_state(tmp_path, IDENTITY)
    assert back is not None
    assert back.round == 4
    assert back.vector.tobytes() == state(4).vector.tobytes()
    assert back.moments.second.tobytes() == state(4).moments.second.tobytes()
    assert back.local[3].tolist() == [1.0, 1.0]
    assert (back.best, back.stale, back.metrics) == (0.5, 1, {"accuracy": 0.75})
    assert back.client_metrics == {3: {"accuracy": 0.5}}


def test_what_stays_with_clients_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir(mode=0o755)
    path = save_state(tmp_path, state(0), IDENTITY)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_only_the_two_newest_are_kept(tmp_path: Path) -> None:
    for r in range(5):
        save_state(tmp_path, state(r), IDENTITY)
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir()) == ["round-000003", "round-000004"]


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, file: str) -> None:
    save_state(tmp_path, state(1), IDENTITY)
    newest = save_state(tmp_path, state(2), IDENTITY)
    whole = (newest / file).read_bytes()
    (newest / file).write_bytes(whole[: len(whole) // 2])
    back = load_state(tmp_path, IDENTITY)
    assert back is not None
    assert back.round == 1


def test_every_checkpoint_damaged_is_said_and_not_started_over(tmp_path: Path) -> None:
    (save_state(tmp_path, state(1), IDENTITY) / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(tmp_path, IDENTITY)


def test_no_checkpoint_yet_is_no_error(tmp_path: Path) -> None:
    assert load_state(tmp_path, IDENTITY) is None


@pytest.mark.parametrize("key", ["run", "config", "data"])
def test_another_identity_is_refused_and_named(tmp_path: Path, key: str) -> None:
    save_state(tmp_path, state(1), IDENTITY)
    with pytest.raises(CheckpointError, match=f"another {key}"):
        load_state(tmp_path, {**IDENTITY, key: "other"})
