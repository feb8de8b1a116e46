"""SHA-256 of large files, read once, and the identity of a frozen base."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securefed.paths import cache_dir

logger = logging.getLogger(__name__)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex.

    Remembered under the cache folder by path, inode, size and both times, so that half a gigabyte is
    hashed once and any rewrite of the file is noticed.
    """
    path = path.resolve()
    stat = path.stat()
    stamp = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    memory = cache_dir() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    known = read_json(memory)
    if known is not None and known.get("stamp") == stamp:
        return str(known["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        write_json(memory, {"stamp": stamp, "sha256": digest})
    except OSError as error:  # the memory only saves time
        logger.debug("cannot remember a file digest: %s", error.strerror)
    return digest


def base_digest(files: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """The identity of what does not train: digests of the base's files and the settings that shape it.

    Two clients with equal base digests and equal vectors compute the same function.
    """
    text = json.dumps({"files": dict(files), "settings": dict(settings)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes the object so that a reader finds the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    half.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(half, path)
