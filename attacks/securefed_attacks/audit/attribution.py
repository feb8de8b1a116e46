"""Where the leak is: layer by layer, round by round, and which layer in which round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.evidence import Measured
from securefed_attacks.statistics import Interval, auc, auc_interval


def by_layer(measured: Measured, rows: Candidates | None) -> dict[str, tuple[float | None, float]]:
    """Layer -> (AUC of its part of the update cosine, over all rounds, its share of the updates' squared norm).

    Weighted by the layers' lengths the parts add up to the whole cosine, so that a layer whose part
    separates by itself carries the leak.
    """
    known = _known(rows)
    return {
        layer: (
            None
            if known is None or not any(layer in part for part in measured.layers)
            else auc(np.mean([part[layer] for part in measured.layers if layer in part], 0), known),
            share,
        )
        for layer, share in measured.share.items()
    }


def by_round(measured: Measured, rows: Candidates | None) -> tuple[Interval, ...]:
    """AUC of the update cosine of each round by itself, with its interval; empty where it was not measured."""
    known = _known(rows)
    if measured.rounds is None or known is None:
        return ()
    return tuple(auc_interval(row, known) for row in measured.rounds)


def by_layer_and_round(measured: Measured, rows: Candidates | None) -> Sequence[dict[str, float]]:
    """For each round, layer -> AUC of its part of that round's cosine; a layer that did not move is not in it."""
    known = _known(rows)
    if known is None:
        return ()
    return tuple({layer: auc(part, known) for layer, part in parts.items()} for parts in measured.layers)


def _known(rows: Candidates | None) -> NDArray[np.bool_] | None:
    """Who is a member, where both groups are there to be told apart."""
    return rows.member if rows is not None and len(rows.members) and len(rows.others) else None
