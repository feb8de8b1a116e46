"""The result folder: what is in it, whole or not at all, and that a resumed run's lines are not doubled."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.config import load_config
from securefed.tracking import files
from securefed.tracking.files import number, plain, read_rounds, write_text
from securefed.tracking.folder import FolderTracker
from tests.securefed.tracking import fakes


def strict(text: str) -> Any:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(word: str) -> float:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_a_finished_run_leaves_a_folder_that_explains_itself(tmp_path: Path) -> None:
    config = fakes.job()
    fakes.play(FolderTracker(tmp_path), fakes.info(tmp_path, config))
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {
        "config.toml",
        "environment.json",
        "facts.json",
        "shards.json",
        "baselines.json",
        "metrics.jsonl",
        "privacy.json",
        "bytes.json",
        "summary.json",
        "plots/accuracy.png",
        "plots/epsilon.png",
        "plots/clients.png",
        "report.html",
    }
    assert load_config(tmp_path / "config.toml") == config
    privacy = json.loads((tmp_path / "privacy.json").read_text())
    assert privacy["mechanism"]["noise_multiplier"] == 0.9731
    assert privacy["statement"]["epsilon"] == fakes.STATEMENT["epsilon"]
    sent = json.loads((tmp_path / "bytes.json").read_text())
    assert sent["mib_up"] == pytest.approx(sum(r["mib_up"] for r in sent["rounds"]))
    assert json.loads((tmp_path / "facts.json").read_text())["protection"] == {
        "name": "plain",
        "reveals": "updates",
        "facts": {},
        "simulated": "simulated: no protection between clients",
    }


def test_every_json_file_and_line_is_read_by_a_strict_parser(tmp_path: Path) -> None:
    tracker, told = FolderTracker(tmp_path), fakes.info(tmp_path)
    tracker.start(told)
    for record in fakes.records(told.config):
        odd = {"accuracy": math.nan, "loss": math.inf, "f1": float(np.float32(0.5))}
        tracker.round(fakes.replace(record, metrics=odd, epsilon=math.inf, diagnostics={"x": np.float64(1)}))
    tracker.end(fakes.summary(told.config))
    tracker.close()
    for path in tmp_path.glob("*.json"):
        strict(path.read_text())
    rounds = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rounds[0]["metrics"] == {"accuracy": None, "loss": "infinity", "f1": 0.5}
    assert rounds[0]["epsilon"] == "infinity"


@given(st.floats())
def test_a_number_comes_back_as_it_was(value: float) -> None:
    back = number(strict(json.dumps(plain(value))))
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_a_round_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    tracker, told = FolderTracker(tmp_path), fakes.info(tmp_path)
    tracker.start(told)
    for count, record in enumerate(fakes.records(told.config), 1):
        tracker.round(record)
        assert len(read_rounds(tmp_path)) == count
    tracker.close()


@pytest.mark.parametrize("torn", ["", '{"round": 22, "metr', "\x00\x00\x00", 'nonsense\n{"round": 5}\n'])
def test_a_resumed_run_drops_the_rounds_it_plays_again_and_what_a_crash_tore(
    tmp_path: Path, torn: str
) -> None:
    first, told = FolderTracker(tmp_path), fakes.info(tmp_path)
    first.start(told)
    for record in list(fakes.records(told.config))[:22]:
        first.round(record)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write(torn)
    second = FolderTracker(tmp_path)
    fakes.play(second, fakes.replace(told, resumed_at=20))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [strict(line)["round"] for line in text.splitlines()] == list(range(30))
    assert text.endswith("\n")


def test_a_fresh_run_begins_with_no_lines(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 0}\n')
    tracker = FolderTracker(tmp_path)
    tracker.start(fakes.info(tmp_path))
    tracker.close()
    assert read_rounds(tmp_path) == []


def test_a_killed_run_says_where_its_spending_is_recorded(tmp_path: Path) -> None:
    fakes.play(FolderTracker(tmp_path), fakes.info(tmp_path), end=False)
    privacy = json.loads((tmp_path / "privacy.json").read_text())
    assert privacy["statement"] is None
    assert "securefed epsilon" in privacy["text"]


def test_a_run_without_privacy_says_so_and_claims_no_epsilon(tmp_path: Path) -> None:
    fakes.play(FolderTracker(tmp_path), fakes.info(tmp_path, fakes.job(private=False)))
    privacy = json.loads((tmp_path / "privacy.json").read_text())
    assert privacy["statement"] is None
    assert privacy["text"].startswith("no differential privacy")


def test_a_failed_write_leaves_the_old_file_and_no_scrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_environment_names_no_user_and_no_folder() -> None:
    import getpass

    from securefed.tracking.environment import environment

    text = json.dumps(environment())
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    assert not re.search(rf'"[^"]*\b{getpass.getuser()}\b[^"]*"', text)
    assert {"python", "platform", "cores", "packages", "commit"} <= environment().keys()
