"""The command line over the real federation, on digits: mistakes in a job, JSON, a full disk, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from securefed.cli import main

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "digits.toml")
PRIVATE = [
    "train.epochs=0",
    "train.steps=3",
    "privacy.unit=example",
    "privacy.epsilon=5",
    "privacy.delta=1e-4",
]
FAST = ["rounds=2", "evaluate.baselines=false", "data.clients=3", "data.partition=iid"]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in (".", "attacks", "defenses", "benchmarks"))
}


def play(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", DIGITS, "privacy.epsilonn=3"], "did you mean privacy.epsilon"),
        (["run", DIGITS, "ronds=3"], "did you mean rounds"),
        (["run", DIGITS, "rounds=0"], "rounds must be at least 1"),
        (["run", DIGITS, "privacy.epsilon=3"], "privacy.unit"),
        (["run", DIGITS, *PRIVATE, "privacy.epsilon=-1"], "above 0"),
        (["run", DIGITS, *PRIVATE, "privacy.delta=0.5"], "1/records of every shard"),
        (["run", DIGITS, *PRIVATE, "privacy.max_grad_norm=0"], "above 0"),
        (["run", DIGITS, "data.clients=100000"], "data.clients"),
        (["run", DIGITS, "data.name=digitz"], "digits"),
        (["run", DIGITS, "model.name=minilm", "model.adapter=rolora"], "text"),
        (["run", DIGITS, "model.adapter=rolora"], "no adapters"),
        (["run", DIGITS, "protection=maskin"], "protection"),
        (["run", DIGITS, "algorithm.head_rounds=2"], "head"),
        (["run", DIGITS, "algorithm.head_rounds=x"], "a whole number, found 'x'"),
        (["run", DIGITS, "model.hidden=99999999999"], "model.hidden must be in 1"),
        (["run", DIGITS, "engine.threads=100000"], "engine.threads must be in 0"),
        (["run", DIGITS, "engine.name=foo"], "engine.name is one of"),
        (["run", DIGITS, "stop.metric=foo"], "stop.metric is one of"),
        (["run", DIGITS, "stop.metric=perplexity", "stop.patience=1"], "does not exist for classification"),
        (["run", DIGITS, "stop.metric=f1", "stop.patience=1"], "needs two classes"),
        (["run", DIGITS, "train.epochs=-1"], "train.epochs must be 0 (not given) or more"),
        (["run", DIGITS, "model.name=logistc"], "did you mean logistic"),
        (["run", DIGITS, "privacy.site_epsilon=3"], "privacy.unit"),
        (["run", DIGITS, *PRIVATE, "privacy.site_epsilon=0.001"], "raise the budget or add noise"),
        (["run", DIGITS, "--folder", ""], "give the folder a name"),
        (["run", os.devnull], "holds no job"),
        (["run"], "give a job, e.g."),
        (["data", "list", "spam"], "securefed data get spam"),
        (["run", DIGITS, "nonsense"], "key=value"),
        (["resume", "nowhere"], "not the folder of a run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    said: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert play(*arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("securefed:")]
    assert len(lines) == 1, captured.err
    assert said in lines[0]
    assert "Traceback" not in captured.err
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_a_run_tells_people_lines_and_machines_json(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert play("run", DIGITS, *FAST, *PRIVATE, "--folder", "a") == 0
    people = capsys.readouterr().out
    assert "2/2" in people
    assert "epsilon" in people
    assert "report: a/report.html" in people
    assert play("run", DIGITS, *FAST, *PRIVATE, "--folder", "b", "--json") == 0
    machines: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert machines["rounds"] == 2
    assert machines["unit"] == "example"
    assert 0 < machines["epsilon"] <= 5
    assert {"folder", "metrics", "stopped", "seconds", "mib", "delta"} <= set(machines)


def test_a_folder_that_exists_is_refused_and_left_as_it_was(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    assert play("run", DIGITS, "--folder", str(tmp_path / "a")) == 2
    assert "resume" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mine.txt"]


def test_epsilon_prints_the_whole_statement_at_any_delta(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "a")
    assert play("run", DIGITS, *FAST, *PRIVATE, "--folder", folder, "--quiet") == 0
    capsys.readouterr()
    assert play("epsilon", folder, "--json") == 0
    loose = json.loads(capsys.readouterr().out)
    assert play("epsilon", folder, "--delta", "1e-7", "--json") == 0
    strict = json.loads(capsys.readouterr().out)
    assert strict["epsilon"] > loose["epsilon"], "a smaller delta costs a larger epsilon"
    assert play("epsilon", folder) == 0
    text = capsys.readouterr().out
    for word in ("unit", "neighbours", "holds against", "for whom", "not covered", "PLD"):
        assert word in text
    assert play("epsilon", folder, "--client", "1") == 0
    assert "client 1" in capsys.readouterr().out
    assert play("epsilon", folder, "--delta", "2") == 2


def test_epsilon_of_a_run_without_privacy_is_refused_in_words(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "a")
    assert play("run", DIGITS, *FAST, "--folder", folder, "--quiet") == 0
    assert play("epsilon", folder) == 2
    assert "not private" in capsys.readouterr().err


def test_a_full_disk_is_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import securefed.federation as federation

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "state.safetensors")

    monkeypatch.setattr(federation, "save_state", full)
    assert play("run", DIGITS, *FAST, "--folder", str(tmp_path / "a"), "--quiet") == 2
    assert "No space left on device" in capsys.readouterr().err


def start_long_run(folder: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A run of many rounds in its own process, given back once its first round is on record."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "securefed.cli",
            "run",
            DIGITS,
            "rounds=100000",
            *FAST[1:],
            "evaluate.every=0",
            "--folder",
            str(folder),
        ],
        env={**os.environ, **ENVIRONMENT},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_size > 0:
            return process
    process.kill()
    raise AssertionError(f"no first round: {process.communicate()[1][-2000:]}")


def test_the_first_ctrl_c_ends_the_round_and_says_how_to_go_on(home: Path, tmp_path: Path) -> None:
    process = start_long_run(tmp_path / "a", tmp_path)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "after this round" in err
    assert f"securefed resume {tmp_path / 'a'}" in err
    assert "stopped: interrupted" in out
    assert (tmp_path / "a" / "report.html").exists()
    assert "Traceback" not in err
