"""The README's Python runs as it stands there, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from securefed.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_every_python_block_runs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    assert len(blocks("python")) >= 2
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), scope)


def test_every_command_is_one_that_securefed_knows(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        line.split("#")[0]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("securefed")
    ]
    assert len(lines) >= 5
    for line in lines:
        command = shlex.split(line)[1]
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "example" in capsys.readouterr().out.lower()


def test_every_file_it_points_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_it_stays_under_two_hundred_lines() -> None:
    assert len(README.splitlines()) < 200
