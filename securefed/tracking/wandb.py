"""Scores and epsilon in Weights & Biases; an extra: pip install 'securefed[wandb]'.

Only the global test scores, epsilon and byte counts leave this machine: per-client scores, shard tables
and training diagnostics are private and stay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from securefed.config import Config, to_tree
from securefed.errors import SecureFedError
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary


class WandbTracker:
    """One run in `project`."""

    def __init__(self, project: str) -> None:
        try:
            import wandb
        except ImportError:
            raise SecureFedError(
                "tracking.wandb needs the package wandb; pip install 'securefed[wandb]'"
            ) from None
        self._wandb, self._project = wandb, project
        self._run: Any = None

    def start(self, info: RunInfo) -> None:
        self._run = self._wandb.init(
            project=self._project, name=info.name, id=info.run, resume="allow", config=_shared(info.config)
        )

    def round(self, record: RoundRecord) -> None:
        values = {f"test/{k}": v for k, v in (record.metrics or {}).items()}
        if record.epsilon is not None:
            values["privacy/epsilon"] = record.epsilon
        self._run.log({**values, "bytes/mib_up": record.mib_up}, step=record.round)

    def end(self, summary: RunSummary) -> None:
        self._run.summary.update({f"final/{k}": v for k, v in summary.metrics.items()})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _shared(config: Config) -> dict[str, Any]:
    """The job without this machine's folders: of a path, only its last part."""
    tree = to_tree(config)
    for section, key in (("data", "name"), ("model", "name")):
        tree[section][key] = Path(tree[section][key]).name
    return {**tree, "output": Path(config.output).name}
