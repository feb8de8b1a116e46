"""A round's cohort: what each client is asked, how its answer weighs, and the way of the answers to the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from securefed.algorithms.plan import RoundPlan, local_names
from securefed.algorithms.ranks import Joined, held, rank_of
from securefed.checkpoint import State
from securefed.compression.sending import keep, residual_of
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

    def train_and_collect(
        self, state: State, plan: RoundPlan, chosen: tuple[int, ...]
    ) -> tuple[Vector, Collected, list[ClientOutcome]]:
        """The aggregate over the layout of `plan.share`, what the server held, and the clients' answers.

        Raises:
            BudgetExceeded: every client (or the server's own mechanism) refused to spend more.
        """
        shared = self.model.layout.select(set(plan.share).__contains__)

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
        return found

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
        start = state.vector
        if client in state.local:
            kept = self.local_layout()
            start = self.model.layout.scatter(state.local[client], kept, start)
        clip = None if self.parts.clip is None else self.parts.clip.value
        holds = None
        if self.config.model.ranks:
            holds = held(self.model.layout, self.model.part_of, rank_of(self.config.model, client))
            start = (start * holds).astype(start.dtype)
        residual = None
        if client in state.residual:
            shared = self.model.layout.select(set(plan.share).__contains__)
            residual = residual_of(state.residual, client, self.model.layout, shared)
        return ClientJob(
            client,
            state.round,
            plan.train,
            plan.share,
            start,
            self._weight(client),
            clip,
            residual,
            self.parts.server.memory,
            holds,
        )

    def local_layout(self) -> Layout:
        """Of what each client keeps to itself."""
        names = set(local_names(self.config.model.adapter, self.model.part_of))
        return self.model.layout.select(names.__contains__)

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
            ranks={k: rank_of(m, k) for k in who},
            weights={k: weights.get(k, self._weight(k)) for k in who},
            updates=collected.updates or {},
            scale=m.alpha / (m.rank**0.5 if m.rslora else m.rank),
        )

    def residuals(
        self, state: State, plan: RoundPlan, outcomes: Sequence[ClientOutcome]
    ) -> dict[int, Vector]:
        """What compression has left out of each client's updates, after this round."""
        found = {o.client: o.residual for o in outcomes if o.residual is not None}
        shared = self.model.layout.select(set(plan.share).__contains__)
        return keep(state.residual, found, self.model.layout, shared)

    def bytes_down(self, state: State, plan: RoundPlan, chosen: tuple[int, ...], collected: Collected) -> int:
        """The global model goes to each client of the cohort as float32, and what the protection sends.

        Where a compression is built from the last sum, that too.
        """
        sent = 4 * (self.model.layout.size - self.local_layout().size)
        if self.parts.sending is not None:
            shared = self.model.layout.select(set(plan.share).__contains__)
            sent += self.parts.sending.down_bytes(shared, state.round, state.memory)
        return sent * len(chosen) + sum(collected.bytes_down.values())
