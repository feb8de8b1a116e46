"""Whether the Hugging Face hub can be asked at all; its own clients retry for half a minute to find out."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


def hub_is_offline() -> bool:
    """True where the user said so (`HF_HUB_OFFLINE`) or the hub's name cannot be resolved.

    Behind a proxy the proxy resolves names, so that nothing is concluded there.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    if getproxies():
        return False
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return True
    return False
