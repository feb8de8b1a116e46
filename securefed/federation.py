"""The round loop: select -> train -> protect -> aggregate -> apply -> evaluate -> record.

`run` starts a job in a new folder, `resume` goes on with a stopped one. Both play the same `Federation`.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from securefed.aggregation import pack_state, unpack_state
from securefed.algorithms.averaging import averaged
from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import RoundPlan, local_names
from securefed.algorithms.server_optimizer import Moments
from securefed.assembly import (
    Assembly,
    RunnerBuilder,
    assemble,
    cohort,
    distributed_design,
    make_guarantee,
    make_runner,
    register,
    register_unprotected,
)
from securefed.checkpoint import State, load_state, save_state
from securefed.chronicle import (
    draw_shards,
    is_evaluated,
    round_record,
    run_info,
    run_summary,
    stored_baselines,
)
from securefed.config import Config, load_config, to_toml
from securefed.crypto.entropy import Entropy, SystemEntropy
from securefed.engine.exchange import opened
from securefed.engine.inprocess import Engine, InProcess, Pool
from securefed.engine.liars import Liars, describe
from securefed.errors import BudgetExceeded, CheckpointError
from securefed.evaluation import Evaluator
from securefed.grouping import fixed_groups
from securefed.layout import Layout
from securefed.privacy.distributed_release import DistributedRelease, RunWords
from securefed.privacy.ledger import Ledger
from securefed.privacy.server_mechanism import ServerMechanism, server_mechanism
from securefed.protect.masking.protection import OpenMasking
from securefed.protect.plain import Plain
from securefed.registry import ALGORITHMS, make, make_aggregator, make_protection
from securefed.root import Root
from securefed.rounds import Rounds
from securefed.tracking.tracker import Tracker
from securefed.training.client import ClientJob, ClientOutcome
from securefed.types import SERVER, Collected, Vector

if TYPE_CHECKING:
    from securefed.factors import AdapterSpace
    from securefed.privacy.view import RunView

logger = logging.getLogger(__name__)
MIB = 2**20
DIVERGED = 20.0
"""Nats per record (per token): no model that predicts anything is this sure of the wrong answer."""


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
) -> Result:
    """Plays a job from its first round and leaves a result folder.

    Args:
        config, overrides: see `load_config`.
        folder: result folder, must not exist; by default `<output>/<name>-<time>`.
        entropy: the system's by default; a seeded one is for tests only and voids every guarantee.
        trackers: told of every round, beside the result folder's own.
        stop_flag: when set, the run ends after the round being played and can be resumed.

    Raises:
        SecureFedError: whatever cannot run as asked, in one line; nothing was spent unless the ledger says so.
    """
    job = load_config(config, overrides)
    path = new_folder(job, folder)
    logger.info("reading data and model")
    run_id = secrets.token_hex(8)
    with _opened(assemble(job), path, run_id, entropy) as federation:
        federation.check_budget()
        path.mkdir(parents=True)
        (path / "config.toml").write_text(to_toml(job), encoding="utf-8")
        facts = {"run": run_id, "version": 1, "attack": describe(job, len(federation.assembly.shards))}
        # Last, when the ledger knows the run: a folder with a run.json is one that can be resumed.
        (path / "run.json").write_text(json.dumps(facts), encoding="utf-8")
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
    run_id = _run_id(path)
    assembly = assemble(load_config(path / "config.toml"))
    state = load_state(path, {"run": run_id, **assembly.identity})
    if assembly.config.private:
        with Ledger.site() as ledger:
            ledger.require(run_id, 0 if state is None else state.charges)
    with _opened(assembly, path, run_id, entropy) as federation:
        return federation.play(state, trackers, stop_flag)


def _run_id(folder: Path) -> str:
    try:
        text = (folder / "run.json").read_text(encoding="utf-8")
    except OSError:
        raise CheckpointError(
            f"{folder} is not the folder of a run; give the folder that `securefed run` printed"
        ) from None
    try:
        return str(json.loads(text)["run"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / 'run.json'} is damaged; start a new run") from None


def new_folder(config: Config, folder: Path | None) -> Path:
    """The result folder's path, checked to be free.

    Raises:
        CheckpointError: it exists; a run never writes over another.
    """
    if folder is None:
        return _unused(Path(config.output) / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    path = Path(folder)
    if path.exists():
        raise CheckpointError(
            f"{path} exists; choose another --folder, or go on with it: securefed resume {path}"
        )
    return path


def _unused(path: Path) -> Path:
    """The path, or with a number behind it where a run of the same second has taken it."""
    names = itertools.chain([path.name], (f"{path.name}-{k}" for k in itertools.count(2)))
    return next(found for name in names if not (found := path.with_name(name)).exists())


def _first_state(assembly: Assembly) -> State:
    vector = assembly.model.read(assembly.model.layout)
    return State(0, vector, Moments.zeros(vector.size))


@contextmanager
def _opened(assembly: Assembly, folder: Path, run_id: str, entropy: Entropy | None) -> Iterator[Federation]:
    with torch_threads(assembly.config.engine.threads):
        federation = Federation(assembly, folder, run_id, entropy or SystemEntropy())
        try:
            yield federation
        finally:
            federation.close()


class Federation:
    """One run: the parts that do not change, and the methods that play a round on a `State`."""

    def __init__(self, assembly: Assembly, folder: Path, run_id: str, entropy: Entropy) -> None:
        config = assembly.config
        self.config, self.assembly, self.folder, self.run_id = config, assembly, folder, run_id
        self.entropy, self.model = entropy, assembly.model
        self.algorithm: FedAvg = make("algorithm", config.algorithm, ALGORITHMS)
        self.rule = make_aggregator(config.aggregator)
        protection = make_protection(config.protection)
        if isinstance(protection, Plain) and self.rule.needs == "sum" and config.privacy.unit != "client":
            protection = replace(protection, keep_updates=False)  # O(d) memory; nobody needs the rows
        self.protection = opened(protection, run_id, range(len(assembly.shards)), entropy)
        self.design = distributed_design(config, len(assembly.shards), self.model)
        self.guarantee = make_guarantee(config, len(assembly.shards), self.design)
        self.ledger = Ledger.site() if config.private else None
        if self.ledger is not None:
            register(self.ledger, run_id, assembly)
        else:
            with Ledger.site() as ledger:
                register_unprotected(ledger, run_id, assembly)
        self.runner = make_runner(assembly, run_id, entropy, self.guarantee, self.ledger)
        self.evaluator = Evaluator(assembly, self.runner)
        self.mechanism = self._make_mechanism()
        self.engine: Engine = self._make_engine()
        self.identity = {"run": run_id, **assembly.identity}
        self.server = Rounds(run_id, self.protection, self.rule, self.mechanism, entropy, config.seed)
        self._saved = -math.inf
        self.liars = Liars.of(config, len(assembly.shards))
        held = assembly.root
        self.root = None if held is None else Root(config, self.model, held, len(assembly.shards))

    def _make_mechanism(self) -> ServerMechanism | DistributedRelease | None:
        if self.config.privacy.unit != "client":
            return None
        assert self.ledger is not None
        assert self.guarantee is not None
        sigma, budget = self.guarantee.noise_multiplier, self.guarantee.budget
        if self.design is not None:
            mechanisms = self.design.mechanisms(sigma)
            assert isinstance(self.protection, OpenMasking)
            self.protection = self.protection.carrying(RunWords(mechanisms, self.entropy))
            return DistributedRelease(self.ledger, self.run_id, mechanisms, self.design.sizes, budget)
        return server_mechanism(
            self.config, sigma, budget, self.ledger, self.run_id, len(self.assembly.shards)
        )

    def _make_engine(self) -> Engine:
        workers = self.config.engine.workers
        if workers == 0:
            return InProcess(self.runner)
        own = None if isinstance(self.entropy, SystemEntropy) else self.entropy
        build = RunnerBuilder(self.config, self.run_id, self.guarantee, own)
        return Pool(build, workers, self.config.engine.threads or 1)

    def close(self) -> None:
        """Ends worker processes and the ledger's connection."""
        self.engine.close()
        if self.ledger is not None:
            self.ledger.close()

    # ------------------------------------------------------------------------------------ the whole run

    def check_budget(self) -> None:
        """Raises where the budget does not allow even the first round.

        Raises:
            BudgetExceeded: no client of the first cohort may train, or the server may not release.
        """
        budget = None if self.guarantee is None else self.guarantee.budget
        if self.guarantee is None or self.ledger is None or budget is None:
            return
        if self.mechanism is not None:
            self.ledger.admit(run=self.run_id, client=SERVER, event=self.mechanism.event, budget=budget)
            return
        event = self.runner.event()
        refused: BudgetExceeded | None = None
        for client in cohort(self.config, len(self.assembly.shards), 0, self.entropy):
            try:
                self.ledger.admit(run=self.run_id, client=client, event=event, budget=budget)
            except BudgetExceeded as error:
                refused = refused or error
            else:
                return
        if refused is not None:
            raise refused

    def play(
        self, resumed: State | None, trackers: Sequence[Tracker] = (), stop_flag: StopFlag | None = None
    ) -> Result:
        """All rounds from the given state (or the first), then the adapter, the statement and the report."""
        from securefed.tracking.group import TrackerGroup

        self.server.protection = fixed_groups(self.server.protection, self.folder)
        with TrackerGroup.of(self.folder, self.config.tracking, trackers) as group:
            return self._play(resumed, group, stop_flag)

    def _play(self, resumed: State | None, tracker: Tracker, stop_flag: StopFlag | None) -> Result:
        started = time.perf_counter()
        state = resumed or _first_state(self.assembly)
        self.server.rule_state = unpack_state(self.liars.unpack(state.rule))
        before = state.seconds
        resumed_at = None if resumed is None else state.round
        facts = run_info(
            self.assembly, self.folder, self.run_id, self.guarantee, self._baselines(), resumed_at
        )
        tracker.start(facts)
        stopped = "rounds"
        while state.round < self.config.rounds:
            try:
                state = self._play_round(state, tracker, before, started)
            except BudgetExceeded:
                stopped = "budget"
                break
            if self._converged(state):
                stopped = "converged"
                break
            if stop_flag is not None and stop_flag.is_set() and state.round < self.config.rounds:
                stopped = "interrupted"
                break
        return self._finish(replace(state, seconds=before + time.perf_counter() - started), tracker, stopped)

    def _play_round(self, state: State, tracker: Tracker, before: float, started: float) -> State:
        begin = time.perf_counter()
        plan = self.algorithm.plan(self.config, self.model.part_of, state.round)
        chosen = cohort(self.config, len(self.assembly.shards), state.round, self.entropy)
        aggregate_, collected, outcomes = self._train_and_collect(state, plan, chosen)
        vector, moments = self.algorithm.apply(
            self.config.server,
            self.model.layout,
            self.model.part_of,
            plan,
            state.vector,
            aggregate_,
            state.moments,
        )
        local = dict(state.local) | {o.client: o.local for o in outcomes if o.local is not None}
        up, down = sum(collected.bytes_up.values()) / MIB, self._bytes_down(chosen, collected) / MIB
        new = replace(
            state,
            round=state.round + 1,
            vector=vector,
            moments=moments,
            average=averaged(state.average, vector, plan, self.config.server.average),
            local=local,
            rule={**pack_state(self.server.rule_state), **self.liars.pack()},
            mib_up=state.mib_up + up,
            mib_down=state.mib_down + down,
        )
        new = self._evaluate(new)
        new = replace(new, seconds=before + time.perf_counter() - started)
        if self._is_saved(new.round):
            self._save(new)
        tracker.round(
            round_record(
                self.config,
                new,
                plan,
                chosen,
                collected,
                outcomes,
                epsilon=self._epsilon(),
                mib=(up, down),
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
        charges = 0 if self.ledger is None else self.ledger.charges(self.run_id)
        save_state(self.folder, replace(state, charges=charges), self.identity)
        if self.ledger is not None:
            self.ledger.clear_outbox(self.run_id, state.round)
        self._saved = time.monotonic()

    # ----------------------------------------------------------------------------------------- one round

    def _train_and_collect(
        self, state: State, plan: RoundPlan, chosen: tuple[int, ...]
    ) -> tuple[Vector, Collected, list[ClientOutcome]]:
        """The aggregate over the layout of `plan.share`, what the server held, and the clients' answers.

        Raises:
            BudgetExceeded: every client (or the server's own mechanism) refused to spend more.
        """
        shared = self.model.layout.select(set(plan.share).__contains__)

        def train() -> list[ClientOutcome]:
            outcomes = self.engine.train([self._job(state, plan, client) for client in chosen])
            return self.liars.lie(outcomes, state.round, shared.digest)

        found = self.server.play(
            state.round,
            shared,
            state.vector,
            chosen,
            train,
            weights=self._public_weights(chosen),
            space=self._adapter_space(state, shared),
            root=None if self.root is None else self.root.update(state.round, state.vector, plan, shared),
        )
        self.liars.remember(found[0], shared.digest)
        return found

    def _adapter_space(self, state: State, shared: Layout) -> AdapterSpace | None:
        """How a rule may measure this round's updates in product space; fedsa's clients share no B to do so."""
        m = self.config.model
        if m.adapter not in ("lora", "rolora", "ffa") or self.rule.needs != "updates":
            return None
        from securefed.factors import AdapterSpace

        base = {**self.model.layout.unflatten(state.vector), **self.model.frozen_adapter}
        return AdapterSpace.of(shared, base, m.alpha / (m.rank**0.5 if m.rslora else m.rank))

    def _job(self, state: State, plan: RoundPlan, client: int) -> ClientJob:
        start = state.vector
        if client in state.local:
            kept = self._local_layout()
            start = self.model.layout.scatter(state.local[client], kept, start)
        return ClientJob(client, state.round, plan.train, plan.share, start, self._weight(client))

    def _local_layout(self) -> Layout:
        names = set(local_names(self.config.model.adapter, self.model.part_of))
        return self.model.layout.select(names.__contains__)

    def _weight(self, client: int) -> float:
        """n_k without DP; 1 under DP, unless the job declares the sizes public (`weights = "size"`)."""
        by_size = self.config.weights == "size" or (self.config.weights == "auto" and not self.config.private)
        return float(len(self.assembly.shards[client].train)) if by_size else 1.0

    def _public_weights(self, chosen: tuple[int, ...]) -> tuple[float, ...] | None:
        """Weights are constants known to all but where they are the clients' record counts without DP."""
        secret = not self.config.private and self.config.weights != "equal"
        return None if secret else tuple(self._weight(client) for client in chosen)

    def _bytes_down(self, chosen: tuple[int, ...], collected: Collected) -> int:
        """The global model goes to each client of the cohort as float32, and what the protection sends."""
        sent = self.model.layout.size - self._local_layout().size
        return 4 * sent * len(chosen) + sum(collected.bytes_down.values())

    # -------------------------------------------------------------------------------- judging and telling

    def _evaluate(self, state: State) -> State:
        if not is_evaluated(self.config, state.round):
            return state
        metrics, per_client = self.evaluator.evaluate(state.handed_out, state.local, self._local_layout())
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

    def _converged(self, state: State) -> bool:
        return 0 < self.config.stop.patience <= state.stale

    def _epsilon(self) -> tuple[float | None, float | None]:
        """Spent so far by this run, and by every run at this site on this data set."""
        if self.ledger is None:
            return None, None
        p = self.config.privacy
        unit: Literal["client", "example"] = "client" if p.unit == "client" else "example"
        accountant = None if self.config.distributed else p.accountant  # integer noise composes by RDP only
        mine = self.ledger.epsilon(p.delta, unit=unit, accountant=accountant, run=self.run_id)
        return mine, self.ledger.site_epsilon(p.delta, self.assembly.dataset.account, unit)

    def _baselines(self) -> dict[str, dict[str, float]]:
        """What a reader compares with; computed once a run and read back on resumption."""
        if not self.config.evaluate.baselines:
            return {}
        stored = stored_baselines(self.folder)
        if stored is None:
            logger.info("computing what to compare with, on the frozen model (once a run)")
            return self.evaluator.baselines()
        return stored

    def _finish(self, state: State, tracker: Tracker, stopped: str) -> Result:
        if stopped != "rounds":
            self._save(state)
        if not state.metrics:
            metrics, per_client = self.evaluator.evaluate(state.handed_out, state.local, self._local_layout())
            state = replace(state, metrics=metrics, client_metrics=per_client)
        self.model.write(state.handed_out, self.model.layout)
        self.model.save_adapter(self.folder / "adapter")
        view = None if self.ledger is None else self.ledger.run_view(self.run_id)
        statement = None if view is None else view.statement(self.config.privacy.delta)
        draw_shards(self.assembly, self.folder)
        tracker.end(run_summary(state, stopped, statement))
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
