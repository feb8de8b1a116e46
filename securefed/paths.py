"""Where caches live: the user's own folders, or everything under `SECUREFED_HOME`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder of downloaded and converted files; not created here.

    `$SECUREFED_HOME/cache` when `SECUREFED_HOME` is set, else the user's cache folder.
    """
    home = os.environ.get("SECUREFED_HOME")
    if home:
        return Path(home).expanduser() / "cache"
    import platformdirs

    return Path(platformdirs.user_cache_dir("securefed"))
