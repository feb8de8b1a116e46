"""The result folder's tracker, which must work, with any number of others, which must not stop a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from securefed.config import TrackingConfig
from securefed.tracking.folder import FolderTracker
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary, Tracker

logger = logging.getLogger(__name__)


class TrackerGroup:
    """Tells the folder first, then the others; one of the others that fails is logged once and dropped."""

    def __init__(self, folder: Tracker, others: Sequence[Tracker]) -> None:
        self._folder, self._others = folder, list(others)

    @classmethod
    def of(cls, folder: Path, config: TrackingConfig, others: Sequence[Tracker]) -> TrackerGroup:
        """The trackers that a job asks for, and those given.

        Raises:
            SecureFedError: the job asks for one whose package is missing.
        """
        wanted = list(others)
        if config.tensorboard:
            from securefed.tracking.tensorboard import TensorBoardTracker

            wanted.append(TensorBoardTracker(folder / "tensorboard"))
        if config.wandb:
            from securefed.tracking.wandb import WandbTracker

            wanted.append(WandbTracker(config.wandb_project))
        return cls(FolderTracker(folder, config.report), wanted)

    def __enter__(self) -> TrackerGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, info: RunInfo) -> None:
        self._folder.start(info)
        self._tell(lambda t: t.start(info))

    def round(self, record: RoundRecord) -> None:
        self._folder.round(record)
        self._tell(lambda t: t.round(record))

    def end(self, summary: RunSummary) -> None:
        self._folder.end(summary)
        self._tell(lambda t: t.end(summary))

    def close(self) -> None:
        """Closes every tracker."""
        self._folder.close()
        self._tell(lambda t: t.close())

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._others):
            try:
                call(tracker)
            except BrokenPipeError:
                self._others.remove(tracker)  # whoever read it has left (`securefed run ... | head`)
            except Exception as error:  # whatever a third party's tracker throws: it must not stop a run
                logger.warning("%s failed and is dropped: %s", type(tracker).__name__, error)
                self._others.remove(tracker)
