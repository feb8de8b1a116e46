"""Scores and epsilon in TensorBoard's files; an extra: pip install 'securefed[tensorboard]'."""

from __future__ import annotations

from pathlib import Path

from securefed.errors import SecureFedError
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary


class TensorBoardTracker:
    """Writes event files under `folder`."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise SecureFedError(
                "tracking.tensorboard needs the package tensorboard; pip install 'securefed[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def start(self, info: RunInfo) -> None:
        self._writer.add_text("run", f"{info.name} {info.run}")

    def round(self, record: RoundRecord) -> None:
        for name, value in (record.metrics or {}).items():
            self._writer.add_scalar(f"test/{name}", value, record.round)
        for name, value in record.diagnostics.items():
            self._writer.add_scalar(f"simulation_diagnostics/{name}", value, record.round)
        if record.epsilon is not None:
            self._writer.add_scalar("privacy/epsilon", record.epsilon, record.round)
        self._writer.add_scalar("bytes/mib_up", record.mib_up, record.round)

    def end(self, summary: RunSummary) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
