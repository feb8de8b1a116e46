"""`make bench-peers`: ratios with their spread; a peer that is not here is skipped with the reason."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "peers" / "run.py"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_run", RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peers_run", module)
    spec.loader.exec_module(module)
    return module


def test_every_peer_of_the_plan_is_there_and_its_script_exists(run: ModuleType) -> None:
    names = {"byzfl", "flower", "flower-simulation", "pfl", "nvflare", "breaching", "opacus", "dp-accounting"}
    assert {peer.name for peer in run.PEERS} == names
    for peer in run.PEERS:
        for words in (peer.command, peer.quick):
            if words[0] == "-m":
                assert importlib.util.find_spec(words[1])
            elif words[0] != "-c":
                assert (run.ROOT / words[0]).is_file()


def test_ratios_come_with_their_spread_and_a_missing_peer_with_its_reason(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([3.0, 1.0, 2.0])

    def here(peer: object, folder: Path) -> str:
        if peer.name == "gone":  # type: ignore[attr-defined]  # a Peer
            raise run.Skipped("cannot be installed: no such package")
        return sys.executable

    def output(command: list[str], what: str) -> str:
        return "noise\n" + json.dumps({"ratio": {"median": next(answers)}}) + "\n"

    made = [
        run.Peer(name, "work", (), ("x.py",), ("x.py",), run._ratio("a round")) for name in ("here", "gone")
    ]
    monkeypatch.setattr(run, "PEERS", tuple(made))
    monkeypatch.setattr(run, "environment", here)
    monkeypatch.setattr(run, "_run", output)
    out = tmp_path / "peers.json"
    assert run.main(["--out", str(out), "--envs", str(tmp_path)]) == 0
    found = json.loads(out.read_text())["results"]
    assert found[0]["theirs_over_ours"]["a round"] == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": 3}
    assert found[1]["skipped"] == "cannot be installed: no such package"
    assert "skipped: cannot be installed" in capsys.readouterr().out


def test_one_peer_played_again_leaves_the_others_figures_as_they_are(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [run.Peer(name, "work", (), ("x.py",), ("x.py",), run._ratio("r")) for name in ("one", "two")]
    monkeypatch.setattr(run, "PEERS", tuple(made))
    monkeypatch.setattr(run, "environment", lambda peer, folder: sys.executable)
    answers = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(
        run, "_run", lambda command, what: json.dumps({"ratio": {"median": next(answers)}}) + "\n"
    )
    words = ["--out", str(tmp_path / "peers.json"), "--envs", str(tmp_path), "--repeats", "1"]
    assert run.main(words) == 0
    assert run.main(["one", "--quick", *words]) == 0
    found = json.loads((tmp_path / "peers.json").read_text())["results"]
    assert [(f["peer"], f["theirs_over_ours"]["r"]["median"], f["quick"]) for f in found] == [
        ("one", 3.0, True),
        ("two", 2.0, False),
    ]


def test_a_script_that_breaks_or_says_nothing_is_skipped_with_its_last_word(
    run: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "none" / "bin").mkdir(parents=True)
    (tmp_path / "none" / ".ready").touch()
    (tmp_path / "none" / "bin" / "python").symlink_to(sys.executable)
    broken = run.Peer("none", "work", (), ("-c", "raise SystemExit('no wheel')"), (), run._ratio("r"))
    silent = run.Peer("none", "work", (), ("-c", "print('hello')"), (), run._ratio("r"))
    assert run.compare(broken, tmp_path, 1, False)["skipped"] == "does not run: no wheel"
    assert run.compare(silent, tmp_path, 1, False)["skipped"] == "its script gave no figure"


def test_an_unknown_peer_names_those_there_are(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["flwr"])
    assert "flower" in capsys.readouterr().err
