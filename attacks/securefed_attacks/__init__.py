"""What curious servers, curious clients and liars do with what they see: attacks, and their statistics.

An attack takes a `securefed.View`, exactly what one adversary saw, so that the same attack measures
leakage with and without a protection. A Byzantine attack maps the honest updates (h, d) to the f
malicious ones (f, d).

Empty in this release: the tables stand so that tools can ask them by name, and hold no entry yet.
"""

from __future__ import annotations

from typing import Any

BYZANTINE: dict[str, type[Any]] = {}
"""Name -> class of the attacks on the aggregate; none in this release."""

__all__ = ["BYZANTINE"]
