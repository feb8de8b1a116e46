"""Ctrl-C once: the run ends after its round and can be resumed. Twice, or before the first round: it ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary


class StopOnInterrupt:
    """A stop flag that the first SIGINT of a run's rounds sets; the second raises KeyboardInterrupt.

    Before them, while data, model and baselines are made ready, the first raises already: no round is there to
    finish, nothing has been spent, and it may be minutes to the end of one. So it is a tracker of the run, too.
    Signals reach the main thread only; elsewhere the flag is simply never set.
    """

    def __init__(self) -> None:
        self._set = self._playing = False
        self._old: Any = None

    def is_set(self) -> bool:
        """Whether the run should end after this round."""
        return self._set

    def start(self, info: RunInfo) -> None:
        """The first round is next."""
        self._playing = True

    def round(self, record: RoundRecord) -> None:
        """Nothing to note."""

    def end(self, summary: RunSummary) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._set or not self._playing:
            raise KeyboardInterrupt
        self._set = True
        sys.stderr.write("securefed: stopping after this round; Ctrl-C again stops at once\n")
        sys.stderr.flush()
