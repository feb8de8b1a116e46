"""The command line: exit codes, one-line errors, JSON for machines, help with examples, Ctrl-C, speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from securefed.cli import COMMANDS, main
from securefed.errors import ConfigError, SecureFedError
from securefed.privacy.events import SampledGaussian
from securefed.privacy.export import check_export
from securefed.privacy.ledger import Ledger
from securefed.privacy.records import ShardKey
from securefed.tracking.folder import FolderTracker
from tests.securefed.tracking import fakes

JOB = 'name = "digits"\nrounds = 3\n[train]\nsteps = 1\n[data]\nname = "digits"\nclients = 4\npartition = "iid"\n'
PRIVATE = JOB + '[privacy]\nunit = "example"\nepsilon = 8.0\ndelta = 1e-4\naccountant = "rdp"\n'
RUN = "5a1e0f2c9b7d4e83"


@dataclass(frozen=True)
class FakeResult:
    """What the federation's `Result` looks like."""

    folder: Path
    metrics: Mapping[str, float]
    rounds: int
    stopped: str
    ledger: None = None


def play(folder: Path, trackers: Any, stopped: str) -> FakeResult:
    """A run of the fakes that leaves a folder and tells the trackers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"run": RUN, "version": 1}))
    told = fakes.info(folder, fakes.job(rounds=3), clients=4)
    for tracker in (FolderTracker(folder), *trackers):
        fakes.play(tracker, told)
    return FakeResult(folder, fakes.summary(told.config, clients=4).metrics, 3, stopped)


@pytest.fixture
def federation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A federation that answers at once, in the place of the real one."""
    fake = ModuleType("securefed.federation")

    def run(config: Any, *, folder: Path, trackers: Any, stop_flag: Any) -> FakeResult:
        fake.seen = config  # type: ignore[attr-defined]  # for the tests to look at
        return play(folder, trackers, "rounds")

    def resume(folder: Path, *, trackers: Any, stop_flag: Any) -> FakeResult:
        return play(folder, trackers, "rounds")

    fake.run, fake.resume, fake.new_folder = run, resume, lambda config, folder: folder or Path("runs/x")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "securefed.federation", fake)
    return fake


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return str(path)


@pytest.fixture
def private_folder(home: Path, tmp_path: Path) -> Path:
    """The folder of a private run of two clients that is in the site's ledger."""
    folder = tmp_path / "runs" / "private"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": RUN, "version": 1}))
    (folder / "config.toml").write_text(PRIVATE)
    with Ledger.site() as ledger:
        ledger.register(RUN, {0: ShardKey("a", 500), 1: ShardKey("b", 400)}, "data", "example")
        for client, steps in ((0, 10), (1, 20)):
            event = SampledGaussian(noise_multiplier=1.0, sample_rate=0.1, steps=steps)
            reservation = ledger.reserve(run=RUN, client=client, round=0, event=event)
            ledger.settle(reservation, steps_taken=steps)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a refused command prints."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = int(str(stop.code))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("securefed: ")
    assert err.count("\n") == 1
    return err


# ---------------------------------------------------------------------------------------- help and speed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"example: securefed {command}" in out
    assert {"--json", "--debug"} <= set(out.replace(",", " ").split())


def in_fresh_python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment
    )


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    code = textwrap.dedent("""
        import sys
        from securefed.cli import main
        try:
            main(sys.argv[1:])
        except SystemExit:
            heavy = ("torch", "numpy", "scipy", "transformers", "opacus", "peft", "rich", "matplotlib", "sklearn")
            sys.exit(", ".join(m for m in heavy if m in sys.modules) or 0)
    """)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = in_fresh_python(code, "--help")
        times.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
    assert min(times) < 0.7


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    import securefed

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"securefed {securefed.__version__}\n"


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (("rnu",), "no command 'rnu'; did you mean run?"),
        (("epsilom", "x"), "did you mean epsilon?"),
        ((), "give a command: run, resume"),
        (("data", "lst"), "did you mean list?"),
        (("run",), "config"),
        (("run", "a.toml", "--jsn"), "did you mean --json?"),
        (("resume", "a", "b"), "does not take 'b'"),
        (("run", "nowhere.toml"), "nowhere.toml"),
        (("report", "nowhere"), "nowhere holds no run"),
        (("epsilon", "runs/nowhere"), "no folder runs/nowhere"),
        (("epsilon", "abc"), "knows no run abc"),
        (("epsilon", "abc", "--delta", "1.5"), "strictly between 0 and 1"),
        (("epsilon", "abc", "--delta", "small"), "invalid float"),
        (("data", "get"), "needs a name"),
        (("data", "get", "sentimnt"), "did you mean 'sentiment'?"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(
    home: Path, argv: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hint in refused(capsys, *argv)


def test_an_unknown_key_names_the_nearest_before_anything_heavy_is_loaded(job: str) -> None:
    code = "import sys; from securefed.cli import main; code = main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"
    done = in_fresh_python(code, "run", job, "privcy.epsilon=3")
    assert done.returncode == 2
    assert "did you mean privacy" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SecureFedError("two\nlines"), "securefed: two lines\n"),
        (ConfigError("rounds must be at least 1"), "securefed: rounds must be at least 1\n"),
        (OSError(28, "No space left on device", "/data/x"), "securefed: No space left on device: /data/x\n"),
        (PermissionError(13, "Permission denied", "/runs"), "securefed: Permission denied: /runs\n"),
    ],
)
def test_errors_of_a_run_are_one_line_and_debug_shows_all(
    federation: Any, job: str, error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    federation.run = fail
    assert main(["run", job, "--quiet"]) == 2
    assert capsys.readouterr() == ("", line)
    with pytest.raises(type(error)):
        main(["run", job, "--quiet", "--debug"])


def test_a_bug_is_not_disguised_as_a_mistake(federation: Any, job: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    federation.run = fail
    with pytest.raises(ZeroDivisionError):
        main(["run", job, "--quiet"])


# -------------------------------------------------------------------------------------------- run, resume


def test_run_shows_progress_the_statement_and_where_the_report_is(
    federation: Any, job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", job, "--folder", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "3/3" in out
    assert fakes.TEXT in out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out
    assert err == ""


def test_a_run_without_a_page_names_its_folder_and_how_to_make_the_page(
    federation: Any,
    job: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("securefed.tracking.report.write_report", lambda folder: folder)
    folder = tmp_path / "out"
    assert main(["run", job, "--quiet", "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"results: {folder}; the page: securefed report {folder}" in out
    assert "report.html" not in out


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("command", ["run", "resume"])
def test_with_json_standard_output_is_one_document_whatever_else_prints(
    federation: Any, job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, quiet: bool
) -> None:
    honest: Callable[..., FakeResult] = getattr(federation, command)

    def noisy(*args: Any, **told: Any) -> FakeResult:
        sys.stdout.write("a library says hello\n")
        return honest(*args, **told)

    setattr(federation, command, noisy)
    target = str(tmp_path / "out")
    argv = ["run", job, "--folder", target] if command == "run" else ["resume", target]
    assert main([*argv, "--json", *(["--quiet"] if quiet else [])]) == 0
    out, err = capsys.readouterr()
    tree = json.loads(out)
    assert tree["folder"] == target
    assert (tree["epsilon"], tree["delta"], tree["unit"]) == (7.981234, 1e-5, "example")
    assert (tree["stopped"], tree["rounds"]) == ("rounds", 3)
    assert 0 < tree["metrics"]["accuracy"] < 1
    assert tree["mib"]["up"] > 0
    assert tree["seconds"] == 61.3
    assert ("3/3" in err) != quiet


def test_overrides_may_stand_anywhere(federation: Any, job: str, tmp_path: Path) -> None:
    target = str(tmp_path / "out")
    assert (
        main(["run", job, "rounds=5", "--quiet", "seed=7", "--folder", target, "train.learning_rate=0.5"])
        == 0
    )
    assert (federation.seen.rounds, federation.seen.seed, federation.seen.train.learning_rate) == (5, 7, 0.5)


def test_libraries_are_quiet_only_while_we_play(federation: Any, job: str, tmp_path: Path) -> None:
    honest = federation.run

    def warning(*args: Any, **told: Any) -> FakeResult:
        warnings.warn_explicit("advice", UserWarning, "opacus/x.py", 1, module="opacus.privacy_engine")
        warnings.warn_explicit("ours", UserWarning, "x.py", 1, module="their_code")
        result: FakeResult = honest(*args, **told)
        return result

    federation.run = warning
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["run", job, "--quiet", "--folder", str(tmp_path / "out")])
        warnings.warn_explicit("later", UserWarning, "opacus/x.py", 2, module="opacus.privacy_engine")
    assert [str(w.message) for w in caught] == ["ours", "later"]


PLAYER = """
import sys
from pathlib import Path
from types import ModuleType
fake = ModuleType("securefed.federation")
def run(config, *, folder, trackers, stop_flag):
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    sys.stdout.write("preparing\\n"); sys.stdout.flush()
    sys.stdin.readline()
    for tracker in trackers:
        tracker.start(None)
    sys.stdout.write("playing\\n"); sys.stdout.flush()
    sys.stdin.readline()  # a round that takes until the test says so
    result = ModuleType("result")
    result.folder, result.metrics, result.rounds = folder, {}, 1
    result.stopped = "interrupted" if stop_flag.is_set() else "rounds"
    return result
fake.run, fake.new_folder = run, lambda config, folder: folder
sys.modules["securefed.federation"] = fake
from securefed.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("times", [0, 1, 2])
def test_ctrl_c_stops_after_the_round_and_twice_at_once(job: str, tmp_path: Path, times: int) -> None:
    target = tmp_path / "a run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-c", PLAYER, "run", job, "--quiet", "--folder", str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "preparing\n"
    process.stdin.write("ready\n")
    process.stdin.flush()
    assert process.stdout.readline() == "playing\n"
    if times:
        process.send_signal(signal.SIGINT)
        assert "stopping after this round" in process.stderr.readline()
    if times == 2:
        process.send_signal(signal.SIGINT)
    else:
        process.stdin.write("round over\n")
        process.stdin.flush()
    code = process.wait(30)
    error = process.stderr.read()
    process.stdin.close()
    assert code == (130 if times else 0)
    assert "Traceback" not in error
    if times:
        assert error.count("\n") == 1
        assert f"go on with: securefed resume '{target}'" in error
        assert ("at once" in error) == (times == 2)
    process.stdout.close()
    process.stderr.close()


def test_ctrl_c_before_the_first_round_stops_at_once(job: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PLAYER, "run", job, "--quiet", "--folder", str(tmp_path / "a run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "preparing\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.count("\n") == 1
    assert "stopped at once; go on with" in error


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from securefed.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------------------------------- epsilon, report, data


def test_epsilon_prints_the_whole_statement_of_a_folder_or_an_id(
    private_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.site() as ledger:
        expected = ledger.statement(1e-4, RUN, "rdp").text()
        by_id = ledger.statement(1e-5, RUN).text()
    assert main(["epsilon", str(private_folder)]) == 0
    assert capsys.readouterr().out == expected + "\n"
    assert "unit: one record" in expected
    assert main(["epsilon", RUN]) == 0
    assert capsys.readouterr().out == by_id + "\n"


def test_epsilon_as_json_at_any_delta_with_one_client(
    private_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["epsilon", str(private_folder), "--delta", "1e-6", "--client", "0", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["delta"], tree["unit"], tree["client"]["client"]) == (1e-6, "example", 0)
    assert 0 < tree["client"]["epsilon"] < tree["epsilon"]


def test_epsilon_writes_the_ledger_for_an_auditor(
    private_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["epsilon", str(private_folder), "--export", str(tmp_path / "audit.json")]) == 0
    with Ledger.site() as ledger:
        assert check_export(tmp_path / "audit.json") == ledger.head()
    capsys.readouterr()
    nowhere = str(tmp_path / "nowhere" / "audit.json")
    assert "cannot write" in refused(capsys, "epsilon", str(private_folder), "--export", nowhere)


def test_a_client_that_has_spent_nothing_is_no_epsilon_of_zero(
    private_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "client 7 has spent nothing" in refused(capsys, "epsilon", str(private_folder), "--client", "7")


def test_a_run_of_another_site_is_not_at_zero_but_unknown(
    private_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECUREFED_HOME", str(tmp_path / "elsewhere"))
    line = refused(capsys, "epsilon", str(private_folder))
    assert "knows no run" in line
    assert "privacy.json" in line


def test_a_run_without_privacy_has_no_epsilon(
    private_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (private_folder / "config.toml").write_text(JOB)
    assert "no epsilon holds" in refused(capsys, "epsilon", str(private_folder))


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not the folder of a run" in refused(capsys, "epsilon", str(tmp_path))


@pytest.mark.parametrize("as_json", [True, False])
def test_report_is_rebuilt(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    fakes.play(FolderTracker(tmp_path), fakes.info(tmp_path, fakes.job(rounds=3), clients=3))
    (tmp_path / "report.html").unlink()
    assert main(["report", str(tmp_path), *(["--json"] if as_json else [])]) == 0
    out = capsys.readouterr().out
    path = json.loads(out)["report"] if as_json else out.strip()
    assert Path(path) == tmp_path / "report.html"
    assert Path(path).exists()


def test_data_lists_every_source_with_licence_and_command(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from securefed.data.sources import SOURCES

    assert main(["data", "list"]) == 0
    text = capsys.readouterr().out
    assert main(["data", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == SOURCES.keys()
    for name, source in SOURCES.items():
        assert source.description in text
        assert source.licence in text
        assert rows[name]["cached"] == source.cached
    assert "securefed data get sentiment" in text


def test_data_get_says_where_it_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from securefed.data import sources

    asked: list[tuple[str, bool]] = []

    def fetch(name: str, *, force: bool) -> Path:
        asked.append((name, force))
        return tmp_path

    monkeypatch.setattr(sources, "fetch", fetch)
    assert main(["data", "get", "spam", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "spam", "folder": str(tmp_path)}
    assert main(["data", "get", "spam"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    assert asked == [("spam", True), ("spam", False)]
