"""The result folder explains a run, survives a torn line, and its page needs nothing from outside."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from securefed.config import load_config
from securefed.errors import CheckpointError, SecureFedError
from securefed.tracking.folder import FolderTracker, read_rounds
from securefed.tracking.group import TrackerGroup
from securefed.tracking.report import write_report
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary

HOSTILE = "<script>alert(1)</script>"


def info(folder: Path, **changes: Any) -> RunInfo:
    base = RunInfo(
        name="trial",
        folder=folder,
        run="0123456789abcdef",
        config=load_config(
            {"rounds": 4, "train": {"steps": 1}, "privacy": {"unit": "example", "epsilon": 8.0}}
        ),
        model={
            "name": "minilm",
            "parameters": 22_000_000,
            "trainable": 25_346,
            "layout": "ab",
            "parts": {"A": 1},
        },
        dataset={
            "name": "sentiment",
            "source": HOSTILE,
            "licence": "MIT",
            "classes": ["negative", "positive"],
            "train": 100,
            "test": 20,
            "digest": "cd",
        },
        shards=[
            {
                "client": k,
                "name": f"movies/{k}" if k else HOSTILE,
                "train": 50,
                "test": 10,
                "counts": {"negative": 25, "positive": 25},
            }
            for k in range(2)
        ],
        baselines={"majority_class": {"accuracy": 0.5}, "tf_idf": {"accuracy": 0.8}},
        privacy={
            "unit": "example",
            "noise_multiplier": 0.9,
            "epsilon": 8.0,
            "delta": 1e-5,
            "sample_rate": 0.1,
            "max_grad_norm": 0.5,
            "steps_per_round": 1,
            "rounds": 4,
            "accountant": "pld",
        },
        resumed_at=None,
        environment={
            "python": "3.11",
            "platform": "Linux",
            "cores": 2,
            "packages": {"torch": "2.13.0"},
            "commit": None,
        },
    )
    return replace(base, **changes)


def record(round: int) -> RoundRecord:
    scores = {"accuracy": 0.6 + 0.05 * round, "loss": 0.5}
    return RoundRecord(
        round,
        4,
        "B",
        scores,
        {0: scores, 1: scores},
        2.0 + round,
        3.0 + round,
        0.1,
        0.2,
        (0, 1),
        (0,),
        {1: HOSTILE},
        1.5,
        1.2,
        {"loss": 0.4, "clipped_share": 0.5},
    )


def summary() -> RunSummary:
    scores = {"accuracy": 0.75, "balanced_accuracy": 0.74, "f1": 0.7, "loss": 0.5}
    statement = {"epsilon": 7.9, "delta": 1e-5, "unit": "example"}
    return RunSummary(
        scores,
        {0: scores, 1: {**scores, "accuracy": 0.6}},
        4,
        "rounds",
        61.0,
        statement,
        f"epsilon = 7.9 {HOSTILE}",
        0.4,
        0.8,
        900.0,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tracker = FolderTracker(tmp_path)
    tracker.start(info(tmp_path))
    for round in range(4):
        tracker.round(record(round))
    tracker.end(summary())
    tracker.close()
    return tmp_path


def test_every_file_is_there_and_parses(folder: Path) -> None:
    for name in (
        "environment.json",
        "shards.json",
        "baselines.json",
        "facts.json",
        "summary.json",
        "privacy.json",
        "bytes.json",
    ):
        json.loads((folder / name).read_text())
    assert load_config(folder / "config.toml").rounds == 4
    assert [r["round"] for r in read_rounds(folder)] == [0, 1, 2, 3]
    for name in ("accuracy", "epsilon", "clients"):
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".*.part"))


def test_a_resumed_run_drops_the_rounds_it_plays_again_and_a_torn_line(folder: Path) -> None:
    with open(folder / "metrics.jsonl", "a") as lines:
        lines.write('{"round": 4, "rou')
    tracker = FolderTracker(folder)
    tracker.start(info(folder, resumed_at=2))
    tracker.round(record(2))
    tracker.close()
    assert [r["round"] for r in read_rounds(folder)] == [0, 1, 2]


class Page(HTMLParser):
    """Collects tags and what they load; fails on tags that do not close."""

    VOID = ("meta", "br", "img", "path", "use", "rect", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_one_file_that_loads_nothing_runs_nothing_and_closes_its_tags(folder: Path) -> None:
    page = Page()
    text = (folder / "report.html").read_text()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.tags, "names are escaped"
    assert "&lt;script&gt;" in text
    assert all(load.startswith("#") for load in page.loads), page.loads
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_page_answers_a_newcomer(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    for wanted in (
        "minilm",
        "sentiment",
        "MIT",
        "7.90",
        "0.750",
        "tf idf",
        "Simulated in one process",
        "in the clear",
        "worst 0.600",
        "securefed resume",
        "A real client never sends these",
    ):
        assert wanted in text, wanted


def test_a_run_that_has_not_ended_has_a_page_too(tmp_path: Path) -> None:
    tracker = FolderTracker(tmp_path)
    tracker.start(info(tmp_path))
    tracker.round(record(0))
    tracker.close()
    assert "has not ended" in write_report(tmp_path).read_text()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path)


class Failing:
    """A third party's tracker that throws."""

    def __init__(self) -> None:
        self.told = 0

    def start(self, info: RunInfo) -> None:
        self.told += 1
        raise RuntimeError("no network")

    def round(self, record: RoundRecord) -> None:
        self.told += 1

    def end(self, summary: RunSummary) -> None:
        self.told += 1

    def close(self) -> None:
        self.told += 1


def test_a_failing_tracker_is_dropped_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing()
    with TrackerGroup.of(tmp_path, load_config({"train": {"steps": 1}}).tracking, [failing]) as group:
        group.start(info(tmp_path))
        group.round(record(0))
    assert failing.told == 1
    assert [r["round"] for r in read_rounds(tmp_path)] == [0]
    assert "dropped" in caplog.text


def test_tensorboard_gets_scores_and_epsilon(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    config = load_config({"train": {"steps": 1}}, {"tracking.tensorboard": True}).tracking
    with TrackerGroup.of(tmp_path, config, []) as group:
        group.start(info(tmp_path))
        group.round(record(0))
        group.end(summary())
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_config({"train": {"steps": 1}}, {"tracking.wandb": True}).tracking
    with pytest.raises(SecureFedError, match=r"securefed\[wandb\]"):
        TrackerGroup.of(tmp_path, config, [])
