"""Groups that outlive a process: a resumed run sums in the groups that it began with.

Groups drawn anew on resumption would be a second partition, and so new equations for the server. They are public;
they are written before the first round, and a run folder without them begins with new ones.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from securefed.errors import CheckpointError
from securefed.protect.grouped import OpenGrouped
from securefed.types import Protection

FILE = "groups.json"


def fixed_groups(protection: Protection, folder: Path) -> Protection:
    """The protection in the groups of this run folder, which keeps them from the first call on.

    Raises:
        CheckpointError: the file is not one of groups. ProtocolError: its groups are not this job's.
    """
    if not isinstance(protection, OpenGrouped):
        return protection
    path = folder / FILE
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"version": 1, "groups": protection.groups}), encoding="utf-8")
        os.replace(part, path)
        return protection
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        groups = tuple(tuple(int(k) for k in group) for group in tree["groups"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} does not hold groups; restore it, or start a new run") from None
    return protection.with_groups(groups)
