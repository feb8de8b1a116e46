"""The doctor: sees what is missing, says how to mend it, changes nothing, and fails only for what is needed."""

from __future__ import annotations

import json
import re
import tomllib
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from securefed import doctor
from securefed.cli import main
from securefed.doctor import Finding, examine

ROOT = Path(__file__).parents[2]


def finding(what: str) -> Finding:
    return next(f for f in examine() if f.what == what)


def test_a_fresh_site_has_all_that_is_needed_and_is_left_as_it_was(home: Path) -> None:
    findings = examine()
    assert [f for f in findings if f.state == "missing"] == []
    assert list(home.iterdir()) == []
    looked_at = {f.what for f in findings}
    assert {
        "Python",
        "torch",
        "device",
        "model minilm",
        "data sentiment",
        "ledger",
        "disk",
        "memory",
    } <= looked_at


def test_whatever_is_not_fine_comes_with_the_way_to_mend_it(home: Path) -> None:
    for found in examine():
        assert bool(found.mend) == (found.state != "ok"), found
    assert finding("data sentiment").mend == "securefed data get sentiment"


def test_the_versions_are_those_of_the_project(home: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
    least = dict(re.match(r"([\w-]+)>=([\d.]+)", r).groups() for r in project["dependencies"])  # type: ignore[union-attr]
    assert {name: versions[0] for name, versions in doctor.VERSIONS.items()} == least
    assert {n: v[1] for n, v in doctor.VERSIONS.items()} == {
        n: ".".join(pinned[n].split(".")[:2]) for n in doctor.VERSIONS
    }


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("2.13.0+cpu", "ok"),
        ("2.13", "ok"),
        ("2.130.0", "note"),
        ("2.6.0", "note"),
        ("2.5.1", "missing"),
        ("1.13", "missing"),
    ],
)
def test_versions_are_compared_by_number(monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert doctor._package("torch", "2.6", "2.13").state == state


def test_a_package_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._package("no-such-package-at-all", "1", "2").state == "missing"


def test_a_ledger_that_cannot_be_made_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECUREFED_HOME", str(tmp_path / "file"))
    assert doctor._ledger().state == "missing"


def test_a_damaged_ledger_is_missing(home: Path) -> None:
    (home / "state").mkdir()
    (home / "state" / "ledger.sqlite").write_bytes(b"not a database, and long enough to be looked at " * 100)
    assert doctor._ledger().state == "missing"


@pytest.mark.parametrize(("free", "state"), [(0.1, "missing"), (1.0, "note"), (50.0, "ok")])
def test_a_full_disk_is_seen(home: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(0, 0, free * 2**30))
    assert doctor._disk().state == state


@pytest.mark.parametrize("broken", [True, False])
def test_it_exits_with_one_only_if_something_needed_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: bool
) -> None:
    found = [Finding("disk", "ok", "much"), Finding("model x", "note", "not installed", "pip install x")]
    if broken:
        found.append(Finding("ledger", "missing", "cannot be written", "make it writable"))
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert main(["doctor"]) == int(broken)
    text = capsys.readouterr().out
    assert "pip install x" in text
    assert ("make it writable" in text) == broken
    assert main(["doctor", "--json"]) == int(broken)
    tree = json.loads(capsys.readouterr().out)
    assert tree["ok"] != broken
    assert tree["findings"][0] == {"what": "disk", "state": "ok", "found": "much", "mend": ""}
