"""Where state and caches live."""

from __future__ import annotations

from pathlib import Path

import pytest

from securefed import paths


def test_one_variable_moves_state_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECUREFED_HOME", str(tmp_path))
    assert paths.state_dir().parent == paths.cache_dir().parent == tmp_path
    assert paths.state_dir() != paths.cache_dir()
    assert list(tmp_path.iterdir()) == []


def test_without_it_they_lie_in_the_users_own_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SECUREFED_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert paths.state_dir().name == paths.cache_dir().name == "securefed"
    assert paths.state_dir() != paths.cache_dir()
