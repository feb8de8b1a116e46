"""What commands write: lines and JSON on standard output, one line of error on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

BAD_INPUT = 2
INTERRUPTED = 130
"""128 + SIGINT, as shells report a program that Ctrl-C ended."""


def say(line: str = "") -> None:
    """A line for people, or the one document for machines."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say_json(tree: Any) -> None:
    """The tree as JSON that every parser reads: infinity is the word, not-a-number null."""
    from securefed.tracking.files import plain

    say(json.dumps(plain(tree), indent=1, allow_nan=False))


def fail(message: str, code: int) -> int:
    """The one line of an error; returns the exit code."""
    sys.stderr.write(f"securefed: {' '.join(message.split())}\n")
    return code
