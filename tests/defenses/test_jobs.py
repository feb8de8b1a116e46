"""Robust rules through the round loop: weights, seeds and memory arrive, and a stopped run goes on with its bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import securefed as sf
from securefed.aggregation import pack_state, round_generator, unpack_state
from securefed.checkpoint import load_state
from securefed.errors import ProtocolError
from securefed.federation import resume, run
from tests.stopping import StopAfter

JOB: dict[str, Any] = {
    "name": "robust",
    "rounds": 3,
    "data": {"name": "digits", "clients": 6, "partition": "iid", "limit": 300},
    "model": {"name": "mlp", "adapter": "full", "hidden": 8},
    "train": {"steps": 2, "learning_rate": 0.1},
    "evaluate": {"baselines": False, "clients": False, "every": 0},
}
CLIPPED = {"name": "centered_clipping", "radius": 0.05, "iterations": 1}
BUCKETS = {"name": "pipeline", "pre": [{"name": "bucketing", "s": 2}], "rule": "median"}


def vector(folder: Path, identity: Any = None) -> np.ndarray[Any, Any]:
    state = load_state(folder, identity or {})
    assert state is not None
    return state.vector


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECUREFED_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    "aggregator", [CLIPPED, BUCKETS, {"name": "fools_gold"}], ids=lambda a: str(a["name"])
)
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    aggregator: dict[str, Any], tmp_path: Path
) -> None:
    job = {**JOB, "aggregator": aggregator}
    whole = run(job, folder=tmp_path / "whole")
    run(job, folder=tmp_path / "stopped", stop_flag=StopAfter(1))
    resumed = resume(tmp_path / "stopped")
    assert resumed.rounds == whole.rounds == 3
    assert np.array_equal(vector(tmp_path / "whole"), vector(tmp_path / "stopped"))


def test_a_rule_without_its_memory_would_end_elsewhere(tmp_path: Path) -> None:
    """So the test above can fail: the same run whose memory is lost at the stop."""
    job = {**JOB, "aggregator": CLIPPED}
    run(job, folder=tmp_path / "whole")
    run({**job, "rounds": 3}, folder=tmp_path / "stopped", stop_flag=StopAfter(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("securefed.federation.unpack_state", lambda vectors: None)
        resume(tmp_path / "stopped")
    assert not np.array_equal(vector(tmp_path / "whole"), vector(tmp_path / "stopped"))


def test_a_cohort_too_small_for_the_rule_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        sf.SecureFedError, match="a round has 6 clients: krum needs n >= 2f \\+ 3, got n=6, f=2"
    ):
        run({**JOB, "aggregator": {"name": "krum", "f": 2}}, folder=tmp_path / "run")


def test_every_round_has_its_own_generator_and_the_same_one_again() -> None:
    draws = {
        (s, r): float(torch.rand(1, generator=round_generator(s, r))) for s in range(3) for r in range(3)
    }
    assert len(set(draws.values())) == 9
    assert draws[1, 2] == float(torch.rand(1, generator=round_generator(1, 2)))


def test_a_memory_comes_back_from_a_checkpoint_as_it_was() -> None:
    memory = {"a/1": torch.arange(3.0), "b": torch.ones(2)}
    back = unpack_state(pack_state(memory))
    assert back is not None
    assert back.keys() == memory.keys()
    assert all(torch.equal(back[k], memory[k]) for k in memory)
    assert unpack_state(pack_state(None)) is None
    with pytest.raises(ProtocolError, match="mapping from text to vectors"):
        pack_state(7)
