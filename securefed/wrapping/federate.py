"""`federate`: your training code, our federation. Any code, so client-level privacy only.

Unit: everything of one client; neighbours: one client blanked out (zero-out). By default the server clips every whole
update and adds the noise, so the guarantee holds against other clients and outsiders who see released models,
not against the server; with `noise` shared among the clients, inside a sum that hides them, also against it. Example-level privacy bounds each record inside training, and code that is not
ours may do anything with a record: no clip of what comes out bounds what one record did to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from securefed.algorithms.fedavg import FedAvg
from securefed.algorithms.plan import RoundPlan
from securefed.algorithms.server_optimizer import Moments
from securefed.assembly import cohort
from securefed.checkpoint import State, load_state, save_state
from securefed.config import Component, Config, PrivacyConfig, ServerConfig
from securefed.config.schema import Noise
from securefed.crypto.entropy import Entropy, Stream, SystemEntropy
from securefed.engine.exchange import opened
from securefed.errors import BudgetExceeded, CheckpointError, ConfigError, DataError, PrivacyError
from securefed.federation import Result
from securefed.grouping import fixed_groups
from securefed.mechanisms import plan_noise
from securefed.privacy.ledger import Ledger
from securefed.privacy.records import ShardKey
from securefed.privacy.shared_release import bounded
from securefed.privacy.step_release import StepRelease
from securefed.registry import make_aggregator, make_protection
from securefed.rounds import Rounds
from securefed.run_folder import made, new_folder, note_run
from securefed.training.client import ClientOutcome
from securefed.types import SERVER, Collected, Update, Vector
from securefed.wrapping.carrier import Carrier
from securefed.wrapping.federate_job import check_job, make_config, name_of

if TYPE_CHECKING:
    from securefed.privacy.events import Accountant

logger = logging.getLogger(__name__)

TrainFn = Callable[[Any, Any, int], None]
"""`train_fn(model, shard, round)`: trains the model in place on one client's shard."""

Evaluate = Callable[[Any], Mapping[str, float]]
"""Scores of the global model. On private data they are diagnostics that no epsilon covers."""


def federate(
    train_fn: TrainFn,
    shards: Sequence[Any],
    *,
    model: Any,
    rounds: int,
    unit: Literal["client", "none", "example"] = "client",
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float = 1e-5,
    clip: float = 1.0,
    adaptive_clip: bool = False,
    clip_quantile: float = 0.5,
    clip_learning_rate: float = 0.2,
    clip_count_std: float = 0.0,
    noise: Noise = "central",
    min_separation: int = 0,
    clients_per_round: int = 0,
    weights: Sequence[float] | None = None,
    protection: str | Component = "plain",
    aggregator: str | Component = "mean",
    server: ServerConfig | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    data_id: str | None = None,
    site_epsilon: float = 0.0,
    accountant: Accountant = "pld",
    ledger: Ledger | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    entropy: Entropy | None = None,
) -> Result:
    """Federates your training code: select, let it train, protect, aggregate, apply, evaluate, record.

    Args:
        train_fn: called as (model, shard, round) for each client of a cohort; trains the model in place and
            returns nothing. It gets the global weights every time and must keep nothing between clients.
        shards: one per client, of whatever kind train_fn takes.
        model: a torch module, or a dict or list of float NumPy arrays; it ends with the global weights.
        rounds: >= 1. clients_per_round: 0 = all; under DP each client joins with that chance (Poisson), but where
            clients share the noise: then so many, as who takes part is public.
        unit: "client" needs epsilon (noise is calibrated for all rounds) or noise_multiplier; "none" is
            without privacy, which the ledger notes: after it no epsilon speaks of these shards; "example" is
            refused, because arbitrary code cannot carry it.
        delta: below 1 / clients. clip: L2 bound on a client's whole update, > 0.
        adaptive_clip: `clip` is the first round's only; then it follows `clip_quantile` of the clients' norms at
            `clip_learning_rate`, by one noised bit a client. clip_count_std: of the noise on their count (0: by rule).
            The bit is paid for: the update's noise is raised, so that epsilon is the same.
        noise: who adds it. "central": the server, which sees updates. "skellam" or "discrete-gaussian": the clients,
            in integers, with protection="masking" (or "grouped"); "gaussian": the clients, with "ckks". Then it holds
            against the server too. "correlated": the server, over cohorts dealt out in turn, a client's rounds at least
            `min_separation` apart (0: as far as can be).
        weights: public weight of each client's update, > 0 (its number of records, say); equal by default, and
            under DP always.
        protection, aggregator: by name or as a Component with options.
        server: how the aggregate is applied (FedAvg by default).
        evaluate: scores of the global model, every `evaluate_every` rounds (0 = at the end).
        data_id: the federation's name in the ledger; a fingerprint over the shards by default.
        folder: result folder, new; `runs/federate-<time>` by default. resume: go on with the run in it.
        entropy: the system's; a seeded one is for tests only and voids the guarantee.

    Returns:
        Result: folder (model.safetensors, metrics.jsonl, privacy.json), metrics, rounds, stopped, ledger.

    Raises:
        PrivacyError, ConfigError: what cannot hold or run as asked, before anything is trained.
        CheckpointError: the folder exists, or cannot be resumed.
    """
    if unit == "example":
        raise PrivacyError(
            "example-level privacy needs every record's gradient clipped inside training, and train_fn may do anything with a record; "
            'use unit="client" here, or sf.make_private in a loop of your own, or sf.run for a federation'
        )
    if not callable(train_fn) or not (evaluate is None or callable(evaluate)):
        raise ConfigError(
            "train_fn and evaluate are functions: train_fn(model, shard, round), evaluate(model)"
        )
    if not (hasattr(shards, "__len__") and hasattr(shards, "__getitem__")):
        raise DataError(f"shards is a sequence, one shard for each client, found {type(shards).__name__}")
    config = make_config(
        len(shards),
        rounds=rounds,
        seed=seed,
        clients_per_round=clients_per_round,
        server=server or ServerConfig(),
        protection=Component(protection) if isinstance(protection, str) else protection,
        aggregator=Component(aggregator) if isinstance(aggregator, str) else aggregator,
        privacy=PrivacyConfig(
            unit=unit,
            noise=noise,
            min_separation=min_separation,
            epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            delta=delta,
            max_grad_norm=clip,
            clip="adaptive" if adaptive_clip else "fixed",
            clip_quantile=clip_quantile,
            clip_learning_rate=clip_learning_rate,
            clip_count_std=clip_count_std,
            site_epsilon=site_epsilon,
            accountant=accountant,
        ),
    )
    check_job(config, len(shards), weights)
    name = name_of(shards) if data_id is None else data_id
    play = _Play(config, train_fn, shards, model, name, weights, ledger, entropy or SystemEntropy())
    path = (
        Path(folder)
        if resume and folder is not None
        else new_folder(config, Path(folder) if folder else None)
    )
    if resume and folder is None:
        raise CheckpointError("resume=True needs the folder of the run")
    return play.play(path, resume, evaluate, evaluate_every)


class _Play:
    """One run of `federate`."""

    def __init__(
        self,
        config: Config,
        train_fn: TrainFn,
        shards: Sequence[Any],
        model: Any,
        data_id: str,
        weights: Sequence[float] | None,
        ledger: Ledger | None,
        entropy: Entropy,
    ) -> None:
        self.weights = weights
        self.config, self.train_fn, self.shards, self.entropy = config, train_fn, shards, entropy
        self.carrier, self.data_id = Carrier(model), data_id
        size = self.carrier.layout.size
        self.noise = plan_noise(config, lambda: (size,) * config.rounds, [1] * len(shards))
        self.site = ledger or Ledger.site()
        self.ledger = self.site if config.private else None
        self.algorithm = FedAvg()
        self.refused: Counter[str] = Counter()

    def play(self, folder: Path, resume: bool, evaluate: Evaluate | None, every: int) -> Result:
        run, state = self._begin(folder, resume)
        server = self._server(run)
        with nullcontext() if resume else made(folder, {}):
            self._admit(server)
            if not resume:
                p = self.config.privacy
                note_run(folder, run, {"unit": p.unit, "delta": p.delta, "accountant": p.accountant})
        server.protection = fixed_groups(server.protection, folder)
        stopped = "rounds"
        while state.round < self.config.rounds:
            try:
                state = self._round(server, folder, state, evaluate, every)
            except BudgetExceeded as end:
                logger.warning("the federation ends here: %s", end)
                stopped = "budget"
                break
        return self._finish(run, folder, state, stopped, evaluate)

    # ------------------------------------------------------------------------------------- beginning

    def _identity(self, run: str) -> dict[str, str]:
        job = hashlib.sha256(
            json.dumps(asdict(self.config), sort_keys=True, default=str).encode()
        ).hexdigest()
        return {"run": run, "job": job, "layout": self.carrier.layout.digest, "data": self.data_id}

    def _begin(self, folder: Path, resume: bool) -> tuple[str, State]:
        vector = self.carrier.read()
        fresh = State(0, vector, Moments.zeros(vector.size))
        run = secrets.token_hex(8)
        if resume:
            try:
                run = str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["run"])
            except (OSError, ValueError, KeyError, TypeError):
                raise CheckpointError(
                    f"{folder} is not the folder of a federation; start without resume"
                ) from None
            found = load_state(folder, self._identity(run))
            if self.ledger is not None:
                self.ledger.require(
                    run, 0 if found is None else found.charges, None if found is None else found.seen
                )
            fresh = found or fresh
            if self.noise.clip is not None:
                self.noise.clip.unpack(fresh.rule)
        key = ShardKey(hashlib.sha256(self.data_id.encode()).hexdigest(), len(self.shards))
        if self.ledger is not None:
            self.ledger.register(run, {SERVER: key}, self.data_id, "client")
        else:
            self.site.release_unprotected(run, {0: key}, self.data_id)
        return run, fresh

    def _server(self, run: str) -> Rounds:
        protection, rule = make_protection(self.config.protection), make_aggregator(self.config.aggregator)
        once = opened(protection, run, range(len(self.shards)), self.entropy)  # keys and groups last a run
        mechanism = self.noise.mechanism(self.config, len(self.shards), self.ledger, run)
        carried = self.noise.carried(once, self.entropy)
        return Rounds(run, carried, rule, mechanism, self.entropy, clip=self.noise.clip, ledger=self.ledger)

    def _admit(self, server: Rounds) -> None:
        """Raises BudgetExceeded where not even one round fits, before a folder is made."""
        if server.mechanism is not None and not isinstance(server.mechanism, StepRelease):
            server.mechanism.admit()

    # -------------------------------------------------------------------------------------- a round

    def _round(
        self, server: Rounds, folder: Path, state: State, evaluate: Evaluate | None, every: int
    ) -> State:
        began = time.perf_counter()
        layout, clip = self.carrier.layout, self._clip
        chosen = cohort(self.config, len(self.shards), state.round, self.entropy)
        vector, collected, _ = server.play(
            state.round,
            layout,
            state.vector,
            chosen,
            lambda: self._train(chosen, state),
            weights=(1.0,) * len(chosen) if self.config.private else None,
        )
        plan = RoundPlan("full", layout.names, layout.names, state.round / self.config.rounds)
        part_of = dict.fromkeys(layout.names, "full")
        moved, moments = self.algorithm.apply(
            self.config.server, layout, part_of, plan, state.vector, vector, state.moments
        )
        up = sum(collected.bytes_up.values()) / 2**20
        charges = 0 if self.ledger is None else self.ledger.charges(server.run)
        head = "" if self.ledger is None else str(self.ledger.head())
        new = replace(
            state,
            round=state.round + 1,
            vector=moved,
            moments=moments,
            mib_up=state.mib_up + up,
            seconds=state.seconds + time.perf_counter() - began,
            charges=charges,
            ledger=head,
            rule={} if self.noise.clip is None else self.noise.clip.pack(),
        )
        if evaluate is not None and every > 0 and new.round % every == 0:
            new = replace(new, metrics=self._score(evaluate, moved))
        save_state(folder, new, self._identity(server.run))
        if self.ledger is not None:
            self.ledger.clear_outbox(server.run, new.round)
        self._record(folder, new, collected, server.run, clip)
        return new

    def _train(self, chosen: Sequence[int], state: State) -> list[ClientOutcome]:
        outcomes = []
        for client in chosen:
            began = time.perf_counter()
            lent = self.carrier.lend(state.vector)
            self.train_fn(lent, self.shards[client], state.round)
            update = self._update(client, state.round, self.carrier.take(lent) - state.vector)
            outcomes.append(ClientOutcome(client, update, seconds=time.perf_counter() - began))
        return outcomes

    def _update(self, client: int, round: int, vector: Vector) -> Update | None:
        """The client's update, clipped at client level; None where it is not finite, as if it had dropped out.

        Where clients share the noise who answers is seen, so it is zero then, with its noise.
        """
        if not bool(np.isfinite(vector).all()):
            self.refused["not finite"] += 1
            logger.warning("round %d: an update is not finite and is left out", round)
            if not self.config.distributed:
                return None
            vector = np.zeros_like(vector)
        guarantee, bit = self.noise.guarantee, None
        if guarantee is not None:
            moves, shares = self.noise.clip is not None, guarantee.shares

            def stream() -> Stream:
                return self.entropy.stream("noise share", client, round)

            vector, bit = bounded(vector, self._clip, moves, shares, stream)
        weight = 1.0 if self.weights is None else float(self.weights[client])
        return Update(client, round, vector, weight, bit=bit)

    @property
    def _clip(self) -> float:
        """Of whole updates, in the round that is being played."""
        return self.config.privacy.max_grad_norm if self.noise.clip is None else self.noise.clip.value

    def _score(self, evaluate: Evaluate, vector: Vector) -> dict[str, float]:
        self.carrier.write(vector)
        if hasattr(self.carrier.model, "eval"):
            self.carrier.model.eval()
        return {k: float(v) for k, v in evaluate(self.carrier.model).items()}

    def _record(self, folder: Path, state: State, collected: Collected, run: str, clip: float) -> None:
        line = {
            **({} if self.noise.clip is None else {"clip": clip}),
            "round": state.round - 1,
            "metrics": dict(state.metrics),
            "survivors": len(collected.survivors),
            "refused": len(collected.refused),
            "epsilon": self._epsilon(run),
            "mib_up": sum(collected.bytes_up.values()) / 2**20,
            "seconds": state.seconds,
        }
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        logger.info("round %d of %d: %s", state.round, self.config.rounds, line["metrics"])

    @property
    def _accountant(self) -> Accountant | None:
        """The one asked for; integer noise composes by RDP only."""
        return None if self.config.discrete else self.config.privacy.accountant

    def _epsilon(self, run: str) -> float | str | None:
        if self.ledger is None:
            return None
        delta, accountant = self.config.privacy.delta, self._accountant
        spent = self.ledger.epsilon(delta, unit="client", accountant=accountant, run=run)
        return "infinity" if math.isinf(spent) else spent

    # ------------------------------------------------------------------------------------------ end

    def _finish(
        self, run: str, folder: Path, state: State, stopped: str, evaluate: Evaluate | None
    ) -> Result:
        from safetensors.numpy import save_file

        metrics = dict(state.metrics)
        if evaluate is not None and not metrics:
            metrics = self._score(evaluate, state.vector)
        self.carrier.write(state.vector)
        tensors = self.carrier.layout.unflatten(state.vector)
        save_file({n: t.numpy() for n, t in tensors.items()}, folder / "model.safetensors")
        view = None if self.ledger is None else self.ledger.run_view(run)
        if view is not None:
            text = view.statement(self.config.privacy.delta, self._accountant).to_json()
            (folder / "privacy.json").write_text(text, encoding="utf-8")
        return Result(folder, metrics, state.round, stopped, view)
