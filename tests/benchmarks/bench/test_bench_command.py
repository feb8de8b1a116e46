"""`securefed bench` from the command line: killed and resumed, refused, listed, reported."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from securefed.cli import main
from securefed_benchmarks.bench.store import FILE, read_rows
from tests.benchmarks.bench.suites import GRID, write

ROOT = Path(__file__).parents[3]
OWN = ROOT / "examples" / "own_parts.toml"
PATH = os.pathsep.join(str(ROOT / p) for p in (".", "attacks", "defenses", "benchmarks"))


def start(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "securefed", "bench", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH},
        start_new_session=True,
    )


def test_a_bench_killed_twice_at_random_and_resumed_gives_the_table_of_one_that_was_not(
    tmp_path: Path,
) -> None:
    """On an example whose attack, rule, model and data are a user's own, which is so played too."""
    began = time.monotonic()
    whole = start(OWN, "--seeds", "1", "--folder", tmp_path / "whole")
    out, errors = whole.communicate()
    took = time.monotonic() - began
    assert whole.returncode == 0, errors
    assert "9/9" in out

    killed = start(OWN, "--seeds", "1", "--folder", tmp_path / "killed")
    assert killed.stdout is not None
    moment = random.randrange(1, 8)  # any moment will do; which one is in the failure's words
    for line in killed.stdout:
        if line.lstrip().startswith(f"{moment}/9"):
            os.killpg(killed.pid, signal.SIGKILL)
            break
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    begun = len(read_rows(tmp_path / "killed"))
    assert moment <= begun < 9, f"killed after {moment} cells"

    seconds = random.uniform(
        0.0, took
    )  # the second time anywhere: while libraries load, in a cell, between two
    twice = start(OWN, "--seeds", "1", "--folder", tmp_path / "killed", "--resume")
    try:
        twice.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(twice.pid, signal.SIGKILL)
        twice.communicate()
    assert len(read_rows(tmp_path / "killed")) >= begun, f"killed again after {seconds} s"
    begun = len(read_rows(tmp_path / "killed"))

    again = start(OWN, "--seeds", "1", "--folder", tmp_path / "killed", "--resume", "--json")
    out, errors = again.communicate()
    assert again.returncode == 0, errors
    assert json.loads(out)["done"] == 9 - begun
    for name in ("tables.md", "tables.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["bench", *map(str, words)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    return error


def test_a_grid_of_a_million_cells_asks_with_the_estimate_and_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("securefed_benchmarks.bench.grid._resolve", None)  # making one would fail
    rates = ", ".join(str(k / 1000) for k in range(1, 1001))
    grid = GRID + f'vary = {{ "train.learning_rate" = [{rates}] }}\n'
    error = refused(capsys, write(tmp_path, grid), "--seeds", "200", "--folder", tmp_path / "out")
    assert "1,200,000 cells, about 167 hours" in error
    assert "--yes" in error
    assert not (tmp_path / "out").exists()


def test_a_folder_with_results_is_not_written_to_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from securefed_benchmarks.bench.store import Store
    from tests.benchmarks.bench.suites import row

    store = Store(tmp_path / "out")
    store.append(row())
    store.close()
    before = (tmp_path / "out" / FILE).read_bytes()
    assert "--resume" in refused(capsys, write(tmp_path), "--folder", tmp_path / "out")
    (tmp_path / "out" / "suite.json").write_text('{"name": "another"}')
    assert "suite another" in refused(capsys, write(tmp_path), "--folder", tmp_path / "out", "--resume")
    assert (tmp_path / "out" / FILE).read_bytes() == before


def test_a_misspelled_option_is_a_mistake_and_no_impossible_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = GRID.replace('"sign_flip"', '{ name = "ipm", taw = 2.0 }')
    assert "no option 'taw'; did you mean tau?" in refused(capsys, write(tmp_path, grid), "--dry-run")


def test_a_second_bench_and_a_broken_store_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from securefed_benchmarks.bench.store import locked

    with locked(tmp_path / "out"):
        assert "another bench" in refused(capsys, write(tmp_path), "--folder", tmp_path / "out")
    (tmp_path / "out" / FILE).write_bytes(b"no database" * 1000)
    assert "is damaged" in refused(capsys, write(tmp_path), "--folder", tmp_path / "out")
    assert (tmp_path / "out" / FILE).read_bytes() == b"no database" * 1000


def test_a_dry_run_lists_cells_skipped_pairs_and_the_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, GRID + 'protection = ["plain", "masking"]\n')
    assert main(["bench", str(path), "--dry-run", "--only", "attack=none"]) == 0
    out = capsys.readouterr().out
    assert "small: f=2, protection=plain, defence=krum, attack=none, seed 0" in out
    assert "skipped  small" in out
    assert "must see single updates" in out
    assert "estimate: " in out
    assert main(["bench", str(path), "--dry-run", "--json"]) == 0
    assert {c["grid"] for c in json.loads(capsys.readouterr().out)["cells"]} == {"small"}


@pytest.mark.parametrize(
    "name",
    [
        "quick",
        "byzantine",
        "membership",
        "reconstruction",
        "dp-utility",
        "secure-aggregation",
        "privacy-robustness",
    ],
)
def test_every_suite_that_ships_can_start(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", name, "--dry-run", "--yes", "--seeds", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"]


def test_report_says_what_is_no_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["report", str(tmp_path), str(tmp_path)]) == 2
    assert "several folders" in capsys.readouterr().err
