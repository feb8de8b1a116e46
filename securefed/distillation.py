"""Plays the algorithm distill: a round is answers in, a consensus, a student that learns it, soft labels back.

Run folder, tracker, ledger, checkpoint, report and statement are those of every run; only the round is another
(`securefed.algorithms.distill` has its parts in the order of the papers).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from securefed.aggregation import pack_state
from securefed.algorithms.distill import Distill, softmax
from securefed.assembly import Assembly, cohort
from securefed.checkpoint import State
from securefed.chronicle import Played
from securefed.crypto.entropy import Entropy
from securefed.engine.inprocess import InProcess
from securefed.federation import MIB, Federation, Result, StopFlag
from securefed.registry import ALGORITHMS, make
from securefed.tracking.tracker import Tracker
from securefed.training.client import ClientJob, ClientOutcome
from securefed.training.local import LocalWork
from securefed.training.soft import answers, learn_from
from securefed.training.table_client import TableRunner, make_learners
from securefed.types import SERVER, Collected, Vector

_TAUGHT = "distill:taught"
"""The soft labels that were handed back, in a checkpoint's named vectors."""


class Distillation(Federation):
    """One run. Its global model is the student; what clients keep (`State.local`) are their own models.

    Attributes:
        runner: the clients. taught: the soft labels that clients get next, float32 (m, k); None before the first round.
    """

    def __init__(self, assembly: Assembly, folder: Path, run_id: str, entropy: Entropy) -> None:
        super().__init__(assembly, folder, run_id, entropy)
        assert assembly.public is not None
        self.algorithm: Distill = make("algorithm", self.config.algorithm, ALGORITHMS)
        images = assembly.public.images
        self.runner = TableRunner(
            self.config,
            make_learners(
                self.config,
                assembly.public,
                self.model.classes,
                None if images is None else (images.shape[1], images.shape[2], images.shape[3]),
            ),
            assembly.shards,
            self.algorithm,
            run=run_id,
            entropy=entropy,
            ledger=self.ledger,
            guarantee=self.parts.guarantee,
        )
        self.parts.runner, self.parts.engine = self.runner, InProcess(self.runner)
        self.runner.cache = self.parts.evaluator.cache  # one bound on memory for all models of the process
        self.public = self.model.encode(assembly.public, self.config.data.max_length)
        self.layout = self.algorithm.layout(self.config, self.model.classes)
        self.taught: NDArray[np.float32] | None = None

    def play(
        self, resumed: State | None, trackers: Sequence[Tracker] = (), stop_flag: StopFlag | None = None
    ) -> Result:
        """All rounds from the given state (or the first), then the student, the statement and the report."""
        if resumed is not None and _TAUGHT in resumed.rule:
            self.taught = resumed.rule[_TAUGHT].reshape(-1, self.model.classes)
            kept = {name: vector for name, vector in resumed.rule.items() if name != _TAUGHT}
            resumed = replace(resumed, rule=kept)
        return super().play(resumed, trackers, stop_flag)

    def _play_round(self, state: State, tracker: Tracker, before: float, started: float) -> State:
        begin = time.perf_counter()
        plan = self.algorithm.plan(self.config, self.model.part_of, state.round)
        chosen = cohort(self.config, len(self.assembly.shards), state.round, self.entropy, self.algorithm)
        mean, collected, outcomes = self._communicate(state, chosen)
        asked = chosen if outcomes else ()  # as in `Federation._play_round`
        consensus = self.algorithm.consensus(self.config, mean, self.model.classes)
        student = self._learn(state, consensus)
        up = sum(collected.bytes_up.values()) / MIB
        down = (self._sent_back(state.round) * len(asked) + sum(collected.bytes_down.values())) / MIB
        self.taught = self._back(consensus)
        local = dict(state.local) | {o.client: o.local for o in outcomes if o.local is not None}
        taught = {} if self.taught is None else {_TAUGHT: self.taught.reshape(-1)}
        new = replace(
            state,
            round=state.round + 1,
            vector=student,
            local=local,
            rule={**pack_state(self.server.rule_state), **self.liars.pack(), **taught},
            mib_up=state.mib_up + up,
            mib_down=state.mib_down + down,
            sim_seconds=self.cohorts.sim_seconds(state, chosen),
        )
        return self._ended(
            new, Played(plan, asked, collected, outcomes, up, down), tracker, (begin, started, before)
        )

    def _communicate(
        self, state: State, chosen: tuple[int, ...]
    ) -> tuple[Vector, Collected, list[ClientOutcome]]:
        """The aggregate of the cohort's tables, what the server held, and the clients' outcomes."""
        self.runner.taught = self.taught
        weights, public = self.cohorts.weighing(chosen)

        def train() -> list[ClientOutcome]:
            outcomes = self.parts.engine.train([self._job(state, k, weights[k]) for k in chosen])
            return self.liars.lie(outcomes, state.round, self.layout.digest)

        found = self.server.play(state.round, self.layout, state.vector, chosen, train, weights=public)
        self.liars.remember(found[0], self.layout.digest)
        return found

    def _job(self, state: State, client: int, weight: float) -> ClientJob:
        learner = self.runner.learner(client)
        start = state.local.get(client, learner.start)
        return ClientJob(client, state.round, learner.names, (), start, weight)

    def _learn(self, state: State, consensus: NDArray[np.float32]) -> Vector:
        """The student after it has learned what the ensemble says, from where it was."""
        d = self.config.distill
        own = replace(
            self.config.train, learning_rate=d.student_learning_rate, head_learning_rate=None, warmup_steps=0
        )
        return learn_from(
            self.model,
            self.public,
            consensus,
            state.vector,
            own,
            steps=d.student_steps,
            batch_size=d.batch_size,
            temperature=self.algorithm.temperature(self.config),
            work=LocalWork(SERVER, state.round, tuple(sorted(self.model.part_of))),
            seed=self.config.seed,
            cache=self.parts.evaluator.cache,
        )

    def _back(self, consensus: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """What clients learn from in the next round; the student's own answers where it is sent back itself."""
        if self.config.distill.back == "nothing":
            return None
        if self.config.distill.back == "labels":
            return consensus
        logits = answers(self.model, self.public, self.config.train, self.parts.evaluator.cache)
        return softmax(logits / np.float32(self.algorithm.temperature(self.config)))

    def _sent_back(self, round: int) -> int:
        """Bytes to each client of the cohort at the start of this round: float32 soft labels, or the student."""
        if round == 0 or self.config.distill.back == "nothing":
            return 0
        if self.config.distill.back == "student":
            return 4 * self.model.layout.size
        return 4 * self.config.distill.records * self.model.classes
