"""A stop flag for jobs that are to be interrupted."""

from __future__ import annotations


class StopAfter:
    """Is set once `rounds` rounds have been asked about."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0
