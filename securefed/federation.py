"""The round loop: select -> train -> protect -> aggregate -> apply -> evaluate -> record.

`run` starts a job in a new folder, `resume` goes on with a stopped one. Both play the same `Federation`.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from securefed.aggregation import pack_state, unpack_state
from securefed.algorithms.averaging import averaged
from securefed.algorithms.pruning import KEY as RANKS_KEY
from securefed.algorithms.ranks import Ranked
from securefed.algorithms.server_optimizer import Moments
from securefed.assembly import Assembly, assemble, cohort
from securefed.checkpoint import State, load_state, save_state
from securefed.chronicle import Played, draw_shards, round_record, run_info, run_summary
from securefed.cohorts import Cohorts
from securefed.config import Config, load_config, to_toml
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.engine.liars import describe
from securefed.errors import BudgetExceeded
from securefed.gains import headline
from securefed.grouping import fixed_groups
from securefed.judging import Judge
from securefed.kept_views import ViewKeeper
from securefed.parts import Parts
from securefed.privacy.ledger import Ledger
from securefed.privacy.moving_clip import KEY as CLIP_KEY
from securefed.privacy.step_release import StepRelease
from securefed.registry import ALGORITHMS, find_class, load
from securefed.run_folder import id_of, made, note_run
from securefed.run_folder import new_folder as new_folder
from securefed.tracking.tracker import Tracker

if TYPE_CHECKING:
    from securefed.privacy.view import RunView

logger = logging.getLogger(__name__)
MIB = 2**20


class StopFlag(Protocol):
    """Anything with `is_set`, e.g. threading.Event: the run ends after the round in which it is set."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
        folder: config, metrics, privacy statement, adapter, report.
        metrics: the final global test metrics.
        rounds: rounds played, over all resumptions.
        stopped: "rounds" | "budget" | "converged" | "interrupted".
        ledger: this run's view of the site's ledger; None without DP.
    """

    folder: Path
    metrics: Mapping[str, float]
    rounds: int
    stopped: str
    ledger: RunView | None


def run(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    folder: Path | None = None,
    entropy: Entropy | None = None,
    trackers: Sequence[Tracker] = (),
    stop_flag: StopFlag | None = None,
    assembly: Assembly | None = None,
) -> Result:
    """Plays a job from its first round and leaves a result folder.

    Args:
        config, overrides: see `load_config`.
        folder: result folder, must not exist; by default `<output>/<name>-<time>`.
        entropy: the system's by default; a seeded one is for tests only and voids every guarantee.
        trackers: told of every round, beside the result folder's own.
        stop_flag: when set, the run ends after the round being played and can be resumed.
        assembly: the job's parts where they are in memory already, e.g. from the job before; its model is
            at the first round's values.

    Raises:
        SecureFedError: whatever cannot run as asked, in one line; nothing was spent unless the ledger says so.
    """
    job = load_config(config, overrides)
    path = new_folder(job, folder)
    run_id = secrets.token_hex(8)
    with (
        made(path, {"config.toml": to_toml(job)}),
        _opened(assembly or _read(job), path, run_id, entropy) as federation,
    ):
        federation.parts.check_budget()
        federation.parts.warn_of_noise()
        note_run(path, run_id, {"attack": describe(job, len(federation.assembly.shards))})
        return federation.play(None, trackers, stop_flag)


def resume(
    folder: str | Path,
    *,
    entropy: Entropy | None = None,
    trackers: Sequence[Tracker] = (),
    stop_flag: StopFlag | None = None,
) -> Result:
    """Goes on with a stopped run from its newest whole checkpoint.

    Without DP it ends with the same bits as an uninterrupted run. Under DP a journaled update is sent
    again byte for byte; an unfinished attempt stays charged and is drawn anew.

    Raises:
        CheckpointError: no run in this folder, or its checkpoint belongs to other code, data or model.
        PrivacyError: the site's ledger does not hold all that the run has spent.
    """
    path = Path(folder)
    run_id = id_of(path)
    assembly = assemble(load_config(path / "config.toml"))
    state = load_state(path, {"run": run_id, **assembly.identity})
    if assembly.config.private:
        with Ledger.site() as ledger:
            ledger.require(
                run_id, 0 if state is None else state.charges, None if state is None else state.seen
            )
    with _opened(assembly, path, run_id, entropy) as federation:
        return federation.play(state, trackers, stop_flag)


def _first_state(assembly: Assembly) -> State:
    vector = assembly.model.read(assembly.model.layout)
    return State(0, vector, Moments.zeros(vector.size))


def _read(config: Config) -> Assembly:
    logger.info("reading data and model")
    return assemble(config)


@contextmanager
def _opened(assembly: Assembly, folder: Path, run_id: str, entropy: Entropy | None) -> Iterator[Federation]:
    with torch_threads(assembly.config.engine.threads):
        player = player_of(assembly.config)
        federation = player(assembly, folder, run_id, entropy or SystemEntropy())
        try:
            yield federation
        finally:
            federation.close()


def player_of(config: Config) -> type[Federation]:
    """What plays the job's rounds: `Federation`, or the player that its algorithm names ("package.module:Class")."""
    path: str = getattr(find_class("algorithm", config.algorithm.name, ALGORITHMS), "player", "")
    found: type[Federation] = load(path) if path else Federation
    return found


class Federation:
    """One run: plays its rounds on a `State`."""

    def __init__(self, assembly: Assembly, folder: Path, run_id: str, entropy: Entropy) -> None:
        self.parts = Parts(assembly, run_id, entropy)
        self.config, self.assembly, self.folder, self.run_id = assembly.config, assembly, folder, run_id
        self.model, self.entropy, self.ledger = assembly.model, entropy, self.parts.ledger
        self.server, self.liars = self.parts.server, self.parts.liars
        self.cohorts = Cohorts(self.parts)
        self.judge = Judge(self.parts, self.cohorts.local_layout())
        self.identity = {"run": run_id, **assembly.identity}
        self._saved = -math.inf
        reveals, most = self.server.protection.reveals, self.config.tracking.keep_views
        self.views = ViewKeeper(folder, run_id, reveals, most)

    def close(self) -> None:
        """Ends worker processes and the ledger's connection."""
        self.parts.close()

    # ------------------------------------------------------------------------------------ the whole run

    def play(
        self, resumed: State | None, trackers: Sequence[Tracker] = (), stop_flag: StopFlag | None = None
    ) -> Result:
        """All rounds from the given state (or the first), then the adapter, the statement and the report."""
        from securefed.tracking.group import TrackerGroup

        self.server.protection = fixed_groups(self.server.protection, self.folder)
        if isinstance(self.server.mechanism, StepRelease):
            self.server.mechanism = self.server.mechanism.kept_in(self.folder)
        with TrackerGroup.of(self.folder, self.config.tracking, trackers) as group:
            return self._play(resumed, group, stop_flag)

    def _play(self, resumed: State | None, tracker: Tracker, stop_flag: StopFlag | None) -> Result:
        started = time.perf_counter()
        state = resumed or _first_state(self.assembly)
        stored = self.liars.unpack(state.rule)
        if self.parts.clip is not None:
            self.parts.clip.unpack(stored)
        self.server.rule_state = unpack_state(
            {k: v for k, v in stored.items() if k not in (CLIP_KEY, RANKS_KEY)}
        )
        self.server.memory = state.memory
        before = state.seconds
        resumed_at = None if resumed is None else state.round
        facts = run_info(
            self.assembly,
            self.folder,
            self.run_id,
            self.parts.guarantee,
            self.judge.baselines(self.folder),
            resumed_at,
        )
        tracker.start(facts)
        stopped = "rounds"
        while state.round < self.config.rounds:
            try:
                state = self._play_round(state, tracker, before, started)
            except BudgetExceeded:
                stopped = "budget"
                break
            if self.judge.converged(state):
                stopped = "converged"
                break
            if stop_flag is not None and stop_flag.is_set() and state.round < self.config.rounds:
                stopped = "interrupted"
                break
        return self._finish(replace(state, seconds=before + time.perf_counter() - started), tracker, stopped)

    def _play_round(self, state: State, tracker: Tracker, before: float, started: float) -> State:
        begin = time.perf_counter()
        plan = self.parts.algorithm.plan(self.config, self.model.part_of, state.round)
        chosen = cohort(
            self.config, len(self.assembly.shards), state.round, self.entropy, self.parts.algorithm
        )
        clip = None if self.parts.clip is None else self.parts.clip.value
        aggregate_, collected, outcomes = self.cohorts.train_and_collect(state, plan, chosen)
        asked = chosen if outcomes else ()  # a release from before a crash is applied again: nobody is asked
        algorithm, joined = self.parts.algorithm, None
        if isinstance(algorithm, Ranked) and plan.phase != "head":
            joined = self.cohorts.joined(state, plan, collected)
            aggregate_ = algorithm.combine(aggregate_, joined)
        vector, moments = algorithm.apply(
            self.config.server,
            self.model.layout,
            self.model.part_of,
            plan,
            state.vector,
            aggregate_,
            state.moments,
        )
        if isinstance(algorithm, Ranked) and joined is not None:
            vector = algorithm.join(vector, joined)
        if plan.anchors:
            self.server.begin_again()
        self.views.keep(state.round, self.cohorts.shared(plan), collected, state.vector, vector)
        local = dict(state.local) | {o.client: o.local for o in outcomes if o.local is not None}
        up, down = (
            sum(collected.bytes_up.values()) / MIB,
            self.cohorts.bytes_down(state, plan, asked, collected) / MIB,
        )
        new = replace(
            state,
            round=state.round + 1,
            vector=vector,
            moments=moments,
            average=averaged(state.average, vector, plan, self.config.server.average)
            if plan.share
            else state.average,
            local=local,
            rule={
                **pack_state(self.server.rule_state),
                **self.liars.pack(),
                **self.cohorts.packed_clip(),
                **self.cohorts.packed_ranks(state, plan, outcomes),
            },
            residual={} if plan.anchors else self.cohorts.residuals(state, plan, outcomes),
            memory=self.server.memory,
            mib_up=state.mib_up + up,
            mib_down=state.mib_down + down,
            versions=self.cohorts.versions(state),
            sim_seconds=self.cohorts.sim_seconds(state, chosen),
        )
        if plan.anchors or plan.phase == "centre":  # what began anew is not behind what was before
            new = replace(new, best=None, stale=0)
        return self._ended(
            new,
            Played(plan, asked, collected, outcomes, up, down, clip, self.cohorts.staleness(state.round)),
            tracker,
            (begin, started, before),
        )

    def _ended(
        self, state: State, played: Played, tracker: Tracker, clock: tuple[float, float, float]
    ) -> State:
        """The state after a round, measured, kept and told.

        Args:
            clock: when the round and this process' part of the run began (perf_counter), and seconds before that.
        """
        begin, started, before = clock
        new = self.judge.evaluate(state)
        new = replace(new, seconds=before + time.perf_counter() - started)
        if self._is_saved(new.round):
            self._save(new)
        tracker.round(
            round_record(
                self.config,
                new,
                played,
                epsilon=self.judge.epsilon(),
                seconds=time.perf_counter() - begin,
            )
        )
        return new

    def _is_saved(self, round: int) -> bool:
        """Whether the state before this round is worth a checkpoint: every k rounds, or once a second.

        What a crash loses is played again; under DP from the outbox, at no further spend.
        """
        every = self.config.engine.checkpoint_every
        if round == self.config.rounds:
            return True
        return time.monotonic() - self._saved >= 1 if every == 0 else round % every == 0

    def _save(self, state: State) -> None:
        if self.ledger is None:
            save_state(self.folder, state, self.identity)
        else:
            charges, head = self.ledger.charges(self.run_id), str(self.ledger.head())
            save_state(self.folder, replace(state, charges=charges, ledger=head), self.identity)
            self.ledger.clear_outbox(self.run_id, state.round)
        if isinstance(self.server.mechanism, StepRelease):
            self.server.mechanism.forget(state.round)
        self._saved = time.monotonic()

    def _finish(self, state: State, tracker: Tracker, stopped: str) -> Result:
        if stopped != "rounds":
            self._save(state)
        if not state.metrics:
            metrics, per_client = self.judge.scores(state)
            state = replace(state, metrics=metrics, client_metrics=per_client)
        found: dict[str, Any] = {} if stopped == "interrupted" else self.judge.gains(state, self.folder)
        if found:
            state = replace(state, metrics={**state.metrics, **headline(found)})
        self.model.write(state.handed_out, self.model.layout)
        self.model.save_adapter(self.folder / "adapter")
        view = None if self.ledger is None else self.ledger.run_view(self.run_id)
        statement = None if view is None else view.statement(self.config.privacy.delta)
        if self.config.tracking.report:
            draw_shards(self.assembly, self.folder)
        tracker.end(run_summary(state, stopped, statement, found))
        return Result(self.folder, dict(state.metrics), state.round, stopped, view)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within it torch uses `count` threads (0: as it is); sums depend on it in the last bit."""
    import torch

    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
