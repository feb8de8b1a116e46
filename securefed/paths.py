"""Where this site keeps what outlives a run: its ledger (state) and downloads (cache).

`SECUREFED_HOME` moves both; otherwise they lie in the user's own folders. Nothing is created here.
"""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path:
    """The folder of the privacy ledger: back it up, for a lost ledger forgets what was spent."""
    return _folder("state")


def cache_dir() -> Path:
    """The folder of downloads and converted models: safe to delete."""
    return _folder("cache")


def states_dir() -> Path:
    """The folder of frozen states kept from run to run: as private as the records, so not in a cache that others share."""
    home = os.environ.get("SECUREFED_HOME")
    return _folder("states") if home else _folder("cache") / "states"


def states_key_path() -> Path:
    """The key that names, authenticates and seals those files; without it they are noise, and are computed again."""
    return state_dir() / "states.key"


def policy_path() -> Path:
    """The file with this site's limits, `securefed.privacy.policy`; it need not exist."""
    home = os.environ.get("SECUREFED_HOME")
    if home:
        return Path(home).expanduser() / "policy.toml"
    import platformdirs

    return Path(platformdirs.user_config_path("securefed", appauthor=False)) / "policy.toml"


def _folder(kind: str) -> Path:
    home = os.environ.get("SECUREFED_HOME")
    if home:
        return Path(home).expanduser() / kind
    import platformdirs

    find = platformdirs.user_state_path if kind == "state" else platformdirs.user_cache_path
    return Path(find("securefed", appauthor=False))
