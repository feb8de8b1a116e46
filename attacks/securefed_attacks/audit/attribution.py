"""Where the leak is: layer by layer, and round by round."""

from __future__ import annotations

from securefed_attacks.audit.candidates import Candidates
from securefed_attacks.audit.evidence import Measured
from securefed_attacks.statistics import auc


def by_layer(measured: Measured, rows: Candidates | None) -> dict[str, tuple[float | None, float]]:
    """Layer -> (AUC of its part of the update cosine, its share of the update's squared norm).

    The parts add up to the whole cosine, so that a layer whose part separates alone carries the leak.
    """
    member = None if rows is None or not len(rows.members) or not len(rows.others) else rows.member
    return {
        layer: (
            None if member is None or layer not in measured.layers else auc(measured.layers[layer], member),
            share,
        )
        for layer, share in measured.share.items()
    }


def by_round(measured: Measured, rows: Candidates | None) -> tuple[float, ...]:
    """AUC of the update cosine of each round by itself; empty where it was not measured."""
    if measured.rounds is None or rows is None or rows.member is None:
        return ()
    if not len(rows.members) or not len(rows.others):
        return ()
    return tuple(auc(row, rows.member) for row in measured.rounds)
