"""Tiny model folders, built once for the whole session, and a cache of digests that is not the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.securefed.models import tiny


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("model") is None:
        monkeypatch.setenv("SECUREFED_HOME", str(tiny_home / "home"))


@pytest.fixture(scope="session")
def bert(tiny_home: Path) -> str:
    return str(tiny.tiny_bert(tiny_home / "bert"))


@pytest.fixture(scope="session")
def llama(tiny_home: Path) -> str:
    return str(tiny.tiny_llama(tiny_home / "llama"))


@pytest.fixture(scope="session")
def gpt2(tiny_home: Path) -> str:
    return str(tiny.tiny_gpt2(tiny_home / "gpt2"))


@pytest.fixture(scope="session")
def t5(tiny_home: Path) -> str:
    return str(tiny.tiny_t5(tiny_home / "t5"))


@pytest.fixture(scope="session")
def folders(bert: str, llama: str, gpt2: str, t5: str) -> dict[str, str]:
    return {"bert": bert, "llama": llama, "gpt2": gpt2, "t5": t5}
