"""One round between a cohort and the server: reserve, train, exchange, then aggregate or release.

Every federation plays this, whatever its clients run: a job from a file, or somebody's own training code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed.aggregation import aggregate, round_generator, row_ids, row_weights
from securefed.compression.contract import Memory
from securefed.compression.sending import Sending
from securefed.crypto.entropy import Entropy
from securefed.engine.exchange import exchange
from securefed.errors import BudgetExceeded
from securefed.layout import Layout, vector_digest
from securefed.privacy.correlated_release import CorrelatedRelease
from securefed.privacy.distributed_release import DistributedRelease
from securefed.privacy.heads import heads_digest
from securefed.privacy.moving_clip import MovingClip
from securefed.privacy.server_mechanism import ServerMechanism
from securefed.privacy.shared_release import SharedRelease
from securefed.privacy.step_release import StepRelease
from securefed.training.client import ClientOutcome
from securefed.types import Aggregator, Collected, Protection, RoundContext, RoundParameters, Update, Vector

if TYPE_CHECKING:
    import torch

    from securefed.factors import AdapterSpace
    from securefed.privacy.chain import Head
    from securefed.privacy.ledger import Ledger

Train = Callable[[], list[ClientOutcome]]
"""Lets the cohort train; called at most once a round, after the server's own spend is on disk."""


@dataclass
class Rounds:
    """The server's side of a run's rounds.

    Attributes:
        mechanism: client-level DP, by the server's own noise or by noise that is in the sum, or the steps of
            fedsgd; None without.
        seed: of the experiment, for rules that draw.
        clip: of whole updates, where it moves; its bits travel behind the updates.
        rule_state: what a rule with memory carries from round to round.
        ledger: the site's, whose head enters what the round's messages are signed over; None without DP.
        sending: how updates are compressed; None where they are sent whole. memory: what its server side carries.
    """

    run: str
    protection: Protection
    rule: Aggregator
    mechanism: ServerMechanism | CorrelatedRelease | DistributedRelease | SharedRelease | StepRelease | None
    entropy: Entropy
    seed: int = 0
    clip: MovingClip | None = None
    rule_state: Any = field(default=None, repr=False)
    ledger: Ledger | None = None
    sending: Sending | None = None
    memory: Memory = field(default_factory=dict, repr=False)
    _seen: Head | None = field(default=None, repr=False)

    def begin_again(self) -> None:
        """Forgets what rule and compression remember of updates of tensors that have a new meaning from now on."""
        self.rule_state, self.memory = None, {}

    def play(
        self,
        round: int,
        shared: Layout,
        model: Vector,
        chosen: tuple[int, ...],
        train: Train,
        *,
        weights: tuple[float, ...] | None = None,
        space: AdapterSpace | None = None,
        root: torch.Tensor | None = None,
    ) -> tuple[Vector, Collected, list[ClientOutcome]]:
        """The aggregate over `shared`, what the server held, and the clients' answers.

        Args:
            shared: layout of what is sent. model: the global model the cohort trains from.
            chosen: the cohort, ascending; may be empty under client-level DP.
            weights: the cohort's weights where they are public constants.
            space: how a rule may read updates of adapters.
            root: the server's own update over `shared`, for rules that compare with one.

        Raises:
            BudgetExceeded: every client (or the server's own mechanism) refused to spend more, or so many that a
                step has too little noise. Under a mechanism of the server's own, a client that refuses counts as
                zero instead.
            ProtocolError: the protocol aborted, or nobody's update survived.
            PrivacyError: the ledger was rolled back or rewritten since the last round.
        """
        if self.ledger is not None and self._seen is not None:
            self.ledger.check_grown(self._seen)
        played = self._play(round, shared, model, chosen, train, weights, space, root)
        if self.ledger is not None:
            self._seen = self.ledger.head()
        return played

    def _play(
        self,
        round: int,
        shared: Layout,
        model: Vector,
        chosen: tuple[int, ...],
        train: Train,
        weights: tuple[float, ...] | None,
        space: AdapterSpace | None,
        root: torch.Tensor | None,
    ) -> tuple[Vector, Collected, list[ClientOutcome]]:
        if self.mechanism is not None and (stored := self.mechanism.stored(round)) is not None:
            return self._received(stored, shared, round), nobody(self._size(shared, round)), []
        own = None if isinstance(self.mechanism, StepRelease) else self.mechanism
        reservation = None if own is None else own.reserve(round)
        outcomes = train()
        refusals = {o.client: o.refusal for o in outcomes if o.refusal is not None}
        if own is None and refusals and len(chosen) - len(refusals) < self._fewest:
            raise BudgetExceeded(next(iter(refusals.values())))
        collected = self._collect(round, shared, model, chosen, outcomes, weights)
        collected = replace(collected, refused={**collected.refused, **refusals})
        if isinstance(self.mechanism, StepRelease):
            return self.mechanism.release(round, collected, self.entropy), collected, outcomes
        in_groups = isinstance(own, DistributedRelease) and collected.groups is not None
        if own is not None and reservation is not None and not in_groups:
            released = own.release(reservation, round, collected, self.entropy)
            return self._received(released, shared, round), collected, outcomes
        compares = self.rule.needs != "sum" and own is None  # such a rule reads rows (d,)
        if compares and self.sending is not None:
            collected = self.sending.lifted(collected, shared, round, self.memory)
        context = RoundContext(
            round=round,
            clients=row_ids(collected),
            weights=row_weights(collected, public=weights is not None),
            layout_digest=shared.digest if compares else self._digest(shared, round),
            root_update=root,
            generator=None if self.rule.needs == "sum" else round_generator(self.seed, round),
            space=space,
        )
        vector, self.rule_state = aggregate(self.rule, collected, context, self.rule_state)
        if isinstance(own, DistributedRelease) and reservation is not None and collected.groups is not None:
            vector = own.release_groups(reservation, round, collected.groups, vector)
        if not compares:
            return self._received(vector, shared, round), collected, outcomes
        if self.sending is not None:
            self.memory = self.sending.remembered(vector, shared, round, self.memory)
        return vector, collected, outcomes

    def _received(self, vector: Vector, shared: Layout, round: int) -> Vector:
        """The update (d,) from a mean or release of what was sent."""
        if self.sending is None:
            return vector
        vector, self.memory = self.sending.received(vector, shared, round, self.memory)
        return vector

    @property
    def _fewest(self) -> int:
        """Clients without whom there is no round."""
        return self.mechanism.noise.min_survivors if isinstance(self.mechanism, StepRelease) else 1

    def _collect(
        self,
        round: int,
        shared: Layout,
        model: Vector,
        chosen: tuple[int, ...],
        outcomes: list[ClientOutcome],
        weights: tuple[float, ...] | None,
    ) -> Collected:
        size = self._size(shared, round) + (0 if self.clip is None else 1)
        if not chosen:
            return nobody(size)
        parameters = RoundParameters(
            run=self.run,
            round=round,
            clients=chosen,
            size=size,
            layout_digest=self._digest(shared, round),
            model_digest=vector_digest(model),
            weights=weights,
            ledgers=self._heads(chosen),
        )
        updates = {o.client: _as_sent(o.update) for o in outcomes if o.update is not None}
        return exchange(self.protection, parameters, updates, self.entropy)

    def _size(self, shared: Layout, round: int) -> int:
        """Numbers of an update as it is sent."""
        return shared.size if self.sending is None else self.sending.size(shared, round)

    def _digest(self, shared: Layout, round: int) -> str:
        """Names the coordinates of an update as it is sent."""
        return shared.digest if self.sending is None else self.sending.digest(shared, round)

    def _heads(self, chosen: tuple[int, ...]) -> str:
        """In one process all clients are one site, with one ledger."""
        return "" if self.ledger is None else heads_digest(dict.fromkeys(chosen, self.ledger.head()))


def _as_sent(update: Update) -> Update:
    """The update with its bit behind its vector, where it has one."""
    if update.bit is None:
        return update
    vector = np.append(update.vector, np.float32(update.bit)).astype(np.float32)
    return replace(update, vector=vector, bit=None)


def nobody(size: int) -> Collected:
    """The outcome of a round in which no client was drawn: noise alone is released."""
    return Collected(survivors=(), total=np.zeros(size), weight=0.0, updates={})
