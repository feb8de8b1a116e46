"""How a run is judged between its rounds: scores, when to stop, what has been spent, what to compare with."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from securefed.checkpoint import State
from securefed.chronicle import is_evaluated, stored_baselines, took_part
from securefed.gains import gains
from securefed.layout import Layout
from securefed.parts import Parts

logger = logging.getLogger(__name__)
DIVERGED = 20.0
"""Nats per record (per token): no model that predicts anything is this sure of the wrong answer."""


class Judge:
    """Measures one run. Scores on clients' own data are diagnostics of a simulation."""

    def __init__(self, parts: Parts, kept: Layout) -> None:
        self.parts, self.config, self.evaluator, self.kept = parts, parts.config, parts.evaluator, kept

    def evaluate(self, state: State) -> State:
        """The state with its scores, where this round is measured."""
        if not is_evaluated(self.config, state.round):
            return state
        metrics, per_client = self.scores(state)
        if state.metrics.get("loss", 0.0) <= DIVERGED < metrics["loss"]:
            logger.warning(
                "the loss on the test set is %.3g: training diverges; lower train.learning_rate or server.learning_rate",
                metrics["loss"],
            )
        watched = metrics.get(self.config.stop.metric)
        if self.config.stop.patience == 0 or watched is None:
            return replace(state, metrics=metrics, client_metrics=per_client)
        if self.config.stop.metric in ("loss", "perplexity"):
            watched = -watched  # so that higher is always better
        better = state.best is None or watched > state.best + self.config.stop.min_delta
        best, stale = (watched, 0) if better else (state.best, state.stale + 1)
        return replace(state, metrics=metrics, client_metrics=per_client, best=best, stale=stale)

    def scores(self, state: State) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Of the model that is handed out, and of each client's own."""
        whole = self.parts.algorithm.whole
        return self.evaluator.evaluate(state.handed_out, state.local, self.kept, whole=whole)

    def gains(self, state: State, folder: Path) -> dict[str, Any]:
        """Who gains and who loses, at the end of a run in which that can be told; else nothing."""
        asked = self.config.evaluate
        if not asked.clients or not (asked.alone or self.kept.names):
            return {}
        if asked.alone:
            logger.info("training every client alone, to compare with")
        return gains(self.parts, state, self.kept, took_part(folder))

    def converged(self, state: State) -> bool:
        """Whether the watched metric has stopped improving."""
        return 0 < self.config.stop.patience <= state.stale

    def epsilon(self) -> tuple[float | None, float | None]:
        """Spent so far by this run, and by every run at this site on this data set."""
        if self.parts.ledger is None:
            return None, None
        p = self.config.privacy
        unit: Literal["client", "example"] = "client" if p.unit == "client" else "example"
        accountant = None if self.config.discrete else p.accountant  # integer noise composes by RDP only
        mine = self.parts.ledger.epsilon(p.delta, unit=unit, accountant=accountant, run=self.parts.run_id)
        return mine, self.parts.ledger.site_epsilon(p.delta, self.parts.assembly.dataset.account, unit)

    def baselines(self, folder: Path) -> dict[str, dict[str, float]]:
        """What a reader compares with; computed once a run and read back on resumption."""
        if not self.config.evaluate.baselines:
            return {}
        stored = stored_baselines(folder)
        if stored is None:
            logger.info("computing what to compare with, on the frozen model (once a run)")
            return self.evaluator.baselines()
        return stored
