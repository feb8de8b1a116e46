"""A round's cohort: what each client is asked, how its answer weighs, and the way of the answers to the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from securefed.algorithms.clock import Clock
from securefed.algorithms.fedbuff import Buffer, FedBuff
from securefed.algorithms.hetlora import HetLoRA
from securefed.algorithms.plan import RoundPlan
from securefed.algorithms.pruning import KEY, pruned_rank, tail_of
from securefed.algorithms.ranks import Joined, Ranked, held, rank_of
from securefed.checkpoint import State
from securefed.compression.sending import keep, residual_of
from securefed.errors import BudgetExceeded
from securefed.layout import Layout
from securefed.parts import Parts
from securefed.training.client import ClientJob, ClientOutcome
from securefed.types import Collected, Vector

if TYPE_CHECKING:
    from securefed.factors import AdapterSpace


class Cohorts:
    """Asks cohort after cohort of one run."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.config, self.model = parts, parts.config, parts.model
        self.algorithm, self.clients = parts.algorithm, len(parts.assembly.shards)

    def train_and_collect(
        self, state: State, plan: RoundPlan, chosen: tuple[int, ...]
    ) -> tuple[Vector, Collected, list[ClientOutcome]]:
        """The aggregate over the layout of `plan.share`, what the server held, and the clients' answers.

        Raises:
            BudgetExceeded: every client (or the server's own mechanism) refused to spend more.
        """
        late = self._refuse_late(state, plan)
        if not plan.share:
            return self._train_at_home(state, plan, chosen)
        shared = self.shared(plan)

        def train() -> list[ClientOutcome]:
            outcomes = self.parts.engine.train([self._job(state, plan, client) for client in chosen])
            return self.parts.liars.lie(outcomes, state.round, shared.digest)

        root = self.parts.root
        found = self.parts.server.play(
            state.round,
            shared,
            state.vector,
            chosen,
            train,
            weights=self._public_weights(chosen),
            space=self._adapter_space(state, shared),
            root=None if root is None else root.update(state.round, state.vector, plan, shared),
        )
        self.parts.liars.remember(found[0], shared.digest)
        vector, collected, outcomes = found
        return vector, replace(collected, refused={**late, **collected.refused}), outcomes

    def _train_at_home(
        self, state: State, plan: RoundPlan, chosen: tuple[int, ...]
    ) -> tuple[Vector, Collected, list[ClientOutcome]]:
        """A round in which nothing leaves anybody: no exchange, and no release to charge at client level."""
        outcomes = self.parts.engine.train([self._job(state, plan, client) for client in chosen])
        refusals = {o.client: o.refusal for o in outcomes if o.refusal is not None}
        if refusals and len(refusals) == len(chosen):
            raise BudgetExceeded(next(iter(refusals.values())))
        trained = tuple(k for k in chosen if k not in refusals)
        collected = Collected(survivors=trained, total=np.zeros(0), weight=0.0, refused=refusals)
        return np.zeros(0, np.float32), collected, outcomes

    # ------------------------------------------------------------------------------ clients at their own pace

    def _buffer(self, round: int) -> Buffer | None:
        """The buffer that this round is, where the algorithm has buffers."""
        if not isinstance(self.algorithm, FedBuff):
            return None
        return self.algorithm.buffer(self.config, self.clients, round)

    def staleness(self, round: int) -> dict[int, int]:
        """Client of the cohort -> versions by which the model has moved on since it was handed its own."""
        buffer = self._buffer(round)
        return {} if buffer is None else {a.client: round - a.version for a in buffer.taken}

    def _refuse_late(self, state: State, plan: RoundPlan) -> dict[int, str]:
        """Why the updates that came too late are refused; their turns are charged, for they were trained."""
        buffer = self._buffer(state.round)
        if buffer is None or not isinstance(self.algorithm, FedBuff):
            return {}
        for client, turns in Counter(a.client for a in buffer.late).items():
            self.parts.runner.charge(self._job(state, plan, client), turns)
        return {
            a.client: f"{state.round - a.version} versions stale, more than max_staleness={self.algorithm.max_staleness}"
            for a in buffer.late
        }

    def versions(self, state: State) -> Mapping[int, Vector]:
        """The models that clients will still have trained from, after this state's round."""
        if not isinstance(self.algorithm, FedBuff):
            return {}
        needed = self.algorithm.needed_later(self.config, self.clients, state.round)
        return {v: m for v, m in {**state.versions, state.round: state.vector}.items() if v in needed}

    def sim_seconds(self, state: State, chosen: tuple[int, ...]) -> float:
        """The simulated clock at the end of this state's round."""
        if (buffer := self._buffer(state.round)) is not None:
            return buffer.seconds
        if self.config.clock.seconds == 0:
            return 0.0
        clock = Clock(self.config.clock, self.config.seed, self.clients)
        return state.sim_seconds + clock.round_seconds(chosen, state.round)

    # --------------------------------------------------------------------------------------- one client's job

    def _adapter_space(self, state: State, shared: Layout) -> AdapterSpace | None:
        """How a rule may measure this round's updates in product space; fedsa's clients share no B to do so."""
        m = self.config.model
        if m.adapter not in ("lora", "rolora", "ffa") or self.parts.rule.needs != "updates":
            return None
        from securefed.factors import AdapterSpace

        base = {**self.model.layout.unflatten(state.vector), **self.model.frozen_adapter}
        return AdapterSpace.of(shared, base, m.alpha / (m.rank**0.5 if m.rslora else m.rank))

    def packed_clip(self) -> dict[str, Vector]:
        """The clip of the next round as a named vector, none where it does not move."""
        return {} if self.parts.clip is None else self.parts.clip.pack()

    def _job(self, state: State, plan: RoundPlan, client: int) -> ClientJob:
        behind = self.staleness(state.round).get(client, 0)
        start = state.versions[state.round - behind] if behind else state.vector
        if not plan.share:  # the federation is over: from the model that it hands out
            start = state.handed_out
        own = None
        if client in state.local:
            own = self.model.layout.scatter(state.local[client], self.local_layout(), start)
            start = start if self.algorithm.beside else own
        holds, tail, rank = None, None, self._rank(state, client)
        if self.config.model.ranks or self.prune < 1:
            holds = held(self.model.layout, self.model.part_of, rank)
            start = (start * holds).astype(start.dtype)
            tail = self._tail(rank) if self.prune < 1 else None
        residual = None
        if client in state.residual:
            shared = self.shared(plan)
            residual = residual_of(state.residual, client, self.model.layout, shared)
        return ClientJob(
            client,
            state.round,
            plan.train,
            plan.share,
            start,
            self._weight(client),
            clip=None if self.parts.clip is None else self.parts.clip.value,
            keep=self.local_layout().names if self.algorithm.keeps(plan) else (),
            own=own if self.algorithm.beside else None,
            scale=self.algorithm.weight(behind) if isinstance(self.algorithm, FedBuff) else 1.0,
            residual=residual,
            memory=self.parts.server.memory,
            holds=holds,
            tail=tail,
        )

    @property
    def prune(self) -> float:
        """The part of its ranks that a client keeps when it prunes itself; 1 where ranks stay."""
        return self.algorithm.prune if isinstance(self.algorithm, HetLoRA) else 1.0

    def _rank(self, state: State, client: int) -> int:
        return int(state.rule[KEY][client]) if KEY in state.rule else rank_of(self.config.model, client)

    def _tail(self, rank: int) -> Vector:
        return tail_of(self.model.layout, self.model.part_of, rank, self.prune)

    def packed_ranks(
        self, state: State, plan: RoundPlan, outcomes: Sequence[ClientOutcome]
    ) -> dict[str, Vector]:
        """The clients' ranks after a round as a named vector, none where ranks stay. Each client decides by its own update."""
        if self.prune == 1:
            return {}
        layout, shared = self.model.layout, self.shared(plan)
        ranks = [self._rank(state, k) for k in range(self.clients)]
        for k, update in ((o.client, o.update) for o in outcomes):
            if update is not None:
                before = state.vector * held(layout, self.model.part_of, ranks[k])
                after = layout.scatter(layout.gather(before, shared) + update.vector, shared, before)
                ranks[k] = pruned_rank(ranks[k], self.prune, before, after, self._tail(ranks[k]), layout)
        return {KEY: np.array(ranks, np.float32)}

    def local_layout(self) -> Layout:
        """Of what each client keeps to itself."""
        return self.model.layout.part(tuple(self.algorithm.local_names(self.config, self.model.part_of)))

    def _weight(self, client: int) -> float:
        """n_k without DP; 1 under DP, unless the job declares the sizes public (`weights = "size"`)."""
        by_size = self.config.weights == "size" or (self.config.weights == "auto" and not self.config.private)
        return float(len(self.parts.assembly.shards[client].train)) if by_size else 1.0

    def _public_weights(self, chosen: tuple[int, ...]) -> tuple[float, ...] | None:
        """Weights are constants known to all but where they are the clients' record counts without DP."""
        secret = not self.config.private and self.config.weights != "equal"
        return None if secret else tuple(self._weight(client) for client in chosen)

    def joined(self, state: State, plan: RoundPlan, collected: Collected) -> Joined:
        """What an algorithm that joins unlike ranks may read of a round that was played.

        Under client-level noise who took part is not told, so it counts all clients, a public constant.
        """
        m = self.config.model
        central = self.config.privacy.unit == "client"
        who = range(len(self.parts.assembly.shards)) if central else collected.survivors
        weights = {} if central else dict(collected.weights or {})
        return Joined(
            layout=self.model.layout,
            part_of=self.model.part_of,
            plan=plan,
            before=state.vector,
            initial=self.parts.initial,
            ranks={k: self._rank(state, k) for k in who},
            weights={k: weights.get(k, self._weight(k)) for k in who},
            updates=collected.updates or {},
            scale=m.alpha / (m.rank**0.5 if m.rslora else m.rank),
        )

    def shared(self, plan: RoundPlan) -> Layout:
        """The layout of what a round sends."""
        return self.model.layout.part(plan.share)

    def residuals(
        self, state: State, plan: RoundPlan, outcomes: Sequence[ClientOutcome]
    ) -> dict[int, Vector]:
        """What compression has left out of each client's updates, after this round."""
        found = {o.client: o.residual for o in outcomes if o.residual is not None}
        if not found:
            return dict(state.residual)
        return keep(state.residual, found, self.model.layout, self.shared(plan))

    def bytes_down(self, state: State, plan: RoundPlan, chosen: tuple[int, ...], collected: Collected) -> int:
        """The global model goes to each client of the cohort as float32, and what the protection sends.

        Where a compression is built from the last sum, that too. In a round that shares nothing only those need it that
        have not begun to tune their own.
        """
        private = 0 if self.algorithm.beside else self.local_layout().size
        if isinstance(self.algorithm, Ranked) and not self.algorithm.merges:
            # base weights that stay what they are
            private += self.model.layout.select(lambda n: self.model.part_of[n] == "merged").size
        asking = [k for k in chosen if plan.share or k not in state.local]
        each = 4 * (self.model.layout.size - private)
        if self.parts.sending is not None:
            shared = self.shared(plan)
            each += self.parts.sending.down_bytes(shared, state.round, state.memory)
        return each * len(asking) + sum(collected.bytes_down.values())

    def weighing(self, chosen: tuple[int, ...]) -> tuple[dict[int, float], tuple[float, ...] | None]:
        """Each client's weight, and all of them where they are public, for a round that is not one of updates."""
        return {client: self._weight(client) for client in chosen}, self._public_weights(chosen)
