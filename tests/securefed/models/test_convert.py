from __future__ import annotations

import errno
from pathlib import Path

import pytest

from securefed.errors import ModelError
from securefed.models import convert


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECUREFED_HOME", str(tmp_path / "home"))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"source")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the half-minute conversion; what surrounds it is under test."""
    made: list[Path] = []

    def write(source: Path, into: Path) -> None:
        made.append(into)
        (into / "config.json").write_text("{}")
        (into / "model.safetensors").write_bytes(b"weights of " + source.read_bytes())

    monkeypatch.setattr(convert, "_convert", write)
    return made


def test_a_model_is_converted_once(gguf: Path, calls: list[Path]) -> None:
    folder = convert.converted("tiny", gguf)
    assert convert.converted("tiny", gguf) == folder
    assert len(calls) == 1
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]  # nothing half-written beside it


def test_another_source_file_is_another_folder(gguf: Path, calls: list[Path]) -> None:
    first = convert.converted("tiny", gguf)
    gguf.write_bytes(b"newer source")
    assert convert.converted("tiny", gguf) != first
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "lost", "no manifest", "torn manifest", "empty folder"])
def test_a_damaged_cache_is_noticed_and_rebuilt(
    damage: str, gguf: Path, calls: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = convert.converted("tiny", gguf)
    weights, manifest = folder / "model.safetensors", folder / convert.MANIFEST
    whole = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(whole[:-1] + b"!")
    elif damage == "cut":
        weights.write_bytes(whole[:3])
    elif damage == "lost":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        for path in folder.iterdir():
            path.unlink()
    assert convert.converted("tiny", gguf) == folder
    assert len(calls) == 2
    assert weights.read_bytes() == whole
    assert "is damaged" in caplog.text
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_conversion_that_dies_leaves_no_folder(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(source: Path, into: Path) -> None:
        (into / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_convert", die)
    with pytest.raises(KeyboardInterrupt):
        convert.converted("tiny", gguf)
    assert list((gguf.parent / "home" / "cache" / "models").iterdir()) == []


def test_a_full_disk_is_one_line(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, into: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "_convert", full)
    with pytest.raises(ModelError, match=r"cannot write model tiny to.*No space left"):
        convert.converted("tiny", gguf)


def test_of_two_processes_the_second_takes_the_firsts_folder(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nested: list[Path] = []
    begun: list[Path] = []

    def racing(source: Path, into: Path) -> None:
        (into / "config.json").write_text("{}")
        begun.append(into)
        if len(begun) == 1:
            nested.append(convert.converted("tiny", source))  # the other one finishes meanwhile

    monkeypatch.setattr(convert, "_convert", racing)
    folder = convert.converted("tiny", gguf)
    assert nested == [folder]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_file_that_is_no_gguf_is_one_line(gguf: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot convert model\.gguf"):
        convert.converted("tiny", gguf)
