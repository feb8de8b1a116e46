"""The folder of frozen states as a whole: what lies in it, and how it is cleared. No torch, so that a command is quick."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from securefed.training.file_lock import try_alone

SUFFIX, PART = ".states", ".part-"
SEALED_AT = 10
"""Where a file says whether it is encrypted (`state_file.Head`)."""


def stored_files(folder: Path) -> list[Path]:
    """The state files of a folder, those being written too; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix == SUFFIX or p.name.startswith(PART))


def drop(folder: Path, *, sealed_too: bool = True) -> int:
    """Deletes the folder's state files that nobody is using, and says how many.

    Args:
        sealed_too: also encrypted ones.
    """
    return sum(dropped(path) for path in stored_files(folder) if sealed_too or not is_sealed(path))


def is_sealed(path: Path) -> bool:
    """Whether the file says that it is encrypted."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(SEALED_AT + 1)[SEALED_AT:] == b"\1"
    return False


def dropped(path: Path) -> bool:
    """Deletes the file unless somebody is using it."""
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        if not try_alone(handle):
            return False
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
