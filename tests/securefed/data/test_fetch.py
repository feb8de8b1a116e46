"""Clients run as programs, and archives that are read without being extracted."""

from __future__ import annotations

import logging
import sys
import zipfile
from pathlib import Path

import pytest

from securefed.data import fetch
from securefed.data.fetch import DownloadFailed, members, run_client, write_atomically
from securefed.errors import DataError
from tests.securefed.data.fakes import tar_gz


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_client_runs_in_the_folder_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "securefed.data"):
        run_client(python("open('here', 'w')"), tmp_path)
    assert (tmp_path / "here").exists()
    assert "running" in caplog.text


def test_a_missing_client_is_named(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="no-such-client is not installed"):
        run_client(["no-such-client", "pack"], tmp_path)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: old\\nERROR: no match\\nhint", "ERROR: no match"),
        (
            "npm error code E404\\nnpm error 404 Not Found\\nnpm error a log",
            "npm error code E404; npm error 404 Not Found",
        ),
        ("one\\ntwo", "two"),
        ("", "no output"),
    ],
)
def test_a_failing_client_gives_its_reason_in_one_line(tmp_path: Path, stderr: str, reason: str) -> None:
    with pytest.raises(DownloadFailed) as error:
        run_client(python(f"import sys; sys.stderr.write('{stderr}'); sys.exit(3)"), tmp_path)
    assert str(error.value).endswith(f"failed: {reason}")
    assert "\n" not in str(error.value)


def test_a_client_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.3)
    with pytest.raises(DownloadFailed, match="took longer than"):
        run_client(python("import time; time.sleep(60)"), tmp_path)


def test_a_client_cannot_ask_questions(tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="EOF"):
        run_client(python("input('password? ')"), tmp_path)


def test_pip_gets_the_hash_before_it_may_run_setup_py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], str]] = []

    def record(command: list[str], folder: Path) -> None:
        calls.append((command, (folder / "requirements.txt").read_text()))
        if len(calls) == 1:
            raise DownloadFailed("no build tools")

    monkeypatch.setattr(fetch, "run_client", record)
    fetch.pip_download("a==1", "f00", tmp_path)
    assert [text for _, text in calls] == ["a==1 --hash=sha256:f00\n"] * 2
    assert all("--require-hashes" in command and "--no-deps" in command for command, _ in calls)
    assert ["--no-build-isolation" in command for command, _ in calls] == [False, True]
    assert list(tmp_path.iterdir()) == []


def test_members_of_tar_and_zip_get_our_names_only(tmp_path: Path) -> None:
    files = {"../../evil/a.txt": b"A", "/abs/b.txt": b"B", "c.bin": b"C"}
    (tmp_path / "x.tgz").write_bytes(tar_gz(files))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    for archive in ("x.tgz", "x.zip"):
        found = members(tmp_path / archive, lambda p: p[-5:] if p.endswith(".txt") else None)
        assert dict(found) == {"a.txt": b"A", "b.txt": b"B"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tgz", "x.zip"]


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_a_broken_archive_is_named(tmp_path: Path, cut: int) -> None:
    (tmp_path / "x.tgz").write_bytes(tar_gz({"a.txt": bytes(range(256)) * 9})[:cut])
    with pytest.raises(DataError, match=r"x.tgz cannot be unpacked \(\w+\); delete it"):
        dict(members(tmp_path / "x.tgz", lambda p: p))


def test_a_failed_write_leaves_the_old_file_and_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "data"
    write_atomically(file, b"old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
