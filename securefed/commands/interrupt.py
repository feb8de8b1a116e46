"""Ctrl-C once: the run ends after its round and can be resumed. Twice: it ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class StopOnInterrupt:
    """A stop flag that the first SIGINT sets; the second raises KeyboardInterrupt.

    Signals reach the main thread only; elsewhere the flag is simply never set.
    """

    def __init__(self) -> None:
        self._set = False
        self._old: Any = None

    def is_set(self) -> bool:
        """Whether the run should end after this round."""
        return self._set

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._set:
            raise KeyboardInterrupt
        self._set = True
        sys.stderr.write("securefed: stopping after this round; Ctrl-C again stops at once\n")
        sys.stderr.flush()
