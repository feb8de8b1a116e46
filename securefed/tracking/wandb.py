"""Scores and epsilon in Weights & Biases; an extra: pip install 'securefed[wandb]'.

Only the global test scores, epsilon and (not at client level) byte counts leave this machine: per-client
scores (of personal models, of the worst client, gains over training alone), shard tables and training diagnostics are
private and stay; so do all scores of algorithms whose head is at the clients. The test set should be public: where it
is a part of the clients' own records, its scores are a release that no epsilon covers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securefed.config import Config, to_tree
from securefed.errors import SecureFedError
from securefed.registry import ALGORITHMS, find_class
from securefed.tracking.tracker import RoundRecord, RunInfo, RunSummary

_CLIENTS_OWN = ("personal_", "worst_", "gain_")
"""How scores that are computed on clients' own records begin (`evaluation`, `gains`)."""


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
        self._tells_bytes = self._tells_scores = True

    def start(self, info: RunInfo) -> None:
        # Bytes over the size of one update are the number of clients drawn, which a client-level guarantee
        # with sampled cohorts must keep from outsiders.
        self._tells_bytes = info.config.privacy.unit != "client"
        algorithm = find_class("algorithm", info.config.algorithm.name, ALGORITHMS)
        self._tells_scores = getattr(
            algorithm, "whole", True
        )  # else they are clients' own models' on their own records
        self._run = self._wandb.init(
            project=self._project, name=info.name, id=info.run, resume="allow", config=_shared(info.config)
        )

    def round(self, record: RoundRecord) -> None:
        values = {f"test/{k}": v for k, v in self._told(record.metrics or {}).items()}
        if record.epsilon is not None:
            values["privacy/epsilon"] = record.epsilon
        if self._tells_bytes:
            values["bytes/mib_up"] = record.mib_up
        self._run.log(values, step=record.round)

    def end(self, summary: RunSummary) -> None:
        self._run.summary.update({f"final/{k}": v for k, v in self._told(summary.metrics).items()})

    def _told(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The scores of the global model alone."""
        return {k: v for k, v in metrics.items() if self._tells_scores and not k.startswith(_CLIENTS_OWN)}

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _shared(config: Config) -> dict[str, Any]:
    """The job without this machine's folders: of a path, only its last part."""
    tree = to_tree(config)
    distill = tree["distill"]
    for section, key in (
        (tree["data"], "name"),
        (tree["model"], "name"),
        (distill, "public"),
        *((a, "name") for a in distill["clients"]),
    ):
        section[key] = Path(section[key]).name
    return {**tree, "output": Path(config.output).name}
