"""`kill -9` of a real process at arbitrary moments, then resume: same bits, and no spend forgotten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from securefed.federation import resume, run
from securefed.privacy.ledger import Ledger
from securefed.types import SERVER
from tests.entropy import SeededEntropy
from tests.securefed.test_correlated_job import JOB as CORRELATED
from tests.securefed.test_federation import DIGITS, PRIVATE, model_of

ROOT = Path(__file__).parents[2]
PLAYER = """
import json, sys
from pathlib import Path
from securefed.federation import run
from tests.entropy import SeededEntropy
run(json.loads(sys.argv[1]), folder=Path(sys.argv[2]), entropy=SeededEntropy(7))
"""


def play_and_kill(config: dict[str, object], folder: Path, lines: int) -> None:
    """Starts a run in its own process and kills it once `lines` rounds are on record."""
    path = os.pathsep.join(str(ROOT / p) for p in (".", "attacks", "defenses", "benchmarks"))
    process = subprocess.Popen(
        [sys.executable, "-c", PLAYER, json.dumps(config), str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= lines:
            break
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, err.decode()[-2000:]


@pytest.mark.parametrize("lines", [1, 17])
def test_without_dp_a_killed_run_ends_with_the_same_bits(home: Path, tmp_path: Path, lines: int) -> None:
    job = {**DIGITS, "rounds": 40, "evaluate": {"every": 0, "baselines": False}}
    run(job, folder=tmp_path / "whole")
    play_and_kill(job, tmp_path / "cut", lines)
    assert resume(tmp_path / "cut").rounds == 40
    assert model_of(tmp_path / "whole") == model_of(tmp_path / "cut")


def test_with_dp_a_killed_run_ends_with_the_same_bits_under_test_entropy_and_stays_charged(
    home: Path, tmp_path: Path
) -> None:
    job = {**PRIVATE, "rounds": 40, "evaluate": {"every": 0, "baselines": False}}
    run(job, folder=tmp_path / "whole", entropy=SeededEntropy(7))
    play_and_kill(job, tmp_path / "cut", 9)
    run_id = json.loads((tmp_path / "cut" / "run.json").read_text())["run"]
    with Ledger.site() as ledger:
        at_kill = sum(e.steps for e in ledger.events(run=run_id))
    assert at_kill >= 9 * 4 * 2, "every round on record was charged"
    resume(tmp_path / "cut", entropy=SeededEntropy(7))
    assert model_of(tmp_path / "whole") == model_of(tmp_path / "cut")
    with Ledger.site() as ledger:
        assert 40 * 4 * 2 <= sum(e.steps for e in ledger.events(run=run_id)) <= 41 * 4 * 2


def test_under_correlated_noise_a_killed_run_releases_every_round_once_and_is_charged_once(
    home: Path, tmp_path: Path
) -> None:
    job = {**CORRELATED, "rounds": 24, "evaluate": {"every": 0, "baselines": False}}
    run(job, folder=tmp_path / "whole", entropy=SeededEntropy(7))
    play_and_kill(job, tmp_path / "cut", 7)
    resume(tmp_path / "cut", entropy=SeededEntropy(7))
    assert model_of(tmp_path / "whole") == model_of(tmp_path / "cut")
    run_id = json.loads((tmp_path / "cut" / "run.json").read_text())["run"]
    with Ledger.site() as ledger:
        assert sum(e.steps for e in ledger.events(run=run_id, unit="client")) == 1
        released = ledger.released(run_id, SERVER)
        assert sorted(released) == list(range(24))
        assert len(set(released.values())) == 24
        assert not (ledger.path.parent / "noise" / run_id).exists()
