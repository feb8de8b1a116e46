"""One round between a cohort and the server: reserve, train, exchange, then aggregate or release.

Every federation plays this, whatever its clients run: a job from a file, or somebody's own training code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from securefed.aggregation import aggregate, round_generator, row_ids, row_weights
from securefed.crypto.entropy import Entropy
from securefed.engine.exchange import exchange
from securefed.errors import BudgetExceeded
from securefed.layout import Layout, vector_digest
from securefed.privacy.distributed_release import DistributedRelease
from securefed.privacy.server_mechanism import ServerMechanism
from securefed.training.client import ClientOutcome
from securefed.types import Aggregator, Collected, Protection, RoundContext, RoundParameters, Vector

if TYPE_CHECKING:
    import torch

    from securefed.factors import AdapterSpace

Train = Callable[[], list[ClientOutcome]]
"""Lets the cohort train; called at most once a round, after the server's own spend is on disk."""


@dataclass
class Rounds:
    """The server's side of a run's rounds.

    Attributes:
        mechanism: client-level DP, by the server's own noise or by noise that is in the sum; None without.
        seed: of the experiment, for rules that draw.
        rule_state: what a rule with memory carries from round to round.
    """

    run: str
    protection: Protection
    rule: Aggregator
    mechanism: ServerMechanism | DistributedRelease | None
    entropy: Entropy
    seed: int = 0
    rule_state: Any = field(default=None, repr=False)

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
            BudgetExceeded: every client (or the server's own mechanism) refused to spend more. Under a mechanism of
                the server's own, a client that refuses counts as zero instead.
            ProtocolError: the protocol aborted, or nobody's update survived.
        """
        if self.mechanism is not None and (stored := self.mechanism.stored(round)) is not None:
            return stored, nobody(shared.size), []
        reservation = None if self.mechanism is None else self.mechanism.reserve(round)
        outcomes = train()
        refusals = {o.client: o.refusal for o in outcomes if o.refusal is not None}
        if self.mechanism is None and refusals and len(refusals) == len(chosen):
            raise BudgetExceeded(next(iter(refusals.values())))
        collected = self._collect(round, shared, model, chosen, outcomes, weights)
        collected = replace(collected, refused={**collected.refused, **refusals})
        if self.mechanism is not None and reservation is not None:
            released = self.mechanism.release(reservation, round, collected, self.entropy)
            return released, collected, outcomes
        context = RoundContext(
            round=round,
            clients=row_ids(collected),
            weights=row_weights(collected, public=weights is not None),
            layout_digest=shared.digest,
            root_update=root,
            generator=round_generator(self.seed, round),
            space=space,
        )
        vector, self.rule_state = aggregate(self.rule, collected, context, self.rule_state)
        return vector, collected, outcomes

    def _collect(
        self,
        round: int,
        shared: Layout,
        model: Vector,
        chosen: tuple[int, ...],
        outcomes: list[ClientOutcome],
        weights: tuple[float, ...] | None,
    ) -> Collected:
        if not chosen:
            return nobody(shared.size)
        parameters = RoundParameters(
            run=self.run,
            round=round,
            clients=chosen,
            size=shared.size,
            layout_digest=shared.digest,
            model_digest=vector_digest(model),
            weights=weights,
        )
        updates = {o.client: o.update for o in outcomes if o.update is not None}
        return exchange(self.protection, parameters, updates, self.entropy)


def nobody(size: int) -> Collected:
    """The outcome of a round in which no client was drawn: noise alone is released."""
    return Collected(survivors=(), total=np.zeros(size), weight=0.0, updates={})
