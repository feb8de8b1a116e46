"""`fetch`: brings a named data set's files into the cache, and uses none that differs from its checksum.

Files lie in `cache_dir()/data/NAME/`. They are looked for there, then in the folders that the
environment variable `SECUREFED_DATA` lists, then in the source's usual places, then downloaded.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import logging
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from securefed.data.catalogue import SOURCES as SOURCES
from securefed.data.catalogue import Source as Source
from securefed.data.fetch import DownloadFailed, write_atomically
from securefed.errors import DataError

log = logging.getLogger("securefed.data")

FOLDERS_VARIABLE = "SECUREFED_DATA"
"""Environment variable: folders, separated as in PATH, in which archives or files may lie."""


def fetch(name: str, *, force: bool = False, offline: bool = False) -> Path:
    """The folder with the data set's files, each equal to its pinned checksum.

    Args:
        name: a key of `SOURCES`.
        force: read archive or network again, whatever is cached.
        offline: look on this machine only.

    Raises:
        DataError: an unknown name; a cached file that differs from its checksum (it is not used and
            not replaced without `force`); nothing on this machine and no way to download, with the
            command to run elsewhere and the folder to put its result in.
    """
    source = find_source(name)
    if not source.files:
        return _installed(source)
    if not force and source.cached:
        for file, expected in source.files.items():
            _check_cached(source, file, expected)
        return source.folder
    contents = _from_this_machine(source) or _from_network(source, offline)
    try:
        source.folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            write_atomically(source.folder / file, content)
    except OSError as error:
        raise DataError(
            f"cannot write {source.folder}: {error.strerror}; set SECUREFED_HOME to move the cache"
        ) from None
    log.info("%s is in %s, checksums match", name, source.folder)
    return source.folder


def find_source(name: str) -> Source:
    """The source of this name, or DataError naming the nearest one."""
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SOURCES)}"
    raise DataError(f"no data set {name!r}; {hint}")


def _installed(source: Source) -> Path:
    """Where the package that ships it lies."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            f"{source.name} comes with scikit-learn, which is not installed; run `{source.command}`"
        )
    return Path(found.origin).parent / "datasets" / "data"


def _check_cached(source: Source, file: str, expected: str) -> None:
    with (source.folder / file).open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise DataError(
            f"{source.folder / file} is corrupt (SHA-256 {found[:12]}..., expected {expected[:12]}...); "
            f"refetch it with `securefed data get {source.name} --force`"
        )


def _from_this_machine(source: Source) -> Mapping[str, bytes]:
    """The checked files of the first archive that lies in one of the known folders; empty if none does."""
    for archive in _archives(source):
        log.info("reading %s from %s", source.name, archive)
        try:
            return _unpacked(source, archive)
        except DataError as error:
            log.warning("%s is not used: %s", archive, error)
    return {}


def _archives(source: Source) -> Iterator[Path]:
    listed = [Path(p).expanduser() for p in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if p]
    for place in (source.folder, *listed, *(p / source.name for p in listed), *map(Path, source.places)):
        for pattern in source.archives:
            yield from sorted(place.glob(pattern))


def _from_network(source: Source, offline: bool) -> Mapping[str, bytes]:
    assert source.download is not None  # a source with files has one
    source_folder = shlex.quote(str(source.folder))
    elsewhere = f"on a machine with a network run `{source.command}` and put {source.archives[0]} into {source_folder}"
    if offline:
        raise DataError(f"{source.name} is not on this machine and downloads are off; {elsewhere}")
    log.info("downloading %s (%s)", source.name, source.size)
    with tempfile.TemporaryDirectory(prefix="securefed-") as scratch:
        try:
            source.download(Path(scratch))
        except DownloadFailed as error:
            raise DataError(f"{source.name} could not be downloaded ({error}); {elsewhere}") from error
        found = [path for pattern in source.archives for path in sorted(Path(scratch).glob(pattern))]
        if not found:
            raise DataError(f"the download of {source.name} left no {source.archives[0]}; {elsewhere}")
        return _unpacked(source, found[0])


def _unpacked(source: Source, archive: Path) -> Mapping[str, bytes]:
    """The archive's files, each equal to its checksum.

    Raises:
        DataError: a file is missing from it or differs.
    """
    assert source.unpack is not None  # a source with files has one
    contents = source.unpack(archive)
    for name, expected in source.files.items():
        if name not in contents:
            raise DataError(f"{archive.name} holds no {name}")
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise DataError(
                f"{name} of {archive.name} has SHA-256 {found[:12]}..., expected {expected[:12]}..."
            )
    return {name: contents[name] for name in source.files}
