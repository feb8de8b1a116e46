"""What a person sees: a header, aligned lines, a guarantee in words; and trackers that fail stop nothing."""

from __future__ import annotations

import io
import logging
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from securefed.config import TrackingConfig, load_config
from securefed.errors import SecureFedError
from securefed.tracking.folder import FolderTracker
from securefed.tracking.group import TrackerGroup
from securefed.tracking.progress import ProgressTracker
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary
from tests.securefed.tracking import fakes


def shown(told: RunInfo, stream: io.StringIO | None = None) -> list[str]:
    stream = stream or io.StringIO()
    fakes.play(ProgressTracker(stream), told)
    return stream.getvalue().splitlines()


def test_plain_lines_say_what_runs_and_how_each_round_went() -> None:
    lines = shown(fakes.info(Path("runs/q")))
    text = "\n".join(lines)
    for part in (
        "minilm",
        "sentiment",
        "12 clients",
        "epsilon 8 at delta 1e-5",
        "runs/q",
        "frozen probe 0.802",
    ):
        assert part in text
    table = [line for line in lines if "/30 " in line]
    assert len(table) == 30
    heading = next(line for line in lines if line.lstrip().startswith("round"))
    assert {"loss", "accuracy", "epsilon", "up", "clients", "time", "left"} <= set(heading.split())
    assert len({len(line) for line in [heading, *table] if "refused" not in line}) == 1
    assert "10/12" in table[7]
    assert "client 4 refused: update is not finite" in table[7]
    assert not any(c in text for c in "\x1b\r")


@pytest.mark.parametrize(
    ("changes", "server_too"),
    [
        ({}, True),
        ({"algorithm": "fedsgd"}, False),  # the server sees the sums before it adds the noise
        ({"algorithm": "fedsgd", "noise": "skellam", "protection": "masking"}, True),
        ({"unit": "client"}, False),
        ({"unit": "client", "noise": "skellam", "protection": "masking"}, True),
        ({"unit": "client", "noise": "correlated", "clients_per_round": 4, "adapter": "ffa"}, False),
        ({"unit": "client", "noise": "local", "algorithm": "distill"}, True),
    ],
)
def test_the_first_lines_promise_nothing_against_a_server_that_adds_the_noise(
    changes: dict[str, Any], server_too: bool
) -> None:
    given = {
        "protection": "plain",
        "adapter": "head",
        "clients_per_round": 0,
        "algorithm": "fedavg",
        **changes,
    }
    privacy = {"unit": "example", "noise": "central", "noise_multiplier": 1.0, "delta": 1e-5}
    tree = {
        "train": {"steps": 1},
        "algorithm": given["algorithm"],
        "protection": given["protection"],
        "clients_per_round": given["clients_per_round"],
        "model": {"adapter": given["adapter"]},
        "privacy": privacy | {k: given[k] for k in ("unit", "noise") if k in given},
    }
    config = load_config(tree)
    told = fakes.info(Path("q"), config)
    told = replace(told, privacy={**(told.privacy or {}), "noise": config.privacy.noise})
    line = next(line for line in shown(told) if line.startswith("  privacy"))
    assert ("against everyone, the server included" in line) is server_too
    assert ("against all but the server" in line) is not server_too


def test_training_loss_is_marked_as_private_under_dp_and_only_there() -> None:
    private = "\n".join(shown(fakes.info(Path("q"))))
    assert "train*" in private
    assert "a real client never sends it" in private
    free = "\n".join(shown(fakes.info(Path("q"), fakes.job(private=False))))
    assert "train*" not in free
    assert "epsilon" not in free
    assert "nothing bounds" in free


def test_a_resumed_run_says_from_which_round() -> None:
    lines = shown(fakes.info(Path("q"), resumed_at=20))
    assert "going on from round 21" in lines
    assert sum("/30 " in line for line in lines) == 10


def test_time_left_follows_the_last_rounds_and_not_a_slow_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("securefed.tracking.progress.time.monotonic", lambda: now[0])
    stream, told = io.StringIO(), fakes.info(Path("q"))
    tracker = ProgressTracker(stream)
    tracker.start(told)
    for record in islice(fakes.records(told.config), 4):
        now[0] += 1000.0 if record.round == 0 else 2.0
        tracker.round(record)
    left = [line.rstrip()[-12:].strip() for line in stream.getvalue().splitlines() if "/30 " in line]
    assert left == ["–", "56 s", "54 s", "52 s"]


def test_on_a_terminal_the_lines_stay_and_the_bar_goes() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    shown(fakes.info(Path("q"), fakes.job(rounds=3)), stream)
    assert "\x1b" in stream.getvalue()
    assert "3/3" in stream.getvalue()
    assert "global test set" in stream.getvalue().splitlines()[-1] + stream.getvalue()


class Failing:
    """A tracker whose every call fails."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def _fail(self) -> None:
        self.calls += 1
        raise self.error

    def start(self, info: RunInfo) -> None:
        self._fail()

    def round(self, record: RoundRecord) -> None:
        self._fail()

    def end(self, summary: RunSummary) -> None:
        self._fail()

    def close(self) -> None:
        self._fail()


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("odd"), SecureFedError("no")])
def test_a_failing_tracker_is_told_of_once_and_dropped(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    bad, stream = Failing(error), io.StringIO()
    told = fakes.info(tmp_path)
    with caplog.at_level(logging.WARNING):
        fakes.play(TrackerGroup(FolderTracker(tmp_path), [bad, ProgressTracker(stream)]), told)
    assert bad.calls == 1
    assert [r.getMessage() for r in caplog.records if "Failing" in r.getMessage()] != []
    assert len(caplog.records) == 1
    assert (tmp_path / "report.html").exists()
    assert "30/30" in stream.getvalue()


def test_a_reader_who_has_left_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = Failing(BrokenPipeError())
    with caplog.at_level(logging.WARNING):
        fakes.play(TrackerGroup(FolderTracker(tmp_path), [bad]), fakes.info(tmp_path))
    assert bad.calls == 1
    assert caplog.records == []
    assert (tmp_path / "report.html").exists()


def test_a_failing_folder_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"):
        fakes.play(TrackerGroup(Failing(OSError("full")), []), fakes.info(tmp_path))


@pytest.mark.parametrize(
    ("asked", "module", "line"),
    [
        (
            TrackingConfig(tensorboard=True),
            "torch.utils.tensorboard",
            r"pip install 'securefed\[tensorboard\]'",
        ),
        (TrackingConfig(wandb=True), "wandb", r"pip install 'securefed\[wandb\]'"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: TrackingConfig, module: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SecureFedError, match=line):
        TrackerGroup.of(tmp_path, asked, [])


def test_tensorboard_gets_scores_epsilon_and_flagged_diagnostics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from securefed.tracking.tensorboard import TensorBoardTracker

    fakes.play(TensorBoardTracker(tmp_path), fakes.info(tmp_path, fakes.job(rounds=6)))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"test/accuracy", "privacy/epsilon", "bytes/mib_up", "simulation_diagnostics/loss"} <= tags
    assert len(events.Scalars("privacy/epsilon")) == 6


def test_wandb_is_sent_nothing_that_was_computed_on_private_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from types import SimpleNamespace

    sent: list[object] = []

    class Run:
        def __init__(self) -> None:
            self.summary: dict[str, float] = {}

        def log(self, values: dict[str, float], step: int) -> None:
            sent.append(values)

        def finish(self) -> None:
            sent.append(self.summary)

    def init(**told: object) -> Run:
        sent.append(told)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    from securefed.tracking.wandb import WandbTracker

    table = tmp_path / "my-data.csv"
    config = fakes.job(rounds=6, data={"name": str(table)})
    fakes.play(WandbTracker("project"), fakes.info(tmp_path, config))
    text = repr(sent)
    assert "test/accuracy" in text
    assert "privacy/epsilon" in text
    assert "final/accuracy" in text
    assert "my-data.csv" in text
    for private in ("clipped_share", "tweets/1", "tf_idf", str(tmp_path)):
        assert private not in text


def test_wandb_is_told_no_folder_of_this_machine(tmp_path: Path) -> None:
    from securefed.tracking.wandb import _shared

    paths = [str(tmp_path / name) for name in ("mine.csv", "base", "public.csv", "small")]
    tree = _shared(
        fakes.job(
            output=str(tmp_path / "runs"),
            algorithm="distill",
            data={"name": paths[0]},
            model={"name": paths[1]},
            distill={"public": paths[2], "clients": [{"name": paths[3], "adapter": "lora"}, {"name": "bag"}]},
        )
    )
    assert str(tmp_path) not in repr(tree)
    assert all(Path(path).name in repr(tree) for path in paths)


@pytest.mark.parametrize(("algorithm", "told"), [("ditto", {"accuracy"}), ("fedper", set())])
def test_wandb_is_not_told_of_personal_models_nor_of_training_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, algorithm: str, told: set[str]
) -> None:
    """Those are computed on clients' own records, the gains by a training without noise; fedper's server has no head."""
    from types import SimpleNamespace

    sent: dict[str, float] = {}
    run = SimpleNamespace(
        log=lambda values, step: sent.update(values), finish=lambda: None, summary=sent, init=lambda **_: run
    )
    monkeypatch.setitem(sys.modules, "wandb", run)
    from securefed.tracking.wandb import WandbTracker

    scores = {"accuracy": 0.5, "personal_accuracy": 0.6, "worst_client_accuracy": 0.2, "gain_over_alone": 0.1}
    tracker = WandbTracker("project")
    tracker.start(fakes.info(tmp_path, fakes.job(algorithm=algorithm)))
    tracker.round(SimpleNamespace(metrics=scores, epsilon=None, mib_up=1.0, round=0))  # type: ignore[arg-type]  # what is read of a record
    tracker.end(SimpleNamespace(metrics=scores))  # type: ignore[arg-type]  # what is read of a summary
    assert {name.partition("/")[2] for name in sent} - {"mib_up"} == told
