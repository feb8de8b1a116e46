"""Clients whose whole update is a canary's direction: an audit of client-level DP, judged on sums alone.

A canary client takes part like any other; its coin decides whether its update is its direction, far longer than the
clip, or zero. The auditor needs nothing but what the round gives everybody, so canaries ride inside masked and
encrypted rounds as well as open ones, and bound the same epsilon there.

Unit: one client; neighbours: one client's update replaced by zero, the client still takes part (zero-out).
Canary clients for federated learning: Andrew et al. 2024 (arXiv 2302.03098), who estimate; here they bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.entropy import Entropy
from securefed.engine.exchange import exchange
from securefed.layout import vector_digest
from securefed.types import Protection, RoundParameters, Update, Vector
from securefed_attacks.canaries import Assumed, Canaries, DPAudit, one_run_audit

LOUD = 100.0
"""Length of a canary's update in clipping norms: a clip that is left out is heard."""

Share = Callable[[Vector, int], Vector]
"""(update, client) -> what the client hands to the protection: clipped, and with its noise where it adds some itself."""


def canary_updates(canaries: Canaries, clip: float, round: int = 0) -> dict[int, Update]:
    """Client -> update: client j is canary j and sends its direction `LOUD` times the clip, or zero."""
    return {j: Update(j, round, canaries.contribution(j, clip * LOUD), weight=1.0) for j in range(canaries.m)}


def ride(
    protection: Protection,
    canaries: Canaries,
    clip: float,
    entropy: Entropy,
    *,
    run: str = "audit",
    round: int = 0,
    share: Share | None = None,
) -> NDArray[np.float64]:
    """The sum that one round of the protection gives its server when every client is a canary, float64 (d,).

    Args:
        share: the clients' own half of the mechanism, e.g. clip and `noisy_share` under encryption; None where the
            protection itself clips and noises (masking that carries distributed noise).

    Raises:
        ProtocolError: the round aborted.
    """
    updates = canary_updates(canaries, clip, round)
    if share is not None:
        updates = {j: Update(j, round, share(u.vector, j), weight=1.0) for j, u in updates.items()}
    zero = np.zeros(canaries.d, np.float32)
    parameters = RoundParameters(
        run=run,
        round=round,
        clients=tuple(range(canaries.m)),
        size=canaries.d,
        layout_digest=vector_digest(np.array([canaries.d], np.float32)),
        model_digest=vector_digest(zero),
        weights=(1.0,) * canaries.m,
    )
    return exchange(protection, parameters, updates, entropy).total


def audit_sums(
    sums: Sequence[NDArray[np.float64]] | Mapping[int, NDArray[np.float64]],
    canaries: Canaries,
    *,
    claimed: float,
    delta: float,
    confidence: float = 0.95,
    assumes: Assumed = "nothing",
) -> DPAudit:
    """The verdict over the rounds' sums (d,) of one run in which these clients took part, the coins the same in all."""
    rounds = list(sums.values()) if isinstance(sums, Mapping) else list(sums)
    if not rounds:
        raise ValueError("an audit needs the sum of at least one round")
    return one_run_audit(
        canaries.scores(np.sum(rounds, axis=0)),
        canaries.included,
        delta=delta,
        confidence=confidence,
        claimed=claimed,
        assumes=assumes,
    )
