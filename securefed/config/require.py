"""The one way in which a check of a job refuses it."""

from __future__ import annotations

from securefed.errors import ConfigError


def require(ok: bool, message: str) -> None:
    """Raises ConfigError with the message, one line that names the value, the bound and the way out, unless `ok`."""
    if not ok:
        raise ConfigError(message)
