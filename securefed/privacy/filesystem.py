"""Whether a folder lies on a disk of this machine: the ledger's fast journal is safe nowhere else."""

from __future__ import annotations

from pathlib import Path

_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay"})
_MOUNTS = Path("/proc/self/mountinfo")


def is_local(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """True if the folder's file system is known to be local; False where that cannot be told.

    Reads the mount table (Linux); elsewhere there is none, and the answer is False.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    target, best, kind = folder.resolve(), -1, ""
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, types = left.split(), right.split()
        if len(fields) < 5 or not types:
            continue
        point = Path(fields[4].replace("\\040", " "))
        if target.is_relative_to(point) and len(point.parts) >= best:  # later mounts hide earlier ones
            best, kind = len(point.parts), types[0]
    return kind in _LOCAL
